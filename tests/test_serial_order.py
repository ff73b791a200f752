"""The checker on transactions: conditional writes, batches, and reads of several keys at once."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.history import (
    ABSENT,
    Fault,
    History,
    Kind,
    Operation,
    Outcome,
    Transaction,
    check,
)
from tests.support.serial_order import Step, has_order

OK, REFUSED, UNKNOWN, NOT_MET = Outcome
A, B, C = range(3)
NEVER = float("inf")


def cas(key, change, start, end, outcome=OK):
    """What was there, and a value to replace it by, or ABSENT to delete it."""
    return Transaction(0, Kind.CAS, {key: change[0]}, {key: change[1]}, start, end, outcome)


def batch(reads, writes, start, end, outcome=OK):
    return Transaction(0, Kind.BATCH, reads, writes, start, end, outcome)


def read(found, start, end):
    """A read of several keys."""
    return Transaction(0, Kind.READ, found, {}, start, end, OK)


def put(key, value, start, end, outcome=OK):
    return key, Operation(0, Kind.PUT, value, start, end, outcome)


def get(key, value, start, end):
    return key, Operation(0, Kind.GET, value, start, end, OK)


def delete(key, start, end, outcome=OK):
    return key, Operation(0, Kind.DELETE, ABSENT, start, end, outcome)


def clear(start, end):
    return 0, Operation(0, Kind.CLEAR, ABSENT, start, end, OK)


def judged(operations):
    history = History(["a", "b", "c"])
    for each in operations:
        if isinstance(each, Transaction):
            history.add_transaction(each)
        else:
            history.add(*each)
    return check(history)


def fault_of(operations):
    verdict = judged(operations)
    assert verdict.is_linearizable == (not verdict.violations)
    return verdict.violations[0].fault if verdict.violations else None


# Good and bad histories ----------------------------------------------------------------------------------

GOOD = {
    "created where nothing was": (cas(A, (ABSENT, 1), 1, 2), get(A, 1, 3, 4)),
    "replaced by who had seen it": (put(A, 1, 1, 2), cas(A, (1, 2), 3, 4), get(A, 2, 5, 6)),
    "deleted by who had seen it": (put(A, 1, 1, 2), cas(A, (1, ABSENT), 3, 4), get(A, ABSENT, 5, 6)),
    "of two at once the first wins": (
        put(A, 1, 1, 2),
        cas(A, (1, 2), 3, 9),
        cas(A, (2, 3), 3, 9, NOT_MET),
        get(A, 2, 10, 11),
    ),
    "one builds on the other": (put(A, 1, 1, 2), cas(A, (2, 3), 3, 9), cas(A, (1, 2), 3, 9), get(A, 3, 10, 11)),
    "not met by what is written meanwhile": (
        put(A, 1, 1, 2),
        put(A, 2, 3, 9),
        cas(A, (2, 3), 4, 5, NOT_MET),
        get(A, 2, 6, 7),
    ),
    "of unknown outcome, and not made": (put(A, 1, 1, 2), cas(A, (1, 2), 3, 4, UNKNOWN), get(A, 1, 5, 6)),
    "of unknown outcome, and made later": (
        *(
            put(A, 1, 1, 2),
            cas(A, (1, 2), 3, 4, UNKNOWN),
            get(A, 1, 5, 6),
            cas(A, (2, 3), 7, 8, NOT_MET),
            get(A, 2, 9, 10),
        ),
    ),
    "a conditional delete of unknown outcome": (
        *(put(A, 1, 1, 2), cas(A, (1, ABSENT), 3, 4, UNKNOWN), get(A, 1, 5, 6), get(A, ABSENT, 7, 8)),
    ),
    "refused, and not made": (put(A, 1, 1, 2), cas(A, (1, 2), 3, 4, REFUSED), get(A, 1, 5, 6)),
    "a batch is seen whole": (batch({}, {A: 1, B: 1}, 1, 2), read({A: 1, B: 1}, 3, 4)),
    "a batch is seen one key after the other": (
        *(batch({}, {A: 1, B: 1}, 1, 2), get(A, 1, 3, 4), put(B, 2, 5, 6), read({A: 1, B: 2}, 7, 8)),
    ),
    "a batch that moves a value": (
        put(A, 1, 1, 2),
        batch({A: 1}, {A: ABSENT, B: 2}, 3, 4),
        read({A: ABSENT, B: 2}, 5, 6),
    ),
    "a batch during which nothing is there yet": (
        *(batch({}, {A: 1, B: 1}, 1, 9), read({A: ABSENT, B: ABSENT}, 2, 3), read({A: 1, B: 1}, 4, 5)),
    ),
    "two batches at once": (batch({}, {A: 1, B: 1}, 1, 9), batch({}, {A: 2, B: 2}, 1, 9), read({A: 1, B: 1}, 10, 11)),
    "a batch of unknown outcome, and made": (
        batch({}, {A: 1, B: 1}, 1, 2, UNKNOWN),
        get(B, ABSENT, 3, 4),
        read({A: 1, B: 1}, 5, 6),
    ),
    "a batch whose check failed": (
        put(A, 1, 1, 2),
        batch({A: 1, C: ABSENT}, {B: 3}, 3, 4, NOT_MET),
        get(B, ABSENT, 5, 6),
    ),
    "a clear between": (batch({}, {A: 1, B: 1}, 1, 2), clear(3, 9), cas(A, (ABSENT, 2), 4, 5), get(B, ABSENT, 6, 7)),
}

BAD = {
    "two made of the same value": (Fault.TORN, (put(A, 1, 1, 2), cas(A, (1, 2), 3, 9), cas(A, (1, 3), 3, 9))),
    "two created where nothing was": (Fault.TORN, (cas(A, (ABSENT, 1), 1, 9), cas(A, (ABSENT, 2), 1, 9))),
    "made of what was replaced": (Fault.LOST, (put(A, 1, 1, 2), put(A, 2, 3, 4), cas(A, (1, 3), 5, 6))),
    "made where something was": (Fault.LOST, (put(A, 1, 1, 2), cas(A, (ABSENT, 2), 3, 4))),
    "made of what nobody wrote": (Fault.INVENTED, (put(A, 1, 1, 2), cas(A, (7, 2), 3, 4))),
    "not met by what was never written": (Fault.INVENTED, (put(A, 1, 1, 2), cas(A, (7, 2), 3, 4, NOT_MET))),
    "not met by what came later": (Fault.EARLY, (cas(A, (1, 2), 1, 2, NOT_MET), put(A, 1, 3, 4))),
    "not met by what a crash took back": (
        Fault.CAME_BACK,
        (put(A, 1, 1, 2), get(A, 1, 3, 4), put(A, 2, 5, 6, UNKNOWN), cas(A, (2, 3), 7, 8, NOT_MET), get(A, 1, 9, 10)),
    ),
    "not met, and made": (Fault.REFUSED, (put(A, 1, 1, 2), cas(A, (1, 2), 3, 4, NOT_MET), get(A, 2, 5, 6))),
    "refused, and made": (Fault.REFUSED, (put(A, 1, 1, 2), cas(A, (1, 2), 3, 4, REFUSED), get(A, 2, 5, 6))),
    "made and then undone": (Fault.LOST, (put(A, 1, 1, 2), cas(A, (1, 2), 3, 4), get(A, 1, 5, 6))),
    "a lost update between read and write": (
        Fault.TORN,
        (put(A, 1, 1, 2), cas(A, (1, 2), 3, 9), put(A, 3, 4, 9), get(A, 3, 5, 6), get(A, 2, 10, 11)),
    ),
    "half of a batch": (Fault.LOST, (batch({}, {A: 1, B: 1}, 1, 2), get(A, 1, 3, 4), get(B, ABSENT, 5, 6))),
    "half of a batch of unknown outcome": (
        Fault.TORN,
        (batch({}, {A: 1, B: 1}, 1, 2, UNKNOWN), get(A, 1, 3, 4), get(B, ABSENT, 5, 6)),
    ),
    "half of a batch seen while it is made": (
        Fault.TORN,
        (batch({}, {A: 1, B: 1}, 1, 9), get(A, 1, 2, 3), get(B, ABSENT, 4, 5), get(B, 1, 6, 7)),
    ),
    "two states in one read": (
        Fault.TORN,
        (batch({}, {A: 1, B: 1}, 1, 2), batch({}, {A: 2, B: 2}, 3, 9), read({A: 2, B: 1}, 4, 5)),
    ),
    "two reads that disagree on the order": (
        Fault.TORN,
        (put(A, 1, 1, 9), put(B, 2, 1, 9), read({A: 1, B: ABSENT}, 1, 9), read({A: ABSENT, B: 2}, 1, 9)),
    ),
    "the same in two batches, each of which saw nothing of the other": (
        Fault.TORN,
        (batch({A: ABSENT}, {B: 1}, 1, 9), batch({B: ABSENT}, {A: 2}, 1, 9)),
    ),
    "a batch made though its check cannot have held": (
        Fault.TORN,
        (put(A, 1, 1, 2), cas(A, (1, 2), 3, 9), batch({A: 1}, {B: 3}, 3, 9), get(A, 2, 4, 5), get(B, ABSENT, 6, 7)),
    ),
}  # fmt: skip


def steps_of(operations):
    for each in operations:
        if isinstance(each, Transaction):
            if each.outcome != REFUSED:
                yield each.step
            continue
        key, (_, kind, value, start, end, outcome) = each
        keys = range(3) if kind == Kind.CLEAR else [key]
        reads, writes = ({key: value}, {}) if kind == Kind.GET else ({}, dict.fromkeys(keys, value))
        yield Step(reads, writes, start, end if outcome == OK else NEVER, outcome == OK)


@pytest.mark.parametrize("operations", GOOD.values(), ids=GOOD)
def test_accepts(operations):
    assert fault_of(operations) is None
    assert has_order_by_trying_all(list(steps_of(operations)))


@pytest.mark.parametrize(("fault", "operations"), BAD.values(), ids=BAD)
def test_rejects(fault, operations):
    assert fault_of(operations) == fault
    if fault not in (Fault.REFUSED, Fault.INVENTED):
        assert not has_order_by_trying_all(list(steps_of(operations)))


def test_keys_that_nothing_ties_together_are_judged_apart():
    verdict = judged([*BAD["two made of the same value"][1], batch({}, {B: 5, C: 5}, 1, 2), read({B: 5, C: 5}, 3, 4)])
    assert [(each.key, each.fault) for each in verdict.violations] == [("0 (a)", Fault.TORN)]


def test_a_violation_is_explained_by_the_operations_that_prove_it():
    rounds = [batch({A: n - 1}, {A: n, B: n}, 10 * n, 10 * n + 1) for n in range(1, 100)]
    wrong = [cas(C, (ABSENT, 1), 2, 9), cas(C, (ABSENT, 2), 2, 9)]
    tie = [read({A: 50, C: 1}, 505, 506)]
    (violation,) = judged([*rounds, *wrong, *tie]).violations
    assert list(violation.operations) == wrong
    text = str(violation).splitlines()
    assert text[0] == f"2 (c): {Fault.TORN.value}"
    assert text[2].endswith("cas nothing at 2; value 1 to 2: ok")


def test_what_cannot_be_judged_is_not_called_good():
    puts = [put(A, n, 1, 9) for n in range(1, 31)]
    reads = [get(A, n, 20 * n, 20 * n + 900) for n in range(1, 31)]
    unordered = [batch({}, {B: 100 + n, C: 100 + n}, 1, 5000) for n in range(30)]
    seen = [get(B, 100 + n, 100, 5000) for n in range(30)] + [get(C, 100 + n, 100, 5000) for n in range(30)]
    verdict = judged([*puts, *reads, *unordered, *seen])
    assert not verdict.is_linearizable
    assert Fault.UNDECIDED in {each.fault for each in verdict.violations}


# Against a search through every order --------------------------------------------------------------------


def has_order_by_trying_all(steps):
    """The definition itself."""
    certain = [each for each in steps if each.is_certain]
    unknown = [each for each in steps if not each.is_certain]
    return any(
        can_follow({}, [*certain, *happened])
        for count in range(len(unknown) + 1)
        for happened in itertools.combinations(unknown, count)
    )


def has_lenient_order_by_trying_all(steps):
    """Where what nobody saw of an unknown outcome may happen as often as it helps, whatever its condition."""
    writers = {entry: each for each in steps for entry in each.writes.items() if entry[1] != ABSENT}
    certain, waiting = [], [each for each in steps if each.is_certain]
    while waiting:
        if (each := waiting.pop()) not in certain:
            certain.append(each)
            waiting += [writers[entry] for entry in each.reads.items() if entry in writers]
    return can_follow({}, certain, [each for each in steps if each not in certain], set())


def can_follow(values, remaining, possible=(), tried=None):
    if not remaining:
        return True
    if tried is not None:
        state = str((sorted(entry for entry in values.items() if entry[1]), remaining))
        if state in tried:
            return False
        tried.add(state)
    first_end = min(each.latest for each in remaining)
    for n, each in enumerate(remaining):
        fits = all(values.get(key, ABSENT) == value for key, value in each.reads.items())
        rest = [*remaining[:n], *remaining[n + 1 :]]
        if each.start <= first_end and fits and can_follow(values | each.writes, rest, possible, tried):
            return True
    may_happen = (each for each in possible if each.start <= first_end)
    return any(can_follow(values | each.writes, remaining, possible, tried) for each in may_happen)


@st.composite
def arbitrary_steps(draw):
    """Up to seven operations on up to three keys, at any times, that read anything: some are good, some are bad."""
    keys = st.lists(st.integers(0, draw(st.integers(0, 2))), min_size=1, max_size=2, unique=True)
    wrote = [
        {key: draw(st.sampled_from([value, value, ABSENT])) for key in draw(keys)} if draw(st.integers(0, 2)) else {}
        for value in range(1, draw(st.integers(1, 7)) + 1)
    ]
    steps = []
    for writes in wrote:
        reads = {}
        if not writes or draw(st.booleans()):
            for key in draw(keys):
                written = [other[key] for other in wrote if other is not writes and key in other]
                reads[key] = draw(st.sampled_from([ABSENT, *written]))
        start = draw(st.integers(0, 12))
        is_certain = not writes or draw(st.sampled_from([True, True, True, False]))
        latest = start + draw(st.integers(0, 8)) if is_certain else NEVER
        steps.append(Step(reads, writes, start, latest, is_certain))
    return steps


@settings(max_examples=700, deadline=None)
@given(arbitrary_steps())
def test_agrees_with_a_search_through_every_order(steps):
    assert has_order(steps) == has_lenient_order_by_trying_all(steps)
    assert has_order(steps) or not has_order_by_trying_all(steps)
    if all(each.is_certain for each in steps):
        assert has_order(steps) == has_order_by_trying_all(steps)


# Random histories of a simulated map ---------------------------------------------------------------------


WEIGHTS = {
    **{Kind.GET: 5, Kind.PUT: 3, Kind.DELETE: 1, Kind.CLEAR: 0.05},
    **{Kind.CAS: 5, Kind.BATCH: 3, Kind.READ: 2},
}


class Simulated:
    """An atomic map with clients whose requests and answers take their time; some answers are lost."""

    KEYS = 6

    def __init__(self, seed, concurrency=60):
        self._random = random.Random(seed)
        self._concurrency = concurrency
        self._time = self._last = 0
        self.values = dict.fromkeys(range(self.KEYS), ABSENT)
        self.history = History([f"key{n}" for n in range(self.KEYS)])

    def run(self, count):
        """Random operations, each at an instant of its own; an unknown one takes effect late, or never."""
        rng, effects = self._random, []
        for client in range(count):
            self._time += rng.randrange(10)
            start, delay, answer = self._time, rng.randrange(self._concurrency), rng.randrange(self._concurrency)
            kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            outcome = rng.choices([OK, UNKNOWN, REFUSED], [8, 1, 1])[0] if kind not in (Kind.GET, Kind.READ) else OK
            late = rng.randrange(200) if outcome == UNKNOWN else 0
            happens = outcome == OK or (outcome == UNKNOWN and rng.random() < 0.5)
            operation = Operation(client % 500, kind, ABSENT, start, start + delay + answer, outcome)
            effects.append((start + delay + late, client, operation, happens))
        self._time = max((effect[2].end for effect in effects), default=self._time) + 300
        for _, _, operation, happens in sorted(effects):
            key = rng.randrange(self.KEYS)
            if operation.kind in (Kind.CAS, Kind.BATCH, Kind.READ):
                self._transact(key, operation, happens)
            else:
                self._operate(key, operation, happens)

    def _operate(self, key, operation, happens):
        if operation.kind == Kind.GET:
            operation = operation._replace(value=self.values[key])
        elif operation.kind == Kind.PUT:
            operation = operation._replace(value=self.new_value())
        self.history.add(0 if operation.kind == Kind.CLEAR else key, operation)
        if happens:
            keys = self.values if operation.kind == Kind.CLEAR else [key]
            self.values |= dict.fromkeys(keys, operation.value)

    def _transact(self, key, operation, happens):
        """Two keys are tied to each other, and no others. What is expected is there, or it was never there."""
        client, kind, _, start, end, outcome = operation
        keys = [key] if kind == Kind.CAS else [key, key ^ 1]
        found = {each: self.values[each] for each in keys}
        if kind == Kind.READ:
            reads, writes = found, {}
        else:
            reads = {each: value if self._random.random() < 0.8 else self.new_value() for each, value in found.items()}
            value = self.new_value()
            writes = {each: value if self._random.random() < 0.8 else ABSENT for each in keys}
        if reads == found and happens:
            self.values |= writes
        elif outcome == OK:
            reads, outcome = found, NOT_MET
        self.history.add_transaction(Transaction(client, kind, reads, writes, start, end, outcome))

    def new_value(self):
        self._last += 1
        return self._last

    def at_once(self):
        """Two times between which nothing else happens."""
        self._time += 3
        return self._time - 2, self._time - 1

    def seen(self, key, value):
        self.history.add(key, Operation(99, Kind.GET, value, *self.at_once(), OK))

    def made(self, reads, writes, times=None, outcome=OK):
        self.history.add_transaction(Transaction(99, Kind.BATCH, reads, writes, *(times or self.at_once()), outcome))


def start_of_a_mistake(world):
    """A value of keys 0 and 1 that nothing overlaps."""
    value = world.new_value()
    world.made({}, {0: value, 1: value})
    world.values |= {0: value, 1: value}
    return value


def evaluate_two_at_acceptance(world):
    before, times = start_of_a_mistake(world), world.at_once()
    for _ in range(2):
        value = world.new_value()
        world.made({0: before}, {0: value}, times)
        world.values[0] = value


def apply_half_a_batch(world):
    before, value = start_of_a_mistake(world), world.new_value()
    world.made({}, {0: value, 1: value}, outcome=UNKNOWN)
    world.seen(0, value)
    world.seen(1, before)
    world.values[0] = value


def refuse_what_was_made(world):
    before, value = start_of_a_mistake(world), world.new_value()
    world.made({0: before}, {0: value}, outcome=REFUSED)
    world.seen(0, value)
    world.values[0] = value


def forget_the_outcome_and_make_it_again(world):
    before, value, other = start_of_a_mistake(world), world.new_value(), world.new_value()
    world.made({0: before}, {0: value}, outcome=UNKNOWN)
    world.made({0: value}, {0: other})
    world.seen(0, value)
    world.values[0] = value


def fail_a_check_by_what_is_not_durable(world):
    before, value = start_of_a_mistake(world), world.new_value()
    world.made({}, {0: value}, outcome=UNKNOWN)
    world.made({0: value}, {1: world.new_value()}, outcome=NOT_MET)
    world.seen(0, before)


def read_two_states(world):
    before, value, times = start_of_a_mistake(world), world.new_value(), world.at_once()
    world.made({}, {0: value, 1: value}, times)
    world.made({0: value, 1: before}, {}, times)
    world.values |= {0: value, 1: value}


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(0, 120))
def test_accepts_every_history_of_an_atomic_map(seed, count):
    world = Simulated(seed)
    world.run(count)
    assert [str(each) for each in check(world.history).violations] == []


@pytest.mark.parametrize(
    "inject",
    [
        evaluate_two_at_acceptance,
        apply_half_a_batch,
        refuse_what_was_made,
        forget_the_outcome_and_make_it_again,
        fail_a_check_by_what_is_not_durable,
        read_two_states,
    ],
)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), before=st.integers(0, 60), after=st.integers(0, 60))
def test_rejects_the_same_with_a_fault_injected(inject, seed, before, after):
    world = Simulated(seed)
    world.run(before)
    inject(world)
    world.run(after)
    assert not check(world.history).is_linearizable


def test_judges_a_long_history_without_giving_up():
    world = Simulated(1, concurrency=20)
    world.run(10_000)
    assert check(world.history).is_linearizable
