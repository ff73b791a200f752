"""The state machine: what each batch does, and that it does it once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logd.local import recovery, snapshot
from logd.local.disk import LocalDisk
from logd.local.store import SESSIONS_MAX, Store
from logd.shared.etag import etag
from logd.shared.protocol import Check, Outcomes, Transaction
from tests.support.builders import A, B, batch, file_name, lay_out, state


def opened(*sessions):
    store = Store()
    for session in sessions or (A,):
        assert store.apply(batch(session, 0))
    return store


def test_a_batch_clears_first_then_puts_and_deletes():
    store = opened()
    store.apply(batch(number=1, puts={"x": b"1", "y": b"2"}))
    store.apply(batch(number=2, clear=True, puts={"z": b"3"}, deletes=["nothing"]))
    assert store.data == {"z": b"3"}
    store.apply(batch(number=3, puts={"x": b"4"}, deletes=["z"]))
    assert store.data == {"x": b"4"}


def test_a_repeat_is_known_and_changes_nothing():
    store = opened()
    store.apply(batch(number=1, puts={"x": b"1"}))
    store.apply(batch(number=2, puts={"x": b"2"}))
    assert store.apply(batch(number=1, puts={"x": b"1"}))
    assert store.data == {"x": b"2"}
    assert store.sessions == {A: 2}


def test_a_batch_of_an_unknown_session_is_not_applied():
    store = opened(A)
    assert not store.apply(batch(B, 1, puts={"x": b"1"}))
    assert store.data == {}
    assert B not in store.sessions


def test_opening_a_session_again_does_not_set_it_back():
    store = opened()
    store.apply(batch(number=1, puts={"x": b"1"}))
    assert store.apply(batch(number=0))
    assert store.sessions == {A: 1}


def test_the_session_that_wrote_least_recently_makes_room():
    store = opened(A, B)
    for number in range(SESSIONS_MAX - 2):
        store.apply(batch(number.to_bytes(16, "big"), 0))
    store.apply(batch(A, 1))  # so that B is the one that wrote least recently
    store.apply(batch(b"new" * 5 + b"!", 0))
    assert len(store.sessions) == SESSIONS_MAX
    assert A in store.sessions
    assert B not in store.sessions
    assert not store.apply(batch(B, 1, puts={"x": b"1"}))


# Transactions --------------------------------------------------------------------------------------------

TAG = etag(b"1")
CHECKS = [
    (Check("x", [TAG], negated=False), True),
    (Check("x", ["other", TAG], negated=False), True),
    (Check("x", ["other"], negated=False), False),
    (Check("x", [], negated=False), False),
    (Check("x", None, negated=False), True),
    (Check("x", [TAG], negated=True), False),
    (Check("x", ["other"], negated=True), True),
    (Check("x", [], negated=True), True),
    (Check("x", None, negated=True), False),
    (Check("none", [TAG], negated=False), False),
    (Check("none", None, negated=False), False),
    (Check("none", [TAG], negated=True), True),
    (Check("none", None, negated=True), True),
]
"""Checks of a store in which `x` is `1`, and whether they hold."""


def test_a_tag_is_128_bits_of_sha_256():
    assert etag(b"1") == "6b86b273ff34fce19d6b804eff5a3f57"


@pytest.mark.parametrize(("check", "holds"), CHECKS)
def test_a_transaction_is_made_if_its_check_holds_and_else_says_what_is_there(check, holds):
    store = opened()
    store.apply(batch(number=1, puts={"x": b"1"}, transactions=[Transaction([check], {"y": b"2"}, ["x"])]))
    assert store.data == ({"y": b"2"} if holds else {"x": b"1"})
    present = TAG if check.key == "x" else None
    failed = {} if holds else {1: Outcomes([], {0: [(0, present)]})}
    assert store.outcomes_of(A, 1) == failed


def test_every_check_that_does_not_hold_is_named_and_nothing_is_written():
    store = opened()
    checks = [check for check, _ in CHECKS]
    store.apply(batch(number=1, puts={"x": b"1"}, transactions=[Transaction(checks, {"y": b"2"}, ["x"])]))
    assert store.data == {"x": b"1"}
    failed = store.outcomes_of(A, 1)[1].failed[0]
    assert [index for index, _ in failed] == [index for index, (_, holds) in enumerate(CHECKS) if not holds]


def fail(store, session, number, base):
    """A batch with an outcome."""
    refused = Transaction([Check("none", None, negated=False)], {}, [])
    assert store.apply(batch(session, number, base=base, transactions=[refused]))
    return {number: Outcomes([], {0: [(0, None)]})}


def test_outcomes_are_kept_until_the_worker_has_them():
    store = opened(A, B)
    first, second, other = fail(store, A, 1, 1), fail(store, A, 2, 1), fail(store, B, 1, 1)
    assert store.outcomes == {A: first | second, B: other}
    store.apply(batch(A, 3, base=2))
    assert (store.outcomes_of(A, 1), store.outcomes_of(A, 2)) == ({}, second)
    store.apply(batch(A, 4, base=4))
    assert store.outcomes == {B: other}


def test_outcomes_go_with_their_session():
    store = opened(A, B)
    fail(store, A, 1, 1)
    for number in range(SESSIONS_MAX):
        store.apply(batch(number.to_bytes(16, "big"), 0))
    assert A not in store.sessions
    assert store.outcomes == {}


def test_a_repeat_changes_neither_data_nor_outcome():
    store = opened()
    first = Transaction([Check("x", None, negated=True)], {"x": b"1"}, [])
    for _ in range(2):
        store.apply(batch(number=1, transactions=[first]))
        assert store.outcomes_of(A, 1) == {}
    for _ in range(2):
        store.apply(batch(number=2, transactions=[first]))
        assert store.outcomes_of(A, 2) == {2: Outcomes([], {0: [(0, TAG)]})}


KEYS = st.sampled_from(["a", "bb", "a.long.key"])
VALUES = st.binary(max_size=5)
WRITES = st.tuples(st.booleans(), st.dictionaries(KEYS, VALUES), st.lists(KEYS))


def bytes_of(data):
    return sum(len(key) + len(value) for key, value in data.items())


@given(st.lists(WRITES, max_size=8), st.integers(0, 8))
def test_the_bytes_of_data_are_those_of_its_keys_and_values_whenever_they_are_first_asked_for(history, asked_at):
    store, model = opened(), {}
    for number, (clear, puts, deletes) in enumerate(history, start=1):
        if clear:
            model.clear()
        model |= puts
        for key in deletes:
            model.pop(key, None)
        for _ in range(2):  # a repeat counts once
            store.apply(batch(number=number, clear=clear, puts=puts, deletes=deletes))
        if number >= asked_at:
            assert store.data_bytes == bytes_of(model)
    assert store.data == model
    assert store.data_bytes == bytes_of(model)


TRANSACTIONS = st.builds(
    Transaction,
    st.lists(st.builds(Check, KEYS, st.none() | st.just([TAG]), st.booleans()), max_size=1),
    st.dictionaries(st.sampled_from(["a", "bb"]), st.sampled_from([b"1", b"four"]), max_size=2),
    st.lists(st.sampled_from(["a.long.key"]), max_size=1),
)


@given(st.lists(st.tuples(st.dictionaries(KEYS, VALUES), st.lists(TRANSACTIONS, max_size=3)), max_size=8))
def test_with_a_limit_the_data_never_exceeds_it_and_every_write_is_made_or_has_an_outcome(history):
    limit, store, model = 16, opened(), {}
    for number, (puts, transactions) in enumerate(history, start=1):
        store.apply(batch(number=number, puts=puts, transactions=transactions), limit)
        outcomes = store.outcomes_of(A, number).get(number, Outcomes([], {}))
        for key, value in puts.items():
            grows = len(value) > len(model[key]) if key in model else True
            fits = bytes_of(model | {key: value}) <= limit
            assert (key in outcomes.over_limit) == (grows and not fits)
            model |= {} if key in outcomes.over_limit else {key: value}
        for index, transaction in enumerate(transactions):
            after = {key: value for key, value in (model | transaction.puts).items() if key not in transaction.deletes}
            if index not in outcomes.failed:
                assert bytes_of(after) <= max(limit, bytes_of(model))
                model = after
            elif not outcomes.failed[index]:
                assert bytes_of(after) > max(limit, bytes_of(model))
        assert store.data == model
        assert store.data_bytes == bytes_of(model) <= limit


def test_the_bytes_of_data_are_right_after_a_snapshot_and_replay(tmp_path):
    lay_out(tmp_path, "1-3 @3 4-6")
    assert recovery.load(LocalDisk(tmp_path)).store.data_bytes == bytes_of(state(6).data)
    assert snapshot.read(LocalDisk(tmp_path), file_name("@3"))[0].data_bytes == bytes_of(state(3).data)
