"""What the processes of a server count, in memory that they share, so that whoever is asked can tell for all of them.

Owns the layout of that memory; knows nothing of requests beyond their method and status, nor how the numbers are shown
(kv/metrics.py). The supervisor makes the board, its descriptor is inherited, and it lasts as long as the supervisor.

A worker has a slot and writes there alone, without a lock: every number is one word, which is never half-written. What
a worker has counted is there at once, so that nothing is lost when it is killed; its successor takes the slot over and
goes on from there. Hence no counter ever goes down while the server lives, whatever dies.

Whether the owner of a slot lives, a lock tells that the kernel takes back when a process ends: its number may be that
of another by now, or still be there because nobody has waited for it. Such a lock is also lost when its process closes
*any* descriptor of the file, so a worker has one `Board`, for good: `of_this_process`.
"""

import enum
import fcntl
import functools
import mmap
import os
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

from kv.config import Inherited
from logd.shared import process_stats

METHODS: Final = ("GET", "HEAD", "PUT", "DELETE")
STATUSES: Final = (200, 400, 401, 404, 405, 408, 413, 431, 500, 503, 504, 507)
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

_Words: TypeAlias = "memoryview[float]"
_WORD_BYTES: Final = 8
_SUM: Final = len(BOUNDS_SECONDS) + 1
_UNTIMED: Final = _SUM + 1
_ROW_WORDS: Final = _UNTIMED + 1


class Role(enum.IntEnum):
    """The processes that the supervisor starts, and itself."""

    SUPERVISOR = 0
    LOGD = 1
    GUNICORN = 2


class _Word(enum.IntEnum):
    """The first words of a slot. The rows of requests follow, one for each method and status."""

    PID = 0
    """Of its last owner; 0 when that has stopped as it should."""
    RESTARTS = 1
    CPU_SECONDS = 2
    RESIDENT_BYTES = 3
    CONNECTIONS = 4
    IN_FLIGHT = 5
    QUEUED_WRITES = 6
    QUEUED_BYTES = 7
    LARGE_BYTES = 8
    LARGE_READS_WAITING = 9
    UNSENT_BYTES = 10
    HELD_BYTES = 11


_ROWS: Final = {
    (method, status): len(_Word) + _ROW_WORDS * number
    for number, (method, status) in enumerate(
        (method, status) for method in (*METHODS, OTHER) for status in (*STATUSES, OTHER)
    )
}
_SLOT_WORDS: Final = len(_Word) + _ROW_WORDS * len(_ROWS)
_HEADER_WORDS: Final = 1 + 2 * len(Role)
"""The size of a slot, which tells code of another version; then of each role how often it was started, and when."""


class Requests(NamedTuple):
    """Requests of one method and status: how many, and how long those took that the application has answered."""

    answered: int
    buckets: list[int]
    """By the bounds, each alone; the last is of those beyond."""
    seconds: float


class Totals(NamedTuple):
    """What the workers count, all of them together, dead ones included."""

    requests: dict[tuple[str, int | str], Requests]
    """By method and status."""
    worker_restarts: int
    cpu_seconds: float
    workers: int
    """Living ones, as are those whose use and load follows."""
    resident_bytes: int
    connections: int
    in_flight: int
    queued_writes: int
    queued_bytes: int
    large_bytes: int
    large_reads_waiting: int
    unsent_bytes: int
    held_bytes: int


class Slot:
    """One worker's part of the board."""

    def __init__(self, words: _Words) -> None:
        """Go on where an earlier owner, if any, has ended."""
        words[_Word.RESTARTS] += words[_Word.PID] != 0
        words[_Word.PID] = os.getpid()
        self._words = words
        self._earlier_cpu_seconds = words[_Word.CPU_SECONDS]
        self.measure(0, 0, 0)
        self.queued(0, 0)
        self.large(0, 0)

    def release(self) -> None:
        """The owner stops as it should."""
        self.measure(0, 0, 0)
        self._words[_Word.PID] = 0

    def answered(self, method: str, status: int, seconds: float) -> None:
        """Count a request that the application has answered. Runs for every one."""
        row = _ROWS.get((method, status)) or _other_row(method, status)
        words = self._words
        words[row + bisect_left(BOUNDS_SECONDS, seconds)] += 1.0
        words[row + _SUM] += seconds

    def refused(self, method: str, status: int) -> None:
        """Count a request that the application has not seen, or not answered."""
        row = _ROWS.get((method, status)) or _other_row(method, status)
        self._words[row + _UNTIMED] += 1

    def measure(self, connections: int, in_flight: int, unsent_bytes: int) -> None:
        """Say how this process is, from time to time."""
        words = self._words
        words[_Word.CPU_SECONDS] = self._earlier_cpu_seconds + time.process_time()
        words[_Word.RESIDENT_BYTES] = process_stats.resident_bytes()
        words[_Word.CONNECTIONS] = connections
        words[_Word.IN_FLIGHT] = in_flight
        words[_Word.UNSENT_BYTES] = unsent_bytes

    def show(self, gauges: Mapping[str, float]) -> None:
        """Set gauges by name."""
        words = self._words
        words[_Word.CPU_SECONDS] = self._earlier_cpu_seconds + time.process_time()
        words[_Word.RESIDENT_BYTES] = process_stats.resident_bytes()
        for name, value in gauges.items():
            words[_Word[name.upper()]] = value

    def queued(self, writes: int, size: int) -> None:
        """Say how much waits for the log writer, from time to time."""
        self._words[_Word.QUEUED_WRITES] = writes
        self._words[_Word.QUEUED_BYTES] = size

    def large(self, size: int, waiting: int) -> None:
        """Say what large values take that are being read, and how many such reads wait for room, from time to time."""
        self._words[_Word.LARGE_BYTES] = size
        self._words[_Word.LARGE_READS_WAITING] = waiting

    @property
    def large_reads_waiting(self) -> int:
        """As was said last."""
        return int(self._words[_Word.LARGE_READS_WAITING])


def _other_row(method: str, status: int) -> int:
    known_method = method if method in METHODS else OTHER
    return _ROWS[known_method, status if status in STATUSES else OTHER]


class Board:
    """The whole of it, as one process sees it."""

    def __init__(self, fd: int | None = None) -> None:
        """Without a descriptor, one that no other process sees."""
        self._fd = fd
        words = _blank(slots=1) if fd is None else memoryview(mmap.mmap(fd, 0)).cast("d")
        if words[0] != _SLOT_WORDS:  # made by a supervisor that runs other code than this worker
            self._fd, words = None, _blank(slots=1)
        self._words = words
        starts = range(_HEADER_WORDS, len(words), _SLOT_WORDS)
        self._slots = [words[start : start + _SLOT_WORDS] for start in starts]

    def started(self, role: Role) -> None:
        """Take note that a process is started. For the supervisor."""
        self._words[1 + 2 * role] += 1
        self._words[2 + 2 * role] = time.time()

    def restarts(self, role: Role) -> int:
        """How often a process was started again."""
        return max(0, int(self._words[1 + 2 * role]) - 1)

    def started_at(self, role: Role) -> float:
        """When it was started last, as seconds since 1970; 0 when it was not."""
        return self._words[2 + 2 * role]

    def take_slot(self) -> Slot:
        """A slot for this process: that of a dead one before a fresh one, so that each death is seen.

        With none left, one that nobody else sees: serving goes before counting.
        """
        left_first = sorted(range(len(self._slots)), key=lambda number: not self._slots[number][_Word.PID])
        for number in left_first:
            if self._slots[number][_Word.PID] != os.getpid() and self._lock(number):
                return Slot(self._slots[number])
        return Slot(_blank(slots=1)[_HEADER_WORDS:])

    def _lock(self, number: int) -> bool:
        """Lock a slot until this process ends. False when another one has it."""
        try:
            if self._fd is not None:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except OSError:
            return False
        return True

    def _is_living(self, number: int) -> bool:
        """True when a process has this slot."""
        pid = self._slots[number][_Word.PID]
        if pid in (0, os.getpid()):
            return pid != 0
        if not self._lock(number):
            return True
        if self._fd is not None:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, number)
        return False

    def totals(self) -> Totals:
        """What all workers have counted until now."""
        used = [slot.tolist() for slot in self._slots if slot[_Word.CPU_SECONDS]]
        sums = [sum(words) for words in zip([0.0] * _SLOT_WORDS, *used, strict=True)]
        living = [slot for number, slot in enumerate(self._slots) if self._is_living(number)]
        return Totals(
            requests={key: _requests(sums[row : row + _ROW_WORDS]) for key, row in _ROWS.items()},
            worker_restarts=int(sums[_Word.RESTARTS]),
            cpu_seconds=sums[_Word.CPU_SECONDS],
            workers=len(living),
            resident_bytes=_total(living, _Word.RESIDENT_BYTES),
            connections=_total(living, _Word.CONNECTIONS),
            in_flight=_total(living, _Word.IN_FLIGHT),
            queued_writes=_total(living, _Word.QUEUED_WRITES),
            queued_bytes=_total(living, _Word.QUEUED_BYTES),
            large_bytes=_total(living, _Word.LARGE_BYTES),
            large_reads_waiting=_total(living, _Word.LARGE_READS_WAITING),
            unsent_bytes=_total(living, _Word.UNSENT_BYTES),
            held_bytes=_total(living, _Word.HELD_BYTES),
        )


def _requests(row: list[float]) -> Requests:
    buckets = [int(count) for count in row[:_SUM]]
    return Requests(sum(buckets) + int(row[_UNTIMED]), buckets, row[_SUM])


def _total(slots: Sequence[Sequence[float]], word: _Word) -> int:
    return int(sum(slot[word] for slot in slots))


def make(workers: int) -> int:
    """The descriptor of a new board, to be inherited. While they are replaced, there are more workers than that."""
    fd = _make_file()
    with open(fd, "wb", closefd=False) as file:
        file.write(_blank(slots=4 * (workers + 4)))  # all of it: to fill a hole later kills the writer on a full disk
    os.set_inheritable(fd, True)
    return fd


def _blank(slots: int) -> _Words:
    words = memoryview(bytearray((_HEADER_WORDS + slots * _SLOT_WORDS) * _WORD_BYTES)).cast("d")
    words[0] = _SLOT_WORDS
    return words


def _make_file() -> int:
    if sys.platform == "linux":
        return os.memfd_create("kv-board")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


@functools.cache
def of_this_process() -> Board:
    """The board of the tree that this process belongs to."""
    return Board(Inherited.from_environment(os.environ).board_fd)


@functools.cache
def my_slot() -> Slot:
    """The slot of this process, which is a worker."""
    return of_this_process().take_slot()
