"""What an engine counts about its own work: plain numbers, updated once a group.

Knows nothing of who reports them, nor of the name that a number has where it is shown
(kv/metrics.py).
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Final

from logd.shared.protocol import Dropped, Gap, Histogram, Outcomes, Reason, Refused, Reply, WriteBatch

_OUT_OF_ORDER: Final = "out_of_order"
_DROPPED: Final = "session_dropped"
_DATA_LIMIT: Final = "data_limit"
_PRECONDITION: Final = "precondition_failed"
_GROUP_WRITES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
SECONDS: Final = (5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5)


class Counters:
    """The work of one logd since it was started."""

    def __init__(self) -> None:
        self.groups = 0
        self.batches = 0
        self.appended_bytes = 0
        self.refused: Counter[str] = Counter(dict.fromkeys((_OUT_OF_ORDER, _DROPPED, *map(_name, Reason)), 0))
        """Batches that were answered, and not applied, by reason."""
        self.not_made: Counter[str] = Counter(dict.fromkeys((_DATA_LIMIT, _PRECONDITION), 0))
        """Writes of applied batches that were not made, by reason. A transaction counts as one."""
        self.group_writes = empty(_GROUP_WRITES)
        self.sync_seconds = empty(SECONDS)

    def count_group(self, batches: Sequence[WriteBatch], frame_bytes: int, sync_seconds: float) -> None:
        """Count a group that is durable."""
        self.groups += 1
        self.batches += len(batches)
        self.appended_bytes += frame_bytes
        observe(self.group_writes, sum(map(_writes, batches)))
        observe(self.sync_seconds, sync_seconds)

    def count_outcomes(self, outcomes: Outcomes) -> None:
        """Count the writes of an applied batch that were not made."""
        at_limit = len(outcomes.over_limit) + sum(not checks for checks in outcomes.failed.values())
        self.not_made[_DATA_LIMIT] += at_limit
        self.not_made[_PRECONDITION] += len(outcomes.over_limit) + len(outcomes.failed) - at_limit

    def count_reply(self, reply: Reply) -> None:
        """Count a reply to batches that were not applied; a reply to others changes nothing."""
        if isinstance(reply, Refused):
            self.refused[_name(reply.reason)] += len(reply.numbers)
        elif isinstance(reply, Gap):
            self.refused[_OUT_OF_ORDER] += 1
        elif isinstance(reply, Dropped):
            self.refused[_DROPPED] += 1


def _writes(batch: WriteBatch) -> int:
    return len(batch.puts) + len(batch.deletes) + len(batch.transactions) + batch.clear


def _name(reason: Reason) -> str:
    return reason.name.lower()


def empty(bounds: Sequence[float]) -> Histogram:
    """A histogram of nothing yet."""
    return Histogram(list(bounds), [0] * (len(bounds) + 1), 0.0)


def observe(histogram: Histogram, value: float) -> None:
    """Add one value to a histogram."""
    histogram.counts[bisect_left(histogram.bounds, value)] += 1
    histogram.total += value
