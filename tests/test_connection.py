"""A connection without a network: answers do not depend on the pieces in which requests arrive, and none is lost."""

import asyncio
import gc
import random
import re
from types import SimpleNamespace

import pytest

from kv.app import create_app
from kv.config import Config
from kv.http.buffer_budget import BufferBudget
from kv.http.connection import Connection, Phase
from kv.http.context import WorkerContext
from kv.http.exchange import Exchange
from kv.http.request_parser import RequestParser
from kv.log_client.outcomes import Unavailable
from kv.prompt_future import PromptFuture

CANARY = b"GET /kv/canary HTTP/1.1\r\nHost: h\r\n\r\n"


class Storage(dict):
    async def get(self, key):
        await asyncio.sleep(0)
        return dict.get(self, key)

    async def put(self, key, value):
        await asyncio.sleep(0)
        self[key] = value

    async def delete(self, key):
        self.pop(key, None)


class Transport:
    """Takes what is written; is closed by one side or both."""

    def __init__(self):
        self.written = b""
        self.is_reading = True
        self.write_is_closed = self.closed = False

    def get_extra_info(self, name):
        return None

    def write(self, data):
        assert not self.write_is_closed
        assert not self.closed
        self.written += data

    def write_eof(self):
        self.write_is_closed = True

    def close(self):
        self.closed = True

    abort = close

    def is_closing(self):
        return self.closed

    def pause_reading(self):
        assert self.is_reading
        self.is_reading = False

    def resume_reading(self):
        assert not self.is_reading
        self.is_reading = True

    def get_write_buffer_size(self):
        return 0


class Client:
    """One connection to an application over a dict. Its bytes are delivered as the server reads them."""

    def __init__(self, storage=None, **options):
        self.storage = Storage(canary=b"CANARY") if storage is None else storage
        self.answered, self.refused = [], []
        counters = SimpleNamespace(
            answered=lambda method, status, seconds: self.answered.append((method, status)),
            refused=lambda method, status: self.refused.append(status),
        )
        options = Config(**options)
        self.context = WorkerContext(
            options, create_app(self.storage, 1000), counters, BufferBudget(options.body_bytes_in_flight_max)
        )
        self.connection = Connection(self.context)
        self.transport = Transport()
        self.connection.connection_made(self.transport)

    async def send(self, *pieces):
        for piece in pieces:
            await self.settle()
            assert self.transport.is_reading
            if self.transport.closed:
                return
            self.connection.data_received(piece)
        await self.settle()

    async def settle(self):
        for _ in range(20):
            await asyncio.sleep(0)

    def answers(self):
        """Status and body of each answer, without interim ones, and whether the server has closed its side."""
        rest, found = self.transport.written, []
        while rest:
            head, _, rest = rest.partition(b"\r\n\r\n")
            fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
            assert b"date" in fields
            del fields[b"date"]
            length = int(fields[b"content-length"]) if head[9:12] != b"100" else 0
            found.append((int(head[9:12]), fields, rest[:length]))
            rest = rest[length:]
        return found, self.transport.write_is_closed or self.transport.closed


def run(coroutine):
    return asyncio.run(coroutine)


PUT = b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n1\r\n!\r\n0\r\n\r\n"
STREAMS = {
    "put, get": PUT + b"GET /kv/a HTTP/1.1\r\nHost: h\r\n\r\n",
    "chunked": CHUNKED + CANARY,
    "not found": b"GET /nope HTTP/1.1\r\nHost: h\r\n\r\n" + CANARY,
    "method with a body": b"POST /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello" + CANARY,
    "unread body": b"GET /live HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + CANARY,
    "bad key": b"PUT /kv/a%20b HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello" + CANARY,
    "too large": b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 1001\r\n\r\nhello",
    "no host": b"GET /kv/canary HTTP/1.1\r\n\r\n" + CANARY,
    "unknown method": b"BREW /kv/a HTTP/1.1\r\nHost: h\r\n\r\n" + CANARY,
    "target that is not ASCII": b"GET /kv/\xc3\xa9 HTTP/1.1\r\nHost: h\r\n\r\n" + CANARY,
    "close": b"GET /kv/canary HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n" + CANARY,
    "1.0": b"GET /kv/canary HTTP/1.0\r\n\r\n" + CANARY,
    "bad chunk": b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n"
    + CANARY,
    "upgrade": b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nab"
    + CANARY,
    "utf-8": "PUT /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nžl".encode() + CANARY,
}


async def exchange(pieces):
    client = Client()
    for piece in pieces:
        await client.settle()
        if client.transport.is_reading and not client.transport.closed:
            client.connection.data_received(piece)
    await client.settle()
    return client.answers(), dict(client.storage)


@pytest.mark.parametrize("before", [b"", CANARY], ids=["alone", "pipelined"])
@pytest.mark.parametrize("name", STREAMS)
def test_answers_do_not_depend_on_the_pieces_in_which_requests_arrive(name, before):
    stream = before + STREAMS[name]

    async def every_split():
        whole = await exchange([stream])
        for cut in range(1, len(stream)):
            assert await exchange([stream[:cut], stream[cut:]]) == whole, stream[:cut]
        assert await exchange([stream[at : at + 1] for at in range(len(stream))]) == whole

    run(every_split())


SHORTCUTS = [(Exchange, "answer", False), (Exchange, "take_body", None), (RequestParser, "known_request", None)]
MORE_STREAMS = {
    "value": b"GET /kv/canary HTTP/1.1\r\nHost: h\r\n\r\n",
    "head": b"HEAD /kv/canary HTTP/1.1\r\nHost: h\r\n\r\n",
    "key not found": b"GET /kv/none HTTP/1.1\r\nHost: h\r\n\r\n",
    "not modified": b"GET /kv/canary HTTP/1.1\r\nHost: h\r\nIf-None-Match: *\r\n\r\n",
    "delete": b"DELETE /kv/canary HTTP/1.1\r\nHost: h\r\n\r\n",
    "empty value": b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n",
    "expectation": b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab",
    "unsupported condition": b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nIf-Range: x\r\nContent-Length: 2\r\n\r\nab",
    "page of another site": b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nOrigin: http://x\r\nContent-Length: 2\r\n\r\nab",
    "encoded key": b"GET /kv/%63anary HTTP/1.1\r\nHost: h\r\n\r\n",
    "empty key": b"GET /kv/ HTTP/1.1\r\nHost: h\r\n\r\n",
    "bad key": b"GET /kv/a/b HTTP/1.1\r\nHost: h\r\n\r\n",
    "unknown path": b"GET /none HTTP/1.1\r\nHost: h\r\n\r\n",
    "1.0, keep-alive": b"GET /kv/canary HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "health": b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n",
    "defect": b"DELETE /clear HTTP/1.1\r\nHost: h\r\n\r\n",  # the storage has no such method
}


@pytest.mark.parametrize("kept", [*range(len(SHORTCUTS)), None])
@pytest.mark.parametrize("name", STREAMS | MORE_STREAMS)
def test_each_short_way_gives_the_bytes_and_the_counts_of_the_long_one(name, kept, monkeypatch):
    async def converse():
        client = Client()
        for _ in range(3):  # with more than one the fields are known, as long as the connection lives
            if client.transport.is_reading and not client.transport.write_is_closed:
                await client.send((STREAMS | MORE_STREAMS)[name])
        written = re.sub(rb"\r\ndate: [^\r]*", b"", client.transport.written)
        return written, client.answered, client.refused, client.context.budget.held_bytes

    short = run(converse())
    for number, (owner, method, refusal) in enumerate(SHORTCUTS):
        if number != kept:
            monkeypatch.setattr(owner, method, lambda *_, refusal=refusal: refusal)
    assert run(converse()) == short
    assert short[1] or short[2]


class SlowStorage:
    """Answers when it is told to, in any order."""

    def __init__(self):
        self.asked = []

    def get(self, key):
        future = PromptFuture(loop=asyncio.get_running_loop())
        self.asked.append((key, future))
        return future

    def answer(self, index):
        key, future = self.asked.pop(index)
        future.set_result(f"value of {key}".encode())


class Crowd:
    """Some clients of one storage, and what each of them has asked for."""

    def __init__(self, chance):
        self.chance = chance
        self.storage = SlowStorage()
        self.wanted = {}
        self.number = 0

    def act(self):
        """One more thing happens to one of them."""
        able = [each for each in self.wanted if each.connection._phase is Phase.SERVING]
        if len(able) < 6:
            self.wanted[Client(storage=self.storage)] = []
        elif self.chance.random() < 0.5:
            self.answer_one()
        elif (client := self.chance.choice(able)).transport.is_reading:
            self.chance.choice([*[self.ask] * 8, self.leave, self.time_out])(client)

    def answer_one(self):
        if self.storage.asked:
            self.storage.answer(self.chance.randrange(len(self.storage.asked)))

    def ask(self, client):
        count, self.number = self.chance.choice([1, 1, 3]), self.number + 3
        names = [b"%d" % (self.number + each) for each in range(count)]
        self.wanted[client] += [b"value of " + name for name in names]
        client.connection.data_received(b"".join(b"GET /kv/%b HTTP/1.1\r\nHost: h\r\n\r\n" % name for name in names))

    def leave(self, client):
        client.connection.connection_lost(None)

    def time_out(self, client):
        client.connection.data_received(b"GET /kv/late")
        client.connection.time_out()


@pytest.mark.parametrize("seed", range(20))
def test_each_client_gets_its_own_answers_whatever_becomes_of_others(seed):
    """Answers come in any order, while some clients go away and others are cut off in the middle of a request."""

    async def check():
        crowd = Crowd(random.Random(seed))
        for _ in range(200):
            crowd.act()
            if crowd.chance.random() < 0.5:
                await asyncio.sleep(0)
        while crowd.storage.asked:
            crowd.answer_one()
            await asyncio.sleep(0)
        count = 0
        for client, values in crowd.wanted.items():
            served = [body for status, _, body in client.answers()[0] if status == 200]
            assert served == values[: len(served)]
            count += len(served)
        assert count > 20

    run(check())


@pytest.mark.parametrize(
    "request_",
    [
        CANARY,
        PUT,
        CHUNKED,
        MORE_STREAMS["key not found"],
        MORE_STREAMS["delete"],
        MORE_STREAMS["head"],
        STREAMS["bad key"].removesuffix(CANARY),
        STREAMS["not found"].removesuffix(CANARY),
    ],
)
def test_a_request_leaves_no_garbage_that_a_collection_would_have_to_find(request_):
    async def check():
        client = Client()
        await client.send(request_)
        gc.collect()
        gc.disable()
        try:
            await client.send(request_, request_)
            assert gc.collect() == 0
        finally:
            gc.enable()

    run(check())


def test_a_request_that_fails_leaves_no_garbage_either():
    class Failing:
        def get(self, key):
            future = PromptFuture(loop=asyncio.get_running_loop())
            future.get_loop().call_soon(future.set_exception, Unavailable("not now"))
            return future

    async def check():
        client = Client(storage=Failing())
        gc.collect()
        gc.disable()
        try:
            await client.send(CANARY, CANARY)
            assert [status for status, _, _ in client.answers()[0]] == [503, 503]
            assert gc.collect() == 0
        finally:
            gc.enable()

    run(check())


def test_a_refusal_is_answered_after_the_requests_before_it():
    async def check():
        client = Client()
        await client.send(PUT + CANARY + b"BREW / HTTP/1.1\r\n\r\n" + CANARY)
        answers, is_closed = client.answers()
        assert [(status, body) for status, _, body in answers] == [
            (200, b""),
            (200, b"CANARY"),
            (400, b"bad request\n"),
        ]
        assert is_closed
        assert client.refused == [400]

    run(check())


@pytest.mark.parametrize(
    ("stream", "status"),
    [
        (b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n", 413),
        (b"PUT /kv/a HTTP/1.1\r\nContent-Length: 100000\r\n\r\n", 400),
        (b"GET /kv/canary HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", 200),
    ],
)
def test_after_the_last_answer_the_write_side_is_closed_and_what_still_comes_is_discarded(stream, status):
    async def check():
        client = Client()
        await client.send(stream, *[b"x" * 1000] * 100)
        ((answered, _, _),), is_closed = client.answers()
        assert (answered, is_closed, client.transport.closed) == (status, True, False)
        assert client.context.budget.held_bytes == 0
        assert not client.connection.eof_received()  # so the transport is closed

    run(check())


def test_what_is_discarded_is_never_served_as_a_request():
    async def check():
        client = Client()
        await client.send(b"GET /kv/canary HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", PUT, PUT)
        answers, _ = client.answers()
        assert len(answers) == 1
        assert "a" not in client.storage

    run(check())


def test_a_client_that_sends_more_than_may_be_discarded_is_cut_off():
    async def check():
        client = Client(linger_bytes_max=10_000)
        await client.send(b"BREW / HTTP/1.1\r\n\r\n", *[b"x" * 1000] * 10)
        assert not client.transport.closed
        await client.send(b"x")
        assert client.transport.closed

    run(check())


def test_a_client_that_lingers_has_a_deadline_for_all_and_one_for_progress():
    async def check():
        options = Config()
        client = Client()
        await client.send(b"BREW / HTTP/1.1\r\n\r\n")
        connection, now = client.connection, asyncio.get_running_loop().time()
        assert not connection.is_overdue(now + options.linger_idle_s - 1)
        assert connection.is_overdue(now + options.linger_idle_s + 1)
        assert connection.is_overdue(now + options.linger_timeout_s + 1)
        connection.time_out()
        assert client.transport.closed

    run(check())


def test_after_an_early_answer_the_next_request_is_served_when_the_body_has_ended():
    async def check():
        client = Client()
        head = b"POST /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 3000\r\n\r\n"
        await client.send(head + b"x" * 1000, b"x" * 1000)
        assert [status for status, _, _ in client.answers()[0]] == [405]
        await client.send(b"x" * 1000 + CANARY)
        assert [status for status, _, _ in client.answers()[0]] == [405, 200]

    run(check())


def test_reading_pauses_while_requests_wait_and_goes_on_after_their_answers():
    async def check():
        client = Client()
        client.connection.data_received(CANARY * 3)
        assert not client.transport.is_reading
        await client.settle()
        assert client.transport.is_reading
        assert len(client.answers()[0]) == 3

    run(check())


def test_the_time_for_headers_counts_from_the_answer_before_them(monkeypatch):
    async def check():
        clock_s, timeout_s = 1000.0, Config().header_timeout_s
        monkeypatch.setattr("kv.http.connection.monotonic", lambda: clock_s)
        client = Client()
        client.connection.data_received(CANARY + b"GET /kv/ca")
        assert client.connection.is_overdue(clock_s + timeout_s + 1) is False  # the first has no answer yet
        clock_s += timeout_s + 1
        await client.settle()
        assert len(client.answers()[0]) == 1
        assert not client.connection.is_overdue(clock_s + timeout_s - 1)
        assert client.connection.is_overdue(clock_s + timeout_s + 1)

    run(check())


def test_a_lost_connection_holds_no_bytes_and_the_application_gets_a_disconnect():
    async def check():
        client = Client()
        await client.send(b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 900\r\n\r\n" + b"x" * 400)
        assert client.context.budget.held_bytes >= 400
        client.connection.connection_lost(None)
        await client.settle()
        assert client.context.budget.held_bytes == 0
        assert client.context.connections == set()
        assert "a" not in client.storage

    run(check())


def test_a_connection_that_is_accepted_just_before_a_stop_is_closed_with_the_others():
    async def accept():
        client, late = Client(), Transport()
        client.context.is_stopping = True
        Connection(client.context).connection_made(late)
        async with asyncio.timeout(10):
            while not late.closed:
                await asyncio.sleep(0.01)

    asyncio.run(accept())
