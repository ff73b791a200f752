"""Room kept for a start on a full disk: given up when it is needed, made again when there is room."""

import os

from logd.local import ballast, recovery
from logd.local.publish import NoSpace
from logd.serve import _open_log
from tests.support.builders import WatchedDisk, lay_out, state

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


def test_releasing_it_tells_whether_there_was_one(tmp_path):
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


def test_a_disk_that_refuses_leaves_no_half_of_it(tmp_path):
    class Full(WatchedDisk):
        def create(self, name):
            file = super().create(name)
            file.allocate = lambda size: (_ for _ in ()).throw(OSError(28, "full"))
            return file

    ballast.ensure(Full(tmp_path), SIZE)
    assert not os.listdir(tmp_path)


def test_a_start_on_a_full_disk_gives_it_up_and_recovers(tmp_path):
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
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    disk = WatchedDisk(tmp_path)
    disk.room = 0
    try:
        _open_log(disk, recovery.load(disk), 1 << 20)
    except NoSpace:
        assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before
    else:
        raise AssertionError("there was no room")
