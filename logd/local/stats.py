"""How the log writer is, gathered from those who know when somebody asks.

Knows where each number is kept; not how it is sent, nor what it is called where it is shown. Asking costs a listing of
the directory, and nothing that grows with the data.
"""

import time
from typing import NamedTuple

from logd.local import wal
from logd.local.checkpoint import Checkpointer
from logd.local.commit import GroupCommit
from logd.local.disk import Disk
from logd.local.recovery import Recovered
from logd.local.store import Store
from logd.shared import process_stats
from logd.shared.protocol import Stats


class Recovery(NamedTuple):
    """What is to be remembered of a recovery, without the state that it found."""

    finding: str
    seconds: float
    dropped_bytes: int

    @classmethod
    def of(cls, recovered: Recovered) -> "Recovery":
        """The facts of what was recovered."""
        dropped_bytes = recovered.tail.dropped_bytes if recovered.tail else 0
        return cls(recovered.finding.name, recovered.seconds, dropped_bytes)


class Observer:
    """Answers a request for numbers."""

    def __init__(
        self, disk: Disk, store: Store, storage: GroupCommit, checkpointer: Checkpointer, recovery: Recovery
    ) -> None:
        self._disk = disk
        self._store = store
        self._storage = storage
        self._checkpointer = checkpointer
        self._recovery = recovery

    def stats(self, number: int) -> Stats:
        """All numbers, as they are now."""
        counts, checkpointer = self._storage.counts, self._checkpointer
        segments, free_bytes = self._look_at_disk()
        return Stats(
            number=number,
            unavailable_reason=self._storage.unavailable_reason(),
            keys=len(self._store.data),
            data_bytes=self._store.data_bytes,
            sessions=len(self._store.sessions),
            groups=counts.groups,
            batches=counts.batches,
            refused=dict(counts.refused),
            group_writes=counts.group_writes,
            sync_seconds=counts.sync_seconds,
            appended_bytes=counts.appended_bytes,
            log_bytes=checkpointer.log_bytes(counts.appended_bytes),
            segments=segments,
            free_bytes=free_bytes,
            snapshot_bytes=checkpointer.snapshot_bytes,
            checkpoint_due_bytes=checkpointer.due_bytes,
            checkpoints=dict(checkpointer.outcomes),
            checkpoint_seconds=checkpointer.last_seconds,
            checkpoint_at=checkpointer.last_at,
            finding=self._recovery.finding,
            recovery_seconds=self._recovery.seconds,
            dropped_bytes=self._recovery.dropped_bytes,
            cpu_seconds=time.process_time(),
            resident_bytes=process_stats.resident_bytes(),
        )

    def _look_at_disk(self) -> tuple[int, int]:
        """Segments and free bytes; none when the directory is gone, which is for the next write to find out."""
        try:
            return len(wal.list_segments(self._disk.names())), self._disk.free_bytes()
        except OSError:
            return 0, 0
