"""Counters and gauges of all worker processes, in memory that they share, so that any worker can answer for all.

Owns what is counted: a gauge is declared once, in `GAUGES`, and by that has its place in memory, its total, and its
line in /metrics (kv/metrics.py writes those). Knows of a request only its method and status. The supervisor makes the
memory, its descriptor is inherited, and it lasts as long as the supervisor.

A worker has a slot and writes there alone, without a lock: every number is one word, which is never half-written.
Because nothing is kept elsewhere, a killed worker loses nothing that it has counted; its successor takes over the slot
and goes on from those numbers. So no counter goes down while the supervisor lives. (The scoreboard of Apache's httpd
is the same idea.)

Whether the owner of a slot lives is told by a file lock, because the kernel releases that when a process ends. The pid
in the slot cannot tell: another process may have it by now, or the dead one was not reaped yet. Such a lock is also
lost when its process closes *any* descriptor of the file, so a worker has one `Scoreboard` for its whole life:
`of_this_process`.
"""

import enum
import fcntl
import functools
import mmap
import os
import sys
import tempfile
import time
import zlib
from bisect import bisect_left
from collections.abc import Mapping
from typing import Final, NamedTuple, TypeAlias

from kv.config import Inherited
from logd.shared import process_stats


class Gauge(NamedTuple):
    """A number that each worker shows from time to time; /metrics has the sum over the living workers."""

    name: str
    metric: str
    help: str


GAUGES: Final = (
    Gauge("in_flight", "kv_http_requests_in_flight", "Requests that have no answer yet."),
    Gauge("connections", "kv_http_connections", "Open connections."),
    Gauge("held_bytes", "kv_http_held_bytes", "Memory of requests that are not complete, or wait for others."),
    Gauge("queued_writes", "kv_http_queued_writes", "Writes that wait for logd."),
    Gauge("queued_bytes", "kv_http_queued_bytes", "Memory of the writes that wait for logd."),
    Gauge(
        "large_bytes", "kv_http_large_values_bytes", "Memory of values over 64 KiB, and of pages of keys, being read."
    ),
    Gauge("large_reads_waiting", "kv_http_large_reads_waiting", "Reads of such values that wait for room."),
    Gauge("pages_waiting", "kv_http_pages_waiting", "Reads of pages that wait for the one before, or for room."),
    Gauge("unsent_bytes", "kv_http_unsent_bytes", "Answers that clients have not read yet."),
)
METHODS: Final = ("GET", "HEAD", "PUT", "DELETE", "POST")
STATUSES: Final = (200, 304, 400, 401, 404, 405, 408, 412, 413, 414, 431, 500, 503, 504, 507)
OTHER: Final = "other"
"""Stands for every method, or status, that is none of those."""
BOUNDS_SECONDS: Final = (
    1e-4,
    2.5e-4,
    5e-4,
    1e-3,
    2.5e-3,
    5e-3,
    1e-2,
    2.5e-2,
    5e-2,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)


class Role(enum.IntEnum):
    """The processes that the supervisor starts, and itself."""

    SUPERVISOR = 0
    LOGD = 1
    GUNICORN = 2


class _Word(enum.IntEnum):
    """The first words of a slot. The gauges follow, then the rows of requests, one for each method and status."""

    PID = 0
    """Of the last owner; 0 when that stopped in order."""
    HAS_SERVED = 1
    """1 from when the owner serves: one that ends before is no restart."""
    BEATS = 2
    """How often the owner has shown its gauges, which it does regularly for as long as it is not frozen."""
    RESTARTS = 3
    CPU_SECONDS = 4
    RESIDENT_BYTES = 5


_Words: TypeAlias = "memoryview[float]"
_WORD_BYTES: Final = 8

_GAUGE_WORDS: Final = {gauge.name: len(_Word) + number for number, gauge in enumerate(GAUGES)}

# A row: a count for each bucket, the sum of the durations, and the requests without a duration.
_SUM: Final = len(BOUNDS_SECONDS) + 1
_UNTIMED: Final = _SUM + 1
_ROW_WORDS: Final = _UNTIMED + 1
_ROWS: Final = {
    (method, status): len(_Word) + len(GAUGES) + _ROW_WORDS * number
    for number, (method, status) in enumerate(
        (method, status) for method in (*METHODS, OTHER) for status in (*STATUSES, OTHER)
    )
}
_SLOT_WORDS: Final = len(_Word) + len(GAUGES) + _ROW_WORDS * len(_ROWS)

# The header: which layout this is, then how often each role was started, and when.
_HEADER_WORDS: Final = 1 + 2 * len(Role)
_LAYOUT: Final = float(zlib.crc32(repr((list(_Word), GAUGES, list(_ROWS), BOUNDS_SECONDS, list(Role))).encode()))


class Requests(NamedTuple):
    """The requests of one method and status, and the durations of those that the application has answered."""

    answered: int
    buckets: list[int]
    """How many fell between one bound and the next, not cumulated; the last count is above all bounds."""
    seconds: float


class Totals(NamedTuple):
    """The sums over all workers; counters include dead workers, gauges only living ones."""

    requests: dict[tuple[str, int | str], Requests]
    """By method and status."""
    worker_restarts: int
    cpu_seconds: float
    workers: int
    """How many are alive."""
    resident_bytes: int
    gauges: dict[str, float]
    """By the name in `GAUGES`."""


class Slot:
    """The part of the scoreboard that one worker writes."""

    def __init__(self, words: _Words) -> None:
        """Take over the slot. Counters go on from the values that an earlier owner left."""
        words[_Word.RESTARTS] += words[_Word.PID] != 0 and words[_Word.HAS_SERVED]
        words[_Word.HAS_SERVED] = 0
        words[_Word.PID] = os.getpid()
        self._words = words
        self._earlier_cpu_seconds = words[_Word.CPU_SECONDS]
        self._reset()

    def serve(self) -> None:
        """The owner has started."""
        self._words[_Word.HAS_SERVED] = 1

    def release(self) -> None:
        """The owner stops in order, so the next owner is not a restart."""
        self._reset()
        self._words[_Word.PID] = 0

    def answered(self, method: str, status: int, seconds: float) -> None:
        """Count a request that the application has answered. On the path of every request."""
        row = _ROWS.get((method, status)) or _other_row(method, status)
        words = self._words
        words[row + bisect_left(BOUNDS_SECONDS, seconds)] += 1.0
        words[row + _SUM] += seconds

    def refused(self, method: str, status: int) -> None:
        """Count a request that did not reach the application, or that it did not answer."""
        row = _ROWS.get((method, status)) or _other_row(method, status)
        self._words[row + _UNTIMED] += 1

    def show(self, gauges: Mapping[str, float]) -> None:
        """Set these gauges, by their names in `GAUGES`, and what the process uses. To be called a few times a second.

        This is also the heartbeat of the worker (kv/heartbeats.py).
        """
        self._words[_Word.BEATS] += 1
        for name, value in gauges.items():
            self._words[_GAUGE_WORDS[name]] = value
        self._words[_Word.CPU_SECONDS] = self._earlier_cpu_seconds + time.process_time()
        self._words[_Word.RESIDENT_BYTES] = process_stats.resident_bytes()

    def _reset(self) -> None:
        self.show(dict.fromkeys(_GAUGE_WORDS, 0))


def _other_row(method: str, status: int) -> int:
    known_method = method if method in METHODS else OTHER
    return _ROWS[known_method, status if status in STATUSES else OTHER]


class Scoreboard:
    """The whole memory, as one process sees it."""

    def __init__(self, fd: int | None = None) -> None:
        """Use the memory that `make` has made; without a descriptor, memory that no other process sees."""
        self._fd = fd
        words = _blank(slots=1) if fd is None else memoryview(mmap.mmap(fd, 0)).cast("d")
        if words[0] != _LAYOUT:  # made by a supervisor that runs other code than this process
            self._fd, words = None, _blank(slots=1)
        self._words = words
        starts = range(_HEADER_WORDS, len(words), _SLOT_WORDS)
        self._slots = [words[start : start + _SLOT_WORDS] for start in starts]

    def fileno(self) -> int:
        """The descriptor that `make` has returned."""
        assert self._fd is not None
        return self._fd

    def started(self, role: Role) -> None:
        """Count the start of a process. Called by the supervisor alone."""
        self._words[1 + 2 * role] += 1
        self._words[2 + 2 * role] = time.time()

    def restarts(self, role: Role) -> int:
        """How often a process was started after its first start."""
        return max(0, int(self._words[1 + 2 * role]) - 1)

    def started_at(self, role: Role) -> float:
        """The time of the last start, in seconds since 1970; 0 when there was none."""
        return self._words[2 + 2 * role]

    def take_slot(self) -> Slot:
        """A slot for this process: that of a dead worker before a free one, so that each death is counted.

        When all are taken, a slot that no other process sees: a worker serves even when it cannot be counted.
        """
        dead_first = sorted(range(len(self._slots)), key=lambda number: not self._slots[number][_Word.PID])
        for number in dead_first:
            if self._slots[number][_Word.PID] != os.getpid() and self._lock(number):
                return Slot(self._slots[number])
        return Slot(_blank(slots=1)[_HEADER_WORDS:])

    def _lock(self, number: int) -> bool:
        """Lock a slot until this process ends; False when another process has it."""
        try:
            if self._fd is not None:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except OSError:
            return False
        return True

    def _is_alive(self, number: int) -> bool:
        """Whether a process owns this slot."""
        pid = self._slots[number][_Word.PID]
        if pid in (0, os.getpid()):
            return pid != 0
        if not self._lock(number):
            return True
        if self._fd is not None:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, number)
        return False

    def beats(self) -> dict[int, float]:
        """By the pid of each living worker, how often it has shown its gauges."""
        alive = [slot for number, slot in enumerate(self._slots) if self._is_alive(number)]
        return {int(slot[_Word.PID]): slot[_Word.BEATS] for slot in alive}

    def totals(self) -> Totals:
        """The sums over all workers, as they are now."""
        used = [slot.tolist() for slot in self._slots if slot[_Word.CPU_SECONDS]]
        sums = [sum(words) for words in zip([0.0] * _SLOT_WORDS, *used, strict=True)]
        alive = [slot for number, slot in enumerate(self._slots) if self._is_alive(number)]
        return Totals(
            requests={key: _requests(sums[row : row + _ROW_WORDS]) for key, row in _ROWS.items()},
            worker_restarts=int(sums[_Word.RESTARTS]),
            cpu_seconds=sums[_Word.CPU_SECONDS],
            workers=len(alive),
            resident_bytes=int(sum(slot[_Word.RESIDENT_BYTES] for slot in alive)),
            gauges={name: sum(slot[word] for slot in alive) for name, word in _GAUGE_WORDS.items()},
        )


def _requests(row: list[float]) -> Requests:
    buckets = [int(count) for count in row[:_SUM]]
    return Requests(sum(buckets) + int(row[_UNTIMED]), buckets, row[_SUM])


def make(workers: int) -> int:
    """The descriptor of a new scoreboard, for children to inherit.

    It has more slots than workers, because a reload starts the new workers before the old ones end.
    """
    fd = _make_file()
    with open(fd, "wb", closefd=False) as file:
        file.write(_blank(slots=4 * (workers + 4)))  # no holes: on a full disk, writing to one kills the writer
    return fd


def _blank(slots: int) -> _Words:
    words = memoryview(bytearray((_HEADER_WORDS + slots * _SLOT_WORDS) * _WORD_BYTES)).cast("d")
    words[0] = _LAYOUT
    return words


def _make_file() -> int:
    if sys.platform == "linux":
        return os.memfd_create("kv-scoreboard")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


@functools.cache
def of_this_process() -> Scoreboard:
    """The scoreboard of the server that this process belongs to."""
    return Scoreboard(Inherited.from_environment(os.environ).scoreboard_fd)


@functools.cache
def my_slot() -> Slot:
    """The slot of this process, which is a worker."""
    return of_this_process().take_slot()
