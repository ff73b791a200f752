"""Clients of a server that is known by its port: `call` for one request, `exchange` for raw bytes, `send_all` for many
requests that are known beforehand.

Owns HTTP as a well-behaved client speaks it, in as few lines as that takes. Knows neither processes nor what an answer
should be; it raises OSError or EOFError where a request was not answered.
"""

import asyncio
import contextlib
import http.client
import socket
import time
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Self, TypeAlias

import uvloop

ANSWER_SECONDS: Final = 60.0
IDLE_S: Final = 0.2
"""A worker that stops may close a connection that has been idle for longer, just when a request is sent on it."""


class Answer(NamedTuple):
    """What came back; the names of the headers are in lower case."""

    status: int
    body: bytes
    headers: dict[str, str]


def request_bytes(
    method: str, target: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> bytes:
    """A request as it is sent. A body, an empty one too, has a Content-Length."""
    length = {} if body is None else {"Content-Length": str(len(body))}
    fields = {"Host": "x"} | length | dict(headers or {})
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode() + (body or b"")


# Single requests -----------------------------------------------------------------------------------------


def call(
    port: int,
    method: str,
    target: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    timeout: float = 30.0,
) -> Answer:
    """One request, sent in one piece on a connection of its own."""
    with socket.create_connection(("127.0.0.1", port), timeout) as connection:
        connection.sendall(request_bytes(method, target, body, headers))
        with contextlib.closing(http.client.HTTPResponse(connection, method=method)) as response:
            response.begin()
            return Answer(response.status, response.read(), {k.lower(): v for k, v in response.getheaders()})


def exchange(port: int, data: bytes, *, half_close: bool = False) -> bytes:
    """Send bytes on a connection of their own; all that comes back until the server closes it.

    With `half_close` the write side is closed after them.
    """
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(data)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        return read_to_end(connection)


def read_to_end(connection: socket.socket) -> bytes:
    """All that comes until the other side closes, in whatever way."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            received += data
    return received


class SlowPut:
    """A PUT that the server has begun to handle, and whose body waits for its second half."""

    def __init__(self, port: int, key: str, value: bytes, connection: str = "keep-alive") -> None:
        self._rest = value[len(value) // 2 :]
        head = f"PUT /kv/{key} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(value)}\r\nConnection: {connection}\r\n"
        head += "Expect: 100-continue\r\n\r\n"
        self.socket = socket.create_connection(("127.0.0.1", port), 30)
        self.socket.sendall(head.encode())
        assert self.socket.recv(100).startswith(b"HTTP/1.1 100 "), "the handler does not wait for the body"
        self.socket.sendall(value[: len(value) // 2])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def finish(self) -> bytes:
        """Send the rest, slowly; what is answered until the server closes the connection, as `close` or a stop says."""
        size = len(self._rest) // 5 + 1
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for start in range(0, len(self._rest), size):
                self.socket.sendall(self._rest[start : start + size])
                time.sleep(0.06)
        return read_to_end(self.socket)


@contextlib.contextmanager
def idle_connection(port: int) -> Iterator[socket.socket]:
    """A keep-alive connection that has had one answer and is quiet now."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30.0)) as connection:
        connection.request("GET", "/health")
        assert connection.getresponse().read() == b"ok"
        assert connection.sock
        yield connection.sock


# Many requests -------------------------------------------------------------------------------------------


def run_async(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on a fast event loop, in whatever thread this is."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


class Connection:
    """A keep-alive connection of an asyncio client. A call opens it when it is not open."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def open(self) -> None:
        """Connect."""
        self._streams = await asyncio.open_connection("127.0.0.1", self._port)

    def close(self) -> None:
        """Abort it, where it is open."""
        if self._streams:
            self._streams[1].transport.abort()
            self._streams = None

    async def call(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request. Raises OSError or EOFError, and is closed then."""
        if not self._streams:
            await self.open()
        assert self._streams
        reader, writer = self._streams
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                writer.write(request_bytes(method, path, body, headers))
                status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
                found = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
                answer = Answer(int(status.split()[1]), await reader.readexactly(int(found["content-length"])), found)
        except BaseException:
            self.close()
            raise
        if found.get("connection") == "close":
            self.close()
        return answer


Request: TypeAlias = tuple[str, str, bytes | None]
"""Method, path and body."""


def send_all(
    port: int, requests: Sequence[Request], connections: int = 32, answers: dict[int, Answer] | None = None
) -> dict[int, Answer]:
    """Send each request once, over connections that are all open before anything is sent.

    Returns, and fills while it runs, the answers by index. A connection that ends leaves the rest of its share out.
    """
    answers = {} if answers is None else answers
    clients = [Connection(port) for _ in range(min(connections, len(requests)))]

    async def send(client: Connection, share: Iterable[int]) -> None:
        with contextlib.suppress(OSError, EOFError):
            for index in share:
                answers[index] = await client.call(*requests[index])

    async def run() -> None:
        try:
            await asyncio.gather(*(client.open() for client in clients))
            shares = (range(first, len(requests), len(clients)) for first in range(len(clients)))
            await asyncio.gather(*(send(*each) for each in zip(clients, shares, strict=True)))
        finally:
            for client in clients:
                client.close()

    run_async(run())
    return answers


def read_all(port: int, keys: Sequence[str]) -> dict[str, bytes | None]:
    """What is stored under these keys; None where there is nothing."""
    answers = send_all(port, [("GET", f"/kv/{key}", None) for key in keys])
    assert len(answers) == len(keys), "a read was not answered"
    assert {answer.status for answer in answers.values()} <= {200, 404}
    return {key: answers[n].body if answers[n].status == 200 else None for n, key in enumerate(keys)}
