"""Writes: all those of a few turns of the event loop are one numbered batch of this worker's session.

Owns the session, and with it the worker's half of exactly once (logd/shared/protocol.py has the rules): a batch is kept
until logd has answered it, and sent again with the same number on every new connection. Only then is it known whether
it was applied, so a write whose deadline passes before has an unknown outcome.

What a reply means:

* `Committed`: all writes of these batches were applied, but those that it names as not made: transactions whose checks
  did not hold, and what would have taken the data beyond its limit.
* `Refused`: no write of these batches was applied, for the reason that it names; all fail.
* `Gap`: an earlier batch was lost with a connection; it is sent again, with all after it.
* `Dropped`: logd does not know the session (any more), so all outcomes are unknown. Another session is begun.
"""

import asyncio
import logging
import os
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from kv.config import UNLIMITED, BatchLimits
from kv.log_client.outcomes import (
    NOT_REACHABLE,
    DataLimitReached,
    NoSpace,
    OutcomeUnknown,
    PreconditionFailed,
    RequestFailed,
    Unavailable,
)
from kv.log_client.part import Link, Replies
from kv.log_client.pending import Pending, fail, fail_overdue
from logd.shared import protocol
from logd.shared.protocol import Committed, Dropped, Gap, Outcomes, Reason, Refused, Transaction, WriteBatch

_WRITE_OVERHEAD_BYTES: Final = 512  # what a waiting write takes beside its key and value
_ENTRY_OVERHEAD_BYTES: Final = 16  # what a check or a write of a transaction takes beside its key, tags and value
_REFUSED: Final[dict[Reason, RequestFailed]] = {
    Reason.NO_SPACE: NoSpace("no space left on device"),
    Reason.SCARCE: Unavailable("the log writer is short of memory or descriptors; nothing was written"),
    Reason.UNREACHABLE: Unavailable("the data cannot be reached; nothing was written"),
}
_DATA_LIMIT_REACHED: Final = DataLimitReached("data limit reached")
_SESSION_DROPPED: Final = OutcomeUnknown(
    "the log writer has dropped the session; whether the write was applied is not known"
)

log = logging.getLogger("kv.log_client.writes")


class _Write(Pending[None]):
    """Without a value it is a delete, without a key a clear, unless it is a transaction.

    Once it is sent, a message holds what is to be written.
    """

    __slots__ = ("key", "size", "transaction", "value")

    key: str | None
    value: bytes | None
    transaction: Transaction | None
    size: int


@dataclass(slots=True)
class _SentWrites:
    message: bytes
    writes: list[_Write]
    """Empty when the deadline of all of them has passed."""
    transactions: list[_Write]
    """Those among them that are transactions, in the order of the message."""
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
    refused_for: Reason = Reason.NO_SPACE
    """Why batches were refused the last time."""

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

    def __init__(
        self,
        link: Link,
        timeout_s: float,
        queue_bytes_max: int,
        *,
        has_data_limit: bool = False,
        limits: BatchLimits = UNLIMITED,
    ) -> None:
        self._link = link
        self._timeout_s = timeout_s
        self._queue_bytes_max = queue_bytes_max
        self._has_data_limit = has_data_limit
        self._limits = limits
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
        return self._enqueue(key, value, None, len(key or "") + len(value or b""))

    def execute(self, transaction: Transaction) -> asyncio.Future[None]:
        """Make all writes of a transaction, or none. Raises RequestFailed, of which PreconditionFailed is one."""
        return self._enqueue(None, None, transaction, _transaction_size(transaction))

    def _enqueue(
        self, key: str | None, value: bytes | None, transaction: Transaction | None, size: int
    ) -> asyncio.Future[None]:
        loop = self._link.loop
        size += _WRITE_OVERHEAD_BYTES
        write = _Write(loop=loop)
        write.key, write.value, write.transaction, write.size = key, value, transaction, size
        write.deadline = loop.time() + self._timeout_s
        if self.queue_bytes and self.queue_bytes + size > self._queue_bytes_max:
            fail(write, Unavailable("too many writes are waiting; this one was not written"))
            return write
        self.queue_bytes += size
        self.queue.append(write)
        self._link.flush_soon()
        return write

    def flush(self) -> None:
        """Send the writes that wait, once the session is open and nothing has to be drained."""
        session = self._session
        if session.is_open:
            while self.queue and self._link.is_connected and not session.is_draining:
                self._send_writes()
        elif self.queue and self._link.is_connected and not session.unanswered:
            session.id = os.urandom(protocol.SESSION_ID_BYTES)
            self._send_batch(_Batch())

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
            fail(write, Unavailable(reason or NOT_REACHABLE))
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
        """Send the writes that wait as one batch, or the first of them."""
        batch = _Batch()
        checks_max = self._limits.checks_max
        while self.queue and batch.size < self._limits.bytes_soft_max:
            if self._has_data_limit and batch.hides(self.queue[0]):
                break
            if checks_max is not None and batch.writes and batch.checks_with(self.queue[0]) > checks_max:
                break
            batch.add(self.queue.popleft())
        self._send_batch(batch)

    def _send_batch(self, batch: "_Batch") -> None:
        session = self._session
        number = session.next_number
        message = protocol.encode(batch.message(session.id, number, session.base))
        for write in batch.writes:
            write.value = write.transaction = None
        session.next_number += 1
        session.unanswered[number] = _SentWrites(message, batch.writes, batch.transactions, batch.size)
        self._link.send(message)

    # Answers ---------------------------------------------------------------------------------------------

    def _on_committed(self, reply: Committed) -> None:
        if reply.session != self._session.id:
            return
        for number in reply.numbers:
            if sent := self._take_answered(number):
                if number in reply.outcomes:
                    _fail_not_made(sent, reply.outcomes[number])
                for write in sent.writes:
                    if not write.done():
                        write.set_result(None)
        if not self._session.is_open:  # batch 0 was the only one
            self._session.is_open = True
            self._link.flush_soon()

    def _on_refused(self, reply: Refused) -> None:
        if reply.session != self._session.id:
            return
        self._session.refused_for = reply.reason
        self._session.drain()
        for number in reply.numbers:
            self._fail_batch(number, _REFUSED[reply.reason])
        if not self._session.is_open:  # batch 0 was refused, so its number is used up
            self._session = _Session()
            self._fail_queue(_REFUSED[reply.reason])

    def _on_gap(self, reply: Gap) -> None:
        session = self._session
        if reply.session != session.id or reply.number not in session.unanswered:
            return
        if reply.expected not in session.unanswered:
            # The expected one was refused, and logd ended before it refused this one too: it was never accepted.
            session.drain()
            self._fail_batch(reply.number, _REFUSED[session.refused_for])
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

    def _fail_batch(self, number: int, failure: RequestFailed) -> None:
        if sent := self._take_answered(number):
            for write in sent.writes:
                fail(write, failure)

    def _fail_queue(self, failure: RequestFailed) -> None:
        while self.queue:
            write = self.queue.popleft()
            self.queue_bytes -= write.size
            fail(write, failure)

    def _take_answered(self, number: int) -> _SentWrites | None:
        """Remove a batch that is answered; None when it was answered before."""
        sent = self._session.unanswered.pop(number, None)
        if sent is None:
            return None
        self.queue_bytes -= sent.size
        if self.queue and not self._session.unanswered:  # they may have waited for this
            self._link.flush_soon()
        return sent


class _Batch:
    """The writes that go into one message.

    They are concurrent: the last one of a key decides, and a clear undoes those before; transactions come after them.
    """

    def __init__(self) -> None:
        self.writes: list[_Write] = []
        self.transactions: list[_Write] = []
        self.size = 0
        self._clear = False
        self._puts: dict[str, bytes] = {}
        self._deletes: set[str] = set()
        self._transactions: list[Transaction] = []

    def add(self, write: _Write) -> None:
        """Add one more."""
        self.writes.append(write)
        self.size += write.size
        if write.transaction:
            self.transactions.append(write)
            self._transactions.append(write.transaction)
        elif write.key is None:
            self._clear = True
            self._puts.clear()
            self._deletes.clear()
        elif write.value is None:
            self._deletes.add(write.key)
            self._puts.pop(write.key, None)
        else:
            self._puts[write.key] = write.value
            self._deletes.discard(write.key)

    def checks_with(self, write: _Write) -> int:
        """How many checks there are when this one is added."""
        added = write.transaction.checks if write.transaction else ()
        return sum(len(each.checks) for each in self._transactions) + len(added)

    def hides(self, write: _Write) -> bool:
        """True when a write would take the place of others that fit where it may not: at a limit on the data.

        Then it needs a batch of its own, as only the last write of a key gets an outcome.
        """
        if write.transaction:
            return False
        if write.key is None:
            return bool(self.writes)
        if write.value is None:
            return False
        return write.key in self._deletes or len(write.value) > len(self._puts.get(write.key, write.value))

    def message(self, session: bytes, number: int, base: int) -> WriteBatch:
        """What is sent."""
        return WriteBatch(session, number, base, self._clear, self._puts, list(self._deletes), self._transactions)


def _fail_not_made(sent: _SentWrites, outcomes: Outcomes) -> None:
    """Fail those writes of an applied batch that were not made."""
    for index, checks in outcomes.failed.items():
        fail(sent.transactions[index], PreconditionFailed(checks) if checks else _DATA_LIMIT_REACHED)
    if outcomes.over_limit:
        over_limit = set(outcomes.over_limit)
        for write in sent.writes:
            if write.key in over_limit:
                fail(write, _DATA_LIMIT_REACHED)


def _transaction_size(transaction: Transaction) -> int:
    """Checked keys count twice, as etcd is sent them as a condition and as a read."""
    checked = sum(2 * len(check.key) + sum(map(len, check.tags or ())) for check in transaction.checks)
    put = sum(len(key) + len(value) for key, value in transaction.puts.items())
    entries = len(transaction.checks) + len(transaction.puts) + len(transaction.deletes)
    return checked + put + sum(map(len, transaction.deletes)) + _ENTRY_OVERHEAD_BYTES * entries
