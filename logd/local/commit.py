"""Group commit: all writes that arrive while a sync runs become the next group.

Owns the durable order (append, sync, apply, reply) and the intake of sessions: which batch may come next. Knows no
sockets; it hands back replies, each with the session that it is for. To `server.py` this is storage: submit batches,
commit them, look keys up, collect replies, stop.

Two threads. The main thread takes batches, applies finished groups and answers; the sync thread appends and syncs one
group at a time. They meet in two queues and nowhere else; the store is the main thread's alone.
"""

import contextlib
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from logd.local.counters import Counts
from logd.local.data_limit import DataLimit
from logd.local.disk import Disk
from logd.local.frame import FRAME_HEADER_BYTES
from logd.local.publish import NoSpace
from logd.local.store import SESSIONS_MAX, Store
from logd.local.wal import Wal, encode_payload
from logd.shared.protocol import MESSAGE_BYTES_CEILING, Committed, Dropped, Gap, Reason, Refused, Reply, WriteBatch

_FRAME_OVERHEAD_BYTES: Final = FRAME_HEADER_BYTES + len(encode_payload([]))

log = logging.getLogger("logd.local.commit")


class DiskFailed(Exception):
    """A write or a sync failed: nothing of its group may be acknowledged, and this process must end (DESIGN rule 6)."""


class Taken(NamedTuple):
    """A batch that was taken in, with the bytes that go into the log."""

    raw: bytes
    batch: WriteBatch


class Intake:
    """How far a session has been taken in. Not durable: after a restart `taken` is what the log says."""

    __slots__ = ("reason", "refused", "taken")

    def __init__(self, taken: int) -> None:
        self.taken = taken
        self.refused = -1
        """The highest number that was refused. A batch whose base is not above it was sent without knowing that, and is
        refused too: taking it would make the refused one look like a repeat of something applied."""
        self.reason = Reason.NO_SPACE

    def refuse(self, number: int, reason: Reason) -> None:
        """Remember that a batch was refused, and why."""
        self.refused = max(self.refused, number)
        self.reason = reason


class GroupCommit:
    """The log and the state behind one door. All methods but `_sync_loop` belong to the main thread."""

    def __init__(
        self,
        disk: Disk,
        wal: Wal,
        store: Store,
        *,
        group_bytes_max: int = MESSAGE_BYTES_CEILING,
        data_bytes_max: int = 0,
        on_group: Callable[[], None] = lambda: None,
    ) -> None:
        self._disk = disk
        self._wal = wal
        self._store = store
        self.counts = Counts()
        self._group_bytes_max = group_bytes_max
        self._data_limit = DataLimit(store, data_bytes_max) if data_bytes_max else None
        self._on_group = on_group
        self._intakes: dict[bytes, Intake] = {}
        self._waiting: deque[Taken] = deque()
        self._in_flight: list[Taken] = []
        self._needed_bytes = 0  # what the last group wanted when the disk was full; 0 when it was not
        self._to_sync: queue.SimpleQueue[list[bytes] | None] = queue.SimpleQueue()
        self._synced: queue.SimpleQueue[Exception | float] = queue.SimpleQueue()
        """How a group ended: a failure, or the seconds that its sync took."""
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        self._thread = threading.Thread(target=self._sync_loop, name="sync", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """Readable when `collect` has something to do."""
        return self._wake_read

    def lookup(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values of keys; None for those that are not there. Only what is durable is seen."""
        return list(map(self._store.data.get, keys))

    def unavailable_reason(self) -> str:
        """Why writes cannot be taken; empty when they can."""
        if self._needed_bytes and self._disk.free_bytes() < self._needed_bytes:
            return "no space left on device"
        return ""

    def submit(self, raw: bytes, batch: WriteBatch) -> Reply | None:
        """Take a batch into the next group. A reply at once when it is not taken; None when one will be collected.

        `raw` is the batch as it was sent, and as it goes into the log.
        """
        if batch.number and batch.session not in self._store.sessions:
            return Dropped(batch.session, batch.number)
        intake = self._intakes.get(batch.session) or self._new_intake(batch.session)
        if batch.number <= intake.taken:
            return self._answer_repeat(batch)
        if batch.base <= intake.refused:
            intake.refuse(batch.number, intake.reason)
            return Refused(batch.session, [batch.number], intake.reason)
        expected = max(intake.taken + 1, batch.base)
        if batch.number != expected:
            return Gap(batch.session, batch.number, expected)
        if self._data_limit and (too_large := self._data_limit.admit(len(raw), batch)):
            intake.refuse(batch.number, Reason.DATA_LIMIT)
            return Refused(batch.session, [batch.number], Reason.DATA_LIMIT, too_large)
        intake.taken = batch.number
        self._waiting.append(Taken(raw, batch))
        return None

    def commit(self) -> None:
        """Let what waits be the next group, unless one is in flight: then it is when that is collected."""
        if not self._in_flight:
            self._start_group()

    def collect(self) -> list[tuple[bytes, Reply]]:
        """Finish the group whose sync is over and start the next. Returns replies and the sessions that they are for.

        Raises DiskFailed.
        """
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)
        try:
            end = self._synced.get_nowait()
        except queue.Empty:
            return []
        if isinstance(end, Exception) and not isinstance(end, NoSpace):
            raise DiskFailed(str(end)) from end
        group, self._in_flight = self._in_flight, []
        if isinstance(end, Exception):
            return self._refuse(group)
        if self._needed_bytes:
            log.info("there is space again: writes are taken")
            self._needed_bytes = 0
        self._start_group()  # the next sync runs while this group is applied and answered
        replies = self._apply(group)
        self.counts.group([batch for _, batch in group], _frame_bytes(group), end)
        self._on_group()
        return replies

    def idle(self) -> bool:
        """True when everything that was taken in is answered."""
        return not (self._in_flight or self._waiting)

    def stop(self) -> None:
        """End the sync thread. A group in flight is on the disk, though it was not answered, or it fails."""
        self._to_sync.put(None)
        self._thread.join()
        self._wal.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _new_intake(self, session: bytes) -> Intake:
        if len(self._intakes) > 2 * SESSIONS_MAX:
            self._forget_dropped_sessions()
        intake = self._intakes[session] = Intake(self._store.sessions.get(session, -1))
        return intake

    def _forget_dropped_sessions(self) -> None:
        keep = self._unanswered_sessions().union(self._store.sessions)
        self._intakes = {session: intake for session, intake in self._intakes.items() if session in keep}

    def _answer_repeat(self, batch: WriteBatch) -> Reply | None:
        last = self._store.sessions.get(batch.session)
        if last is not None and batch.number <= last:
            return Committed(batch.session, [batch.number])
        if last is None and batch.session not in self._unanswered_sessions():  # opened, and dropped since
            return Dropped(batch.session, batch.number)
        return None  # it waits, or its sync runs: it is answered with its group

    def _unanswered_sessions(self) -> set[bytes]:
        return {taken.batch.session for taken in (*self._waiting, *self._in_flight)}

    def _start_group(self) -> None:
        group_bytes = 0
        while self._waiting and (group_bytes := group_bytes + len(self._waiting[0].raw)) <= self._group_bytes_max:
            self._in_flight.append(self._waiting.popleft())
        if self._in_flight:
            self._to_sync.put([taken.raw for taken in self._in_flight])

    def _sync_loop(self) -> None:
        while (raws := self._to_sync.get()) is not None:
            end: Exception | float
            try:
                self._wal.append(raws)
                began = time.perf_counter()
                self._wal.sync()
                end = time.perf_counter() - began
            except Exception as error:  # whatever it is, the main thread has to hear of it
                end = error
            self._synced.put(end)
            os.write(self._wake_write, b"\0")

    def _apply(self, group: list[Taken]) -> list[tuple[bytes, Reply]]:
        committed: dict[bytes, list[int]] = {}
        dropped: list[tuple[bytes, Reply]] = []
        for _, batch in group:
            if self._store.apply(batch):
                committed.setdefault(batch.session, []).append(batch.number)
            else:
                dropped.append((batch.session, Dropped(batch.session, batch.number)))
        self._settle_data_limit(len(group))
        return [*((session, Committed(session, numbers)) for session, numbers in committed.items()), *dropped]

    def _settle_data_limit(self, count: int) -> None:
        if self._data_limit:
            self._data_limit.settle(count)

    def _refuse(self, group: list[Taken]) -> list[tuple[bytes, Reply]]:
        """Answer a group that found no space, and all that waits behind it: taking those would leave a gap."""
        if not self._needed_bytes:
            log.error("no space left on the device: writes are refused until there is")
        self._needed_bytes = 0
        refused: dict[bytes, list[int]] = {}
        for raw, batch in (*group, *self._waiting):
            refused.setdefault(batch.session, []).append(batch.number)
            self._needed_bytes += len(raw)
        self._settle_data_limit(len(group) + len(self._waiting))
        self._waiting.clear()
        for session, numbers in refused.items():
            intake = self._intakes[session]
            intake.taken = self._store.sessions.get(session, -1)
            intake.refuse(numbers[-1], Reason.NO_SPACE)
        return [(session, Refused(session, numbers, Reason.NO_SPACE)) for session, numbers in refused.items()]


def _frame_bytes(group: Sequence[Taken]) -> int:
    return _FRAME_OVERHEAD_BYTES + sum(len(taken.raw) for taken in group)
