"""The worker's side of the socket to logd: batching, matching of replies, sending again, deadlines.

Knows the messages and what each means for the outcome of a request; knows no HTTP and no files. Used by one event loop.

All writes of a few event-loop turns are one numbered batch, all reads one question. While there is no logd, requests
wait here, unsent. logd greets every new connection with a `Hello`; what was sent and not answered is then sent again,
in order, before anything new.

A large value is asked for a second time, alone, when there is room for it: logd answers with its size at first. What
such values take of a worker, from then until nobody here refers to them, is bounded by `large_bytes_max`. Those that
find no room wait in the order in which they came.

What an error tells:

* `Unavailable`: the request was never handed to the socket, or logd refused it. The write was not applied and will
  not be.
* `OutcomeUnknown`: it was handed over, and the deadline passed. It may be applied, now or later; or not.
"""

import asyncio
import logging
import math
import os
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import zmq

from logd.shared import protocol
from logd.shared.protocol import (
    Committed,
    Dropped,
    Gap,
    Hello,
    Large,
    ReadBatch,
    ReadLarge,
    Reason,
    Refused,
    Stats,
    StatsRequest,
    Status,
    StatusRequest,
    Values,
    WriteBatch,
)

_EVENTS: Final = int(zmq.EVENTS)
_READABLE: Final = (int(zmq.POLLIN), int(zmq.POLLIN | zmq.POLLOUT))
_SWEEP_SECONDS: Final = 0.1
_RECONNECT_MS: Final = 10
_BATCH_ENOUGH: Final = 32
_BATCH_TURNS_MAX: Final = 4
"""While each turn of the event loop brings more requests, up to so many turns and so many requests, they are gathered:
a message wakes four threads, and they take the processor from the clients' next requests."""
_LARGE_ASKED_BYTES_MAX: Final = 1 << 20
"""Of large values that have been asked for and are not here: more would wait in logd, and small answers behind them."""

log = logging.getLogger("kv.log_client.client")


class RequestFailed(Exception):
    """A request could not be answered; the class says what that means for its outcome."""


class Unavailable(RequestFailed):
    """logd was not reached, or has too much to do. A write was certainly not applied. Trying again later is right."""


class NoSpace(RequestFailed):
    """The device of the log is full. The write was certainly not applied."""


class DataLimitReached(RequestFailed):
    """The value would take the data beyond its limit. The write was certainly not applied."""


class OutcomeUnknown(RequestFailed):
    """The write may have been applied, may be later, or not."""


_NO_SPACE: Final = NoSpace("no space left on device")
_DATA_LIMIT_REACHED: Final = DataLimitReached("data limit reached")
_IN_BATCH: Final = b""
_REQUEST_OVERHEAD_BYTES: Final = 512  # what a waiting write costs beside its key and value
_STATUS_TIMEOUT_SECONDS: Final = 2.0
_UNREACHABLE: Final = "the log writer is not reachable; nothing was written"
_NO_ANSWER: Final = "the log writer did not answer in time"
_UNKNOWN: Final = "the deadline passed; whether the write was applied is not known"
_NO_ROOM: Final = "too many large values are being read"
_SESSION_LOST: Final = "the log writer has dropped the session; whether the write was applied is not known"


class LargeValue:
    """A value that counts against what a worker may hold of such, for as long as anybody refers to this."""

    __slots__ = ("_give_back", "data")

    def __init__(self, data: bytes, give_back: Callable[[int], None]) -> None:
        self.data = data
        self._give_back = give_back

    def __del__(self) -> None:
        """Whoever had it is done with it, however that came about."""
        self._give_back(len(self.data))


Found: TypeAlias = bytes | LargeValue | None
"""What a read finds; None when there is no such key."""


@dataclass(slots=True)
class _Write:
    """`value` is None for a delete, and empty while a batch holds it; `key` is None for a clear."""

    key: str | None
    value: bytes | None
    future: asyncio.Future[None]
    deadline: float
    size: int
    is_again: bool = False
    """It was in a batch that was refused because of others."""


@dataclass(slots=True)
class _Read:
    key: str
    future: asyncio.Future[Found]
    deadline: float


@dataclass(slots=True)
class _LargeRead(_Read):
    size: int


@dataclass(slots=True)
class _SentWrites:
    raw: bytes
    writes: list[_Write]
    size: int


@dataclass(slots=True)
class _SentReads:
    raw: bytes
    reads: list[_Read]


@dataclass(slots=True)
class _SentLarge:
    raw: bytes
    read: _LargeRead


@dataclass(slots=True)
class _SentStatus:
    raw: bytes
    future: asyncio.Future[Any]
    deadline: float


_Waiting: TypeAlias = _Write | _Read | _SentStatus


@dataclass(slots=True)
class _Session:
    """One numbering of batches. A new one is begun when logd has lost the old, or would not open it."""

    id: bytes = field(default_factory=lambda: os.urandom(protocol.SESSION_ID_BYTES))
    next_number: int = 0
    unanswered: dict[int, _SentWrites] = field(default_factory=dict)
    """By number, in order. Kept until answered, also past the deadline of its requests."""
    is_open: bool = False
    is_draining: bool = False
    """Send nothing before all that was sent is answered: a batch was refused, or may well be, and so will be those sent
    behind it, which say that it is not settled."""
    resent_from: int = -1


class Client:
    """Requests to one logd. Everything but making one needs a running event loop, always the same."""

    _loop: asyncio.AbstractEventLoop
    _socket: zmq.Socket[bytes]
    _sweeper: asyncio.Task[None]

    def __init__(
        self,
        address: str,
        *,
        request_timeout_s: float,
        queue_bytes_max: int,
        large_bytes_max: int,
        report_queue: Callable[[int, int], None] = lambda _writes, _bytes: None,
        report_large: Callable[[int, int], None] = lambda _bytes, _waiting: None,
    ) -> None:
        self._address = address
        self._report_queue = report_queue
        self._report_large = report_large
        self._timeout_s = request_timeout_s
        self._queue_bytes_max = queue_bytes_max
        self._queue_bytes = 0
        self._connected = False
        self._was_connected = False
        self._flush_is_due = False
        self._gathered = 0
        self._gathered_turns = 0
        self._is_closed = False
        self._session = _Session()
        self._writes: deque[_Write] = deque()
        self._reads: deque[_Read] = deque()
        self._sent_reads: dict[int, _SentReads] = {}
        self._large_bytes_max = large_bytes_max
        self._large_bytes = 0
        """Of large values that have been asked for, or are in somebody's hands."""
        self._large: deque[_LargeRead] = deque()
        """Reads whose value is known to be large, and that found no room yet."""
        self._sent_large: dict[int, _SentLarge] = {}
        """Kept until answered or sent again, also past the deadline: what logd sends takes room."""
        self._sent_statuses: dict[int, _SentStatus] = {}
        self._question = 0

    def open(self) -> None:
        """Begin to connect, and go on trying for as long as there is no logd."""
        self._loop = asyncio.get_running_loop()
        self._nobody: asyncio.Future[Found] = self._loop.create_future()
        self._nobody.set_result(None)
        self._session = _Session()  # not that of before a fork
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()  # its I/O thread does not survive a fork
        self._socket = self._connect()
        self._loop.add_reader(self._socket.FD, self._drain)
        self._sweeper = self._loop.create_task(self._sweep_forever())
        self._drain()

    def close(self) -> None:
        """Let go of the socket. Requests that wait fail as if their deadline had passed."""
        self._is_closed = True
        self._sweeper.cancel()
        self._fail_expired(math.inf)
        self._loop.remove_reader(self._socket.FD)
        self._socket.close(linger=0)
        self._context.term()

    def _connect(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.SNDHWM, 0)  # at a high-water mark messages vanish; our bound is queue_bytes_max
        socket.setsockopt(zmq.RCVHWM, 0)
        # Nothing is queued for a logd that is not there, and nothing that an earlier connection brought is read after
        # the Hello of a new one: a late refusal would be taken for the answer to what was sent again since.
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.PROBE_ROUTER, 1)  # every new connection announces itself; logd answers with Hello
        socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        socket.setsockopt(zmq.MAXMSGSIZE, protocol.MESSAGE_BYTES_CEILING)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(self._address)
        return socket

    # These return futures and are no coroutines: one less to make and to resume for each request.

    def get(self, key: str) -> asyncio.Future[Found]:
        """The value of a key. Raises Unavailable."""
        read = _Read(key, self._loop.create_future(), self._loop.time() + self._timeout_s)
        self._reads.append(read)
        self._schedule_flush()
        return read.future

    def put(self, key: str, value: bytes) -> asyncio.Future[None]:
        """Store a value durably. Raises RequestFailed."""
        return self._write(key, value)

    def delete(self, key: str) -> asyncio.Future[None]:
        """Remove a key, durably, whether it is there or not. Raises RequestFailed."""
        return self._write(key, None)

    def clear(self) -> asyncio.Future[None]:
        """Remove every key, durably. Raises RequestFailed."""
        return self._write(None, None)

    async def unavailable_reason(self) -> str:
        """Why reads or writes cannot be taken; empty when they can. Raises Unavailable when logd does not answer."""
        status: Status = await self._ask(StatusRequest)
        return status.unavailable_reason

    async def stats(self) -> Stats:
        """How logd is. Raises Unavailable when it does not answer."""
        stats: Stats = await self._ask(StatsRequest)
        return stats

    async def _ask(self, kind: type[StatusRequest | StatsRequest]) -> Any:  # noqa: ANN401
        if self._was_connected and not self._connected:
            raise Unavailable(_UNREACHABLE)
        self._question += 1
        raw = protocol.encode(kind(self._question))
        deadline = self._loop.time() + min(self._timeout_s, _STATUS_TIMEOUT_SECONDS)
        status = _SentStatus(raw, self._loop.create_future(), deadline)
        self._sent_statuses[self._question] = status
        self._send(raw)
        self._drain()
        return await status.future

    def _write(self, key: str | None, value: bytes | None) -> asyncio.Future[None]:
        size = _write_size(key, value)
        write = _Write(key, value, self._loop.create_future(), self._loop.time() + self._timeout_s, size)
        if self._queue_bytes and self._queue_bytes + size > self._queue_bytes_max:
            _fail(write.future, Unavailable("too many writes are waiting; this one was not written"))
            return write.future
        self._queue_bytes += size
        self._writes.append(write)
        self._schedule_flush()
        return write.future

    # Sending ---------------------------------------------------------------------------------------------

    def _schedule_flush(self) -> None:
        if not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Send what came in. Without a connection it stays where it is."""
        if self._is_gathering():
            self._loop.call_soon(self._flush)
            return
        self._flush_is_due = False
        if self._is_closed:
            self._fail_expired(math.inf)
            return
        while self._reads and self._connected:
            self._send_reads()
        if self._large:
            self._send_large()
        while self._writes and self._connected and self._may_write():
            self._send_writes()
        self._drain()  # the descriptor is edge-triggered, and a send may have taken the edge

    def _is_gathering(self) -> bool:
        """True when the last turn brought more, and the next may too."""
        before, self._gathered = self._gathered, len(self._reads) + len(self._writes)
        self._gathered_turns += 1
        if before < self._gathered < _BATCH_ENOUGH and self._gathered_turns < _BATCH_TURNS_MAX:
            return True
        self._gathered = self._gathered_turns = 0
        return False

    def _send_reads(self) -> None:
        self._question += 1
        reads: list[_Read] = []
        size = 0
        while self._reads and size < protocol.BATCH_BYTES_SOFT_MAX:
            read = self._reads.popleft()
            reads.append(read)
            size += len(read.key)
        raw = protocol.encode(ReadBatch(self._question, [read.key for read in reads]))
        self._sent_reads[self._question] = _SentReads(raw, reads)
        self._send(raw)

    def _send_large(self) -> None:
        while self._large and self._connected and self._has_room(self._large[0].size):
            read = self._large.popleft()
            if read.future.done():
                continue
            self._question += 1
            self._large_bytes += read.size
            raw = protocol.encode(ReadLarge(self._question, read.key, read.size))
            self._sent_large[self._question] = _SentLarge(raw, read)
            self._send(raw)

    def _has_room(self, size: int) -> bool:
        """True when one more large value may be asked for. One that is alone always may."""
        if self._large_bytes and self._large_bytes + size > self._large_bytes_max:
            return False
        asked_bytes = sum(sent.read.size for sent in self._sent_large.values())
        return not asked_bytes or asked_bytes + size <= _LARGE_ASKED_BYTES_MAX

    def _give_back(self, size: int) -> None:
        """There is room again for so many bytes of large values."""
        self._large_bytes -= size
        if self._large:
            self._schedule_flush()

    def _may_write(self) -> bool:
        """True with an open session; asks for one when there is none yet."""
        session = self._session
        if not session.is_open and not session.unanswered:
            self._send_batch([], False, {}, set(), 0)
        session.is_draining = session.is_draining and bool(session.unanswered)
        return session.is_open and not session.is_draining

    def _send_writes(self) -> None:
        """Encode one batch.

        Its writes are concurrent, so the last one of a key decides, and a clear undoes those before.
        """
        writes: list[_Write] = []
        clear = False
        puts: dict[str, bytes] = {}
        deletes: set[str] = set()
        size = 0
        is_again = self._writes[0].is_again  # never with new ones, whose values could have it refused again and again
        while self._writes and size < protocol.BATCH_BYTES_SOFT_MAX and self._writes[0].is_again == is_again:
            write = self._writes.popleft()
            writes.append(write)
            size += write.size
            if write.key is None:
                clear = True
                puts.clear()
                deletes.clear()
            elif write.value is None:
                deletes.add(write.key)
                puts.pop(write.key, None)
            else:
                puts[write.key] = write.value
                deletes.discard(write.key)
        self._send_batch(writes, clear, puts, deletes, size)
        self._session.is_draining = is_again

    def _send_batch(
        self, writes: list[_Write], clear: bool, puts: dict[str, bytes], deletes: Iterable[str], size: int
    ) -> None:
        session = self._session
        number = session.next_number
        base = next(iter(session.unanswered), number)
        raw = protocol.encode(WriteBatch(session.id, number, base, clear, puts, list(deletes)))
        for write in writes:
            if write.value and puts.get(write.key or "") is write.value:
                write.value = _IN_BATCH
        session.next_number += 1
        session.unanswered[number] = _SentWrites(raw, writes, size)
        self._send(raw)

    def _send(self, raw: bytes) -> None:
        """Hand over one message; without a connection it waits for the next Hello, among what is unanswered."""
        try:
            self._socket.send(raw, zmq.NOBLOCK)
        except zmq.Again:
            self._connected = False

    # Receiving -------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        # To ask costs less than the exception of a recv that finds nothing.
        while self._socket.getsockopt(_EVENTS) in _READABLE:
            raw = self._socket.recv()
            try:
                reply = protocol.decode_reply(raw)
            except protocol.DECODE_ERRORS:
                log.exception("logd sent %d bytes that are no message", len(raw))
                continue
            if isinstance(reply, Values):
                self._on_values(reply)
            elif isinstance(reply, Committed):
                self._on_committed(reply)
            elif isinstance(reply, Refused):
                self._on_refused(reply)
            elif isinstance(reply, Hello):
                self._on_hello()
            elif isinstance(reply, Status | Stats):
                self._on_status(reply)
            elif isinstance(reply, Gap):
                self._on_gap(reply)
            elif isinstance(reply, Dropped):
                self._on_dropped(reply)
            elif isinstance(reply, Large):
                self._on_large(reply)

    def _on_hello(self) -> None:
        self._connected = self._was_connected = True
        self._forget_large_that_nobody_waits_for()
        self._session.resent_from = -1
        unanswered: list[_SentWrites | _SentReads | _SentLarge | _SentStatus] = []
        unanswered += self._session.unanswered.values()
        unanswered += self._sent_reads.values()
        unanswered += self._sent_large.values()
        unanswered += self._sent_statuses.values()
        for sent in unanswered:
            self._send(sent.raw)
        self._schedule_flush()

    def _on_values(self, reply: Values) -> None:
        sent = self._sent_reads.get(reply.number)
        if sent is None:
            self._on_large_value(reply)
            return
        for read, value in zip(sent.reads[reply.first :], reply.values, strict=False):
            if not read.future.done():
                read.future.set_result(value)
        if reply.first + len(reply.values) >= len(sent.reads):
            del self._sent_reads[reply.number]

    def _on_large(self, reply: Large) -> None:
        """A value was not sent, because it is large or has grown."""
        if sent := self._sent_reads.get(reply.number):
            read = sent.reads[reply.index]
            self._large.append(_LargeRead(read.key, read.future, read.deadline, reply.size))
            read.future = self._nobody  # who waits for it is answered from there, also when this is asked again
            if reply.index + 1 >= len(sent.reads):
                del self._sent_reads[reply.number]
        elif large := self._sent_large.pop(reply.number, None):
            self._large_bytes -= large.read.size
            large.read.size = reply.size
            self._large.appendleft(large.read)
        self._schedule_flush()

    def _on_large_value(self, reply: Values) -> None:
        sent = self._sent_large.pop(reply.number, None)
        if sent is None:
            return
        (value,) = reply.values
        self._give_back(sent.read.size)
        found: Found = value
        if value and len(value) > protocol.LARGE_VALUE_BYTES:
            self._large_bytes += len(value)
            found = LargeValue(value, self._give_back)
        if not sent.read.future.done():
            sent.read.future.set_result(found)

    def _forget_large_that_nobody_waits_for(self) -> None:
        """With a new connection, what logd has sent on the old one will not come any more."""
        for number, sent in list(self._sent_large.items()):
            if sent.read.future.done():
                del self._sent_large[number]
                self._give_back(sent.read.size)

    def _on_committed(self, reply: Committed) -> None:
        if reply.session != self._session.id:
            return
        for number in reply.numbers:
            for write in self._settle(number):
                if not write.future.done():
                    write.future.set_result(None)
        if not self._session.is_open:  # batch 0 was the only one
            self._session.is_open = True
            self._schedule_flush()

    def _on_refused(self, reply: Refused) -> None:
        if reply.session != self._session.id:
            return
        self._session.is_draining = True
        for number in reply.numbers:
            if reply.reason is Reason.DATA_LIMIT:
                self._send_again_without(number, set(reply.too_large))
            else:
                self._fail_batch(number, _NO_SPACE)
        if (
            not self._session.is_open
        ):  # batch 0 was refused: its number is used up, and what waits for it has its answer
            self._session = _Session()
            for write in self._writes:
                self._queue_bytes -= write.size
                _fail(write.future, _NO_SPACE)
            self._writes.clear()

    def _send_again_without(self, number: int, too_large: set[str]) -> None:
        """A batch was not taken and never will be: all of it but these values, which do not fit, goes into another."""
        sent = self._session.unanswered.get(number)
        if sent is None:
            return
        puts = protocol.decode_write_batch(sent.raw).puts
        again = []
        for write in self._settle(number):
            if write.key in too_large and write.size >= _write_size(write.key, puts[write.key]):
                _fail(write.future, _DATA_LIMIT_REACHED)
            elif not write.future.done():
                if write.value == _IN_BATCH:
                    write.value = puts[write.key or ""]
                write.is_again = True
                self._queue_bytes += write.size
                again.append(write)
        self._writes = deque(sorted([*again, *self._writes], key=lambda write: write.deadline))  # as they came

    def _fail_batch(self, number: int, failure: RequestFailed) -> None:
        for write in self._settle(number):
            _fail(write.future, failure)

    def _settle(self, number: int) -> list[_Write]:
        """A batch is answered: the writes that were in it."""
        sent = self._session.unanswered.pop(number, None)
        if sent is None:
            return []
        self._queue_bytes -= sent.size
        if self._session.is_draining and not self._session.unanswered:
            self._schedule_flush()
        return sent.writes

    def _on_gap(self, reply: Gap) -> None:
        session = self._session
        if reply.session != session.id or reply.number not in session.unanswered:
            return
        if reply.expected not in session.unanswered:
            # The expected one was refused, and logd ended before it refused this one too: nobody took it or will.
            session.is_draining = True
            self._send_again_without(reply.number, set())
        elif session.resent_from != reply.expected:
            session.resent_from = reply.expected
            for number, sent in session.unanswered.items():
                if number >= reply.expected:
                    self._send(sent.raw)

    def _on_dropped(self, reply: Dropped) -> None:
        if reply.session != self._session.id:
            return
        log.error("logd has dropped this worker's session at batch %d; beginning another", reply.number)
        for number in list(self._session.unanswered):
            self._fail_batch(number, OutcomeUnknown(_SESSION_LOST))
        self._session = _Session()
        self._schedule_flush()

    def _on_status(self, reply: Status | Stats) -> None:
        sent = self._sent_statuses.pop(reply.number, None)
        if sent and not sent.future.done():
            sent.future.set_result(reply)

    # Deadlines -------------------------------------------------------------------------------------------

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            self._fail_expired(self._loop.time())
            self._drain()
            sent = sum(len(batch.writes) for batch in self._session.unanswered.values())
            self._report_queue(len(self._writes) + sent, self._queue_bytes)
            self._report_large(self._large_bytes, len(self._large))

    def _fail_expired(self, now: float) -> None:
        while self._writes and self._writes[0].deadline <= now:
            write = self._writes.popleft()
            self._queue_bytes -= write.size
            _fail(write.future, Unavailable(_UNREACHABLE))
        while self._reads and self._reads[0].deadline <= now:
            _fail(self._reads.popleft().future, Unavailable(_UNREACHABLE))
        for batch in self._session.unanswered.values():
            if not _fail_first(batch.writes, now, OutcomeUnknown(_UNKNOWN)):
                break
            batch.writes = []
        for number, question in list(self._sent_reads.items()):
            if not _fail_first(question.reads, now, Unavailable(_NO_ANSWER)):
                break
            del self._sent_reads[number]
        _fail_first([sent.read for sent in self._sent_large.values()], now, Unavailable(_NO_ANSWER))
        while self._large and self._large[0].deadline <= now:
            _fail(self._large.popleft().future, Unavailable(_NO_ROOM))
        if self._large:  # the first may have been larger than the next
            self._schedule_flush()
        for number, status in list(self._sent_statuses.items()):
            if not _fail_first([status], now, Unavailable(_NO_ANSWER)):
                break
            del self._sent_statuses[number]


def _write_size(key: str | None, value: bytes | None) -> int:
    """What a write counts for while it waits."""
    return _REQUEST_OVERHEAD_BYTES + len(key or "") + len(value or b"")


def _fail_first(waiting: Iterable[_Waiting], now: float, failure: RequestFailed) -> bool:
    """Fail those whose deadline has passed, which come first. True when it has passed for all of them."""
    for each in waiting:
        if each.deadline > now:
            return False
        _fail(each.future, failure)
    return True


def _fail(future: asyncio.Future[None] | asyncio.Future[Found] | asyncio.Future[Any], failure: RequestFailed) -> None:
    if not future.done():
        future.set_exception(type(failure)(*failure.args))  # each its own: raising one adds to its traceback
