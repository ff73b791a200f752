"""The segment being written: append, sync, seal; a full device; a device that fails; and what is durable when."""

import errno
import os

import pytest

from logd.local import frame, wal
from logd.local.publish import TEMPORARY_SUFFIX, NoSpace
from logd.local.wal import InDoubt, Sealed, Wal
from tests.support.builders import Call, WatchedDisk, encode_payload, failing, read_segment

SEGMENT_BYTES = 200
HEADER, FRAME = frame.HEADER_BYTES, frame.FRAME_HEADER_BYTES + 5  # 5: the array around the batches of a group
FULL = pytest.mark.parametrize("full", [errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)


@pytest.fixture
def disk(tmp_path):
    return WatchedDisk(tmp_path)


@pytest.fixture
def log(disk):
    log = Wal(disk, 1, SEGMENT_BYTES)
    yield log
    log.close()


def commit(log, *batches):
    log.append(batches)
    log.sync()


def frames(disk, first):
    """The payloads in a segment, which ends cleanly and begins as its name says."""
    with disk.open(wal.segment_name(first)) as file:
        found, reader = read_segment(file.read())
    assert reader.end is frame.End.CLEAN
    assert [each.sequence for each in found] == list(range(first, first + len(found)))
    return [bytes(each.payload) for each in found]


def payloads(*groups):
    return [encode_payload(group) for group in groups]


def segments(disk):
    return [segment.first for segment in wal.list_segments(disk.names())]


def test_groups_are_read_back_as_they_were_appended(disk, log):
    commit(log, b"one")
    commit(log, b"two", b"three")
    commit(log)
    assert log.last_sequence == 3
    assert frames(disk, 1) == payloads([b"one"], [b"two", b"three"], [])


@pytest.mark.parametrize("has_proc", [True, False])
def test_a_sync_of_a_file_that_was_deleted_fails(disk, log, monkeypatch, has_proc):
    if not has_proc:
        monkeypatch.setattr(os, "readlink", failing_readlink)
    commit(log, b"one")
    (segment,) = wal.list_segments(disk.names())
    disk.remove(segment.name)
    log.append([b"two"])
    with pytest.raises(FileNotFoundError, match="deleted while it was in use"):
        log.sync()


def failing_readlink(_):
    raise FileNotFoundError


def test_a_new_log_begins_with_the_sequence_that_is_asked_for(disk):
    log = Wal(disk, 42, SEGMENT_BYTES)
    commit(log, b"x")
    log.close()
    assert (log.last_sequence, log.sealed) == (42, Sealed(0, 41))
    assert frames(disk, 42) == payloads([b"x"])


def test_a_file_of_the_same_name_is_replaced_and_never_appended_to(tmp_path, disk):
    path = tmp_path / wal.segment_name(1)
    path.write_bytes(b"what another process wrote")
    with path.open("rb") as before:
        Wal(disk, 1, SEGMENT_BYTES).close()
        assert before.read() == b"what another process wrote"
    assert frames(disk, 1) == []


def test_only_the_user_may_read_a_segment(tmp_path, log):
    assert (tmp_path / wal.segment_name(log.last_sequence + 1)).stat().st_mode & 0o777 == 0o600


def test_a_group_is_one_write_and_one_sync(disk, log):
    disk.calls.clear()
    commit(log, b"one", b"two")
    name = wal.segment_name(1) + TEMPORARY_SUFFIX  # the name that it was made with
    assert disk.calls == [Call("append", name), Call("sync", name)]


def test_frames_overwrite_zeros_that_reach_no_further_than_the_segment_will(tmp_path, disk, log):
    path = tmp_path / wal.segment_name(1)
    for group in (b"one", b"two"):
        commit(log, group)
        used = path.read_bytes().rstrip(b"\0")
        assert used.endswith(group)
        assert path.stat().st_size == SEGMENT_BYTES
    assert frames(disk, 1) == payloads([b"one"], [b"two"])


def test_a_long_segment_grows_in_steps(tmp_path, disk):
    log = Wal(disk, 1, 1 << 30)
    path = tmp_path / wal.segment_name(1)
    sizes = set()
    for _ in range(30):
        commit(log, bytes(100_000))
        sizes.add(path.stat().st_size)
    assert len(sizes) == 3
    commit(log, bytes(2_000_000))
    assert path.stat().st_size == HEADER + 30 * (FRAME + 100_000) + FRAME + 2_000_000  # a large one brings no zeros
    log.close()
    assert len(frames(disk, 1)) == 31


@FULL
@pytest.mark.parametrize("spare", [0, 1, 50])
def test_zeros_need_no_room(disk, log, full, spare):
    disk.full, disk.room = full, 2 * (FRAME + len(b"one")) + spare
    commit(log, b"one")
    commit(log, b"two")
    with pytest.raises(NoSpace):
        log.append([bytes(100)])
    assert frames(disk, 1) == payloads([b"one"], [b"two"])


def test_a_segment_that_reached_its_size_is_sealed_before_the_next_group(disk, log):
    big = bytes(SEGMENT_BYTES)
    commit(log, b"small")
    commit(log, big)
    assert (segments(disk), log.sealed) == ([1], Sealed(0, 0))
    commit(log, b"next")
    first_bytes = HEADER + 2 * FRAME + len(b"small") + len(big)
    assert (segments(disk), log.sealed) == ([1, 3], Sealed(first_bytes, 2))
    commit(log, big)
    commit(log, b"last")
    assert (segments(disk), log.sealed) == ([1, 3, 5], Sealed(2 * first_bytes - 1, 4))
    assert frames(disk, 1) + frames(disk, 3) + frames(disk, 5) == payloads(
        [b"small"], [big], [b"next"], [big], [b"last"]
    )
    assert log.sealed.bytes == sum(disk.size(wal.segment_name(first)) for first in (1, 3))


@pytest.mark.parametrize(("size", "is_sealed"), [(SEGMENT_BYTES - 1, False), (SEGMENT_BYTES, True)])
def test_a_segment_is_sealed_at_its_size_and_not_below(disk, log, size, is_sealed):
    commit(log, bytes(size - HEADER - FRAME))
    assert disk.size(wal.segment_name(1)) == SEGMENT_BYTES
    commit(log, b"x")
    assert segments(disk) == ([1, 2] if is_sealed else [1])


def test_every_segment_has_its_own_marker(tmp_path, log):
    for _ in range(3):
        commit(log, bytes(SEGMENT_BYTES))
    markers = {wal.decode_segment_header(path.read_bytes()).marker for path in tmp_path.iterdir()}
    assert len(markers) == len(list(tmp_path.iterdir())) == 3


# A full device -------------------------------------------------------------------------------------------


@FULL
@pytest.mark.parametrize("room", [0, 1, FRAME, FRAME + len(b"too large") - 1])
def test_without_room_the_log_is_as_before_and_goes_on_when_there_is(disk, log, full, room):
    commit(log, b"one")
    disk.full, disk.room = full, room
    for _ in range(3):
        with pytest.raises(NoSpace):
            log.append([b"too large"])
        assert log.last_sequence == 1
        assert frames(disk, 1) == payloads([b"one"])
        assert disk.room == room
    disk.room = FRAME + len(b"two")
    commit(log, b"two")
    assert frames(disk, 1) == payloads([b"one"], [b"two"])
    assert log.last_sequence == 2


@FULL
@pytest.mark.parametrize("room", [0, HEADER - 1])
def test_without_room_for_the_next_segment_the_old_one_stays_in_use(disk, log, full, room):
    commit(log, bytes(SEGMENT_BYTES))
    disk.full, disk.room = full, room
    names = sorted(disk.names())
    for _ in range(3):
        with pytest.raises(NoSpace):
            log.append([b"x"])
        assert sorted(disk.names()) == names
        assert (log.last_sequence, log.sealed) == (1, Sealed(0, 0))
    disk.room = 10_000
    commit(log, b"two")
    assert segments(disk) == [1, 2]
    assert log.sealed.sequence == 1
    assert frames(disk, 1) + frames(disk, 2) == payloads([bytes(SEGMENT_BYTES)], [b"two"])


def test_without_room_for_the_group_in_a_fresh_segment_the_next_group_begins_it(disk, log):
    commit(log, bytes(SEGMENT_BYTES))
    disk.room = HEADER + FRAME
    with pytest.raises(NoSpace):
        log.append([b"x"])
    assert (segments(disk), log.sealed.sequence) == ([1, 2], 1)
    disk.room = 10_000
    commit(log, b"two")
    assert frames(disk, 2) == payloads([b"two"])


@pytest.mark.parametrize("room", [0, HEADER - 1])
def test_every_try_without_room_gives_its_descriptor_back(disk, log, room):
    commit(log, bytes(SEGMENT_BYTES))
    before = list(disk.open_files)
    disk.room = room
    for _ in range(3):
        with pytest.raises(NoSpace):
            log.append([b"x"])
    assert disk.open_files == before


@FULL
def test_a_segment_that_was_made_but_for_the_sync_of_its_name_is_used_for_the_next_group(disk, log, full):
    commit(log, b"one")
    disk.before = failing("sync_directory", full)
    for _ in range(2):
        with pytest.raises(NoSpace):
            log.seal()
        assert (segments(disk), log.sealed.sequence) == ([1, 2], 0)
    disk.before = lambda _: None
    commit(log, b"two")
    commit(log, b"three")
    assert (frames(disk, 1), frames(disk, 2)) == (payloads([b"one"]), payloads([b"two"], [b"three"]))


def test_a_group_that_memory_did_not_suffice_for_is_not_in_the_log_even_if_it_was_written(disk, log, monkeypatch):
    commit(log, b"one")

    def append_and_fail(data, zeros_bytes=0):
        append(data, zeros_bytes)
        raise MemoryError

    append = log._file.append
    monkeypatch.setattr(log._file, "append", append_and_fail)
    with pytest.raises(MemoryError):
        log.append([b"refused"])
    monkeypatch.undo()
    assert log.last_sequence == 1
    commit(log, b"two")
    assert frames(disk, 1) == payloads([b"one"], [b"two"])


def test_zeros_need_no_memory(disk, log, monkeypatch):
    def without_memory(count):
        raise MemoryError

    monkeypatch.setattr("logd.local.disk.bytes", without_memory, raising=False)
    commit(log, b"one")
    assert frames(disk, 1) == payloads([b"one"])


@FULL
def test_without_room_for_a_directory_entry_nothing_is_left(disk, full):
    disk.before = failing("create", full)
    with pytest.raises(NoSpace):
        Wal(disk, 1, SEGMENT_BYTES)
    assert list(disk.names()) == []


# A device that fails -------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["append", "sync", "rename", "sync_directory", "create"])
def test_any_other_error_while_sealing_comes_through(disk, log, operation):
    commit(log, bytes(SEGMENT_BYTES))
    disk.before = failing(operation)
    with pytest.raises(OSError, match="Input/output error") as caught:
        log.append([b"x"])
    assert caught.value.errno == errno.EIO
    assert log.sealed == Sealed(0, 0)


@pytest.mark.parametrize("error", [errno.EIO, errno.EROFS], ids=errno.errorcode.get)
def test_any_other_error_of_a_write_comes_through(disk, log, error):
    disk.before = failing("append", error)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is looked at
        log.append([b"x"])
    assert caught.value.errno == error


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
def test_a_failed_sync_is_never_taken_for_a_lack_of_room(disk, log, error):
    log.append([b"x"])
    disk.before = failing("sync", error)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is looked at
        log.sync()
    assert caught.value.errno == error
    assert isinstance(caught.value, InDoubt) == (error != errno.EIO)
    assert not isinstance(caught.value, NoSpace)


def test_a_log_that_is_written_anew_has_what_was_synced_and_goes_on(tmp_path, disk, log):
    commit(log, b"one")
    log.append([b"not synced"])
    for _ in range(2):
        log.rewrite()
        assert (frames(disk, 1), log.last_sequence) == (payloads([b"one"]), 1)
    commit(log, b"two")
    commit(log, bytes(SEGMENT_BYTES))
    commit(log, b"four")
    log.append([b"not synced"])
    log.rewrite()
    assert frames(disk, 1) + frames(disk, 4) == payloads([b"one"], [b"two"], [bytes(SEGMENT_BYTES)], [b"four"])
    assert segments(disk) == [1, 4]
    assert len(disk.open_files) == 1


def test_a_log_whose_synced_part_cannot_be_read_back_is_not_written_anew(tmp_path, disk, log):
    commit(log, b"one")
    path = tmp_path / wal.segment_name(1)
    path.write_bytes(path.read_bytes().replace(b"one", b"two"))
    with pytest.raises(OSError, match="cannot be read back"):
        log.rewrite()


def test_when_the_torn_write_cannot_be_cut_off_the_error_comes_through(disk, log):
    disk.room = 10
    disk.before = failing("truncate")
    with pytest.raises(OSError, match="Input/output error"):
        log.append([b"x"])


def test_a_segment_whose_name_was_removed_cannot_be_synced(disk, log):
    """Nobody would find it again."""
    log.append([b"x"])
    disk.remove(wal.segment_name(1))
    with pytest.raises(FileNotFoundError):
        log.sync()
