"""What clients saw of a key-value server, and whether one atomic map could have shown them that.

Owns the record of operations (`History`) and the linearizability checker (`check`); `missing_writes` is a simpler check
of the end of a history. Knows no HTTP, no clock and no server: the recorder says when an operation began and ended, and
what its outcome was.

Linearizability (Herlihy and Wing, "Linearizability: a correctness condition for concurrent objects", ACM TOPLAS 12(3),
1990) is compositional: a history is linearizable when its part for each key is, so each key is judged alone. `clear`
counts as a delete of every key; that all keys go at the same instant is not checked.

Every write stores a value that no other write stores. The general search (Wing and Gong, "Testing and verifying
concurrent objects", JPDC 17, 1993; Lowe, "Testing for linearizability", CCPE 29(4), 2017) is then not needed: Gibbons
and Korach ("Testing shared memories", SIAM J. Comput. 26(4), 1997, section 4) judge such a register in O(n log n).
A write and the reads of its value are a *cluster*: the register holds that value for one stretch of time, and all of
them lie in it. Let `due` be the earliest end and `until` the latest start in a cluster.

* `due` < `until`: the register holds the value all through this *zone*. Two zones that overlap are a fault.
* `until` <= `due`: one instant of this span is enough, at which the value may come and go. That is a fault only when
  the whole span is inside a zone.

Absence is the one value that many writes, the deletes, may store. `_Sweep` adds it: it runs through the time outside
the zones and takes each step as late as it may be taken, because to be absent later, and to keep a delete for later,
is never worse. tests/test_history.py compares all this with a search through every order.

A refused write must not be seen. A write of unknown outcome may take effect at any time after it began, or never: if
nobody saw it, it is left out; if somebody did, it came before the first such read ended.
"""

import bisect
import enum
import heapq
import itertools
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

ABSENT: Final = 0
"""What a read finds, and a delete leaves, where there is nothing. Values are numbers, counted from 1."""
FOREIGN: Final = -1
"""What a read found that no client of this history has ever sent."""

_NEVER: Final = float("inf")
_EXPLAINED_MAX: Final = 20


class Kind(enum.IntEnum):
    """What was asked for."""

    GET = 0
    PUT = 1
    DELETE = 2
    CLEAR = 3


class Outcome(enum.IntEnum):
    """What is known from the answer: done; certainly not done, now or later; or neither."""

    OK = 0
    REFUSED = 1
    UNKNOWN = 2


class Operation(NamedTuple):
    """One request as its client saw it. `value` is what was written or found; times are in nanoseconds."""

    client: int
    kind: Kind
    value: int
    start: int
    end: int
    outcome: Outcome

    @property
    def latest(self) -> float:
        """The time before which it took effect, if it did."""
        return self.end if self.outcome == Outcome.OK else _NEVER


class History:
    """The operations of many clients on keys that are known beforehand, in columns: millions of them fit."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = keys
        self.client = array("H")
        self.kind = array("B")
        self.key = array("I")
        self.value = array("q")
        self.start = array("q")
        self.end = array("q")
        self.outcome = array("B")

    def __len__(self) -> int:
        return len(self.end)

    def add(self, key: int, operation: Operation) -> None:
        """Add an operation that has ended. `key` is an index of `keys`, and 0 for a clear."""
        client, kind, value, start, end, outcome = operation
        self.client.append(client)
        self.kind.append(kind)
        self.key.append(key)
        self.value.append(value)
        self.start.append(start)
        self.end.append(end)
        self.outcome.append(outcome)

    def registers(self) -> Iterator[tuple[str, list[Operation]]]:
        """Each key that was used, with its operations. A clear is among those of every key."""
        of_key = [array("Q") for _ in self.keys]
        clears = array("Q")
        for index, (kind, key) in enumerate(zip(self.kind, self.key, strict=True)):
            (clears if kind == Kind.CLEAR else of_key[key]).append(index)
        for name, own in zip(self.keys, of_key, strict=True):
            if own:
                yield name, [self._operation(index) for index in itertools.chain(own, clears)]

    def _operation(self, i: int) -> Operation:
        outcome = _OUTCOMES[self.outcome[i]]
        return Operation(self.client[i], _KINDS[self.kind[i]], self.value[i], self.start[i], self.end[i], outcome)


_KINDS: Final = tuple(Kind)
_OUTCOMES: Final = tuple(Outcome)


# Judging one key -----------------------------------------------------------------------------------------


class Fault(enum.Enum):
    """What no atomic register would have shown."""

    INVENTED = "a read found a value that was never written"
    REFUSED = "a read found a write that was refused"
    EARLY = "a read found a value before its write began"
    LOST = "an acknowledged write is missing from a later read"
    CAME_BACK = "a value that was replaced has come back"
    ORDER = "no order of these operations explains what the reads found"


class Span(NamedTuple):
    """A closed stretch of time."""

    start: float
    end: float


Register: TypeAlias = Sequence[Operation]


def find_fault(operations: Register) -> Fault | None:
    """None when one atomic register, empty at first, could have shown this; otherwise the first reason found."""
    puts: dict[int, Operation] = {}
    reads: dict[int, list[Operation]] = defaultdict(list)
    deletes: list[Span] = []
    for operation in operations:
        if operation.kind == Kind.PUT:
            puts[operation.value] = operation
        elif operation.kind == Kind.GET:
            if operation.outcome == Outcome.OK:
                reads[operation.value].append(operation)
        elif operation.outcome != Outcome.REFUSED:
            deletes.append(Span(operation.start, operation.latest))
    absences = [Span(read.start, read.end) for read in reads.pop(ABSENT, ())]
    if fault := _impossible_read(puts, reads):
        return fault
    zones, moments = _clusters(puts, reads)
    zones.sort()
    if any(zone.end > following.start for zone, following in itertools.pairwise(zones)):
        return Fault.ORDER
    outside = _Outside(zones)
    if _Sweep(outside.ends, *(outside.clip(spans) for spans in (moments, deletes, absences))).succeeds():
        return None
    return Fault.ORDER


def _impossible_read(puts: dict[int, Operation], reads: dict[int, list[Operation]]) -> Fault | None:
    for value, found in reads.items():
        put = puts.get(value)
        if put is None:
            return Fault.INVENTED
        if put.outcome == Outcome.REFUSED:
            return Fault.REFUSED
        if any(read.end < put.start for read in found):
            return Fault.EARLY
    return None


def _clusters(puts: dict[int, Operation], reads: dict[int, list[Operation]]) -> tuple[list[Span], list[Span]]:
    """The zones, and the spans of which one instant is enough."""
    zones, moments = [], []
    for value, put in puts.items():
        found = reads.get(value, ())
        if put.outcome == Outcome.OK or found:
            due, until = put.latest, put.start
            for read in found:
                due = min(due, read.end)
                until = max(until, read.start)
            if due < until:
                zones.append(Span(due, until))
            else:
                moments.append(Span(until, due))
    return zones, moments


class _Outside:
    """The time outside the zones, which are sorted and do not overlap. The bounds of a zone are outside."""

    def __init__(self, zones: Sequence[Span]) -> None:
        self._zones = zones
        self._starts = [zone.start for zone in zones]
        self.ends = self._starts
        """When a stretch of it ends: the register holds the value of a zone from then on."""

    def clip(self, spans: Iterable[Span]) -> list[Span]:
        """The part of each that is outside. Nothing is left of a span inside a zone: it ends before it starts."""
        clipped = []
        for span in spans:
            start_zone, end_zone = self._zone_around(span.start), self._zone_around(span.end)
            start = start_zone.end if start_zone else span.start
            clipped.append(Span(start, end_zone.start if end_zone else span.end))
        return clipped

    def _zone_around(self, time: float) -> Span | None:
        zone = self._zones[bisect.bisect_left(self._starts, time) - 1] if self._starts else None
        return zone if zone and zone.start < time < zone.end else None


class _Step(enum.IntEnum):
    """What may happen at an instant, in the order in which it is best done."""

    DELETE_BEGINS = 0
    DELETE_IS_DUE = 1
    ABSENCE_IS_DUE = 2
    MOMENT_IS_DUE = 3
    ZONE_BEGINS = 4


class _Sweep:
    """Decides whether the reads that found nothing fit in, step by step through the time outside the zones."""

    def __init__(
        self,
        zone_starts: Iterable[float],
        moments: Sequence[Span],
        deletes: Sequence[Span],
        absences: Sequence[Span],
    ) -> None:
        self._spans = (*moments, *deletes, *absences)
        self._moments, self._absences, self._deletes = moments, absences, deletes
        self._steps = [(start, _Step.ZONE_BEGINS, -1) for start in zone_starts]
        self._steps += [(moment.end, _Step.MOMENT_IS_DUE, n) for n, moment in enumerate(moments)]
        self._steps += [(absence.end, _Step.ABSENCE_IS_DUE, n) for n, absence in enumerate(absences)]
        for n, delete in enumerate(deletes):
            self._steps += [(delete.start, _Step.DELETE_BEGINS, n), (delete.end, _Step.DELETE_IS_DUE, n)]
        self._waiting: list[tuple[float, int]] = []  # deletes that have begun and not been made, by their end
        self._made: set[int] = set()
        self._is_absent = True
        self._deleted_at = -_NEVER
        self._last_absent = -_NEVER

    def succeeds(self) -> bool:
        """True when every step can be taken."""
        if any(span.end < span.start for span in self._spans):
            return False
        self._steps.sort()
        return all(self._take(time, step, n) for time, step, n in self._steps if time < _NEVER)

    def _take(self, time: float, step: _Step, n: int) -> bool:
        if step == _Step.DELETE_BEGINS:
            heapq.heappush(self._waiting, (self._deletes[n].end, n))
        elif step == _Step.DELETE_IS_DUE:
            if n not in self._made:
                self._delete(n, time)
        elif step == _Step.ABSENCE_IS_DUE:
            return self._was_absent_since(self._absences[n].start) or self._make_absent(time)
        elif step == _Step.ZONE_BEGINS or self._moments[n].start > self._deleted_at:
            self._store(time)  # a moment that had begun at the last delete was just before it, and is over
        return True

    def _was_absent_since(self, start: float) -> bool:
        return self._is_absent or self._last_absent >= start

    def _make_absent(self, time: float) -> bool:
        """Use the delete that cannot wait as long as the others, if there is any."""
        while self._waiting:
            _, n = heapq.heappop(self._waiting)
            if n not in self._made:
                self._delete(n, time)
                return True
        return False

    def _delete(self, n: int, time: float) -> None:
        self._made.add(n)
        self._is_absent = True
        self._deleted_at = time

    def _store(self, time: float) -> None:
        if self._is_absent:
            self._is_absent = False
            self._last_absent = time


# The end of a history ------------------------------------------------------------------------------------


def missing_writes(history: History, since: int) -> list[str]:
    """Keys that were read after `since`, when no client wrote any more, and whose last acknowledged write is missing.

    What is found must be that write, or one that may have come later. `check` finds this and more; this is the check
    that a reader understands at once.
    """
    return [key for key, operations in history.registers() if _misses_a_write(operations, since)]


def _misses_a_write(operations: Register, since: int) -> bool:
    writes = [each for each in operations if each.kind != Kind.GET and each.outcome != Outcome.REFUSED]
    last_certain = max((write.start for write in writes if write.outcome == Outcome.OK), default=-_NEVER)
    possible = {write.value for write in writes if write.latest >= last_certain}
    if last_certain == -_NEVER:
        possible.add(ABSENT)
    found = {
        each.value for each in operations if each.kind == Kind.GET and each.outcome == Outcome.OK and each.start > since
    }
    return not found <= possible


# Explaining a fault --------------------------------------------------------------------------------------


def minimal(operations: Register) -> list[Operation]:
    """A part of the history that is at fault, and of which nothing more can be left out, by delta debugging.

    Only what cannot turn a good history into a bad one is left out, so the part proves the fault of the whole.
    """
    kept = sorted(operations, key=lambda operation: operation.start)
    size = len(kept) // 2
    while size:
        before = len(kept)
        begin = 0
        while begin < len(kept):
            rest = _without(kept, begin, begin + size)
            if len(rest) < len(kept) and find_fault(rest):
                kept = rest
            else:
                begin += size
        if size > 1 or len(kept) == before:
            size //= 2
    return kept


def _without(operations: Register, begin: int, end: int) -> list[Operation]:
    """Leave out a slice: a write only with the reads that it may explain."""
    removed = operations[begin:end]
    rest = [*operations[:begin], *operations[end:]]
    puts = {operation.value for operation in removed if operation.kind == Kind.PUT}
    rest = [each for each in rest if not (each.kind == Kind.GET and each.value in puts)]
    needed = [each for each in removed if each.kind in (Kind.DELETE, Kind.CLEAR)]
    return sorted([*rest, *_that_may_explain_absence(rest, needed)], key=lambda each: each.start) if needed else rest


def _that_may_explain_absence(operations: Register, deletes: Register) -> list[Operation]:
    """Those deletes that an operation which found nothing may follow, with no certain put in between."""
    puts = sorted((each.end, each.start) for each in operations if each.kind == Kind.PUT and each.outcome == Outcome.OK)
    ends = [end for end, _ in puts]
    latest_starts = [-_NEVER, *itertools.accumulate((start for _, start in puts), max)]
    absences = sorted(
        (latest_starts[bisect.bisect_left(ends, each.start)], each.end)
        for each in operations
        if each.kind == Kind.GET and each.value == ABSENT and each.outcome == Outcome.OK
    )
    after = [after for after, _ in absences]
    latest_ends = [-_NEVER, *itertools.accumulate((end for _, end in absences), max)]
    return [each for each in deletes if latest_ends[bisect.bisect_right(after, each.latest)] >= each.start]


class Violation(NamedTuple):
    """A key whose history no atomic register could have shown, and a smallest part of it that proves it."""

    key: str
    fault: Fault
    operations: list[Operation]

    def __str__(self) -> str:
        """A table for people: times in ms since the first operation shown."""
        began = min(operation.start for operation in self.operations)
        lines = [f"{self.key}: {self.fault.value}", f"{'from ms':>12} {'to ms':>12}  client  operation"]
        for operation in self.operations:
            start, end = ((time - began) / 1e6 for time in (operation.start, operation.end))
            lines.append(f"{start:12.3f} {end:12.3f}  {operation.client:6}  {_in_words(operation)}")
        return "\n".join(lines)


def _in_words(operation: Operation) -> str:
    value = {ABSENT: "nothing", FOREIGN: "a value that nobody sent"}.get(operation.value, f"value {operation.value}")
    outcome = {Outcome.OK: "ok", Outcome.REFUSED: "refused", Outcome.UNKNOWN: "outcome unknown"}[operation.outcome]
    if operation.kind == Kind.GET:
        return f"get: {value}" if operation.outcome == Outcome.OK else f"get: {outcome}"
    return f"put {value}: {outcome}" if operation.kind == Kind.PUT else f"{operation.kind.name.lower()}: {outcome}"


def _named(fault: Fault, proof: Register, operations: Register) -> Fault:
    """What the fault looks like, when a read of the proof shows what others have certainly replaced before."""
    if fault != Fault.ORDER:
        return fault
    for read in (each for each in proof if each.kind == Kind.GET):
        since = _in_effect_since(read, proof)
        between = [
            each
            for each in operations
            if each.outcome == Outcome.OK and each.value != read.value and since < each.start and each.end < read.start
        ]
        if read.value != ABSENT and any(each.kind == Kind.GET for each in between):
            return Fault.CAME_BACK
        if between:
            return Fault.LOST
    return fault


def _in_effect_since(read: Operation, operations: Register) -> float:
    """When, at the latest, what the read found was there; of the times at which nothing was there, the last."""
    if read.value == ABSENT:
        deletes = (each for each in operations if each.kind in (Kind.DELETE, Kind.CLEAR) and each.start <= read.end)
        return max((each.latest for each in deletes), default=-_NEVER)
    return min(each.latest for each in operations if each.value == read.value)


class Verdict(NamedTuple):
    """What `check` found."""

    operations: int
    keys: int
    violations: list[Violation]
    unexplained: int
    """How many keys are at fault beside those in `violations`."""

    @property
    def is_linearizable(self) -> bool:
        """True when an atomic map, empty at first, could have shown this history."""
        return not self.violations

    def count(self, *faults: Fault) -> int:
        """The keys at fault in one of these ways, among those that are explained."""
        return sum(violation.fault in faults for violation in self.violations)


def check(history: History) -> Verdict:
    """Judge a history, key by key."""
    violations: list[Violation] = []
    keys = unexplained = 0
    for key, operations in history.registers():
        keys += 1
        fault = find_fault(operations)
        if fault and len(violations) < _EXPLAINED_MAX:
            proof = minimal(operations)
            violations.append(Violation(key, _named(fault, proof, operations), proof))
        elif fault:
            unexplained += 1
    return Verdict(len(history), keys, violations, unexplained)
