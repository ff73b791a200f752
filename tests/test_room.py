"""How sizes follow the room on a device, and what is tried when there is none."""

import pytest

from logd.local import ballast, room, wal
from logd.local.room import RoomMaker
from logd.local.wal import Wal
from tests.support.builders import WatchedDisk

KIB, MIB = 1 << 10, 1 << 20
ASKED = {"segment_bytes": 32 * MIB, "checkpoint_log_bytes": 64 * MIB, "message_bytes_max": 20 * MIB}


class Device(WatchedDisk):
    """One with so much room, of which files use a part."""

    def __init__(self, directory, free, used=0):
        super().__init__(directory)
        self.room = free
        with (directory / "used").open("wb") as file:
            file.truncate(used)


@pytest.mark.parametrize(
    ("free", "used", "sizes"),
    [
        (1 << 30, 0, (32 * MIB, 64 * MIB, 52 * MIB)),
        (64 * MIB, 0, (2 * MIB, 4 * MIB, 8 * MIB)),
        (4 * MIB, 60 * MIB, (2 * MIB, 4 * MIB, 8 * MIB)),
        (0, 64 * MIB, (2 * MIB, 4 * MIB, 8 * MIB)),
        (16 * KIB, 0, (KIB, KIB, 2 * KIB)),
    ],
)
def test_the_parts_of_a_directory_fit_into_the_room_for_it(tmp_path, free, used, sizes):
    assert room.sizes(Device(tmp_path, free, used), **ASKED) == sizes


def test_what_is_asked_for_is_never_exceeded(tmp_path):
    asked = {"segment_bytes": 2000, "checkpoint_log_bytes": 3000, "message_bytes_max": 4000}
    assert room.sizes(Device(tmp_path, 1 << 30), **asked) == (2000, 3000, 6000)


class Checkpointer:
    """Notes what is asked of it."""

    def __init__(self):
        self.asked = []

    def make_room(self, sealed, wait_s):
        self.asked.append(sealed.sequence)
        assert wait_s > 0


@pytest.fixture
def log(tmp_path):
    log = Wal(WatchedDisk(tmp_path), 1, MIB)
    yield log
    log.close()


def append(log):
    log.append([b"x"])
    log.sync()


def test_the_ballast_is_released_and_all_of_the_log_is_sealed_for_a_checkpoint(tmp_path, log):
    disk, checkpointer = WatchedDisk(tmp_path), Checkpointer()
    ballast.ensure(disk, MIB)
    append(log)
    append(log)
    assert RoomMaker(disk, log, checkpointer).checkpoint()  # it was tried, whether it helped or not
    assert checkpointer.asked == [2]
    assert [each.first for each in wal.list_segments(disk.names())] == [1, 3]
    assert ballast.NAME not in disk.names()


def test_a_checkpoint_that_did_not_help_is_not_tried_at_once_again_unless_the_log_went_on(tmp_path, log):
    checkpointer = Checkpointer()
    maker = RoomMaker(WatchedDisk(tmp_path), log, checkpointer)
    append(log)
    maker.checkpoint()
    assert not maker.checkpoint()
    assert checkpointer.asked == [1]
    append(log)
    maker.checkpoint()
    assert checkpointer.asked == [1, 2]


def test_without_room_even_for_a_segment_what_is_sealed_is_checkpointed(tmp_path, log):
    checkpointer = Checkpointer()
    append(log)
    log.seal()
    append(log)
    log._disk.room = 0
    assert RoomMaker(WatchedDisk(tmp_path), log, checkpointer).checkpoint()
    assert checkpointer.asked == [1]
