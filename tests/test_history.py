"""The checker itself: good and bad histories, random ones of a simulated register, and a search through every order."""

import itertools
import random
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.history import (
    ABSENT,
    FOREIGN,
    Fault,
    History,
    Kind,
    Operation,
    Outcome,
    check,
    find_fault,
    minimal,
)

OK, REFUSED, UNKNOWN, NOT_MET = Outcome


def put(value, start, end, outcome=OK):
    return Operation(0, Kind.PUT, value, start, end, outcome)


def get(value, start, end):
    return Operation(0, Kind.GET, value, start, end, OK)


def delete(start, end, outcome=OK):
    return Operation(0, Kind.DELETE, ABSENT, start, end, outcome)


def judged(*operations):
    """The verdict on the history of one key."""
    return check(recorded({"key": operations}))


def recorded(of_key):
    history = History(list(of_key))
    for key, operations in enumerate(of_key.values()):
        for operation in operations:
            history.add(key, operation)
    return history


def fault_of(*operations):
    verdict = judged(*operations)
    assert verdict.unexplained == 0
    assert len(verdict.violations) == (not verdict.is_linearizable)
    return verdict.violations[0].fault if verdict.violations else None


# Good histories ------------------------------------------------------------------------------------------

GOOD = {
    "nothing at all": (),
    "nothing there at first": (get(ABSENT, 1, 2),),
    "one after the other": (put(1, 1, 2), get(1, 3, 4), put(2, 5, 6), get(2, 7, 8), delete(9, 10), get(ABSENT, 11, 12)),
    "a read during a write sees it": (put(1, 1, 9), get(1, 3, 4), get(1, 5, 6)),
    "a read during a write does not see it yet": (put(1, 1, 9), get(ABSENT, 3, 4), get(1, 5, 6)),
    "two writes at once, the first wins": (put(1, 1, 9), put(2, 1, 9), get(1, 10, 11)),
    "two writes at once, the second wins": (put(1, 1, 9), put(2, 1, 9), get(2, 10, 11)),
    "two writes at once, each seen in turn": (put(1, 1, 9), put(2, 1, 9), get(2, 3, 4), get(1, 5, 6)),
    "an unknown write that never happened": (put(1, 1, 2), put(2, 3, 4, UNKNOWN), get(1, 5, 6)),
    "an unknown write that happened": (put(1, 1, 2), put(2, 3, 4, UNKNOWN), get(2, 5, 6)),
    "an unknown write that happened later": (put(1, 1, 2), put(2, 3, 4, UNKNOWN), get(1, 5, 6), get(2, 7, 8)),
    "an unknown write that others hid": (put(1, 1, 2, UNKNOWN), put(2, 3, 4), get(2, 5, 6), put(3, 7, 8)),
    "an unknown delete that happened later": (put(1, 1, 2), delete(3, 4, UNKNOWN), get(1, 5, 6), get(ABSENT, 7, 8)),
    "two unknown deletes, needed twice": (
        put(1, 1, 2),
        delete(3, 4, UNKNOWN),
        delete(3, 4, UNKNOWN),
        get(ABSENT, 5, 6),
        put(2, 7, 8),
        get(ABSENT, 9, 10),
    ),
    "a refused write that nobody saw": (put(1, 1, 2), put(2, 3, 4, REFUSED), get(1, 5, 6)),
    "a refused delete": (put(1, 1, 2), delete(3, 4, REFUSED), get(1, 5, 6)),
    "a delete hidden by a write at the same time": (put(1, 1, 9), delete(1, 9), get(1, 10, 11)),
    "a delete between a write and its successor": (
        put(1, 1, 2),
        get(1, 3, 4),
        delete(5, 20),
        get(ABSENT, 6, 7),
        put(2, 8, 9),
        get(2, 10, 11),
    ),
    "a write and its only reads while nothing was there": (put(1, 1, 9), get(1, 2, 9), delete(1, 9), get(ABSENT, 1, 9)),
}


@pytest.mark.parametrize("operations", GOOD.values(), ids=GOOD)
def test_accepts(operations):
    assert fault_of(*operations) is None
    assert is_linearizable_in_some_order(operations)


# Bad histories -------------------------------------------------------------------------------------------

BAD = {
    "a lost update": (Fault.LOST, (put(1, 1, 2), put(2, 3, 4), get(1, 5, 6))),
    "a lost first write": (Fault.LOST, (put(1, 1, 2), get(ABSENT, 3, 4))),
    "a stale read": (Fault.CAME_BACK, (put(1, 1, 2), put(2, 3, 9), get(2, 4, 5), get(1, 6, 7))),
    "a write applied twice": (Fault.CAME_BACK, (put(1, 1, 2), put(2, 3, 4), get(2, 5, 6), get(1, 7, 8), get(1, 9, 10))),
    "an unknown write applied twice": (
        Fault.CAME_BACK,
        (put(1, 1, 2, UNKNOWN), get(1, 3, 4), put(2, 5, 6), get(2, 7, 8), get(1, 9, 10)),
    ),
    "a delete applied twice": (Fault.LOST, (delete(1, 2), put(1, 3, 4), get(1, 5, 6), get(ABSENT, 7, 8))),
    "an unknown delete applied twice": (
        Fault.ORDER,
        (put(1, 1, 2), delete(3, 4, UNKNOWN), get(ABSENT, 5, 6), put(2, 7, 8), get(2, 9, 10), get(ABSENT, 11, 12)),
    ),
    "a delete undone": (Fault.CAME_BACK, (put(1, 1, 2), delete(3, 4), get(ABSENT, 5, 6), get(1, 7, 8))),
    "a lost delete": (Fault.LOST, (put(1, 1, 2), delete(3, 4), get(1, 5, 6))),
    "a read of a refused write": (Fault.REFUSED, (put(1, 1, 2, REFUSED), get(1, 3, 4))),
    "a read of what was never written": (Fault.INVENTED, (put(1, 1, 2), get(7, 3, 4))),
    "a read of what nobody sent": (Fault.INVENTED, (put(1, 1, 2), get(FOREIGN, 3, 4))),
    "a value before its write": (Fault.EARLY, (get(1, 1, 2), put(1, 3, 4))),
    "two readers who disagree on the order": (
        Fault.CAME_BACK,
        (put(1, 1, 20), put(2, 1, 20), get(1, 2, 3), get(2, 4, 5), get(1, 6, 7)),
    ),
}


@pytest.mark.parametrize(("fault", "operations"), BAD.values(), ids=BAD)
def test_rejects(fault, operations):
    assert fault_of(*operations) == fault
    assert not is_linearizable_in_some_order(operations)


def test_a_clear_is_a_delete_of_every_key():
    of_key = {"a": [put(1, 1, 2)], "b": [put(2, 1, 2), get(2, 7, 8)], "unused": []}
    history = recorded(of_key)
    history.add(0, Operation(0, Kind.CLEAR, ABSENT, 3, 4, OK))
    verdict = check(history)
    assert [violation.key for violation in verdict.violations] == ["b"]
    assert verdict.keys == 2
    assert verdict.operations == 4


def test_a_violation_is_explained_by_the_operations_that_prove_it_and_no_others():
    rounds = [
        [put(n, 10 * n, 10 * n + 1), get(n, 10 * n + 2, 10 * n + 3), delete(10 * n + 4, 10 * n + 5)]
        for n in range(1, 200)
    ]
    wrong = [put(500, 5000, 5001), get(500, 5002, 5003), put(501, 5004, 5005), get(500, 5006, 5007)]
    after = [put(600, 6000, 6001), get(600, 6002, 6003)]
    (violation,) = judged(*itertools.chain(*rounds), *wrong, *after).violations
    assert violation.operations == [wrong[1], wrong[2], wrong[3]] or violation.operations == [wrong[0], *wrong[2:]]
    text = str(violation).splitlines()
    assert text[0] == "key: an acknowledged write is missing from a later read"
    assert [line.split(maxsplit=3)[3] for line in text[2:]][-2:] == ["put value 501: ok", "get: value 500"]
    assert text[2].split()[:3] == ["0.000", "0.000", "0"]


def test_no_more_than_some_violations_are_explained_and_all_are_counted():
    verdict = check(recorded({f"key{n}": [put(n + 1, 1, 2), get(ABSENT, 3, 4)] for n in range(50)}))
    assert len(verdict.violations) + verdict.unexplained == 50
    assert verdict.unexplained > 0
    assert not verdict.is_linearizable


# Against a search through every order --------------------------------------------------------------------


def is_linearizable_in_some_order(operations):
    """The definition itself: is there an order that explains all, with some of the unknown writes or without?"""
    certain = [each for each in operations if each.outcome == OK]
    unknown = [each for each in operations if each.outcome == UNKNOWN and each.kind != Kind.GET]
    return any(
        can_follow(ABSENT, (*certain, *happened))
        for count in range(len(unknown) + 1)
        for happened in itertools.combinations(unknown, count)
    )


def can_follow(value, remaining):
    if not remaining:
        return True
    first_end = min(each.latest for each in remaining)
    for n, each in enumerate(remaining):
        if each.start <= first_end and (each.kind != Kind.GET or each.value == value):
            rest = (*remaining[:n], *remaining[n + 1 :])
            if can_follow(each.value, rest):
                return True
    return False


@st.composite
def arbitrary_histories(draw):
    """Up to seven operations at any times, reads of anything: most are bad, some are good."""
    operations = []
    for value in range(1, draw(st.integers(1, 7)) + 1):
        kind = draw(st.sampled_from([Kind.PUT, Kind.GET, Kind.GET, Kind.DELETE]))
        start = draw(st.integers(0, 12))
        end = start + draw(st.integers(0, 8))
        outcome = draw(st.sampled_from([OK, OK, OK, UNKNOWN])) if kind != Kind.GET else OK
        written = [each.value for each in operations if each.kind == Kind.PUT]
        found = draw(st.sampled_from([ABSENT, *written])) if kind == Kind.GET else ABSENT
        operations.append(Operation(0, kind, value if kind == Kind.PUT else found, start, end, outcome))
    return operations


@settings(max_examples=1500, deadline=None)
@given(arbitrary_histories())
@example([put(1, 0, 9), delete(0, 5), get(ABSENT, 0, 3), get(ABSENT, 6, 9)])
def test_agrees_with_a_search_through_every_order(operations):
    assert (find_fault(operations) is None) == is_linearizable_in_some_order(operations)


@settings(max_examples=200, deadline=None)
@given(arbitrary_histories())
def test_what_explains_a_violation_is_a_violation_itself(operations):
    if find_fault(operations):
        proof = minimal(operations)
        assert not is_linearizable_in_some_order(proof)
        assert set(proof) <= set(operations)


# Random histories of a simulated register ----------------------------------------------------------------


class Simulated:
    """An atomic register with clients whose requests and answers take their time; some answers are lost."""

    def __init__(self, seed):
        self._random = random.Random(seed)
        self._time = 0
        self.value = ABSENT
        self.operations = []
        self._last = 0

    def run(self, count):
        """Random operations, each at an instant of its own; an unknown one takes effect late, or never."""
        effects = []
        for client in range(count):
            self._time += self._random.randrange(10)
            start, delay, answer = self._time, self._random.randrange(60), self._random.randrange(60)
            kind = self._random.choices([Kind.GET, Kind.PUT, Kind.DELETE], [5, 4, 1])[0]
            outcome = self._random.choices([OK, UNKNOWN, REFUSED], [8, 1, 1])[0] if kind != Kind.GET else OK
            late = self._random.randrange(200) if outcome == UNKNOWN else 0
            happens = outcome == OK or (outcome == UNKNOWN and self._random.random() < 0.5)
            effects.append((start + delay + late, client, kind, start, start + delay + answer, outcome, happens))
        self._time = max((effect[4] for effect in effects), default=self._time) + 300  # until every late one is over
        for _, client, kind, start, end, outcome, happens in sorted(effects):
            value = self.new_value() if kind == Kind.PUT else ABSENT
            self.operations.append(
                Operation(client, kind, self.value if kind == Kind.GET else value, start, end, outcome)
            )
            if happens and kind != Kind.GET:
                self.value = value

    def new_value(self):
        self._last += 1
        return self._last

    def alone(self, kind, value=ABSENT, outcome=OK):
        """An operation that no other overlaps."""
        self.operations.append(Operation(99, kind, value, self._time + 1, self._time + 2, outcome))
        self._time += 3
        if kind != Kind.GET and outcome == OK:
            self.value = value


# Each begins with a write that nothing overlaps, so that no earlier one of unknown outcome can explain what follows.


def lose_an_update(register):
    first, second = register.new_value(), register.new_value()
    register.alone(Kind.PUT, first)
    register.alone(Kind.PUT, second)
    register.value = first
    register.alone(Kind.GET, first)


def read_stale(register):
    first, second = register.new_value(), register.new_value()
    register.alone(Kind.PUT, first)
    register.alone(Kind.PUT, second)
    register.alone(Kind.GET, second)
    register.alone(Kind.GET, first)
    register.alone(Kind.GET, second)


def apply_twice(register):
    first, second = register.new_value(), register.new_value()
    register.alone(Kind.PUT, first)
    register.alone(Kind.PUT, second)
    register.alone(Kind.GET, second)
    register.value = first
    register.alone(Kind.GET, first)


def undo_a_delete(register):
    value = register.new_value()
    register.alone(Kind.PUT, value)
    register.alone(Kind.DELETE)
    register.value = value
    register.alone(Kind.GET, value)


def apply_a_refused_write(register):
    value = register.new_value()
    register.alone(Kind.PUT, value, REFUSED)
    register.value = value
    register.alone(Kind.GET, value)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(0, 120))
def test_accepts_every_history_of_an_atomic_register(seed, count):
    register = Simulated(seed)
    register.run(count)
    assert find_fault(register.operations) is None


@pytest.mark.parametrize("inject", [lose_an_update, read_stale, apply_twice, undo_a_delete, apply_a_refused_write])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), before=st.integers(0, 60), after=st.integers(0, 60))
def test_rejects_the_same_with_a_fault_injected(inject, seed, before, after):
    register = Simulated(seed)
    register.run(before)
    inject(register)
    register.run(after)
    assert find_fault(register.operations)


# Speed ---------------------------------------------------------------------------------------------------


def test_judges_a_long_history_quickly():
    history = History([f"key{n}" for n in range(50)])
    for key in range(50):
        register = Simulated(key)
        register.run(2_000)
        for operation in register.operations:
            history.add(key, operation)
    began = time.process_time()
    verdict = check(history)
    seconds = time.process_time() - began
    print(f"{len(history)} operations in {seconds:.2f} s of processor time")
    assert verdict.is_linearizable
    assert verdict.operations == 100_000
    assert seconds < 10
