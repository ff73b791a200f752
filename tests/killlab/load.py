"""The clients: requests one after another on keep-alive connections, each recorded with its times and its outcome.

Owns HTTP as a client sees it. Knows neither what is killed, nor what makes a history good.

Sixty-four clients share one event loop and must leave the processor to the server: no task, no future and no timer per
request, only a callback for each piece of data that arrives.
"""

import asyncio
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple, Self, TypeAlias

from tests.support.harness import run_async
from tests.support.history import ABSENT, FOREIGN, History, Kind, Operation, Outcome

BROKEN: Final = "broken connection"
REFUSED: Final = "connection refused"
TIMED_OUT: Final = "no answer in time"
KNOWN_FAILURES: Final = frozenset({BROKEN, REFUSED, TIMED_OUT, "503", "504", "507"})
"""What the contract of the server allows when something dies. Any other answer is an error of its own."""

_REFUSED_STATUSES: Final = frozenset({503, 507})
_NUMBER_BYTES: Final = 16
_PAUSE_SECONDS: Final = 0.01
_TIMEOUT_SECONDS: Final = 15.0  # beyond the server's own
_SWEEP_SECONDS: Final = 0.1

Request: TypeAlias = tuple[Kind, int]
"""What to do, and the index of the key. The value of a put is a new one."""


class Failure(NamedTuple):
    """A request that was not carried out, or whose client cannot know. Times are in nanoseconds."""

    kind: str
    start: int
    end: int


class Record:
    """What the clients of one experiment share: the history, what failed, and the values that were used."""

    def __init__(self, keys: Sequence[str], value_bytes: int) -> None:
        self.history = History(keys)
        self.failures: list[Failure] = []
        self._numbers = itertools.count(1)
        self._padding = b"." * max(0, value_bytes - _NUMBER_BYTES)
        length = _NUMBER_BYTES + len(self._padding)
        self._heads = {
            kind: [
                b"%s /kv/%s HTTP/1.1\r\nHost: lab\r\n%s\r\n" % (kind.name.encode(), key.encode(), more) for key in keys
            ]
            for kind, more in {Kind.GET: b"", Kind.DELETE: b"", Kind.PUT: b"Content-Length: %d\r\n" % length}.items()
        }

    def request(self, kind: Kind, key: int) -> tuple[int, bytes]:
        """A value that no other write stores, where there is one, and what to send."""
        if kind == Kind.PUT:
            value = next(self._numbers)
            return value, b"%s%0*d%s" % (self._heads[kind][key], _NUMBER_BYTES, value, self._padding)
        return ABSENT, b"DELETE /clear HTTP/1.1\r\nHost: lab\r\n\r\n" if kind == Kind.CLEAR else self._heads[kind][key]

    def value(self, body: bytes) -> int:
        """The number of a value that was found: of the whole of it, or it is none of ours."""
        number = body[:_NUMBER_BYTES]
        is_ours = len(number) == _NUMBER_BYTES and number.isdigit() and body[_NUMBER_BYTES:] == self._padding
        return int(number) if is_ours else FOREIGN


class Client(asyncio.Protocol):
    """One client: makes the requests of its script, until there are none left or the crowd stops."""

    def __init__(self, number: int, port: int, record: Record, script: Iterator[Request]) -> None:
        self._number = number
        self._port = port
        self._record = record
        self._script = script
        self._transport: asyncio.Transport
        self._closed: asyncio.Future[None]
        self._is_stopped = False
        self._is_waiting = False
        self._received = b""
        self._kind, self._key, self._value, self._start = Kind.GET, 0, ABSENT, 0

    def stop(self) -> None:
        """Make no further request."""
        self._is_stopped = True

    async def run(self) -> None:
        """Connect, and connect again, for as long as there are requests to make."""
        loop = asyncio.get_running_loop()
        is_refused = False
        while not self._is_stopped:
            self._closed = loop.create_future()
            began = time.monotonic_ns()
            try:
                await loop.create_connection(lambda: self, "127.0.0.1", self._port)
                await self._closed
                is_refused = False
            except OSError:
                if not is_refused:  # once for each request that has to wait, not for each attempt
                    self._record.failures.append(Failure(REFUSED, began, time.monotonic_ns()))
                is_refused = True
            if not self._is_stopped:
                await asyncio.sleep(_PAUSE_SECONDS)

    def sweep(self, now: int) -> None:
        """Give up on a request that was not answered in time."""
        if self._is_waiting and now - self._start > _TIMEOUT_SECONDS * 1e9:
            self._end(Outcome.UNKNOWN, TIMED_OUT)
            self._transport.abort()

    # Called by the transport -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin at once."""
        self._transport = transport
        self._received = b""
        self._send_next()

    def data_received(self, data: bytes) -> None:
        """Take an answer, once it is whole, and go on with the next request."""
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator:
            return
        head = head.lower()
        _, _, length = head.partition(b"\r\ncontent-length:")
        if len(body) < int(length.partition(b"\r\n")[0]):
            return
        self._received = b""
        succeeded = self._is_waiting and self._answer(int(head[9:12]), body)
        if b"\r\nconnection: close" in head:
            self._transport.close()
        elif succeeded:
            self._send_next()
        else:
            asyncio.get_running_loop().call_later(_PAUSE_SECONDS, self._send_next)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody knows what became of the request that was on its way."""
        if self._is_waiting:
            self._end(Outcome.UNKNOWN, BROKEN)
        self._closed.set_result(None)

    # One request -----------------------------------------------------------------------------------------

    def _send_next(self) -> None:
        if self._transport.is_closing():
            return
        request = None if self._is_stopped else next(self._script, None)
        if request is None:
            self._is_stopped = True
            self._transport.close()
            return
        self._kind, self._key = request
        self._value, data = self._record.request(self._kind, self._key)
        self._is_waiting = True
        self._start = time.monotonic_ns()
        self._transport.write(data)

    def _answer(self, status: int, body: bytes) -> bool:
        """Take note of an answer; True when it is what was asked for."""
        is_get = self._kind == Kind.GET
        if status == 200 or (is_get and status == 404):
            if is_get and status == 200:
                self._value = self._record.value(body)
            self._end(Outcome.OK)
            return True
        self._end(Outcome.REFUSED if status in _REFUSED_STATUSES else Outcome.UNKNOWN, str(status))
        return False

    def _end(self, outcome: Outcome, failure: str = "") -> None:
        now = time.monotonic_ns()
        self._is_waiting = False
        operation = Operation(self._number, self._kind, self._value, self._start, now, outcome)
        self._record.history.add(self._key, operation)
        if failure:
            self._record.failures.append(Failure(failure, self._start, now))


# Many clients --------------------------------------------------------------------------------------------


async def _run_all(clients: Sequence[Client]) -> None:
    sweeper = asyncio.create_task(_sweep_forever(clients))
    try:
        await asyncio.gather(*(client.run() for client in clients))
    finally:
        sweeper.cancel()


async def _sweep_forever(clients: Sequence[Client]) -> None:
    while True:
        await asyncio.sleep(_SWEEP_SECONDS)
        now = time.monotonic_ns()
        for client in clients:
            client.sweep(now)


def make_all(port: int, clients: int, record: Record, requests: Sequence[Request]) -> None:
    """Make each of these requests once, whoever of the clients has time."""
    script = iter(requests)
    run_async(_run_all([Client(number, port, record, script) for number in range(clients)]))


class Mix(NamedTuple):
    """What clients ask for: shares of all requests; what is left of 1 are puts."""

    reads: float
    deletes: float
    clears: float

    def script(self, keys: int, rng: random.Random) -> Iterator[Request]:
        """Requests without end."""
        deletes, clears = self.reads + self.deletes, self.reads + self.deletes + self.clears
        while True:
            choice = rng.random()
            key = int(rng.random() * keys)
            if choice < self.reads:
                yield Kind.GET, key
            elif choice < deletes:
                yield Kind.DELETE, key
            else:
                yield (Kind.CLEAR, 0) if choice < clears else (Kind.PUT, key)


class Load:
    """Clients that go on, in a thread of their own, until the end of a `with` block."""

    def __init__(self, port: int, record: Record, scripts: Sequence[Iterator[Request]]) -> None:
        self._clients = [Client(number, port, record, script) for number, script in enumerate(scripts)]
        self._pool = ThreadPoolExecutor(1)
        self._running: Future[None]

    def __enter__(self) -> Self:
        self._running = self._pool.submit(lambda: run_async(_run_all(self._clients)))
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.stop()
        self._pool.shutdown()
        self._running.result()
