"""The state machine: what each batch does, and that it does it once."""

from hypothesis import given
from hypothesis import strategies as st

from logd.local import recovery, snapshot
from logd.local.disk import LocalDisk
from logd.local.store import SESSIONS_MAX, Store
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


def test_the_bytes_of_data_are_right_after_a_snapshot_and_replay(tmp_path):
    lay_out(tmp_path, "1-3 @3 4-6")
    assert recovery.load(LocalDisk(tmp_path)).store.data_bytes == bytes_of(state(6).data)
    assert snapshot.read(LocalDisk(tmp_path), file_name("@3"))[0].data_bytes == bytes_of(state(3).data)
