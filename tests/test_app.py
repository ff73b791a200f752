"""The application over a storage in memory: every line of the HTTP contract, and what becomes of bodies and failures.

The application is driven as raw ASGI, so that the raw path, the pieces of a body and the end of a connection are
scripted exactly. What holds for every answer (type, length, one newline at the end of an error) is checked in `ask`.
"""

import asyncio
import contextlib
import functools
import gc
import json
from typing import NamedTuple
from urllib.parse import unquote

import pytest

from kv.app import create_app
from kv.log_client.large_values import LargeValue
from kv.log_client.outcomes import DataLimitReached, NoSpace, OutcomeUnknown, PreconditionFailed, Unavailable
from kv.log_client.pages import HeldPage
from logd.local.listing import Listing
from logd.local.store import Store
from logd.shared.protocol import PAGE_BYTES_MAX, LargeEntry, PageRequest
from tests.support import http_contract

LIMIT = http_contract.VALUE_BYTES_MAX
ABC = {"a": b"1", "b": b"2"}
GONE = None  # in place of a piece of a body: the client goes away


class Storage:
    """Keeps values in a dict; raises `failure` instead when there is one."""

    def __init__(self, data=(), *, failure=None, unavailable_reason=""):
        self.data = dict(data)
        self._failure = failure
        self._unavailable_reason = unavailable_reason

    def _fail(self):
        if self._failure:
            raise self._failure

    async def get(self, key):
        self._fail()
        return self.data.get(key)

    async def put(self, key, value):
        self._fail()
        self.data[key] = value

    async def delete(self, key):
        self._fail()
        self.data.pop(key, None)

    async def execute(self, transaction):
        """As the state does it (logd/local/store.py)."""
        self._fail()
        if failed := self._state()._failed(transaction.checks):
            raise PreconditionFailed(failed)
        self.data.update(transaction.puts)
        for key in transaction.deletes:
            self.data.pop(key, None)

    def _state(self):
        state = Store()
        state.load(self.data)
        return state

    async def page(self, query):
        """As logd does it (logd/local/listing.py)."""
        self._fail()
        listing = Listing(self._state())
        while listing.is_behind:
            listing.sort_some()
        page = listing.page(PageRequest(1, query, PAGE_BYTES_MAX), b"")
        if isinstance(page, LargeEntry):
            page = listing.page(PageRequest(1, query, page.size), b"")
        return HeldPage(page, lambda: None)

    async def clear(self):
        self._fail()
        self.data.clear()

    async def unavailable_reason(self):
        self._fail()
        return self._unavailable_reason

    async def stats(self):
        raise Unavailable("the log writer is not reachable")


class Answer(NamedTuple):
    status: int
    body: bytes
    headers: dict[str, str]
    pieces_read: int


def scope_of(method, path, length=None, fields=()):
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path.partition("?")[0]),
        "raw_path": path.partition("?")[0].encode("ascii"),
        "query_string": path.partition("?")[2].encode("ascii"),
        "root_path": "",
        "headers": [*fields, *([] if length is None else [(b"content-length", b"%d" % length)])],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }


def ask(storage, request, *pieces, length=None, fields=(), send=None):
    """Send one request: "METHOD raw-path", then the pieces of its body. None when the application does not answer.

    Without a length the body is chunked. An application that waits for more pieces than there are fails the test.
    """
    method, _, path = request.partition(" ")
    events = [
        {"type": "http.disconnect"}
        if piece is GONE
        else {"type": "http.request", "body": piece, "more_body": number < len(pieces)}
        for number, piece in enumerate(pieces or (b"",), 1)
    ]
    sent, read = [], 0

    async def receive():
        nonlocal read
        if read == len(events):
            pytest.fail("the application waits for an event that never comes")
        read += 1
        return events[read - 1]

    async def collect(event):
        sent.append(event)

    asyncio.run(create_app(storage, LIMIT)(scope_of(method, path, length, fields), receive, send or collect))
    return _answer(method, sent, read) if sent else None


def _answer(method, sent, read):
    start, *bodies = sent
    body = b"".join(event.get("body", b"") for event in bodies)
    names = [name.decode() for name, _ in start["headers"]]
    assert len(set(names)) == len(names)
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    answer = Answer(start["status"], body, headers, read)
    http_contract.assert_well_formed(method, answer)
    return answer


def put(storage, path, *pieces):
    return ask(storage, f"PUT {path}", *pieces, length=sum(map(len, pieces)))


# What each request does ----------------------------------------------------------------------------------


class InMemory:
    """The application, as the contract asks it."""

    def fill(self, data):
        self._storage = Storage(data)

    def ask(self, method, target, body, headers):
        fields = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        length = None if body is None else len(body)
        return ask(self._storage, f"{method} {target}", body or b"", length=length, fields=fields)

    def stored(self, _):
        return self._storage.data


@pytest.mark.parametrize("line", http_contract.LINES, ids=str)
def test_each_line_of_the_contract_holds(line):
    http_contract.assert_holds(line, InMemory())


@pytest.mark.parametrize("path", ["/kv/a", "/kv/none", "/kv/", "/kv/%FF", "/health", "/live", "/nope"])
@pytest.mark.parametrize("reason", ["", "the disk is on fire"])
def test_head_is_get_without_the_body(path, reason):
    storage = Storage({"a": "ü".encode()}, unavailable_reason=reason)
    get, head = ask(storage, f"GET {path}"), ask(storage, f"HEAD {path}")
    assert (head.status, head.headers) == (get.status, get.headers)
    assert head.headers["content-length"] == str(len(get.body))


@pytest.mark.parametrize("method", ["CONNECT", "BREW", "get"])
@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/kv/a", "DELETE, GET, HEAD, PUT"),
        ("/batch", "POST"),
        ("/clear", "DELETE"),
        ("/health", "GET, HEAD"),
        ("/nope", None),
        ("*", None),
    ],
)
def test_a_method_that_no_resource_has_is_refused_like_any_other_that_is_not_offered(method, path, allow):
    storage = Storage(ABC)
    answer = ask(storage, f"{method} {path}", b"3", length=1)
    assert (answer.status, answer.headers.get("allow")) == (405 if allow else 404, allow)
    assert storage.data == ABC


# Values --------------------------------------------------------------------------------------------------


class LargeStorage(Storage):
    """One whose values are all large; knows how many of their bytes are not released yet."""

    def __init__(self, data):
        super().__init__(data)
        self.held_bytes = 0

    def get(self, key):
        read = asyncio.get_running_loop().create_future()
        value = self.data[key]
        self.held_bytes += len(value)
        read.set_result(LargeValue(value, functools.partial(self._release, [len(value)])))
        return read

    def _release(self, held):
        self.held_bytes -= held.pop() if held else 0


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("size", [1, 262_144, 262_145, 1_000_000])
def test_a_large_value_comes_back_byte_by_byte_and_is_released_then(method, size):
    value = bytes(range(100)) * (size // 100) + b"x" * (size % 100)
    storage = LargeStorage({"a": value})
    answer = ask(storage, f"{method} /kv/a")
    assert (answer.status, answer.headers["content-length"]) == (200, str(size))
    assert answer.body == (value if method == "GET" else b"")
    assert storage.held_bytes == 0


@pytest.mark.parametrize("events_sent", [0, 1, 2, 4])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("failure", [ConnectionResetError, asyncio.CancelledError])
def test_a_large_value_is_released_when_the_client_goes_away_before_or_amid_its_answer(method, events_sent, failure):
    storage = LargeStorage({"a": bytes(1_000_000)})
    seen = []

    async def send(event):
        assert storage.held_bytes == 1_000_000
        seen.append(event)
        if len(seen) > events_sent:
            raise failure

    with contextlib.suppress(failure):
        ask(storage, f"{method} /kv/a", send=send)
    assert len(seen) == min(events_sent + 1, 2 if method == "HEAD" else 6)
    assert storage.held_bytes == 0


def test_a_large_value_is_released_when_its_request_is_cancelled_in_the_turn_in_which_it_arrives():
    async def main():
        storage = LargeStorage({"a": bytes(1_000_000)})
        arrives = asyncio.get_running_loop().create_future()
        storage.get, get = lambda _: arrives, storage.get
        request = asyncio.ensure_future(create_app(storage, LIMIT)(scope_of("GET", "/kv/a"), nothing_more, None))
        await asyncio.sleep(0)
        arrives.set_result(get("a").result())
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert storage.held_bytes == 0

    async def nothing_more():
        return {"type": "http.request", "body": b"", "more_body": False}

    asyncio.run(main())


def test_a_refused_read_names_no_value():
    answer = ask(Storage(ABC), "GET /kv/a", fields=[(b"if-none-match", b"no tag")])
    assert (answer.status, answer.body) == (400, b"if-none-match cannot be parsed\n")
    assert "etag" not in answer.headers


@pytest.mark.parametrize("path", ["/kv/a", "/keys"])
def test_a_failed_read_leaves_nothing_for_the_garbage_collector(path):
    class Failing(Storage):
        def get(self, _):
            read = asyncio.get_running_loop().create_future()
            read.set_exception(OutcomeUnknown("of this test"))
            return read

        page = get

    gc.collect()
    gc.disable()
    try:
        assert ask(Failing(), f"GET {path}").status == 504
        failures = [each for each in gc.get_objects() if isinstance(each, OutcomeUnknown)]
        assert not [each for each in failures if each.args == ("of this test",)]
    finally:
        gc.enable()


# Pages ---------------------------------------------------------------------------------------------------


class HeldStorage(Storage):
    """One that knows how many pages are not released yet."""

    held_pages = 0

    async def page(self, query):
        held = await super().page(query)
        self.held_pages += 1
        released = [1]
        return HeldPage(
            held.page, lambda: setattr(self, "held_pages", self.held_pages - (released.pop() if released else 0))
        )


ESCAPED = 'ü"\\\n\u0001\u2028😀'.encode()
PAGES = {
    "small values": {f"k{n}": ESCAPED * (n + 1) for n in range(5)},
    "values of a MiB together": {f"k{n}": ESCAPED * 7000 for n in range(8)},
    "one large value": {"k": ESCAPED * 100_000},
    "one value of the size of a page": {"k": b"v" * (PAGE_BYTES_MAX - 1)},
    "a large value that fills its pieces": {"k": b"v" * (2 * PAGE_BYTES_MAX)},
}


@pytest.mark.parametrize("data", PAGES.values(), ids=PAGES.keys())
def test_a_page_of_values_comes_back_character_by_character_and_is_released_then(data):
    storage = HeldStorage(data)
    answer = ask(storage, "GET /keys?values=1")
    assert [json.loads(line) for line in answer.body.splitlines()] == [
        {"key": key, "value": value.decode()} for key, value in data.items()
    ]
    assert "link" not in answer.headers
    assert ask(storage, "HEAD /keys?values=1").headers == answer.headers
    assert storage.held_pages == 0


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("data", [{"k": b"\1" * 4 * PAGE_BYTES_MAX}, {f"{n:02}": b"\1" * 30_000 for n in range(34)}])
def test_a_page_that_is_much_larger_as_json_is_encoded_in_small_pieces_between_which_others_have_their_turn(
    data, method
):
    async def main():
        turns, turns_at = 0, []

        async def send(event):
            turns_at.append(turns)
            assert len(event.get("body", b"")) < PAGE_BYTES_MAX // 2

        request = asyncio.ensure_future(
            create_app(HeldStorage(data), LIMIT)(scope_of(method, "/keys?values=1"), None, send)
        )
        while not request.done():
            await asyncio.sleep(0)
            turns += 1
        await request
        assert turns_at[0] > sum(map(len, data.values())) // (128 << 10)
        if method == "GET":
            assert len(set(turns_at)) > len(turns_at) // 2

    asyncio.run(main())


def test_a_walk_along_the_links_finds_every_value_also_large_ones():
    data = {f"{n:02}": b"v" * (n * 100_000 + 1) for n in range(30)}
    storage, found, target = HeldStorage(data), {}, "/keys?values=1&limit=7"
    while target:
        answer = ask(storage, f"GET {target}")
        found |= {line["key"]: line["value"].encode() for line in map(json.loads, answer.body.splitlines())}
        target = answer.headers.get("link", "")[1:].partition(">")[0]
    assert found == data


def test_keys_that_are_asked_for_and_have_no_room_are_in_the_link():
    storage = Storage(dict.fromkeys("abcd", b"v" * 600_000))
    answer = ask(storage, "GET /keys?key=d&key=x&values=1&key=a&key=b")
    assert [json.loads(line)["key"] for line in answer.body.splitlines()] == ["d"]
    assert answer.headers["link"] == '</keys?key=a&key=b&values=1>; rel="next"'


@pytest.mark.parametrize("events_sent", [0, 1, 3])
@pytest.mark.parametrize("failure", [ConnectionResetError, asyncio.CancelledError])
def test_a_page_is_released_when_the_client_goes_away_before_or_amid_its_answer(events_sent, failure):
    storage = HeldStorage(PAGES["one large value"])
    seen = []

    async def send(event):
        assert storage.held_pages == 1
        seen.append(event)
        if len(seen) > events_sent:
            raise failure

    with contextlib.suppress(failure):
        ask(storage, "GET /keys?values=1", send=send)
    assert len(seen) == events_sent + 1
    assert storage.held_pages == 0


# Bodies --------------------------------------------------------------------------------------------------


def test_a_character_may_be_split_between_two_pieces():
    storage = Storage()
    assert ask(storage, "PUT /kv/a", b"\xe2", b"\x82\xac").status == 200
    assert storage.data == {"a": "€".encode()}


@pytest.mark.parametrize("pieces", [[b""], [b"", b""]])
def test_a_chunked_body_may_not_be_empty_either(pieces):
    storage = Storage(ABC)
    answer = ask(storage, "PUT /kv/a", *pieces)
    assert (answer.status, answer.body) == (400, b"value cannot be empty\n")
    assert storage.data == ABC


@pytest.mark.parametrize(
    "pieces",
    [
        [b"x" * LIMIT],
        [b"x" * LIMIT, b""],
        [b"x" * (LIMIT - 1), b"x"],
        [b"", b"x" * LIMIT, b"", b""],
        [b"x"] * LIMIT,
    ],
)
@pytest.mark.parametrize("length", [None, LIMIT])
def test_a_value_of_exactly_the_limit_is_stored(pieces, length):
    storage = Storage()
    assert ask(storage, "PUT /kv/a", *pieces, length=length).status == 200
    assert storage.data == {"a": b"x" * LIMIT}


@pytest.mark.parametrize(
    ("length", "pieces", "pieces_read"),
    [
        (LIMIT + 1, [b"x", b"x" * LIMIT], 0),
        (1 << 60, [b"x", b"x" * LIMIT], 0),
        (LIMIT + 1, [b"", GONE], 0),
        (None, [b"x" * LIMIT, b"x", b"x"], 2),
        (None, [b"x" * (LIMIT + 1), b"x"], 1),
        (None, [b"x" * LIMIT, b"x"], 2),
        (None, [*[b"x"] * LIMIT, b"x", b"x", b"x"], LIMIT + 1),
    ],
)
def test_a_value_over_the_limit_is_refused_as_soon_as_it_is_known_and_the_rest_is_not_read(length, pieces, pieces_read):
    storage = Storage(ABC)
    answer = ask(storage, "PUT /kv/a", *pieces, length=length)
    assert (answer.status, answer.body, answer.pieces_read) == (413, b"value too large\n", pieces_read)
    assert answer.headers["connection"] == "close"
    assert storage.data == ABC


@pytest.mark.parametrize(
    ("request_", "status"),
    [("PUT /kv/%FF", 400), ("PUT /kv/", 400), ("POST /kv/a", 405), ("PUT /clear", 405), ("PUT /nope", 404)],
)
def test_a_request_is_refused_before_its_body_has_arrived(request_, status):
    answer = ask(Storage(), request_, b"x", b"x", length=2)
    assert (answer.status, "connection" in answer.headers, answer.pieces_read) == (status, False, 0)


@pytest.mark.parametrize("request_", ["PUT /kv/", "PUT /kv/a", "POST /kv/a", "GET /kv/none", "GET /nope"])
def test_an_error_does_not_end_a_connection_whose_request_was_read_to_its_end(request_):
    assert "connection" not in ask(Storage(), request_).headers


@pytest.mark.parametrize(
    ("length", "pieces"),
    [
        (None, [b"abc", GONE]),
        (None, [b"abc", b"", GONE]),
        (None, [b"", GONE]),
        (None, [GONE]),
        (10, [b"abc", GONE]),
        (10, [b"", GONE]),
        (10, [GONE]),
        (3, [b"abc", GONE]),
        (10, [b"abc"]),
        (10, [b"abc", b"def"]),
        (1, [b"abc"]),
    ],
)
def test_a_put_whose_body_does_not_end_as_it_should_stores_nothing(length, pieces):
    storage = Storage(ABC)
    answer = ask(storage, "PUT /kv/a", *pieces, length=length)
    assert answer is None or answer.status >= 400
    assert storage.data == ABC


# Failures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", ["PUT /kv/a", "GET /kv/a", "DELETE /kv/a", "DELETE /clear", "GET /health"])
@pytest.mark.parametrize(
    ("failure", "status", "retry_after"),
    [
        (Unavailable("too many writes are waiting"), 503, True),
        (OutcomeUnknown("whether it was applied is not known"), 504, False),
        (NoSpace("no space left on device"), 507, False),
        (DataLimitReached("data limit reached"), 507, False),
    ],
)
def test_a_failure_of_the_storage_is_answered_with_its_status_and_reason(request_, failure, status, retry_after):
    answer = ask(Storage(failure=failure), request_, b"3", length=1)
    assert (answer.status, answer.body) == (status, f"{failure}\n".encode())
    assert answer.headers.get("retry-after", "").isdecimal() == retry_after


@pytest.mark.parametrize("request_", ["PUT /kv/a", "GET /kv/a", "DELETE /kv/a", "DELETE /clear", "GET /health"])
def test_a_defect_is_500_and_its_details_are_logged_and_not_sent(request_, caplog):
    answer = ask(Storage(failure=ZeroDivisionError("secret")), request_, b"3", length=1)
    assert (answer.status, answer.body) == (500, b"internal server error\n")
    assert "secret" in caplog.text


def test_health_says_why_the_server_cannot_take_reads_and_writes():
    answer = ask(Storage(unavailable_reason="no space left on device"), "GET /health")
    assert (answer.status, answer.body) == (503, b"no space left on device\n")
    assert answer.headers["retry-after"].isdecimal()


@pytest.mark.parametrize("failure", [Unavailable("the log writer is not reachable"), ZeroDivisionError()])
def test_a_worker_says_that_it_lives_whatever_is_wrong_with_logd(failure):
    answer = ask(Storage(failure=failure, unavailable_reason="no space left on device"), "GET /live")
    assert (answer.status, answer.body) == (200, b"ok")
