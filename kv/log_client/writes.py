"""Writes: all those of a few turns of the event loop are one numbered batch of this worker's session.

Owns the session, and with it the worker's half of exactly once (logd/shared/protocol.py has the rules): a batch is kept
until logd has answered it, and sent again with the same number on every new connection. Only then is it known whether
it was applied, so a write whose deadline passes before has an unknown outcome.

What a reply other than `Committed` means:

* `Refused` for lack of space: no write of these batches was applied, all fail.
* `Refused` at the data limit: the values that do not fit fail, all other writes of the batch go into another.
* `Gap`: an earlier batch was lost with a connection; it is sent again, with all after it.
* `Dropped`: logd does not know the session (any more), so all outcomes are unknown. Another session is begun.
"""

import asyncio
import logging
import os
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from kv.log_client.outcomes import (
    NOT_REACHABLE,
    DataLimitReached,
    NoSpace,
    OutcomeUnknown,
    RequestFailed,
    Unavailable,
    fail,
    fail_overdue,
)
from kv.log_client.part import Link, Replies
from logd.shared import protocol
from logd.shared.protocol import Committed, Dropped, Gap, Reason, Refused, WriteBatch

_IN_BATCH: Final = b""
_WRITE_OVERHEAD_BYTES: Final = 512  # what a waiting write takes beside its key and value
_NO_SPACE: Final = NoSpace("no space left on device")
_DATA_LIMIT_REACHED: Final = DataLimitReached("data limit reached")
_SESSION_DROPPED: Final = OutcomeUnknown(
    "the log writer has dropped the session; whether the write was applied is not known"
)

log = logging.getLogger("kv.log_client.writes")


@dataclass(slots=True)
class _Write:
    """`value` is None for a delete, and `_IN_BATCH` while a message holds it; `key` is None for a clear."""

    key: str | None
    value: bytes | None
    future: asyncio.Future[None]
    deadline: float
    size: int
    is_again: bool = False
    """It was in a batch that was refused because of other writes."""


@dataclass(slots=True)
class _SentWrites:
    message: bytes
    writes: list[_Write]
    """Empty when the deadline of all of them has passed."""
    size: int


@dataclass(slots=True)
class _Session:
    """One numbering of batches. Another one is begun when logd has dropped this one, or did not open it."""

    id: bytes = b""
    """Drawn with batch 0: processes that were forked before have sessions of their own."""
    next_number: int = 0
    unanswered: dict[int, _SentWrites] = field(default_factory=dict)
    """By number, in order."""
    is_open: bool = False
    drain_to: int = -1
    """No batch is sent before this one and all before it are answered."""
    resent_from: int = -1
    """Since the connection was made."""

    @property
    def base(self) -> int:
        """The lowest number without an answer."""
        return next(iter(self.unanswered), self.next_number)

    @property
    def is_draining(self) -> bool:
        return self.drain_to >= 0 and self.base <= self.drain_to

    def drain(self) -> None:
        """Send nothing until all that was sent is answered.

        After a refused batch logd also refuses those that were sent before the worker knew: their `base` shows it.
        """
        self.drain_to = self.next_number - 1


class Writes:
    """The writes of one worker."""

    def __init__(self, link: Link, timeout_s: float, queue_bytes_max: int) -> None:
        self._link = link
        self._timeout_s = timeout_s
        self._queue_bytes_max = queue_bytes_max
        self.queue_bytes = 0
        """Of all writes that have no answer."""
        self.queue: deque[_Write] = deque()
        """Not sent yet."""
        self._session = _Session()
        self.replies: Replies = {
            Committed: self._on_committed,
            Refused: self._on_refused,
            Gap: self._on_gap,
            Dropped: self._on_dropped,
        }

    def write(self, key: str | None, value: bytes | None) -> asyncio.Future[None]:
        """Store a value; without a value delete the key, without a key all keys. Raises RequestFailed."""
        loop = self._link.loop
        size = _write_size(key, value)
        write = _Write(key, value, loop.create_future(), loop.time() + self._timeout_s, size)
        if self.queue_bytes and self.queue_bytes + size > self._queue_bytes_max:
            fail(write.future, Unavailable("too many writes are waiting; this one was not written"))
            return write.future
        self.queue_bytes += size
        self.queue.append(write)
        self._link.flush_soon()
        return write.future

    def flush(self) -> None:
        """Send the writes that wait, once the session is open and nothing has to be drained."""
        session = self._session
        if session.is_open:
            while self.queue and self._link.is_connected and not session.is_draining:
                self._send_writes()
        elif self.queue and self._link.is_connected and not session.unanswered:
            session.id = os.urandom(protocol.SESSION_ID_BYTES)
            self._send_batch([], clear=False, puts={}, deletes=(), size=0)

    def resend(self) -> None:
        """Send all batches again, also those whose writes have failed by now: logd accepts no gap."""
        self._session.resent_from = -1
        for sent in self._session.unanswered.values():
            self._link.send(sent.message)

    def expire(self, now: float, reason: str = "") -> None:
        """Fail the writes whose deadline has passed."""
        while self.queue and self.queue[0].deadline <= now:
            write = self.queue.popleft()
            self.queue_bytes -= write.size
            fail(write.future, Unavailable(reason or NOT_REACHABLE))
        unknown = f"{reason or 'the deadline passed'}; whether the write was applied is not known"
        for sent in self._session.unanswered.values():
            if not fail_overdue(sent.writes, now, OutcomeUnknown(unknown)):
                break
            sent.writes = []

    def gauges(self) -> dict[str, float]:
        """Writes without an answer, and the memory that they take."""
        sent = sum(len(sent.writes) for sent in self._session.unanswered.values())
        return {"queued_writes": len(self.queue) + sent, "queued_bytes": self.queue_bytes}

    # Sending ---------------------------------------------------------------------------------------------

    def _send_writes(self) -> None:
        """Encode one batch.

        Its writes are concurrent, so the last one of a key decides, and a clear undoes those before.
        """
        writes: list[_Write] = []
        clear = False
        puts: dict[str, bytes] = {}
        deletes: set[str] = set()
        size = 0
        is_again = self.queue[0].is_again  # never with new ones, whose values could have it refused again and again
        while self.queue and size < protocol.BATCH_BYTES_SOFT_MAX and self.queue[0].is_again == is_again:
            write = self.queue.popleft()
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
        if is_again:
            self._session.drain()

    def _send_batch(
        self, writes: list[_Write], clear: bool, puts: dict[str, bytes], deletes: Iterable[str], size: int
    ) -> None:
        session = self._session
        number = session.next_number
        message = protocol.encode(WriteBatch(session.id, number, session.base, clear, puts, list(deletes)))
        for write in writes:
            if write.value and puts.get(write.key or "") is write.value:
                write.value = _IN_BATCH
        session.next_number += 1
        session.unanswered[number] = _SentWrites(message, writes, size)
        self._link.send(message)

    # Answers ---------------------------------------------------------------------------------------------

    def _on_committed(self, reply: Committed) -> None:
        if reply.session != self._session.id:
            return
        for number in reply.numbers:
            for write in self._take_answered(number):
                if not write.future.done():
                    write.future.set_result(None)
        if not self._session.is_open:  # batch 0 was the only one
            self._session.is_open = True
            self._link.flush_soon()

    def _on_refused(self, reply: Refused) -> None:
        if reply.session != self._session.id:
            return
        self._session.drain()
        for number in reply.numbers:
            if reply.reason is Reason.DATA_LIMIT:
                self._requeue_without(number, set(reply.too_large))
            else:
                self._fail_batch(number, _NO_SPACE)
        if not self._session.is_open:  # batch 0 was refused, so its number is used up
            self._session = _Session()
            self._fail_queue(_NO_SPACE)

    def _on_gap(self, reply: Gap) -> None:
        session = self._session
        if reply.session != session.id or reply.number not in session.unanswered:
            return
        if reply.expected not in session.unanswered:
            # The expected one was refused, and logd ended before it refused this one too: it was never accepted.
            session.drain()
            self._requeue_without(reply.number, set())
        elif session.resent_from != reply.expected:
            session.resent_from = reply.expected
            for number, sent in session.unanswered.items():
                if number >= reply.expected:
                    self._link.send(sent.message)

    def _on_dropped(self, reply: Dropped) -> None:
        if reply.session != self._session.id:
            return
        log.error("logd has dropped this worker's session at batch %d; beginning another", reply.number)
        for number in list(self._session.unanswered):
            self._fail_batch(number, _SESSION_DROPPED)
        self._session = _Session()
        self._link.flush_soon()

    def _requeue_without(self, number: int, too_large: set[str]) -> None:
        """Have all writes of a batch that was not applied sent again, but the values that do not fit."""
        sent = self._session.unanswered.get(number)
        if sent is None:
            return
        puts = protocol.decode_write_batch(sent.message).puts
        again = []
        for write in self._take_answered(number):
            if write.key in too_large and write.size >= _write_size(write.key, puts[write.key]):
                fail(write.future, _DATA_LIMIT_REACHED)
            elif not write.future.done():
                if write.value == _IN_BATCH:
                    write.value = puts[write.key or ""]
                write.is_again = True
                self.queue_bytes += write.size
                again.append(write)
        self.queue = deque(sorted([*again, *self.queue], key=lambda write: write.deadline))  # in the order of arrival
        self._link.flush_soon()

    def _fail_batch(self, number: int, failure: RequestFailed) -> None:
        for write in self._take_answered(number):
            fail(write.future, failure)

    def _fail_queue(self, failure: RequestFailed) -> None:
        for write in self.queue:
            self.queue_bytes -= write.size
            fail(write.future, failure)
        self.queue.clear()

    def _take_answered(self, number: int) -> list[_Write]:
        """Remove a batch that is answered: the writes that were in it, none when it was answered before."""
        sent = self._session.unanswered.pop(number, None)
        if sent is None:
            return []
        self.queue_bytes -= sent.size
        if self.queue and not self._session.unanswered:  # they may have waited for this
            self._link.flush_soon()
        return sent.writes


def _write_size(key: str | None, value: bytes | None) -> int:
    """What a write counts for while it has no answer."""
    return _WRITE_OVERHEAD_BYTES + len(key or "") + len(value or b"")
