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
import time
import zlib
from bisect import bisect_left
from collections.abc import Mapping
from typing import Final, NamedTuple, TypeAlias

import msgspec

from kv.config import Inherited
from logd.shared import process_stats
from logd.shared.unnamed_file import make_file


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
STATUSES: Final = (200, 304, 400, 401, 403, 404, 405, 408, 412, 413, 414, 431, 500, 503, 504, 507)
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
    READY_AT = 1
    """Since when the owner serves; 0 before that: one that ends before is no restart."""
    BEATS = 2
    """How often the owner has shown its gauges, which it does regularly for as long as it is not frozen."""
    RESTARTS = 3
    CPU_SECONDS = 4
    RESIDENT_BYTES = 5
    STARTED_AT = 6


class _RoleWord(enum.IntEnum):
    """What the supervisor writes of each role, in the header. Times are in seconds since 1970, and 0 for never."""

    PID = 0
    """0 when there is no such process."""
    STARTS = 1
    STARTED_AT = 2
    READY_AT = 3
    """0 while there is no process, and until it does its work."""
    ENDED_AT = 4
    """When the process before this one ended."""


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

# The header: which layout this is, then the words of each role.
_HEADER_WORDS: Final = 1 + len(_RoleWord) * len(Role)
_LAYOUT: Final = float(
    zlib.crc32(repr((list(_Word), GAUGES, list(_ROWS), BOUNDS_SECONDS, list(Role), list(_RoleWord))).encode())
)


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


class Process(msgspec.Struct, frozen=True):
    """A role in the tree of processes, and the process that has it now. Times are in seconds since 1970."""

    role: str
    pid: int | None
    """None when there is no such process just now."""
    restarts: int
    started_at: float | None
    ready_at: float | None
    """Since when it does its work; None before."""
    ended_at: float | None
    """When the process before it ended; None when there was none, or when that is not known."""
    resident_bytes: int


class Slot:
    """The part of the scoreboard that one worker writes."""

    def __init__(self, words: _Words) -> None:
        """Take over the slot. Counters go on from the values that an earlier owner left."""
        words[_Word.RESTARTS] += words[_Word.PID] != 0 and words[_Word.READY_AT] != 0
        words[_Word.READY_AT] = 0
        words[_Word.STARTED_AT] = time.time()
        words[_Word.PID] = os.getpid()
        self._words = words
        self._earlier_cpu_seconds = words[_Word.CPU_SECONDS]
        self._reset()

    def serve(self) -> None:
        """The owner has started."""
        self._words[_Word.READY_AT] = time.time()

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

    def _role(self, role: Role) -> _Words:
        start = 1 + len(_RoleWord) * role
        return self._words[start : start + len(_RoleWord)]

    def started(self, role: Role, pid: int) -> None:
        """Count the start of a process. This and the next two are called by the supervisor alone."""
        words = self._role(role)
        words[_RoleWord.STARTS] += 1
        words[_RoleWord.STARTED_AT] = time.time()
        words[_RoleWord.READY_AT] = 0
        words[_RoleWord.PID] = pid

    def ready(self, role: Role) -> None:
        """The process does its work from now on."""
        self._role(role)[_RoleWord.READY_AT] = time.time()

    def ended(self, role: Role) -> None:
        """There is no such process any more."""
        words = self._role(role)
        words[_RoleWord.PID] = words[_RoleWord.READY_AT] = 0
        words[_RoleWord.ENDED_AT] = time.time()

    def restarts(self, role: Role) -> int:
        """How often a process was started after its first start."""
        return max(0, int(self._role(role)[_RoleWord.STARTS]) - 1)

    def started_at(self, role: Role) -> float:
        """The time of the last start, in seconds since 1970; 0 when there was none."""
        return self._role(role)[_RoleWord.STARTED_AT]

    def processes(self) -> list[Process]:
        """The supervisor, logd, gunicorn, and each worker that is alive."""
        return [*map(self._process, Role), *map(self._worker, self._alive())]

    def _process(self, role: Role) -> Process:
        words = self._role(role)
        pid = int(words[_RoleWord.PID])
        return Process(
            role=role.name.lower(),
            pid=pid or None,
            restarts=self.restarts(role),
            started_at=words[_RoleWord.STARTED_AT] or None,
            ready_at=words[_RoleWord.READY_AT] or None,
            ended_at=words[_RoleWord.ENDED_AT] or None,
            resident_bytes=process_stats.resident_bytes(pid) if pid else 0,
        )

    def _worker(self, slot: _Words) -> Process:
        return Process(
            role="worker",
            pid=int(slot[_Word.PID]),
            restarts=int(slot[_Word.RESTARTS]),
            started_at=slot[_Word.STARTED_AT],
            ready_at=slot[_Word.READY_AT] or None,
            ended_at=None,
            resident_bytes=int(slot[_Word.RESIDENT_BYTES]),
        )

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

    def _alive(self) -> list[_Words]:
        """The slots of living workers."""
        return [slot for number, slot in enumerate(self._slots) if self._is_alive(number)]

    def beats(self) -> dict[int, float]:
        """By the pid of each living worker, how often it has shown its gauges."""
        return {int(slot[_Word.PID]): slot[_Word.BEATS] for slot in self._alive()}

    def totals(self) -> Totals:
        """The sums over all workers, as they are now."""
        used = [slot.tolist() for slot in self._slots if slot[_Word.CPU_SECONDS]]
        sums = [sum(words) for words in zip([0.0] * _SLOT_WORDS, *used, strict=True)]
        alive = self._alive()
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
    fd = make_file("kv-scoreboard")
    with open(fd, "wb", closefd=False) as file:
        file.write(_blank(slots=4 * (workers + 4)))  # no holes: on a full disk, writing to one kills the writer
    return fd


def _blank(slots: int) -> _Words:
    words = memoryview(bytearray((_HEADER_WORDS + slots * _SLOT_WORDS) * _WORD_BYTES)).cast("d")
    words[0] = _LAYOUT
    return words


@functools.cache
def of_this_process() -> Scoreboard:
    """The scoreboard of the server that this process belongs to."""
    return Scoreboard(Inherited.from_environment(os.environ).scoreboard_fd)


@functools.cache
def my_slot() -> Slot:
    """The slot of this process, which is a worker."""
    return of_this_process().take_slot()
