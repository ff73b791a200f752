"""The HTTP contract: every line of its table, over a storage in memory.

The application is driven as raw ASGI, so that the raw path, the pieces of a body and the end of a connection are
scripted exactly. What holds for every answer (type, length, one newline at the end of an error) is checked in `ask`.
"""

import asyncio
import contextlib
import functools
from typing import NamedTuple
from urllib.parse import unquote

import pytest

from kv.app import create_app
from kv.log_client.large_values import LargeValue
from kv.log_client.outcomes import DataLimitReached, NoSpace, OutcomeUnknown, Unavailable

LIMIT = 64
TEXT = "text/plain; charset=utf-8"
KEY_METHODS = "DELETE, GET, HEAD, PUT"
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


def scope_of(method, path, length=None):
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
        "headers": [] if length is None else [(b"content-length", b"%d" % length)],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }


def ask(storage, request, *pieces, length=None, send=None):
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

    asyncio.run(create_app(storage, LIMIT)(scope_of(method, path, length), receive, send or collect))
    return _answer(method, sent, read) if sent else None


def _answer(method, sent, read):
    start, *bodies = sent
    body = b"".join(event.get("body", b"") for event in bodies)
    names = [name.decode() for name, _ in start["headers"]]
    assert len(set(names)) == len(names)
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    assert headers["content-type"] == TEXT
    if method == "HEAD":
        assert body == b""
        assert headers["content-length"].isdecimal()
    else:
        assert headers["content-length"] == str(len(body))
        assert start["status"] == 200 or (body.count(b"\n") == 1 and body[-1:] == b"\n" and len(body) > 1)
    return Answer(start["status"], body, headers, read)


def put(storage, path, *pieces):
    return ask(storage, f"PUT {path}", *pieces, length=sum(map(len, pieces)))


# What each request does ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "body", "status", "answer", "data"),
    [
        ("PUT /kv/c", b"3", 200, b"", {**ABC, "c": b"3"}),
        ("PUT /kv/a", b"3", 200, b"", {**ABC, "a": b"3"}),
        ("PUT /kv/A", b"3", 200, b"", {**ABC, "A": b"3"}),
        ("PUT /kv/a?b=c", b"3", 200, b"", {**ABC, "a": b"3"}),
        ("GET /kv/a", b"", 200, b"1", ABC),
        ("GET /kv/a?b=c", b"", 200, b"1", ABC),
        ("GET /kv/c", b"", 404, b"key not found\n", ABC),
        ("GET /kv/A", b"", 404, b"key not found\n", ABC),
        ("DELETE /kv/a", b"", 200, b"", {"b": b"2"}),
        ("DELETE /kv/c", b"", 200, b"", ABC),
        ("DELETE /clear", b"", 200, b"", {}),
        ("GET /health", b"", 200, b"ok", ABC),
        ("GET /live", b"", 200, b"ok", ABC),
        ("PUT /kv/", b"3", 400, b"key cannot be empty\n", ABC),
        ("GET /kv/", b"", 400, b"key cannot be empty\n", ABC),
        ("DELETE /kv/", b"", 400, b"key cannot be empty\n", ABC),
        ("PUT /kv/", b"", 400, b"key cannot be empty\n", ABC),
        ("PUT /kv/a", b"", 400, b"value cannot be empty\n", ABC),
        ("PUT /kv/a", b"x" * (LIMIT + 1), 413, b"value too large\n", ABC),
    ],
)
def test_a_request_gets_its_answer_and_changes_what_it_says(request_, body, status, answer, data):
    storage = Storage(ABC)
    got = ask(storage, request_, body, length=len(body))
    assert (got.status, got.body, storage.data) == (status, answer, data)


@pytest.mark.parametrize("path", ["/kv/a", "/kv/none", "/kv/", "/kv/%FF", "/health", "/live", "/nope"])
@pytest.mark.parametrize("reason", ["", "the disk is on fire"])
def test_head_is_get_without_the_body(path, reason):
    storage = Storage({"a": "ü".encode()}, unavailable_reason=reason)
    get, head = ask(storage, f"GET {path}"), ask(storage, f"HEAD {path}")
    assert (head.status, head.headers) == (get.status, get.headers)
    assert head.headers["content-length"] == str(len(get.body))


METHODS = ["GET", "HEAD", "PUT", "DELETE", "POST", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW", "get"]
WEBDAV = ["COPY", "LOCK", "MKCOL", "MOVE", "PROPFIND", "PROPPATCH", "UNLOCK", "REPORT"]


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/kv/a", KEY_METHODS),
        ("/kv/", KEY_METHODS),
        ("/kv/%FF", KEY_METHODS),
        ("/clear", "DELETE"),
        ("/health", "GET, HEAD"),
        ("/live", "GET, HEAD"),
        ("/metrics", "GET, HEAD"),
    ],
)
def test_a_method_that_is_not_offered_is_405_and_the_answer_names_those_that_are(path, allow):
    storage = Storage(ABC)
    for method in {*METHODS, *WEBDAV} - set(allow.split(", ")):
        answer = ask(storage, f"{method} {path}", b"3", length=1)
        assert (method, answer.status, answer.headers.get("allow")) == (method, 405, allow)
        assert answer.body == (b"" if method == "HEAD" else b"method not allowed\n")
    assert storage.data == ABC


@pytest.mark.parametrize(
    "path",
    [
        "/", "/kv", "/kv?a", "/nope", "/KV/a", "/kv;a", "/clear/", "/clear/a", "/Clear", "/health/", "/a/kv/a",
        "/kv%2Fa", "/kv%2F", "/kv%2Fa/b", "/kv%2F/b", "//kv/b", "/%2Fkv/b",
        "//clear", "/%2Fclear", "//health", "/%2Fhealth", "*",
    ],
)  # fmt: skip
def test_a_path_that_is_not_known_is_404_and_nothing_happens(path):
    storage = Storage(ABC)
    for method in METHODS:
        answer = ask(storage, f"{method} {path}", b"3", length=1)
        assert (method, answer.status) == (method, 404)
        assert answer.body == (b"" if method == "HEAD" else b"not found\n")
    assert storage.data == ABC


# Keys ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/kv/a", "a"),
        ("/kv/%61", "a"),
        ("/kv/a%3Ab", "a:b"),
        ("/kv/user:1_x.y-Z", "user:1_x.y-Z"),
        ("/kv/.", "."),
        ("/kv/..", ".."),
        ("/kv/%2e%2E", ".."),
        ("/kv/:", ":"),
        ("/kv/-", "-"),
        ("/kv/0", "0"),
        ("/kv/kv", "kv"),
        ("/kv/clear", "clear"),
        ("/kv/" + "k" * 30_000, "k" * 30_000),
    ],
    ids=lambda text: text[:20],
)
def test_a_valid_key_is_percent_decoded_and_used_as_it_is(path, key):
    storage = Storage()
    assert put(storage, path, b"v").status == 200
    assert storage.data == {key: b"v"}
    assert ask(storage, f"GET {path}").body == b"v"
    assert ask(storage, f"DELETE {path}").status == 200
    assert storage.data == {}


INVALID = [
    "%FF", "%FE", "%2F", "a%2Fb", "a/b", "/a", "a/", "%00", "a%00", "a%0A", "%0A", "+", "a+b", "%20", "a%20b", "%09",
    "%C3%BC", "%F0%9F%98%80", "%EF%BF%BD", "%7F", "%zz", "%4", "%", "a%", "%%41", "%25", "a%2541", "~", "a*b", "a,b",
    "a;b", "a=b", "a@b", "(a)", "a!", "$a", "a&b", "'a'", "a|b", "a\\b", "[a]", "k" * 30_000 + "+",
]  # fmt: skip


@pytest.mark.parametrize("key", INVALID, ids=lambda key: key[:20])
def test_a_key_with_any_other_character_is_refused_by_every_method(key):
    storage = Storage(ABC)
    for method in ("PUT", "GET", "DELETE"):
        answer = ask(storage, f"{method} /kv/{key}", b"3", length=1)
        assert (answer.status, answer.body) == (400, b"key contains invalid characters\n")
    assert storage.data == ABC


# Values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "😀 ü €".encode(),
        b"line\nline\r\n\ttab\n",
        b"\x00",
        b"a\x00b",
        b" ",
        b"\n",
        b"\xef\xbb\xbfbom",
        b"x" * LIMIT,
        b"0\r\n\r\n",
        b"key not found\n",
    ],
)
def test_a_value_comes_back_byte_by_byte(value):
    storage = Storage()
    assert put(storage, "/kv/a", value).status == 200
    assert ask(storage, "GET /kv/a").body == value


class LargeStorage(Storage):
    """One whose values are all large; knows how many of their bytes nobody has released."""

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


@pytest.mark.parametrize(
    "value", [b"\xff", b"a\x80", b"\xe2\x82", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", "ü".encode("latin-1")]
)
def test_a_value_that_is_not_utf_8_is_refused(value):
    storage = Storage(ABC)
    answer = put(storage, "/kv/a", value)
    assert (answer.status, answer.body) == (400, b"value must be valid UTF-8\n")
    assert storage.data == ABC


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
        (LIMIT + 1, [b"x", b"x" * LIMIT], 1),
        (1 << 60, [b"x", b"x" * LIMIT], 1),
        (LIMIT + 1, [b"", GONE], 1),
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
def test_a_request_that_is_refused_before_its_body_has_arrived_ends_the_connection(request_, status):
    answer = ask(Storage(), request_, b"x", b"x", length=2)
    assert (answer.status, answer.headers["connection"], answer.pieces_read) == (status, "close", 1)


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
