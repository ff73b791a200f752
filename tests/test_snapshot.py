"""Snapshot files: what is written is read back, and nothing gets the name before it is durable."""

import errno
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logd.local import frame, snapshot
from logd.local.disk import LocalDisk
from logd.local.store import SESSIONS_MAX, Store
from tests.support.builders import A, B, C, Crash, WatchedDisk, contents, crash_at, failing, operations, same, state

NAME = snapshot.snapshot_name(7)
CHUNK = snapshot.CHUNK_BYTES


def store_of(data=None, sessions=None):
    store = Store()
    store.load(data or {})
    store.sessions = sessions or {}
    return store


def chunks(path):
    """How many frames a snapshot has."""
    data, at, count = memoryview(path.read_bytes()), frame.HEADER_BYTES, 0
    marker = frame.decode_header(snapshot.MAGIC, data).marker
    while found := frame.frame_at(data, at, marker):
        at += frame.FRAME_HEADER_BYTES + len(found.payload)
        count += 1
    assert at == len(data)
    return count


STORES = {
    "empty": (store_of(), 2),
    "one key": (store_of({"k": b"v"}), 3),
    "sessions alone": (store_of(sessions={B: 2, A: 10**12, C: 0}), 2),
    "the most sessions": (store_of(sessions={n.to_bytes(16, "big"): n for n in range(SESSIONS_MAX)}), 2),
    "the history": (state(9), 3),
    "many keys": (store_of({f"key-{n}": b"%d" % n for n in range(10_000)}), 3),
    "chunks that end with a value": (store_of({str(n): bytes(CHUNK // 2) for n in range(8)}), 2 + 4),
    "a last chunk that is small": (store_of({key: bytes(CHUNK // 2) for key in "abc"}), 2 + 2),
    "values larger than a chunk": (store_of({"a": bytes(3 * CHUNK), "b": bytes(2 * CHUNK)}), 2 + 2),
    "keys larger than a chunk": (store_of({"a" * 2 * CHUNK: b"1", "b" * 2 * CHUNK: b"2"}), 2 + 2),
    "keys beyond ASCII": (store_of({"ключ 🔑 \0": "значение".encode()}), 3),
}


def test_a_snapshot_that_would_not_hold_every_key_is_not_published(tmp_path):
    store = store_of({"a": b"1", "b": b"2"})
    store.sort_some()
    store.sorted_keys.remove("a")
    with pytest.raises(RuntimeError, match="1 of 2 keys"):
        snapshot.write(LocalDisk(tmp_path), store, 7)
    assert NAME not in contents(tmp_path)


@pytest.mark.parametrize(("store", "frames"), STORES.values(), ids=STORES.keys())
def test_what_was_written_is_read_back_in_order(tmp_path, store, frames):
    disk = LocalDisk(tmp_path)
    size = snapshot.write(disk, store, 7)
    assert list(contents(tmp_path)) == [NAME]
    assert size == disk.size(NAME)
    found, sequence = snapshot.read(disk, NAME)
    assert sequence == 7
    assert same(found, store)
    assert chunks(tmp_path / NAME) == frames


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.text(), st.binary(), max_size=20),
    st.dictionaries(st.binary(min_size=16, max_size=16), st.integers(0, 2**63)),
    st.integers(0, 2**63),
)
def test_any_store_is_read_back(data, sessions, sequence):
    with tempfile.TemporaryDirectory(prefix="kvt-") as directory:
        disk = LocalDisk(Path(directory))
        snapshot.write(disk, store_of(data, sessions), sequence)
        found, found_sequence = snapshot.read(disk, snapshot.snapshot_name(sequence))
    assert same(found, store_of(data, sessions))
    assert found_sequence == sequence


def test_a_store_that_was_read_is_its_own(tmp_path):
    """What is applied to it changes nothing in another, nor does it depend on the file."""
    disk = LocalDisk(tmp_path)
    snapshot.write(disk, state(3), 7)
    one, _ = snapshot.read(disk, NAME)
    disk.remove(NAME)
    one.data["k"] = b"changed"
    one.sessions.clear()
    assert same(state(3), state(3))
    assert "k" not in state(3).data


def test_only_the_user_may_read_a_snapshot(tmp_path):
    snapshot.write(LocalDisk(tmp_path), state(3), 7)
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600


STEPS = 1 + 2 * len(["header", "sessions", "entries", "footer"]) + 2
"""The calls that write the snapshot of a small store: create, four times append and sync, rename, sync_directory."""


def test_a_snapshot_gets_its_name_only_when_it_is_durable(tmp_path):
    disk = WatchedDisk(tmp_path)
    snapshot.write(disk, state(3), 7)
    temporary = f"{NAME}.tmp"
    assert operations(disk.calls) == [
        f"create {temporary}",
        *[f"append {temporary}", f"sync {temporary}"] * 4,
        f"rename {temporary} {NAME}",
        "sync_directory",
    ]
    assert len(disk.calls) == STEPS
    assert disk.open_files == []


@pytest.mark.parametrize("step", range(STEPS))
def test_a_crash_at_any_step_leaves_no_snapshot_or_a_whole_one(tmp_path, step):
    disk = WatchedDisk(tmp_path, crash_at(step))
    with pytest.raises(Crash):
        snapshot.write(disk, state(3), 7)
    assert set(disk.names()) <= {NAME, f"{NAME}.tmp"}
    assert (NAME in disk.names()) == (step == STEPS - 1)
    assert len(snapshot.list_snapshots(disk.names())) == (step == STEPS - 1)
    if NAME in disk.names():
        assert same(snapshot.read(disk, NAME)[0], state(3))


@pytest.mark.parametrize("operation", ["create", "append", "sync", "rename", "sync_directory"])
def test_an_error_of_the_disk_comes_through_and_the_one_before_stays(tmp_path, operation):
    disk = WatchedDisk(tmp_path)
    snapshot.write(disk, state(3), 5)
    disk.before = failing(operation)
    with pytest.raises(OSError, match="Input/output error"):
        snapshot.write(disk, state(4), 7)
    assert disk.open_files == []
    assert same(snapshot.read(disk, snapshot.snapshot_name(5))[0], state(3))
    assert (NAME in disk.names()) == (operation == "sync_directory")


@pytest.mark.parametrize("full", [errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
def test_a_snapshot_that_finds_no_space_frees_what_it_has_used(tmp_path, full):
    """Otherwise the log has no space either, until the next start."""
    disk = WatchedDisk(tmp_path)
    disk.full, disk.room = full, 100
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is looked at
        snapshot.write(disk, state(3), 7)
    assert caught.value.errno == full
    assert list(disk.names()) == []
