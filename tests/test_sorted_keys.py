"""The keys in order: as a sorted set has them, whatever is added and removed, also while others wait."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from logd.local.sorted_keys import SORTED_AT_ONCE, SortedKeys


def sort_all(keys, is_key):
    """How many steps it took."""
    steps = 0
    while not keys.is_sorted:
        keys.sort_some(is_key)
        steps += 1
    return steps


def waiting(keys):
    found = SortedKeys()
    found.add(keys)
    return found


def sorted_keys(keys):
    found = waiting(keys)
    sort_all(found, set(keys).__contains__)
    return found


numbers = st.integers(0, 12_000)
ranges = st.builds(range, numbers, numbers, st.sampled_from([1, 2, 7, 1000])).map(list)


def names(those):
    return [f"{number:05}" for number in those]


class Against(RuleBasedStateMachine):
    """A set, and the sorted keys of it; thousands of keys at once, so that chunks are split and removed."""

    def __init__(self):
        super().__init__()
        self.model = set()
        self.keys = SortedKeys()

    @rule(those=ranges, chance=st.randoms(use_true_random=False))
    def add(self, those, chance):
        new = [name for name in names(those) if name not in self.model]
        chance.shuffle(new)
        self.model |= set(new)
        self.keys.add(new)

    @rule(those=ranges)
    def add_in_order(self, those):
        new = [name for name in names(those) if name not in self.model]
        self.model |= set(new)
        self.keys.add(new)

    @rule(those=ranges)
    def remove(self, those):
        for name in names(those):
            if name in self.model:
                self.model.remove(name)
                self.keys.remove(name)

    @precondition(lambda self: not self.keys.is_sorted)
    @rule()
    def sort_some(self):
        self.keys.sort_some(self.model.__contains__)

    @rule()
    def sort_all(self):
        sort_all(self.keys, self.model.__contains__)

    @rule()
    def start_again(self):
        self.keys = waiting(self.model)

    @rule()
    def clear(self):
        self.model.clear()
        self.keys.empty()
        assert self.keys.is_sorted

    @invariant()
    def is_in_order(self):
        if self.keys.is_sorted:
            assert list(self.keys) == sorted(self.model)

    @precondition(lambda self: self.keys.is_sorted)
    @rule(number=numbers)
    def walk(self, number):
        first = f"{number:05}"
        assert list(self.keys.walk(first)) == sorted(name for name in self.model if name >= first)


TestAgainstASortedSet = Against.TestCase
TestAgainstASortedSet.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


@settings(max_examples=50, deadline=None)
@given(st.sets(st.text(min_size=1)), st.text())
def test_any_keys_are_walked_from_any_first_one(keys, first):
    assert list(sorted_keys(keys).walk(first)) == sorted(key for key in keys if key >= first)


def test_no_step_sorts_more_than_some_keys():
    keys = names(range(10_000))
    random.Random(1).shuffle(keys)
    in_steps = waiting(keys)
    seen = []

    def is_key(key):
        seen[-1] += 1
        return True

    while not in_steps.is_sorted:
        seen.append(0)
        in_steps.sort_some(is_key)
    assert max(seen) <= SORTED_AT_ONCE
    assert list(in_steps) == sorted(keys)


def test_keys_that_were_removed_and_added_again_while_they_waited_are_there_once():
    keys = waiting(["b", "a"])
    keys.remove("a")
    keys.add(["a"])
    keys.remove("b")
    assert sort_all(keys, {"a"}.__contains__) == 1
    assert list(keys) == ["a"]


def test_keys_that_come_one_by_one_are_not_kept_one_by_one():
    for order in (1, -1):
        keys = SortedKeys()
        for name in names(range(5000))[::order]:
            keys.add([name])
            keys.sort_some(lambda key: True)
        assert list(keys) == names(range(5000))
        assert len(keys.empty()) < 10


def test_nothing_waits_when_no_keys_were_added():
    assert waiting([]).is_sorted


def test_a_queue_of_keys_leaves_nothing_behind():
    keys = SortedKeys()
    for first in range(0, 50_000, 1000):
        keys.add(names(range(first, first + 1000)))
        sort_all(keys, lambda key: True)
        for name in names(range(first - 1000, first)):
            keys.remove(name)
    assert list(keys) == names(range(49_000, 50_000))
    assert len(keys.empty()) <= 3
