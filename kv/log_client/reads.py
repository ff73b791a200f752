"""Reads: all those of a few turns of the event loop are one request to logd, and large values are read one by one.

logd answers the request for a value over 64 KiB with its size. It is then requested a second time, alone, when there is
room for it (kv/log_client/large_values.py decides).

A request id is unique for the life of a worker. Requests are sent again with the same id, so an answer that was on its
way when a connection broke is never confused with another.
"""

import asyncio
from collections import deque
from dataclasses import dataclass

from kv.log_client.large_values import Budget, Found, LargeValue, Read, Room
from kv.log_client.outcomes import NO_ANSWER, NOT_REACHABLE, Unavailable
from kv.log_client.part import Link, Replies
from kv.log_client.pending import fail, fail_overdue
from logd.shared import protocol
from logd.shared.protocol import Large, ReadBatch, ReadLarge, Values


@dataclass(slots=True)
class _SentReads:
    message: bytes
    reads: list[Read | None]
    """In the order of their keys in the message; None where a value was large and is read alone."""


@dataclass(slots=True)
class _SentLargeRead:
    message: bytes
    read: Read
    room: Room


class Reads:
    """The reads of one worker."""

    def __init__(self, link: Link, timeout_s: float, budget: Budget) -> None:
        self._link = link
        self._timeout_s = timeout_s
        self._last_request_id = 0
        self.queue: deque[Read] = deque()
        """Not sent yet."""
        self._sent: dict[int, _SentReads] = {}
        """By request id."""
        self._sent_large: dict[int, _SentLargeRead] = {}
        """Kept until answered, also past the deadline: what logd sends takes room."""
        self.budget = budget
        self.replies: Replies = {Values: self._on_values, Large: self._on_large}

    def get(self, key: str) -> asyncio.Future[Found]:
        """The value of a key. Raises Unavailable."""
        loop = self._link.loop
        read = Read(loop=loop)
        read.key, read.deadline = key, loop.time() + self._timeout_s
        self.queue.append(read)
        self._link.flush_soon()
        return read

    def flush(self) -> None:
        """Send the reads that wait, and those of large values that there is room for."""
        while self.queue and self._link.is_connected:
            self._send_reads()
        while self.budget.waiting and self._link.is_connected and (acquired := self.budget.acquire()):
            self._send_large_read(*acquired)

    def resend(self) -> None:
        """Send all requests again. What logd sent on the old connection will not arrive, so it takes no room."""
        for request_id, large in list(self._sent_large.items()):
            if large.read.done():
                del self._sent_large[request_id]
                large.room.release()
        messages = [sent.message for sent in self._sent.values()]
        messages += [large.message for large in self._sent_large.values()]
        for message in messages:
            self._link.send(message)

    def expire(self, now: float, reason: str = "") -> None:
        """Fail the reads whose deadline has passed. A large value that was requested still takes room."""
        while self.queue and self.queue[0].deadline <= now:
            fail(self.queue.popleft(), Unavailable(reason or NOT_REACHABLE))
        no_answer = Unavailable(reason or NO_ANSWER)
        for request_id, sent in list(self._sent.items()):
            if not fail_overdue(filter(None, sent.reads), now, no_answer):
                break
            del self._sent[request_id]
        fail_overdue((large.read for large in self._sent_large.values()), now, no_answer)
        waiting = self.budget.waiting
        while waiting and waiting[0].deadline <= now:
            fail(waiting.popleft(), Unavailable(reason or "too many large values are being read"))
        if waiting:  # the first may have been larger than the next
            self._link.flush_soon()

    def gauges(self) -> dict[str, float]:
        """Bytes of large values and of pages that are being read, and how many reads of such values wait."""
        return {"large_bytes": self.budget.held_bytes, "large_reads_waiting": len(self.budget.waiting)}

    def _new_request_id(self) -> int:
        self._last_request_id += 1
        return self._last_request_id

    def _send_reads(self) -> None:
        reads: list[Read | None] = []
        keys: list[str] = []
        size = 0
        while self.queue and size < protocol.BATCH_BYTES_SOFT_MAX:
            read = self.queue.popleft()
            reads.append(read)
            keys.append(read.key)
            size += len(read.key)
        request_id = self._new_request_id()
        message = protocol.encode(ReadBatch(request_id, keys))
        self._sent[request_id] = _SentReads(message, reads)
        self._link.send(message)

    def _send_large_read(self, read: Read, room: Room) -> None:
        request_id = self._new_request_id()
        message = protocol.encode(ReadLarge(request_id, read.key, read.size))
        self._sent_large[request_id] = _SentLargeRead(message, read, room)
        self._link.send(message)

    def _on_values(self, reply: Values) -> None:
        sent = self._sent.get(reply.number)
        if sent is None:
            self._on_large_value(reply)
            return
        for read, value in zip(sent.reads[reply.first :], reply.values, strict=False):
            if read and not read.done():
                read.set_result(value)
        self._end_if_last(reply.number, reply.first + len(reply.values))

    def _on_large(self, reply: Large) -> None:
        """A value was not sent, because it is large, or larger than was requested."""
        if sent := self._sent.get(reply.number):
            if read := sent.reads[reply.index]:
                sent.reads[reply.index] = None
                read.size = reply.size
                self.budget.waiting.append(read)
            self._end_if_last(reply.number, reply.index + 1)
        elif large := self._sent_large.pop(reply.number, None):
            large.room.release()
            large.read.size = reply.size
            self.budget.waiting.appendleft(large.read)
        self._link.flush_soon()

    def _end_if_last(self, request_id: int, answered: int) -> None:
        if answered >= len(self._sent[request_id].reads):
            del self._sent[request_id]

    def _on_large_value(self, reply: Values) -> None:
        large = self._sent_large.pop(reply.number, None)
        if large is None:
            return
        read, value = large.read, reply.values[0]
        if read.done() or not value or len(value) <= protocol.LARGE_VALUE_BYTES:
            large.room.release()
            found: Found = value
        else:
            large.room.resize(len(value))
            found = LargeValue(value, large.room.release)
        if not read.done():
            read.set_result(found)
