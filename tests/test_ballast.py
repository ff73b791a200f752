"""Room kept for a start on a full disk: released when it is needed, made again when there is room."""

import os

import pytest

from logd.local import ballast, recovery
from logd.local.publish import NoSpace
from logd.serve import _open_log
from tests.support.builders import WatchedDisk, contents, lay_out, state

SIZE = 1 << 20


def test_it_occupies_what_was_asked_for_and_is_made_once(tmp_path):
    disk = WatchedDisk(tmp_path)
    ballast.ensure(disk, SIZE)
    ballast.ensure(disk, SIZE)
    assert (tmp_path / ballast.NAME).stat().st_blocks * 512 >= SIZE
    assert [call.operation for call in disk.calls].count("create") == 1


def test_it_is_made_anew_when_another_size_is_wanted(tmp_path):
    disk = WatchedDisk(tmp_path)
    ballast.ensure(disk, SIZE)
    ballast.ensure(disk, 2 * SIZE)
    assert (tmp_path / ballast.NAME).stat().st_size == 2 * SIZE


def test_release_says_whether_there_was_one(tmp_path):
    disk = WatchedDisk(tmp_path)
    assert not ballast.release(disk)
    ballast.ensure(disk, SIZE)
    assert ballast.release(disk)
    assert not os.listdir(tmp_path)


def test_it_takes_a_part_when_there_is_not_room_for_all_and_nothing_when_there_is_too_little(tmp_path):
    disk = WatchedDisk(tmp_path)
    disk.room = SIZE
    ballast.ensure(disk, SIZE)
    assert SIZE // 2 < (tmp_path / ballast.NAME).stat().st_size < SIZE
    ballast.release(disk)
    disk.room = SIZE // 2
    ballast.ensure(disk, SIZE)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", [ballast.NAME, ballast.FORMER_NAME])
def test_a_file_of_the_user_that_is_called_like_it_is_left_alone(tmp_path, name):
    (tmp_path / name).write_bytes(b"for the balloon" * 10_000)
    before = contents(tmp_path)
    disk = WatchedDisk(tmp_path)
    assert not ballast.release(disk)
    ballast.ensure(disk, SIZE)
    assert ballast.release(disk) == (name != ballast.NAME)
    assert contents(tmp_path) == before


def test_a_disk_that_refuses_leaves_no_half_of_it(tmp_path):
    class Full(WatchedDisk):
        def create(self, name):
            file = super().create(name)
            file.allocate = lambda size: (_ for _ in ()).throw(OSError(28, "full"))
            return file

    ballast.ensure(Full(tmp_path), SIZE)
    assert not os.listdir(tmp_path)


def test_a_start_on_a_full_disk_releases_it_and_recovers(tmp_path):
    lay_out(tmp_path, "1-5")
    disk = WatchedDisk(tmp_path)
    ballast.ensure(disk, SIZE)
    disk.room = 0
    disk.remove = lambda name: (setattr(disk, "room", SIZE), WatchedDisk.remove(disk, name))
    recovered = recovery.load(disk)
    _open_log(disk, recovered, 1 << 20).close()
    assert ballast.NAME not in os.listdir(tmp_path)
    assert recovery.load(disk).store.data == state(5).data


def test_without_it_a_full_disk_is_reported_and_nothing_is_changed(tmp_path):
    lay_out(tmp_path, "1-5")
    before = contents(tmp_path)
    disk = WatchedDisk(tmp_path)
    disk.room = 0
    with pytest.raises(NoSpace):
        _open_log(disk, recovery.load(disk), 1 << 20)
    assert contents(tmp_path) == before


# The file of earlier versions ----------------------------------------------------------------------------


@pytest.mark.parametrize("free", [0, 1 << 40], ids=["a full disk", "a disk with room"])
def test_the_file_of_an_earlier_version_becomes_the_ballast(tmp_path, free):
    (tmp_path / ballast.FORMER_NAME).write_bytes(bytes(SIZE))
    disk = WatchedDisk(tmp_path)
    disk.room = free
    ballast.ensure(disk, SIZE)
    assert contents(tmp_path) == {ballast.NAME: bytes(SIZE)}


def test_the_file_of_an_earlier_version_is_removed_where_the_ballast_is_there_already(tmp_path):
    disk = WatchedDisk(tmp_path)
    ballast.ensure(disk, SIZE)
    (tmp_path / ballast.FORMER_NAME).write_bytes(bytes(SIZE))
    ballast.ensure(disk, SIZE)
    assert os.listdir(tmp_path) == [ballast.NAME]


def test_the_file_of_an_earlier_version_is_released_too(tmp_path):
    (tmp_path / ballast.FORMER_NAME).write_bytes(bytes(SIZE))
    assert ballast.release(WatchedDisk(tmp_path))
    assert os.listdir(tmp_path) == []
