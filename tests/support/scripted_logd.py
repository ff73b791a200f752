"""A logd that does only what a test makes it do, and a client that is connected to it.

The client is the real one, over a real socket. `scenario` makes a test of a coroutine that gets both.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest
import uvloop
import zmq

from kv.log_client.client import Client
from kv.log_client.outcomes import RequestFailed
from logd.shared import protocol
from logd.shared.protocol import PROTOCOL_VERSION, Committed, Hello, ReadBatch, Reason, Refused, Values, WriteBatch

GUARD_SECONDS = 20.0
SHORT_SECONDS = 0.25
ADDRESS = "ipc://logd"  # relative to a fresh directory, because a path may have about 100 bytes only
OPTIONS: Final[dict[str, Any]] = {"request_timeout_s": 15.0, "queue_bytes_max": 64 << 20, "large_bytes_max": 64 << 20}
BOTH_LOOPS = (asyncio.run, uvloop.run)


class Logd:
    """A ROUTER that greets every connection. All other answers are the test's."""

    def __init__(self, log: list[logging.LogRecord]) -> None:
        self.log = log
        """What the client has logged."""
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket: zmq.Socket[bytes]
        self.greets = True
        self.peer = b""
        self.session = b""
        self.raw = b""

    def appear(self) -> None:
        """Listen."""
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.bind(ADDRESS)

    async def vanish(self, client: Client) -> None:
        """Like SIGKILL, seen through to where the client has lost the connection."""
        self.socket.close(linger=0)
        while int(client._socket.getsockopt(zmq.EVENTS)) & zmq.POLLOUT:
            await asyncio.sleep(0.001)

    async def receive(self, kind: Any) -> Any:  # noqa: ANN401 - one of the requests, as the test says
        """The next request, which has to be of this kind. Leaves its bytes in `raw`."""
        while True:
            try:
                self.peer, self.raw = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                await asyncio.sleep(0.001)
                continue
            if self.raw:
                request = protocol.decode_request(self.raw)
                assert isinstance(request, kind), request
                return request
            if self.greets:
                with contextlib.suppress(zmq.ZMQError):  # it may be gone again
                    self.reply(Hello(1, PROTOCOL_VERSION))

    def reply(self, *replies: protocol.Reply) -> None:
        """Send these."""
        for reply in replies:
            self.socket.send_multipart((self.peer, protocol.encode(reply)), zmq.NOBLOCK)

    async def greet(self, hello: bytes) -> None:
        """Answer the next connection with these bytes."""
        while self.socket.poll(0) == 0:
            await asyncio.sleep(0.001)
        self.peer, raw = self.socket.recv_multipart()
        assert raw == b""
        self.socket.send_multipart((self.peer, hello))

    async def batch(self, number: int) -> bytes:
        """The next request, which has to be this batch of the session; its bytes."""
        batch = await self.receive(WriteBatch)
        assert (batch.session, batch.number) == (self.session, number)
        return self.raw

    async def open_session(self) -> None:
        """Take batch 0 of a session that is new."""
        batch = await self.receive(WriteBatch)
        assert batch.session != self.session
        assert batch == WriteBatch(batch.session, 0, 0, False, {}, [])
        self.session = batch.session
        self.commit(0)

    def commit(self, *numbers: int) -> None:
        """These batches are durable."""
        self.reply(Committed(self.session, list(numbers)))

    def refuse(self, *numbers: int, reason: Reason = Reason.NO_SPACE) -> None:
        """There was no space for these batches."""
        self.reply(Refused(self.session, list(numbers), reason))

    async def sends_nothing_more(self, client: Client) -> None:
        """Whatever the client had to send would come before the answer to this."""
        read = start(client.get("marker"))
        request = await self.receive(ReadBatch)
        assert request.keys == ["marker"]
        self.reply(Values(request.number, 0, [None]))
        assert await read is None

    async def serve(self, data: dict[str, bytes]) -> None:
        """From now on, answer everything."""
        while True:
            request = await self.receive(protocol.Request)
            if isinstance(request, WriteBatch):
                data.update(request.puts)
                self.reply(Committed(request.session, [request.number]))
            else:
                self.reply(Values(request.number, 0, [data.get(key) for key in request.keys]))


Scenario: TypeAlias = "Callable[[Client, Logd], Coroutine[Any, Any, None]]"


def start(request: Awaitable[Any]) -> asyncio.Future[Any]:
    """Make a request go on by itself."""
    return asyncio.ensure_future(request)


async def turn(*requests: Awaitable[Any]) -> list[asyncio.Future[Any]]:
    """Start requests in one turn of the event loop."""
    tasks = [start(request) for request in requests]
    await asyncio.sleep(0)
    return tasks


async def outcome(task: Awaitable[Any]) -> Any:  # noqa: ANN401
    """The class of its failure, or its result."""
    try:
        return await task
    except RequestFailed as failure:
        return type(failure)


async def outcomes(tasks: Iterable[Awaitable[Any]]) -> list[Any]:
    """Of each, in order."""
    return [await outcome(task) for task in tasks]


def queued_bytes(client: Client) -> float:
    """What waiting writes count for."""
    return client.gauges()["queued_bytes"]


async def sent(client: Client, logd: Logd, *numbers: int) -> tuple[list[asyncio.Future[Any]], list[bytes]]:
    """One put for each of these numbers, each a batch of its own: the tasks, and the bytes of the batches."""
    tasks: list[asyncio.Future[Any]] = []
    raws: list[bytes] = []
    for number in numbers:
        tasks += await turn(client.put(f"key{number}", b"value"))
        raws.append(await logd.batch(number))
    return tasks, raws


def scenario(
    *,
    loops: Iterable[Callable[..., None]] = (asyncio.run,),
    connected: bool = True,
    session: bool = True,
    **options: Any,  # noqa: ANN401
) -> Callable[[Scenario], Callable[..., None]]:
    """Run a test in an event loop; nothing may be left to the loop's exception handler."""

    def decorate(test: Scenario) -> Callable[..., None]:
        async def main(log: list[logging.LogRecord]) -> None:
            stray: list[dict[str, Any]] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, context: stray.append(context))
            logd, client = Logd(log), Client(ADDRESS, **(OPTIONS | options))
            try:
                async with asyncio.timeout(GUARD_SECONDS):
                    if connected:
                        logd.appear()
                    client.open()
                    if session:
                        (first,) = await turn(client.put("first", b"of the session"))
                        await logd.open_session()
                        await logd.batch(1)
                        logd.commit(1)
                        await first
                    await test(client, logd)
            finally:
                if not client._socket.closed:
                    client.close()
                logd.context.destroy(linger=0)
            await asyncio.sleep(0)
            assert not stray

        @pytest.mark.parametrize("run", loops, ids=lambda run: run.__module__.partition(".")[0])
        def wrapper(
            run: Callable[..., None],
            tmp_path: Path,
            monkeypatch: pytest.MonkeyPatch,
            caplog: pytest.LogCaptureFixture,
        ) -> None:
            monkeypatch.chdir(tmp_path)
            run(main(caplog.records))

        wrapper.__name__ = getattr(test, "__name__", "scenario")
        decorated: Callable[..., None] = wrapper
        return decorated

    return decorate
