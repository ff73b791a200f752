"""The durable write: a crash or an error at any step leaves the old file or the new one, whole."""

import errno

import pytest

from logd.local.publish import NoSpace, publish, remove_temporaries
from tests.support.builders import Crash, WatchedDisk, crash_at, failing, operations

STEPS = [
    "create name.tmp",
    "append name.tmp",
    "sync name.tmp",
    "append name.tmp",
    "sync name.tmp",
    "rename name.tmp name",
    "sync_directory",
]
OLD, NEW = b"old", b"new content"
PARTS = [b"new ", b"content"]
FULL = pytest.mark.parametrize("full", [errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)


@pytest.fixture
def disk(tmp_path):
    (tmp_path / "name").write_bytes(OLD)
    return WatchedDisk(tmp_path)


def content(disk):
    with disk.open("name") as file:
        return file.read()


def test_a_file_gets_its_name_only_when_every_part_of_it_is_durable(disk):
    publish(disk, "name", PARTS).close()
    assert operations(disk.calls) == STEPS
    assert content(disk) == NEW


def test_the_file_can_be_appended_to(disk):
    file = publish(disk, "name", PARTS)
    file.append(b" and more")
    file.close()
    assert content(disk) == NEW + b" and more"


def test_only_the_user_may_read_it(tmp_path, disk):
    publish(disk, "name", PARTS).close()
    assert (tmp_path / "name").stat().st_mode & 0o777 == 0o600


def test_two_that_publish_the_same_name_use_temporary_names_of_their_own(disk):
    def parts():
        yield b"new "
        publish(disk, "name", [b"the other"], temporary="other.tmp").close()
        assert content(disk) == b"the other"
        yield b"content"

    publish(disk, "name", parts()).close()
    assert content(disk) == NEW
    assert list(disk.names()) == ["name"]


@pytest.mark.parametrize("step", range(len(STEPS)))
def test_a_crash_at_any_step_leaves_the_old_file_or_the_new_one(disk, step):
    disk.before = crash_at(step)
    with pytest.raises(Crash):
        publish(disk, "name", PARTS)
    assert content(disk) == (NEW if "rename name.tmp name" in STEPS[:step] else OLD)
    assert set(disk.names()) <= {"name", "name.tmp"}


@pytest.mark.parametrize("operation", ["create", "append", "sync", "rename", "sync_directory"])
def test_an_error_at_any_step_comes_through_and_leaves_one_whole_file(disk, operation):
    disk.before = failing(operation)
    with pytest.raises(OSError, match="Input/output error") as caught:
        publish(disk, "name", PARTS)
    assert not isinstance(caught.value, NoSpace)
    assert content(disk) == (NEW if operation == "sync_directory" else OLD)
    assert (list(disk.names()), disk.open_files) == (["name"], [])


@FULL
@pytest.mark.parametrize("operation", ["create", "append", "sync", "rename", "sync_directory"])
def test_a_full_disk_at_any_step_is_no_space_and_it_can_be_tried_again(disk, operation, full):
    disk.before = failing(operation, full)
    with pytest.raises(NoSpace) as caught:
        publish(disk, "name", PARTS)
    assert caught.value.errno == full
    assert (list(disk.names()), disk.open_files) == (["name"], [])
    disk.before = lambda _: None
    publish(disk, "name", PARTS).close()
    assert content(disk) == NEW


@FULL
def test_a_short_write_leaves_the_old_file_and_nothing_else(disk, full):
    disk.full, disk.room = full, 2
    with pytest.raises(NoSpace):
        publish(disk, "name", PARTS)
    assert content(disk) == OLD
    assert list(disk.names()) == ["name"]


@pytest.mark.parametrize("error", [ValueError("a mistake"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_when_the_parts_cannot_be_made_nothing_is_left(disk, error):
    def parts():
        yield b"new "
        raise error

    with pytest.raises(type(error)):
        publish(disk, "name", parts())
    assert content(disk) == OLD
    assert (list(disk.names()), disk.open_files) == (["name"], [])


def test_what_a_crash_left_is_removed_and_nothing_else(tmp_path, disk):
    (tmp_path / "wal-00000000000000000001.log.tmp").write_bytes(b"new")
    remove_temporaries(disk)
    assert list(disk.names()) == ["name"]
