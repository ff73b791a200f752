"""The lock on a directory: what it holds against, and what of the user's it leaves alone."""

import errno
import fcntl
import os
import stat

import pytest

from logd.local import disk
from logd.local.disk import DirectoryLock, LocalDisk
from logd.local.publish import remove_temporaries
from tests.support.builders import contents, file_name


@pytest.fixture
def held(tmp_path):
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    yield lock
    lock.release()


def test_a_directory_stays_locked_when_its_lock_file_is_removed(held, tmp_path):
    (tmp_path / "LOCK").unlink()
    with pytest.raises(BlockingIOError):
        DirectoryLock(tmp_path).acquire()


def test_a_directory_stays_locked_under_another_name(held, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(BlockingIOError):
        DirectoryLock(tmp_path / "link").acquire()


def test_a_holder_that_locks_the_file_alone_is_respected(tmp_path):
    """As earlier versions do."""
    with (tmp_path / "LOCK").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            DirectoryLock(tmp_path).acquire()


def test_where_directories_cannot_be_locked_the_file_is(tmp_path, monkeypatch):
    """As on NFS, which is not to be had in a test."""

    def flock(fd, operation):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EBADF, "only files that are open for writing")
        return fcntl_flock(fd, operation)

    fcntl_flock = fcntl.flock
    monkeypatch.setattr(disk.fcntl, "flock", flock)
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    with pytest.raises(BlockingIOError):
        DirectoryLock(tmp_path).acquire()
    lock.release()
    DirectoryLock(tmp_path).acquire()


def test_a_copy_of_a_locked_directory_is_another_directory(held, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "LOCK").write_bytes((tmp_path / "LOCK").read_bytes())
    DirectoryLock(copy).acquire()


def test_after_a_refused_attempt_the_directory_can_be_locked_as_soon_as_its_holder_ends(held, tmp_path):
    second = DirectoryLock(tmp_path)
    with pytest.raises(BlockingIOError):
        second.acquire()
    held.release()
    second.acquire()
    second.release()


def test_the_holder_can_be_looked_up(held, tmp_path):
    assert DirectoryLock(tmp_path).holder() == f"process {os.getpid()}"


@pytest.mark.parametrize("note", [b"", b"ipc:///tmp/kv-old/logd.sock", b"process 1"])
def test_the_note_of_an_earlier_holder_is_replaced(tmp_path, note):
    (tmp_path / "LOCK").write_bytes(note)
    DirectoryLock(tmp_path).acquire()
    assert (tmp_path / "LOCK").read_bytes() == b"process %d" % os.getpid()


def test_a_file_of_the_user_that_is_called_like_the_lock_keeps_its_content(tmp_path):
    (tmp_path / "LOCK").write_bytes(b"notes on doors\n")
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    assert (tmp_path / "LOCK").read_bytes() == b"notes on doors\n"
    assert lock.holder() == ""


MINE = ["notes.tmp", "wal.tmp", "wal-1.log.tmp", "x" + file_name("1-1") + ".tmp", file_name("@1") + ".bak.tmp"]
OURS = [file_name("1-1") + ".tmp", file_name("@1") + ".tmp", file_name("1-1") + ".damaged-748-2.tmp"]


def test_of_temporary_files_only_those_with_names_that_the_program_makes_are_removed(tmp_path):
    for name in MINE + OURS:
        (tmp_path / name).write_bytes(name.encode())
    remove_temporaries(LocalDisk(tmp_path))
    assert contents(tmp_path) == {name: name.encode() for name in MINE}
