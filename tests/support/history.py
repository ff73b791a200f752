"""What clients saw of a key-value server, and whether one atomic map could have shown them that.

Owns the record of operations (`History`) and the linearizability checker (`check`); `missing_writes` is a simpler check
of the end of a history. Knows no HTTP, no clock and no server: the recorder says when an operation began and ended, and
what its outcome was.

Linearizability (Herlihy and Wing, "Linearizability: a correctness condition for concurrent objects", ACM TOPLAS 12(3),
1990) is compositional: a history is linearizable when its part for each key is, so each key is judged alone. `clear`
counts as a delete of every key; that all keys go at the same instant is not checked.

A *transaction* reads and writes at once, or several keys at once: a conditional write, a batch, a read of many keys. A
condition that held is a read of the value that it named, and one that did not, a read of what the answer says was
there. Each key is judged first, where a transaction counts as a read and a write of it under way at the same time: that
finds most faults, and names them. Then the keys that transactions tie together are judged together
(tests/support/serial_order.py).

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
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias, TypeVar

from tests.support.serial_order import ABSENT, Step, Undecided, has_order

__all__ = ["ABSENT"]  # beside what is defined here
FOREIGN: Final = -1
"""What a read found that no client of this history has ever sent."""

_NEVER: Final = float("inf")
_EXPLAINED_MAX: Final = 20
_SHOWN_MAX: Final = 60
_TORN_ATTEMPTS_MAX: Final = 500


class Kind(enum.IntEnum):
    """What was asked for."""

    GET = 0
    PUT = 1
    DELETE = 2
    CLEAR = 3
    CAS = 4
    """A put or a delete on a condition."""
    BATCH = 5
    READ = 6
    """Of several keys at once."""
    COUNT = 7
    """An increment of a counter, on the condition that nobody else has changed it. It is counted, and not judged."""


READS: Final = frozenset({Kind.GET, Kind.READ})


class Outcome(enum.IntEnum):
    """What is known from the answer: done; certainly not done, now or later; neither; or a condition did not hold."""

    OK = 0
    REFUSED = 1
    UNKNOWN = 2
    NOT_MET = 3


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


class Transaction(NamedTuple):
    """One request that reads and writes at once, or several keys at once. Keys are indices of those of the history.

    `reads` is what it found; of one whose outcome is not known, what it asked for. `writes` is what it was to write.
    """

    client: int
    kind: Kind
    reads: Mapping[int, int]
    writes: Mapping[int, int]
    start: int
    end: int
    outcome: Outcome

    @property
    def step(self) -> Step:
        """What the search for an order has to know of it."""
        is_certain = self.outcome in (Outcome.OK, Outcome.NOT_MET)
        writes = {} if self.outcome == Outcome.NOT_MET else self.writes
        return Step(self.reads, writes, self.start, self.end if is_certain else _NEVER, is_certain)

    def parts(self) -> Iterator[tuple[int, Operation]]:
        """Of each key, the read and the write that it is for that key alone."""
        if self.outcome in (Outcome.OK, Outcome.NOT_MET):
            for key, value in self.reads.items():
                yield key, Operation(self.client, Kind.GET, value, self.start, self.end, Outcome.OK)
        outcome = Outcome.REFUSED if self.outcome == Outcome.NOT_MET else self.outcome
        for key, value in self.writes.items():
            kind = Kind.DELETE if value == ABSENT else Kind.PUT
            yield key, Operation(self.client, kind, value, self.start, self.end, outcome)


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
        self.transactions: dict[int, Transaction] = {}
        """By their index. In the columns each has the first of its keys, and no value."""

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

    def add_transaction(self, transaction: Transaction) -> None:
        """Add a transaction that has ended."""
        self.transactions[len(self)] = transaction
        client, kind, _, _, start, end, outcome = transaction
        self.add(_first_key(transaction), Operation(client, kind, ABSENT, start, end, outcome))

    def registers(self) -> Iterator[tuple[int, list[Operation]]]:
        """Each key that was used, with its operations: a clear is among those of every key, transactions in parts."""
        of_key, clears = self._indices()
        parts: list[list[Operation]] = [[] for _ in self.keys]
        for transaction in self.transactions.values():
            for key, part in transaction.parts():
                parts[key].append(part)
        for key, own in enumerate(of_key):
            if own or parts[key]:
                yield key, [*(self._operation(index) for index in itertools.chain(own, clears)), *parts[key]]

    def tied(self) -> Iterator[list[Transaction]]:
        """For all keys that transactions tie together, the operations on them, each as a transaction."""
        of_key, clears = self._indices()
        groups = _tied_together(self.transactions.values())
        members: dict[int, list[Transaction]] = defaultdict(list)
        for transaction in self.transactions.values():
            members[groups[_first_key(transaction)]].append(transaction)
        of_group: dict[int, list[int]] = defaultdict(list)
        for key, group in groups.items():
            of_group[group].append(key)
        for group, keys in of_group.items():
            for key in keys:
                members[group] += (_as_transaction([key], self._operation(index)) for index in of_key[key])
            members[group] += (_as_transaction(keys, self._operation(index)) for index in clears)
            yield members[group]

    def _indices(self) -> tuple[Sequence[Sequence[int]], Sequence[int]]:
        """Of each key the operations that are no transactions, and the clears."""
        of_key, clears = [array("Q") for _ in self.keys], array("Q")
        for index, (kind, key) in enumerate(zip(self.kind, self.key, strict=True)):
            if kind == Kind.CLEAR:
                clears.append(index)
            elif kind <= Kind.DELETE:
                of_key[key].append(index)
        return of_key, clears

    def _operation(self, i: int) -> Operation:
        outcome = _OUTCOMES[self.outcome[i]]
        return Operation(self.client[i], _KINDS[self.kind[i]], self.value[i], self.start[i], self.end[i], outcome)


def _first_key(transaction: Transaction) -> int:
    return next(iter((*transaction.reads, *transaction.writes)))


def _as_transaction(keys: Sequence[int], operation: Operation) -> Transaction:
    client, kind, value, start, end, outcome = operation
    values = dict.fromkeys(keys, value)
    reads, writes = (values, {}) if kind == Kind.GET else ({}, values)
    return Transaction(client, kind, reads, writes, start, end, outcome)


def _tied_together(transactions: Iterable[Transaction]) -> dict[int, int]:
    """Of each key of a transaction, the key that stands for all that are tied to it (union by path halving)."""
    parent: dict[int, int] = {}

    def root(key: int) -> int:
        while (above := parent.setdefault(key, key)) != key:
            parent[key] = key = parent[above]
        return key

    for transaction in transactions:
        first, *others = map(root, (*transaction.reads, *transaction.writes))
        parent.update(dict.fromkeys(others, first))
    return {key: root(key) for key in tuple(parent)}


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
    TORN = "each key alone is explained, but no order explains what was read and written at once"
    UNDECIDED = "not judged: too many operations on the same keys were under way at once"


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
    return [history.keys[key] for key, operations in history.registers() if _misses_a_write(operations, since)]


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
    """A part of the history of a key that is at fault, and of which nothing more can be left out."""
    return _shrink(operations, _without, lambda rest: find_fault(rest) is not None)


_Any = TypeVar("_Any", Operation, Transaction)


def _shrink(
    operations: Sequence[_Any],
    without: Callable[[Sequence[_Any], int, int], list[_Any]],
    is_at_fault: Callable[[Sequence[_Any]], bool],
    attempts_max: float = _NEVER,
) -> list[_Any]:
    """Delta debugging. Only what cannot turn a good history into a bad one is left out, so the rest proves it."""
    kept = sorted(operations, key=lambda operation: operation.start)
    size, attempts = len(kept) // 2, 0
    while size and attempts < attempts_max:
        before = len(kept)
        begin = 0
        while begin < len(kept) and attempts < attempts_max:
            rest = without(kept, begin, begin + size)
            attempts += 1
            if len(rest) < len(kept) and is_at_fault(rest):
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


def _find_torn(transactions: Sequence[Transaction]) -> Fault | None:
    """None when one order explains all of what was done to keys that are tied together."""
    try:
        order = has_order(each.step for each in transactions if each.outcome != Outcome.REFUSED)
    except Undecided:
        return Fault.UNDECIDED
    return None if order else Fault.TORN


def _minimal_torn(transactions: Sequence[Transaction]) -> list[Transaction]:
    return _shrink(transactions, _without_torn, lambda rest: _find_torn(rest) == Fault.TORN, _TORN_ATTEMPTS_MAX)


def _without_torn(transactions: Sequence[Transaction], begin: int, end: int) -> list[Transaction]:
    """Leave out a slice: a write only with all that may have read it, and with what read the writes of those."""
    rest, removed = [*transactions[:begin], *transactions[end:]], transactions[begin:end]
    puts: set[tuple[int, int]] = set()
    deletes: dict[int, float] = {}  # by key, the first start of one that is left out
    while removed:
        for each in removed:
            puts.update(entry for entry in each.writes.items() if entry[1] != ABSENT)
            for key in (key for key, value in each.writes.items() if value == ABSENT):
                deletes[key] = min(each.start, deletes.get(key, _NEVER))
        removed = [each for each in rest if _may_need(each.step, puts, deletes)]
        rest = [each for each in rest if each not in removed] if removed else rest
    return rest


def _may_need(step: Step, puts: Container[tuple[int, int]], deletes: Mapping[int, float]) -> bool:
    return any(
        entry in puts or (entry[1] == ABSENT and deletes.get(entry[0], _NEVER) <= step.latest)
        for entry in step.reads.items()
    )


class Violation(NamedTuple):
    """Keys whose history no atomic map could have shown, and a small part of it that proves it."""

    key: str
    fault: Fault
    operations: Sequence[Operation | Transaction]

    def __str__(self) -> str:
        """A table for people: times in ms since the first operation shown."""
        shown = self.operations[-_SHOWN_MAX:]
        began = min((operation.start for operation in shown), default=0)
        lines = [f"{self.key}: {self.fault.value}", f"{'from ms':>12} {'to ms':>12}  client  operation"]
        if before := len(self.operations) - len(shown):
            lines.append(f"{before:12} before these")
        for operation in shown:
            start, end = ((time - began) / 1e6 for time in (operation.start, operation.end))
            words = _in_words(operation) if isinstance(operation, Operation) else _transaction_in_words(operation)
            lines.append(f"{start:12.3f} {end:12.3f}  {operation.client:6}  {words}")
        return "\n".join(lines)


_WORDS: Final = {
    Outcome.OK: "ok",
    Outcome.REFUSED: "refused",
    Outcome.UNKNOWN: "outcome unknown",
    Outcome.NOT_MET: "condition not met",
}


def _value_in_words(value: int) -> str:
    return {ABSENT: "nothing", FOREIGN: "a value that nobody sent"}.get(value, f"value {value}")


def _in_words(operation: Operation) -> str:
    value, outcome = _value_in_words(operation.value), _WORDS[operation.outcome]
    if operation.kind == Kind.GET:
        return f"get: {value}" if operation.outcome == Outcome.OK else f"get: {outcome}"
    return f"put {value}: {outcome}" if operation.kind == Kind.PUT else f"{operation.kind.name.lower()}: {outcome}"


def _transaction_in_words(transaction: Transaction) -> str:
    """Keys by their number."""
    read, written = (
        ", ".join(f"{_value_in_words(value)} {word} {key}" for key, value in entries.items())
        for word, entries in (("at", transaction.reads), ("to", transaction.writes))
    )
    effects = "; ".join(filter(None, (read, written)))
    return f"{transaction.kind.name.lower()} {effects}: {_WORDS[transaction.outcome]}"


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
        """True when an atomic map, empty at first, could have shown this history; False also when nobody knows."""
        return not self.violations

    def count(self, *faults: Fault) -> int:
        """The keys at fault in one of these ways, among those that are explained."""
        return sum(violation.fault in faults for violation in self.violations)


def check(history: History) -> Verdict:
    """Judge a history: key by key, and then together those keys that transactions tie."""
    violations: list[Violation] = []
    at_fault: set[int] = set()
    keys = 0
    for key, operations in history.registers():
        keys += 1
        if fault := find_fault(operations):
            at_fault.add(key)
            if len(violations) < _EXPLAINED_MAX:
                proof = minimal(operations)
                violations.append(Violation(history.keys[key], _named(fault, proof, operations), proof))
    unexplained = len(at_fault) - len(violations)
    for transactions in history.tied():
        tied = {key for each in transactions for key in (*each.reads, *each.writes)}
        if at_fault.isdisjoint(tied) and (fault := _find_torn(transactions)):
            if len(violations) < _EXPLAINED_MAX:
                violations.append(_explained_torn(history, transactions, fault))
            else:
                unexplained += 1
    return Verdict(len(history), keys, violations, unexplained)


def _explained_torn(history: History, transactions: Sequence[Transaction], fault: Fault) -> Violation:
    proof = _minimal_torn(transactions) if fault == Fault.TORN else []
    tied = {key for each in proof or transactions for key in (*each.reads, *each.writes)}
    return Violation(", ".join(f"{key} ({history.keys[key]})" for key in sorted(tied)), fault, proof)
