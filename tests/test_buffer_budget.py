"""Which client is refused when a worker holds too many bytes for all of them."""

import pytest

from kv.http.buffer_budget import BufferBudget


class Holder:
    def __init__(self, budget, evictable=None):
        self._budget = budget
        self._size = 0
        self._evictable = evictable
        self.is_evicted = False

    def hold(self, size):
        self._size = size
        self._budget.hold(self, size)

    def evictable_bytes(self):
        return self._size if self._evictable is None else self._evictable

    def evict(self):
        self.is_evicted = True
        self.hold(self._size - self.evictable_bytes())


def test_the_largest_is_evicted_when_the_limit_is_passed_whoever_passes_it():
    budget = BufferBudget(100)
    small, large, last = (Holder(budget) for _ in range(3))
    small.hold(30)
    large.hold(60)
    last.hold(10)
    assert budget.held_bytes == 100
    last.hold(11)
    assert [each.is_evicted for each in (small, large, last)] == [False, True, False]
    assert budget.held_bytes == 41


def test_one_that_is_alone_may_hold_any_amount():
    budget = BufferBudget(100)
    alone = Holder(budget)
    alone.hold(1000)
    assert not alone.is_evicted


def test_a_holder_that_has_nothing_to_evict_is_not_evicted():
    budget = BufferBudget(100)
    running, other = Holder(budget, evictable=0), Holder(budget, evictable=0)
    running.hold(90)
    other.hold(90)
    assert not running.is_evicted
    assert not other.is_evicted


@pytest.mark.parametrize("size", [1, 100])
def test_what_is_released_is_free_for_others(size):
    budget = BufferBudget(100)
    first, second = Holder(budget), Holder(budget)
    first.hold(size)
    first.hold(0)
    second.hold(100)
    assert budget.held_bytes == 100
    assert not second.is_evicted
