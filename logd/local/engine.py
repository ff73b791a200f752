"""The local engine: what `logd.engine` promises, by a log and a state on this machine.

Owns nothing but the way its parts go together: writes go through the group commit, reads to the store, pages to the
listing, every group may make a checkpoint due, and the numbers are gathered from whoever keeps them.
"""

import contextlib
import time
from collections.abc import Sequence

from logd.engine import Collected, Found, Origin
from logd.local import wal
from logd.local.checkpointer import Checkpointer
from logd.local.commit import GroupCommit
from logd.local.discard import discard
from logd.local.disk import Disk
from logd.local.listing import Listing
from logd.local.publish import remove_temporaries
from logd.local.recovery import Recovered
from logd.local.room import RoomMaker
from logd.shared import process_stats
from logd.shared.protocol import MESSAGE_BYTES_CEILING, LargeEntry, Page, PageRequest, Reply, Stats, WriteBatch


class LocalEngine:
    """Satisfies `logd.engine.Engine`. `collect` raises commit.DiskFailed."""

    def __init__(
        self,
        disk: Disk,
        log: wal.Wal,
        recovered: Recovered,
        checkpointer: Checkpointer,
        *,
        group_bytes_max: int = MESSAGE_BYTES_CEILING,
        data_bytes_max: int = 0,
    ) -> None:
        self._disk = disk
        self._store = recovered.store
        self._store.discard = discard
        self._listing = Listing(self._store)
        self._recovery = recovered.summary()
        self._checkpointer = checkpointer
        self._commit = GroupCommit(
            disk,
            log,
            recovered.store,
            group_bytes_max=group_bytes_max,
            data_bytes_max=data_bytes_max,
            after_group=lambda: checkpointer.maybe_start(log.sealed),
            room=RoomMaker(disk, log, checkpointer),
        )

    def fileno(self) -> int:
        return self._commit.fileno()

    def submit(self, raw: bytes, batch: WriteBatch) -> Reply | None:
        return self._commit.submit(raw, batch)

    def read(self, keys: Sequence[str], origin: Origin) -> Found | None:
        return self._store.data.get_all(keys)

    def page(self, request: PageRequest, peer: bytes) -> Page | LargeEntry | None:
        return self._listing.page(request, peer)

    def commit(self, *, is_quiet: bool = False) -> None:
        self._commit.commit(is_quiet=is_quiet)
        self._listing.sort_some()
        self._commit.set_awake(self._listing.is_behind)

    def collect(self) -> Collected:
        pages = self._listing.collect()
        return Collected(self._commit.collect(), pages=pages)

    def idle(self) -> bool:
        return self._commit.idle() and self._listing.is_idle()

    def unavailable_reason(self) -> str:
        return self._commit.unavailable_reason()

    def data_bytes(self) -> int:
        """The size of keys and values. The first time, this takes as long as there are many."""
        return self._store.data_bytes

    def stats(self, number: int) -> Stats:
        """Costs a listing of the directory, and nothing that grows with the data."""
        counters, checkpointer = self._commit.counters, self._checkpointer
        newest = checkpointer.newest
        segments, free_bytes = self._look_at_disk()
        return Stats(
            number=number,
            unavailable_reason=self.unavailable_reason(),
            keys=len(self._store.data),
            data_bytes=self.data_bytes(),
            sessions=len(self._store.sessions),
            groups=counters.groups,
            batches=counters.batches,
            refused=dict(counters.refused),
            writes_not_made=dict(counters.not_made),
            group_writes=counters.group_writes,
            sync_seconds=counters.sync_seconds,
            appended_bytes=counters.appended_bytes,
            log_bytes=newest.log_bytes(counters.appended_bytes),
            segments=segments,
            free_bytes=free_bytes,
            snapshot_bytes=newest.snapshot_bytes,
            checkpoint_due_bytes=checkpointer.due_bytes,
            checkpoints=dict(checkpointer.outcomes),
            checkpoint_seconds=newest.seconds,
            checkpoint_at=newest.at,
            finding=self._recovery.finding.name,
            recovery_seconds=self._recovery.seconds,
            dropped_bytes=self._recovery.dropped_bytes,
            cpu_seconds=time.process_time(),
            resident_bytes=process_stats.resident_bytes(),
            pages=self._listing.pages,
            unsorted_keys=self._listing.unsorted_keys,
        )

    def stop(self) -> None:
        self._commit.stop()
        if self._checkpointer.stop():
            with contextlib.suppress(OSError):  # the next start does it, and this may be the end after a failed disk
                remove_temporaries(self._disk)

    def _look_at_disk(self) -> tuple[int, int]:
        """Segments and free bytes; none when the directory is gone, which is for the next write to find out."""
        try:
            return len(wal.list_segments(self._disk.names())), self._disk.free_bytes()
        except OSError:
            return 0, 0
