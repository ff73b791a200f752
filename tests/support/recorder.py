"""Clients that record what they see: requests one after another on keep-alive connections, each with its times and its
outcome, so that a checker (`history`) can judge afterwards what the server must have kept.

Owns HTTP as these clients speak it. Knows neither what is done to the server meanwhile, nor what makes a history good.

Sixty-four clients share one event loop and must leave the processor to the server: no task, no future and no timer per
request, only a callback for each piece of data that arrives.
"""

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple, Self, TypeAlias

from tests.support.clients import run_async
from tests.support.history import ABSENT, FOREIGN, History, Kind, Operation, Outcome

BROKEN: Final = "broken connection"
REFUSED: Final = "connection refused"
TIMED_OUT: Final = "no answer in time"
_ALLOWED: Final = frozenset({BROKEN, REFUSED, TIMED_OUT, "503"})
_ALLOWED_FOR_WRITES: Final = _ALLOWED | {"504", "507"}
TIMEOUT_SECONDS: Final = 15.0  # longer than the server's own
_REFUSED_STATUSES: Final = frozenset({503, 507})
_NUMBER_BYTES: Final = 16
_PAUSE_SECONDS: Final = 0.01
_SWEEP_SECONDS: Final = 0.1

Request: TypeAlias = tuple[Kind, int]
"""What to do, and the index of the key. The value of a put is a new one."""


Ports: TypeAlias = int | Sequence[int]
"""Where the server listens; or where several do, to which the clients go in turn."""


class Failure(NamedTuple):
    """A request that was not carried out, or whose client cannot know. Times are in nanoseconds."""

    reason: str
    """The status, or one of BROKEN, REFUSED and TIMED_OUT."""
    start: int
    end: int
    client: int
    kind: Kind | None = None
    """None when no connection could be made."""
    answered: int = 0
    """How many requests the same connection had answered before."""
    idle_s: float = 0.0
    """How long the connection had been idle before the request."""

    @property
    def is_allowed(self) -> bool:
        """True for what the contract of the server allows when something dies. Anything else is an error of its own."""
        return self.reason in (_ALLOWED if self.kind == Kind.GET else _ALLOWED_FOR_WRITES)


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
                b"%s /kv/%s HTTP/1.1\r\nHost: x\r\n%s\r\n" % (kind.name.encode(), key.encode(), more) for key in keys
            ]
            for kind, more in {Kind.GET: b"", Kind.DELETE: b"", Kind.PUT: b"Content-Length: %d\r\n" % length}.items()
        }

    def request(self, kind: Kind, key: int) -> tuple[int, bytes]:
        """A value that no other write stores, where there is one, and what to send."""
        if kind == Kind.PUT:
            value = next(self._numbers)
            return value, b"%s%0*d%s" % (self._heads[kind][key], _NUMBER_BYTES, value, self._padding)
        return ABSENT, b"DELETE /clear HTTP/1.1\r\nHost: x\r\n\r\n" if kind == Kind.CLEAR else self._heads[kind][key]

    def value(self, body: bytes) -> int:
        """The number of a value that was found: of the whole of it, or it is none of ours."""
        number = body[:_NUMBER_BYTES]
        is_ours = len(number) == _NUMBER_BYTES and number.isdigit() and body[_NUMBER_BYTES:] == self._padding
        return int(number) if is_ours else FOREIGN


class Client:
    """One client: makes the requests of its script, until there are none left or it is stopped."""

    def __init__(self, number: int, port: int, record: Record, script: Iterator[Request], timeout_s: float) -> None:
        self.number = number
        self.record = record
        self.timeout_ns = timeout_s * 1e9
        self.connection: _Connection | None = None
        self.acknowledged_writes = 0
        self._port = port
        self._script = script
        self._is_stopped = False

    def stop(self) -> None:
        """Make no further request."""
        self._is_stopped = True

    def next_request(self) -> Request | None:
        """What to ask for next; None at the end."""
        request = None if self._is_stopped else next(self._script, None)
        if request is None:
            self._is_stopped = True
        return request

    async def run(self) -> None:
        """Connect, and connect again, for as long as there are requests to make."""
        loop = asyncio.get_running_loop()
        is_refused = False
        while not self._is_stopped:
            began = time.monotonic_ns()
            try:
                _, connection = await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self._port)
                self.connection = connection
                await connection.closed
                is_refused = False
            except OSError:
                if not is_refused:  # once for each request that has to wait, not for each attempt
                    self.record.failures.append(Failure(REFUSED, began, time.monotonic_ns(), self.number))
                is_refused = True
            self.connection = None
            if not self._is_stopped:
                await asyncio.sleep(_PAUSE_SECONDS)


class _Sent(NamedTuple):
    """The request that is on its way."""

    kind: Kind
    key: int
    value: int
    start: int
    idle_ns: int


class _Connection(asyncio.Protocol):
    """One connection of a client: sends a request as soon as the one before it is answered."""

    def __init__(self, client: Client) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.local_port = 0
        self._client = client
        self._transport: asyncio.Transport
        self._received = b""
        self._sent: _Sent | None = None
        self._answered = 0
        self._answered_at = time.monotonic_ns()

    def expire(self, now: int) -> None:
        """Abort when the request was not answered in time."""
        if self._sent and now - self._sent.start > self._client.timeout_ns:
            self._end(self._sent, Outcome.UNKNOWN, self._sent.value, TIMED_OUT)
            self._transport.abort()

    # Called by the transport -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin at once."""
        self._transport = transport
        self.local_port = transport.get_extra_info("sockname")[1]
        self._send_next()

    def data_received(self, data: bytes) -> None:
        """Record an answer, once it is whole, and go on with the next request."""
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator:
            return
        head = head.lower()
        _, _, length = head.partition(b"\r\ncontent-length:")
        if len(body) < int(length.partition(b"\r\n")[0]):
            return
        self._received = b""
        succeeded = self._sent is not None and self._record_answer(self._sent, int(head[9:12]), body)
        if b"\r\nconnection: close" in head:
            self._transport.close()
        elif succeeded:
            self._send_next()
        else:
            asyncio.get_running_loop().call_later(_PAUSE_SECONDS, self._send_next)

    def connection_lost(self, exc: Exception | None) -> None:
        """The outcome of the request that was on its way is unknown."""
        if self._sent:
            self._end(self._sent, Outcome.UNKNOWN, self._sent.value, BROKEN)
        self.closed.set_result(None)

    # One request -----------------------------------------------------------------------------------------

    def _send_next(self) -> None:
        if self._transport.is_closing():
            return
        request = self._client.next_request()
        if request is None:
            self._transport.close()
            return
        kind, key = request
        value, data = self._client.record.request(kind, key)
        now = time.monotonic_ns()
        self._sent = _Sent(kind, key, value, now, now - self._answered_at)
        self._transport.write(data)

    def _record_answer(self, sent: _Sent, status: int, body: bytes) -> bool:
        """Record an answer; True when it is what was asked for."""
        if status == 200 or (status == 404 and sent.kind == Kind.GET):
            is_found = status == 200 and sent.kind == Kind.GET
            self._end(sent, Outcome.OK, self._client.record.value(body) if is_found else sent.value)
            self._client.acknowledged_writes += sent.kind != Kind.GET
            self._answered += 1
            return True
        self._end(sent, Outcome.REFUSED if status in _REFUSED_STATUSES else Outcome.UNKNOWN, sent.value, str(status))
        self._answered += 1
        return False

    def _end(self, sent: _Sent, outcome: Outcome, value: int, failure: str = "") -> None:
        now = self._answered_at = time.monotonic_ns()
        client, record = self._client.number, self._client.record
        self._sent = None
        record.history.add(sent.key, Operation(client, sent.kind, value, sent.start, now, outcome))
        if failure:
            idle_s = sent.idle_ns / 1e9
            record.failures.append(Failure(failure, sent.start, now, client, sent.kind, self._answered, idle_s))


# Many clients --------------------------------------------------------------------------------------------


class Clients:
    """Clients that go on, one for each script, in a thread of their own, until the end of a `with` block."""

    def __init__(
        self, port: Ports, record: Record, scripts: Sequence[Iterator[Request]], timeout_s: float = TIMEOUT_SECONDS
    ) -> None:
        self.clients = _clients(port, record, scripts, timeout_s)
        self._pool = ThreadPoolExecutor(1)
        self._running: Future[None]

    def __enter__(self) -> Self:
        self._running = self._pool.submit(lambda: run_async(_run_all(self.clients)))
        return self

    def __exit__(self, *_: object) -> None:
        for client in self.clients:
            client.stop()
        self._pool.shutdown()
        self._running.result()

    @property
    def have_ended(self) -> bool:
        """True when none of them goes on."""
        return self._running.done()


def make_each(
    port: Ports, clients: int, record: Record, requests: Sequence[Request], timeout_s: float = TIMEOUT_SECONDS
) -> None:
    """Make each of these requests once, by whichever of the clients is free."""
    run_async(_run_all(_clients(port, record, [iter(requests)] * clients, timeout_s)))


def _clients(port: Ports, record: Record, scripts: Sequence[Iterator[Request]], timeout_s: float) -> list[Client]:
    ports = [port] if isinstance(port, int) else port
    return [
        Client(number, ports[number % len(ports)], record, script, timeout_s) for number, script in enumerate(scripts)
    ]


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
            if client.connection:
                client.connection.expire(now)
