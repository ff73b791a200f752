"""Group commit: all writes that arrive while a sync runs become the next group.

Owns the durable order: append, sync, apply, reply. Knows no sockets; which batch may come next is for the intake
(logd/intake.py) to decide.

Two threads. The main thread accepts batches, applies groups that are durable, and replies; the sync thread appends and
syncs one group at a time. They meet in two queues and nowhere else; the store is the main thread's alone.

A few writes for which nobody else would have to wait are appended and synced by the main thread itself, as long as
syncs are short: two changes of threads take about as long as such a sync. Only the attempt is made there. What does not
succeed is left to the sync thread, which may wait.

A group that finds no room waits until what can be done was done (logd/local/room.py), and is refused then. The reply
to it says that it was certainly not applied, so after a sync that reported no room it has to wait until the log was
written anew without it.
"""

import errno
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from logd.counters import Counters
from logd.intake import Accepted, Intake
from logd.local import group as groups
from logd.local.disk import Disk, is_scarce
from logd.local.publish import NoSpace
from logd.local.store import Store
from logd.local.wal import InDoubt, Wal
from logd.shared.protocol import MESSAGE_BYTES_CEILING, Committed, Dropped, Reason, Reply, WriteBatch

_REWRITE_RETRY_SECONDS: Final = 0.5
_FEW_WRITES: Final = 4
_SHORT_SYNC_SECONDS: Final = 1e-3
_SYNC_FADING: Final = 0.9
"""What a sync has taken counts so much less with each that follows: after one of a second, 66 have to be short."""
_FULL_DEVICE: Final = (errno.ENOSPC, errno.EDQUOT)

log = logging.getLogger("logd.local.commit")


class DiskFailed(Exception):
    """A write or a sync failed: nothing of its group may be acknowledged, and this process must end."""


class Room(Protocol):
    """What can be done when there is no room for a write. Used by the sync thread."""

    def checkpoint(self) -> bool:
        """Try to free what the log does not need any more, and wait for it. False when nothing was tried."""

    def release_ballast(self) -> bool:
        """Give up what is kept free for such a moment. False when there is nothing."""


class _NoRoom:
    def checkpoint(self) -> bool:
        return False

    def release_ballast(self) -> bool:
        return False


class GroupCommit:
    """Brings batches into the log and into the state, group by group. Used by the main thread."""

    def __init__(
        self,
        disk: Disk,
        wal: Wal,
        store: Store,
        *,
        group_bytes_max: int = MESSAGE_BYTES_CEILING,
        data_bytes_max: int = 0,
        after_group: Callable[[], None] = lambda: None,
        room: Room | None = None,
    ) -> None:
        self._disk = disk
        self._store = store
        self._group_bytes_max = group_bytes_max
        self._after_group = after_group
        self._data_bytes_max = data_bytes_max
        self._intake = Intake(store)
        self._sync_thread = SyncThread(wal, room or _NoRoom())
        self._in_flight: list[Accepted] = []
        self._refused_bytes = 0  # what found no space the last time; 0 when there was space
        self.counters = Counters()

    def fileno(self) -> int:
        """Readable when `collect` has something to do, and while `set_awake` has made it so."""
        return self._sync_thread.fileno()

    def set_awake(self, is_awake: bool) -> None:
        """Have `fileno` readable also when no group has ended; or no longer."""
        self._sync_thread.set_awake(is_awake)

    def unavailable_reason(self) -> str:
        """Why writes would be refused; empty when they would be accepted."""
        is_full = self._sync_thread.is_in_doubt or (self._refused_bytes and not self._has_room(self._refused_bytes))
        return "no space left on device" if is_full else ""

    def submit(self, raw: bytes, batch: WriteBatch) -> Reply | None:
        """Accept a batch into the next group, or reply to it at once; None when a reply will be collected.

        `raw` is the batch as it was sent, and as it goes into the log.
        """
        reply = self._intake.submit(raw, batch)
        if reply:
            self.counters.count_reply(reply)
        return reply

    def commit(self, *, is_quiet: bool = False) -> None:
        """Make what waits the next group, unless one is in flight: `collect` does so at the end of that one.

        When it `is_quiet`, nobody minds that this takes as long as a short sync.
        """
        if not self._in_flight:
            self._begin_group(is_quiet)

    def collect(self) -> list[tuple[bytes, Reply]]:
        """Finish the group whose sync is over, and begin the next. Returns replies, each with its session.

        Raises DiskFailed.
        """
        end = self._sync_thread.end()
        if end is None:
            return []
        group, self._in_flight = self._in_flight, []
        if isinstance(end, NoSpace):
            return self._refuse(group, end)
        self._note_space()
        self._begin_group()  # the next sync runs while this group is applied and its replies are sent
        replies = self._apply(group)
        self.counters.count_group([batch for _, batch in group], end.frame_bytes, end.sync_seconds)
        self._after_group()
        return replies

    def idle(self) -> bool:
        """True when every batch that was accepted has its reply, or will have none before there is room again."""
        return self._sync_thread.is_in_doubt or (not self._in_flight and self._intake.is_empty())

    def stop(self) -> None:
        """End the sync thread. A group in flight is brought to the disk first, though nobody gets a reply to it."""
        self._sync_thread.stop()

    def _has_room(self, size: int) -> bool:
        """False also when the directory is gone, which is for the next write to find out."""
        try:
            return self._disk.free_bytes() >= size
        except OSError:
            return False

    def _note_space(self) -> None:
        if self._refused_bytes:
            log.info("there is space again: writes are accepted")
        self._refused_bytes = 0

    def _begin_group(self, is_quiet: bool = False) -> None:
        self._in_flight = self._intake.take_group(self._group_bytes_max)
        if self._in_flight:
            batches = [batch for _, batch in self._in_flight]
            elements = groups.elements([accepted.raw for accepted in self._in_flight], self._data_bytes_max)
            frees = not any(batch.puts or batch.transactions for batch in batches)
            is_alone = is_quiet and _count_writes(batches) <= _FEW_WRITES
            self._sync_thread.begin(_Group(elements, frees=frees), is_alone=is_alone)

    def _apply(self, group: list[Accepted]) -> list[tuple[bytes, Reply]]:
        committed: dict[bytes, Committed] = {}
        dropped: list[tuple[bytes, Reply]] = []
        for _, batch in group:
            if self._store.apply(batch, self._data_bytes_max):
                self._add(committed, batch)
            else:
                dropped.append((batch.session, Dropped(batch.session, batch.number)))
        self._intake.settle(group)
        self._count(dropped)
        return [*committed.items(), *dropped]

    def _add(self, committed: dict[bytes, Committed], batch: WriteBatch) -> None:
        """Have the one reply to a session say what became of this batch too."""
        reply = committed.get(batch.session)
        if reply is None:
            reply = committed[batch.session] = Committed(batch.session, [])
        reply.numbers.append(batch.number)
        if self._store.outcomes and (outcomes := self._store.outcomes_of(batch.session, batch.number)):
            reply.outcomes.update(outcomes)
            self.counters.count_outcomes(outcomes[batch.number])

    def _refuse(self, group: list[Accepted], why: NoSpace) -> list[tuple[bytes, Reply]]:
        """Refuse a group that found no space, and all that waits after it."""
        if not self._refused_bytes:
            log.error("%s: writes are refused until there is room", why.strerror or "No space left on device")
        refused = group + self._intake.take_group(math.inf)
        self._refused_bytes = sum(len(raw) for raw, _ in refused)
        replies = self._intake.refuse(refused, Reason.SCARCE if is_scarce(why) else Reason.NO_SPACE)
        self._count(replies)
        return replies

    def _count(self, replies: list[tuple[bytes, Reply]]) -> None:
        for _, reply in replies:
            self.counters.count_reply(reply)


class Synced(NamedTuple):
    """A group that is durable: the size of its frame, and how long its sync took."""

    frame_bytes: int
    sync_seconds: float


class _Group(NamedTuple):
    """What goes into the log, encoded. `frees`: it deletes, and adds nothing."""

    elements: Sequence[bytes]
    frees: bool


def _count_writes(batches: Sequence[WriteBatch]) -> int:
    return sum(len(batch.puts) + len(batch.deletes) + len(batch.transactions) for batch in batches)


class SyncThread:
    """Appends and syncs one group after the other, while the thread that uses this goes on, or in its place."""

    def __init__(self, wal: Wal, room: Room) -> None:
        self._wal = wal
        self._room = room
        self._stopping = threading.Event()
        self.is_in_doubt = False
        """True while it cannot be made certain that a group is not in the log."""
        self._lately_seconds = 1.0  # what a sync has taken; nothing is known yet
        self._groups: queue.SimpleQueue[_Group | InDoubt | None] = queue.SimpleQueue()
        self._ends: queue.SimpleQueue[Synced | Exception] = queue.SimpleQueue()
        self._wake_read, self._wake_write = os.pipe()
        self._is_awake = False
        self._thread = threading.Thread(target=self._run, name="sync", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """Readable when a group has ended, or while awake."""
        return self._wake_read

    def set_awake(self, is_awake: bool) -> None:
        """Have `fileno` readable also when no group has ended; or no longer. It is one byte more in the pipe."""
        if is_awake != self._is_awake:
            self._is_awake = is_awake
            if is_awake:
                os.write(self._wake_write, b"\0")
            else:
                os.read(self._wake_read, 1)

    def begin(self, group: _Group, *, is_alone: bool = False) -> None:
        """Bring a group to the disk. The one before it must have ended.

        One that `is_alone` is there when this returns, if syncs were short lately.
        """
        if is_alone and self._lately_seconds <= _SHORT_SYNC_SECONDS and not self._wal.is_full:
            self._try_here(group)
        else:
            self._groups.put(group)

    def end(self) -> Synced | NoSpace | None:
        """How the group ended that was begun last; None while it is under way, or was asked for before.

        After NoSpace the log is as it was before that group. Raises DiskFailed.
        """
        if self._ends.empty():
            return None
        end = self._ends.get()
        os.read(self._wake_read, 1)  # its byte was written right after it
        if isinstance(end, (Synced, NoSpace)):
            return end
        raise DiskFailed(str(end)) from end

    def stop(self) -> None:
        """End after the group that is under way, and close the log."""
        self._stopping.set()
        self._groups.put(None)
        self._thread.join()
        self._wal.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _try_here(self, group: _Group) -> None:
        """Append and sync in the thread that uses this; leave to the other one what needs more than that."""
        try:
            self._report(self._append_and_sync(group.elements))
        except (NoSpace, MemoryError):  # nothing of the group is in the log
            self._groups.put(group)
        except InDoubt as doubt:
            self._groups.put(doubt)
        except Exception as error:
            self._report(error)

    def _run(self) -> None:
        while (task := self._groups.get()) is not None:
            try:
                self._report(self._resolve(task) if isinstance(task, InDoubt) else self._write_or_make_room(task))
            except Exception as error:  # whatever it is, the main thread has to learn of it
                self._report(error)

    def _report(self, end: Synced | Exception) -> None:
        if isinstance(end, Synced):
            self._lately_seconds = max(end.sync_seconds, self._lately_seconds * _SYNC_FADING)
        self._ends.put(end)
        os.write(self._wake_write, b"\0")

    def _write_or_make_room(self, group: _Group) -> Synced | NoSpace:
        end = self._write(group.elements)
        if isinstance(end, Synced) or end.errno not in _FULL_DEVICE:
            return end
        if self._room.checkpoint():
            end = self._write(group.elements)
        if isinstance(end, NoSpace) and group.frees and self._room.release_ballast():
            end = self._write(group.elements)
        return end

    def _write(self, elements: Sequence[bytes]) -> Synced | NoSpace:
        try:
            return self._append_and_sync(elements)
        except NoSpace as error:
            return error
        except MemoryError:  # nothing of the group is in the log
            return NoSpace(errno.ENOMEM, os.strerror(errno.ENOMEM))
        except InDoubt as doubt:
            return self._resolve(doubt)

    def _append_and_sync(self, elements: Sequence[bytes]) -> Synced:
        """Raises NoSpace or MemoryError when nothing of the group is in the log, InDoubt, or what ends this logd."""
        frame_bytes = self._wal.append(elements)
        began = time.perf_counter()
        try:
            self._wal.sync()
        except MemoryError as error:  # the group may be on the disk
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error
        return Synced(frame_bytes, time.perf_counter() - began)

    def _resolve(self, doubt: InDoubt) -> NoSpace:
        self._rewrite(doubt)
        return NoSpace(*doubt.args)

    def _rewrite(self, doubt: InDoubt) -> None:
        """Make certain that the group is not in the log. Raises InDoubt when it has to stop before that."""
        log.error("a sync reported %s: no write is answered before the log was written anew", doubt.strerror)
        self.is_in_doubt = True
        while True:
            try:
                self._wal.rewrite()
            except NoSpace:
                if not self._room.release_ballast() and self._stopping.wait(_REWRITE_RETRY_SECONDS):
                    raise doubt from None
            else:
                break
        self.is_in_doubt = False
        log.warning("the log was written anew up to its last acknowledged write")
