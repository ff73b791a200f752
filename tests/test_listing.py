"""Pages of keys: where one ends, and that a walk over them finds what a sorted dict has, while the store changes."""

import contextlib
import select

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logd.local.checkpointer import Checkpointer, Newest, Policy
from logd.local.disk import LocalDisk
from logd.local.engine import LocalEngine
from logd.local.listing import Listing
from logd.local.recovery import Finding, Recovered
from logd.local.store import Store
from logd.local.wal import Wal
from logd.shared import protocol
from logd.shared.protocol import (
    PAGE_BYTES_MAX,
    Check,
    Committed,
    LargeEntry,
    Page,
    PageQuery,
    PageRequest,
    Transaction,
)
from tests.support.builders import A, batch
from tests.support.harness import await_true

PEER = b"peer"


def store_of(data):
    store = Store()
    store.apply(batch(A, 0))
    store.load(data)
    return store


def sort_all(listing):
    while listing.is_behind:
        listing.sort_some()


def listing_of(data):
    listing = Listing(store_of(data))
    sort_all(listing)
    return listing


def ask(listing, query, bytes_max=PAGE_BYTES_MAX):
    return listing.page(PageRequest(7, query, bytes_max), PEER)


def walk(listing, query):
    """All keys of a query, page by page; with their values, if it asks for them."""
    found = []
    while True:
        page = ask(listing, query)
        found += zip(page.keys, page.values, strict=True) if query.with_values else page.keys
        if not page.left:
            return found
        assert len(page.keys) == query.limit
        query = msgspec.structs.replace(query, after=page.keys[-1])


# Where a page ends ---------------------------------------------------------------------------------------

ABC = {"a": b"1", "b": b"2", "c": b"3"}


def test_a_page_has_at_most_the_keys_that_were_asked_for_and_says_that_there_are_more():
    listing = listing_of(ABC)
    assert ask(listing, PageQuery(limit=2)) == Page(7, ["a", "b"], [], 1)
    assert ask(listing, PageQuery(limit=3)) == Page(7, ["a", "b", "c"], [], 0)
    assert ask(listing, PageQuery(after="b", limit=1)) == Page(7, ["c"], [], 0)


def test_a_page_ends_before_the_value_that_it_has_no_room_for():
    listing = listing_of({"a": b"v" * 600_000, "b": b"v" * 600_000, "c": b"v"})
    assert ask(listing, PageQuery(with_values=True)).keys == ["a"]
    assert ask(listing, PageQuery(after="a", with_values=True)).keys == ["b", "c"]
    assert ask(listing, PageQuery()).keys == ["a", "b", "c"]


def test_keys_are_counted_as_values_are():
    listing = listing_of({letter * 400_000: b"v" for letter in "abcd"})
    page = ask(listing, PageQuery())
    assert ([key[0] for key in page.keys], page.left) == (["a", "b"], 1)


def test_of_a_first_entry_without_room_only_the_size_is_answered():
    listing = listing_of({"a": b"v" * PAGE_BYTES_MAX, "b": b"2"})
    query = PageQuery(with_values=True)
    assert ask(listing, query) == LargeEntry(7, PAGE_BYTES_MAX + 1)
    assert ask(listing, query, PAGE_BYTES_MAX + 1) == Page(7, ["a"], [b"v" * PAGE_BYTES_MAX], 1)


def test_room_for_a_large_value_that_is_gone_is_not_filled_with_others():
    listing = listing_of({f"{n:02}": b"v" * (PAGE_BYTES_MAX // 4) for n in range(20)})
    assert len(ask(listing, PageQuery(with_values=True), 16 * PAGE_BYTES_MAX).keys) == 4


def test_keys_that_are_asked_for_one_by_one_come_in_that_order_as_far_as_they_exist():
    listing = listing_of(ABC)
    query = PageQuery(keys=["c", "x", "a", "c"], with_values=True)
    assert ask(listing, query) == Page(7, ["c", "a", "c"], [b"3", b"1", b"3"], 0)
    assert ask(listing, PageQuery(keys=["x"])) == Page(7, [], [], 0)


def test_of_keys_that_have_no_room_a_page_says_how_many_are_left():
    large = b"v" * 600_000
    listing = listing_of({"a": large, "b": large, "c": large})
    page = ask(listing, PageQuery(keys=["x", "c", "y", "a", "b"], with_values=True))
    assert (page.keys, page.left) == (["c"], 2)
    assert ask(listing, PageQuery(keys=["c", "a"], with_values=True), 10) == LargeEntry(7, 600_001)


# One state -----------------------------------------------------------------------------------------------


def test_a_page_waits_until_all_keys_are_in_order_and_shows_the_state_of_then():
    store = store_of({f"{n:04}": b"v" for n in range(5000)})
    listing = Listing(store)
    assert ask(listing, PageQuery(limit=2)) is None
    assert not listing.is_idle()
    listing.sort_some()
    assert listing.collect() == []
    store.apply(batch(A, 1, puts={"0000:new": b"v"}, deletes=["0001"]))
    while listing.unsorted_keys:
        listing.sort_some()
    assert listing.collect() == [(PEER, Page(7, ["0000", "0000:new"], [], 1))]
    assert listing.is_idle()


def test_fewer_keys_wait_after_each_step_however_many_a_group_adds():
    listing = Listing(store := store_of({f"{n:04}": b"v" for n in range(5000)}))
    waiting = listing.unsorted_keys
    for number in range(1, 6):
        store.apply(batch(A, number, puts={f"{number}:{n * 7919 % 4001:04}": b"v" for n in range(4000)}))
        listing.sort_some()
        assert listing.unsorted_keys < waiting
        waiting = listing.unsorted_keys
    assert waiting == 0


def test_keys_that_are_asked_for_one_by_one_wait_for_nothing():
    listing = Listing(store_of({f"{n:04}": b"v" for n in range(5000)}))
    assert ask(listing, PageQuery(keys=["4999", "x"])) == Page(7, ["4999"], [], 0)


def test_what_transactions_write_is_listed_and_what_they_do_not_write_is_not():
    listing = Listing(store := store_of(ABC))
    writes = Transaction([], {"d": b"4"}, ["a"])
    fails = Transaction([Check("x", None, negated=False)], {"e": b"5"}, ["b"])
    store.apply(batch(A, 1, transactions=[writes, fails]))
    sort_all(listing)
    assert ask(listing, PageQuery()).keys == ["b", "c", "d"]


def test_after_a_clear_only_what_came_later_is_listed():
    listing = Listing(store := store_of({f"{n:04}": b"v" for n in range(5000)}))
    listing.sort_some()  # some are in order, others wait
    store.apply(batch(A, 1, clear=True, puts={"b": b"1", "a": b"2"}))
    sort_all(listing)
    assert ask(listing, PageQuery()) == Page(7, ["a", "b"], [], 0)


@contextlib.contextmanager
def engine_of(directory, data):
    """An engine that has recovered these data."""
    disk = LocalDisk(directory)
    recovered = Recovered(store_of(data), 0, Finding.NEW, None, [], [], None, 0, 0, 0.0)
    checkpointer = Checkpointer(directory, Policy(1 << 40, 0.0), Newest(0, 0))
    engine = LocalEngine(disk, Wal(disk, 1, 1 << 20), recovered, checkpointer)
    try:
        yield engine
    finally:
        engine.stop()


def write(engine, number, **writes):
    made = batch(A, number, **writes)
    assert engine.submit(protocol.encode(made), made) is None


def turn(engine):
    """What the server does when the engine has something to say."""
    assert is_readable(engine)
    collected = engine.collect()
    engine.commit()
    return collected


def test_an_engine_rests_when_what_waited_to_be_sorted_was_cleared(tmp_path):
    with engine_of(tmp_path, {f"{n:04}": b"v" for n in range(5000)}) as engine:
        write(engine, 1, clear=True)
        engine.commit()
        await_true(lambda: turn(engine).replies != [], what="the clear to be applied")
        assert not is_readable(engine, seconds=0)


def test_an_engine_reads_and_writes_while_a_page_waits_and_rests_when_it_is_answered(tmp_path):
    with engine_of(tmp_path, {f"{n:04}": b"v" for n in range(5000)}) as engine:
        assert engine.page(PageRequest(7, PageQuery(after="4998"), PAGE_BYTES_MAX), PEER) is None
        assert engine.read(["0001", "x"], (PEER, 8, 100)) == [b"v", None]
        write = batch(A, 1, puts={"5000": b"v"})
        assert engine.submit(protocol.encode(write), write) is None
        replies, pages = [], []
        while not engine.idle():
            engine.commit()
            assert is_readable(engine)
            collected = engine.collect()
            replies += collected.replies
            pages += collected.pages
        engine.commit()
        assert replies == [(A, Committed(A, [1]))]
        assert pages in ([(PEER, Page(7, ["4999"], [], 0))], [(PEER, Page(7, ["4999", "5000"], [], 0))])
        assert engine.page(PageRequest(9, PageQuery(after="4999"), PAGE_BYTES_MAX), PEER) == Page(9, ["5000"], [], 0)
        assert not is_readable(engine, seconds=0)


def is_readable(engine, seconds=30):
    return bool(select.select([engine], [], [], seconds)[0])


_keys = st.text("ab:", min_size=1, max_size=4)
_batches = st.lists(
    st.tuples(st.booleans(), st.dictionaries(_keys, st.binary(min_size=1, max_size=3)), st.lists(_keys, max_size=4)),
    max_size=8,
)


@pytest.mark.parametrize("with_values", [False, True])
@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(_keys, st.binary(min_size=1, max_size=3)),
    _batches,
    st.builds(PageQuery, st.text("ab:", max_size=2), st.text("ab:", max_size=3), st.integers(1, 5)),
)
def test_a_walk_finds_what_a_sorted_dict_has(with_values, data, batches, query):
    listing = Listing(store := store_of(data))
    model = dict(data)
    for number, (clear, puts, to_delete) in enumerate(batches, start=1):
        deletes = [key for key in to_delete if key not in puts]
        store.apply(batch(A, number, clear=clear, puts=puts, deletes=deletes))
        model = ({} if clear else model) | puts
        model = {key: value for key, value in model.items() if key not in deletes}
        if number % 2:
            sort_all(listing)
    sort_all(listing)
    keys = sorted(key for key in model if key.startswith(query.prefix) and key > query.after)
    found = walk(listing, msgspec.structs.replace(query, with_values=with_values))
    assert found == ([(key, model[key]) for key in keys] if with_values else keys)
