"""Whether one order explains operations that read and write at once, or several keys at once.

Owns the search for that order; knows neither records of operations nor what a fault looks like to people.

Such operations tie keys together, so linearizability can no longer be judged key by key, and in general it is
NP-complete (Gibbons and Korach, "Testing shared memories", SIAM J. Comput. 26(4), 1997). What keeps the search small:

* It is just in time (Lowe, "Testing for linearizability", CCPE 29(4), 2017): it runs through the ends of operations,
  keeps every state in which the map may be, and puts an operation in the order only when one has to be there because it
  ends. Only operations that share keys with that one, directly or by others that are under way, are tried.
* Every put stores a value that no other stores. So a value that was replaced never comes back, and may be replaced only
  after all that read it; it is then *spent*, and states that differ in spent values alone are one.
* What can only help is done at once: a read of what is there now, and a put that nobody reads over a value that is
  spent. Of writes that do the same, only the one that has to be done first is tried.

One thing is judged more leniently here than on each key alone: a delete of unknown outcome, of which nobody certainly
saw that it happened, may happen whenever it explains something, also twice, and whatever its condition was. To count
them would multiply the states with each that a history holds.

The number of states at an instant depends on how many writes of the same keys are under way then, not on the length of
the history. Beyond a bound the search gives up, and says so: `Undecided` is no verdict.
tests/test_serial_order.py compares it with a search through every order.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

ABSENT: Final = 0
"""What a read finds, and a delete leaves, where there is nothing. Values are numbers, counted from 1."""

_SPENT: Final = -2
"""In the place of a value that no operation reads any more."""
_NEVER: Final = float("inf")
_STATES_MAX: Final = 5_000


class Undecided(Exception):
    """Too many operations on the same keys were under way at once."""


class Step(NamedTuple):
    """One operation: at one instant between `start` and `latest`, all of `reads` was there and `writes` was made.

    Both by key. Where `is_certain` is False it may not have happened at all; a certain one may end late, or never.
    """

    reads: Mapping[int, int]
    writes: Mapping[int, int]
    start: float
    latest: float
    is_certain: bool


def has_order(steps: Iterable[Step]) -> bool:
    """True when one map, empty at first, could have shown this. Raises Undecided."""
    possible = _that_matter(list(steps))
    return possible is not None and _Search(possible).succeeds()


def _that_matter(steps: Sequence[Step]) -> list[Step] | None:
    """What has happened, and what may explain an absence; None when something was read that nobody wrote.

    What was read has happened, also when its client cannot know. A write that nobody read can be left out of any order.
    """
    writers = {entry: n for n, step in enumerate(steps) for entry in step.writes.items() if entry[1] != ABSENT}
    happened, waiting = set[int](), [n for n, step in enumerate(steps) if step.is_certain]
    while waiting:
        if (n := waiting.pop()) not in happened:
            happened.add(n)
            read = [entry for entry in steps[n].reads.items() if entry[1] != ABSENT]
            if not writers.keys() >= set(read):
                return None
            waiting += [writers[entry] for entry in read]
    return [
        *(steps[n]._replace(is_certain=True) for n in happened),
        *(_as_delete(step) for n, step in enumerate(steps) if n not in happened and ABSENT in step.writes.values()),
    ]


def _as_delete(step: Step) -> Step:
    """A step that may have happened, and whose puts nobody read."""
    writes = {key: ABSENT if value == ABSENT else _SPENT for key, value in step.writes.items()}
    return step._replace(reads={}, writes=writes)


_Effect: TypeAlias = tuple[frozenset[tuple[int, int]], frozenset[tuple[int, int]]]


class _State(NamedTuple):
    """One way that things may be: the value of each key, and which of the operations under way have taken effect."""

    values: tuple[int, ...]
    done: frozenset[int]


class _Search:
    """Runs through a history once, with all states that are possible."""

    def __init__(self, steps: Sequence[Step]) -> None:
        place = {key: n for n, key in enumerate({key for step in steps for key in (*step.reads, *step.writes)})}
        self._steps = [
            step._replace(
                reads={place[key]: value for key, value in step.reads.items()},
                writes={place[key]: value for key, value in step.writes.items()},
            )
            for step in steps
        ]
        self._keys = [frozenset((*step.reads, *step.writes)) for step in self._steps]
        starts = [(step.start, False, n) for n, step in enumerate(self._steps)]
        ends = [(step.latest, True, n) for n, step in enumerate(self._steps) if step.latest < _NEVER]
        self._events = sorted(starts + ends)
        self._now = 0  # an index of the events, which puts those of one instant in an order too
        self._read_until: dict[tuple[int, int], int] = defaultdict(lambda: -1)
        for now, (_, is_end, n) in enumerate(self._events):
            if not is_end and self._steps[n].is_certain:
                self._read_until.update(dict.fromkeys(self._steps[n].reads.items(), now))
        self._effects = [self._effect(step) for step in self._steps]
        self._under_way: dict[int, None] = {}  # in the order of their starts; as are the next two, parts of it
        self._free: dict[int, None] = {}
        self._readers: dict[int, None] = {}
        self._possible: dict[_Effect, int] = {}  # what may happen at any time from now on, one for each effect
        self._states = {_State((ABSENT,) * len(place), frozenset())}

    def succeeds(self) -> bool:
        """True when there is a state left at the end. Raises Undecided."""
        for now, (_, is_end, n) in enumerate(self._events):
            self._now = now
            if not is_end:
                self._begin(n)
            elif not self._end(n):
                return False
        return True

    def _begin(self, n: int) -> None:
        step = self._steps[n]
        if not step.is_certain:
            self._possible.setdefault(self._effects[n], n)
            return
        self._under_way[n] = None
        if step.reads:
            self._readers[n] = None
        if not step.writes or self._is_unread(n):
            self._free[n] = None
            self._states = {self._settled(*state) for state in self._states}

    def _end(self, n: int) -> bool:
        """Leave the states in which an operation that ends now has taken effect; False when there are none."""
        seen, waiting = set(self._states), list(self._states)
        self._states = set()
        while waiting:
            state = waiting.pop()
            if n in state.done:
                self._states.add(state)
                continue
            reached = {after for each in self._candidates(state, n) if (after := self._after(state, each))} - seen
            seen |= reached
            waiting += reached
            if len(seen) > _STATES_MAX:
                raise Undecided
        self._forget(n)
        if len(self._states) > 1:
            self._states = set(self._undominated())
        return bool(self._states)

    def _forget(self, n: int) -> None:
        """Leave out what is over: an operation that ended, and those without an end that are done in every state."""
        endless = [each for each in self._under_way if self._steps[each].latest == _NEVER]
        over = {n, *(each for each in endless if all(each in state.done for state in self._states))}
        for table in (self._under_way, self._free, self._readers):
            for each in over & table.keys():
                del table[each]
        self._states = {state._replace(done=state.done - over) for state in self._states}

    # One state -------------------------------------------------------------------------------------------

    def _candidates(self, state: _State, n: int) -> Iterable[int]:
        """The writes that may have to come before operation `n`, and that itself."""
        first_due: dict[_Effect, int] = {}
        for each in self._related(state, n):
            if self._steps[each].writes:
                other = first_due.setdefault(self._effects[each], each)
                if self._steps[each].latest < self._steps[other].latest:
                    first_due[self._effects[each]] = each
        return first_due.values()

    def _related(self, state: _State, n: int) -> Iterator[int]:
        """What shares keys with an operation, and with what shares keys with that, and so on."""
        keys, rest = set(self._keys[n]), [*(self._under_way.keys() - state.done - {n}), *self._possible.values()]
        yield n
        while related := [each for each in rest if not keys.isdisjoint(self._keys[each])]:
            yield from related
            keys.update(*(self._keys[each] for each in related))
            rest = [each for each in rest if each not in related]

    def _after(self, state: _State, n: int) -> _State | None:
        """The state in which an operation has taken effect too; None when it cannot."""
        values, step = state.values, self._steps[n]
        if any(values[key] != value for key, value in step.reads.items()):
            return None
        done = state.done | {n} if step.is_certain else state.done
        if not all(values[key] == ABSENT or self._is_spent(values, done, key) for key in step.writes):
            return None
        changed = list(values)
        for key, value in step.writes.items():
            changed[key] = value
        return self._settled(tuple(changed), done)

    def _settled(self, values: tuple[int, ...], done: frozenset[int]) -> _State:
        """The state after all that costs nothing was done."""
        while True:
            absorbed = [n for n in self._free if n not in done and self._costs_nothing(values, done, n)]
            done = done.union(absorbed)
            spent = tuple(_SPENT if self._is_spent(values, done, key) else value for key, value in enumerate(values))
            if not absorbed and spent == values:
                return _State(values, done)
            values = spent

    def _costs_nothing(self, values: tuple[int, ...], done: frozenset[int], n: int) -> bool:
        step = self._steps[n]
        if step.writes:
            return all(values[key] == _SPENT for key in step.writes)
        return all(values[key] == value for key, value in step.reads.items())

    def _is_spent(self, values: tuple[int, ...], done: frozenset[int], key: int) -> bool:
        """True when a key has a value that nothing has to read any more."""
        value = values[key]
        return value == _SPENT or (
            value != ABSENT
            and self._read_until[key, value] <= self._now
            and not any(n not in done and self._steps[n].reads.get(key) == value for n in self._readers)
        )

    def _effect(self, step: Step) -> _Effect:
        """What it needs and what it does. What nobody reads is all the same."""
        writes = (
            (key, value if value == ABSENT or self._read_until[key, value] >= 0 else _SPENT)
            for key, value in step.writes.items()
        )
        return frozenset(step.reads.items()), frozenset(writes)

    def _is_unread(self, n: int) -> bool:
        """True for puts of which nobody read anything."""
        reads, writes = self._effects[n]
        return not reads and all(value == _SPENT for _, value in writes)

    def _undominated(self) -> Iterator[_State]:
        """The states but for those that are like another, with more to do."""
        alike: dict[_State, list[_State]] = defaultdict(list)
        for state in self._states:
            alike[state._replace(done=state.done.difference(self._free))].append(state)
        for states in alike.values():
            yield from (state for state in states if not any(state.done < other.done for other in states))
