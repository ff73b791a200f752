"""The few system calls that the files need.

One directory, named files, bytes. Nothing here knows what the bytes mean. Everything that can be lost in a crash goes
through a `Disk`, so that a test can stand in for it and crash at any call.

Assumed of the disk: what was synced stays; what was not may be gone, cut, or garbage, in any order and sector by
sector; a sector that is not being written stays as it was; a rename is one step. A directory entry is durable only once
the directory was synced.
"""

import contextlib
import errno
import fcntl
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700

_NO_SPACE_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})


def is_no_space(error: OSError) -> bool:
    """True when an error says that the device or the user's share of it is full."""
    return error.errno in _NO_SPACE_ERRNOS


class DiskFile(Protocol):
    """A file being written, only ever at its end."""

    size: int

    def append(self, data: bytes | bytearray, zeros_bytes: int = 0) -> None:
        """Write all of data at the end. On OSError, part of it may be there: `truncate` it away.

        If that makes the file longer, also write up to that many zeros after the data; there need not be room for them.
        They are not part of `size`: what is appended next overwrites them, and its sync has no change of the file's
        length to bring to the disk.
        """

    def truncate(self, size: int) -> None:
        """Cut the file back to `size` bytes."""

    def allocate(self, size: int) -> None:
        """Make an empty file occupy `size` bytes of the disk; what they hold is of no interest."""

    def sync(self) -> None:
        """Wait until data and size have reached the disk. After an OSError nothing may be assumed of either.

        Also an OSError when the file has no name any more: nobody would find it again.
        """

    def close(self) -> None:
        """Close the file. Does not sync."""


class Disk(Protocol):
    """One directory of files."""

    def names(self) -> Sequence[str]:
        """The names in the directory, in no order."""

    def size(self, name: str) -> int:
        """The size of a file in bytes."""

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading."""

    def create(self, name: str) -> DiskFile:
        """Make an empty file, in place of one of that name."""

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, in place of one of that name."""

    def remove(self, name: str) -> None:
        """Remove a name."""

    def sync_directory(self) -> None:
        """Wait until names that were made, changed or removed are so on the disk."""

    def free_bytes(self) -> int:
        """The space that this user may still fill."""


if sys.platform == "darwin":  # fsync there leaves the data in the drive's cache

    def _sync(fd: int) -> None:
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)

else:
    _sync = os.fdatasync


class _LocalFile:
    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._zeros_end = 0  # how far the file reaches, where that is more than `size`
        self.size = 0

    def append(self, data: bytes | bytearray, zeros_bytes: int = 0) -> None:
        rest = memoryview(data)
        while rest:  # a disk that fills up first writes short, without an error
            written = os.pwrite(self._fd, rest, self.size)
            self.size += written
            rest = rest[written:]
        if zeros_bytes and self.size > self._zeros_end:
            self._write_zeros(zeros_bytes)

    def _write_zeros(self, count: int) -> None:
        try:
            self._zeros_end = self.size + os.pwrite(self._fd, bytes(count), self.size)
        except OSError as error:
            if not is_no_space(error):
                raise

    def truncate(self, size: int) -> None:
        os.ftruncate(self._fd, size)
        self.size = size
        self._zeros_end = 0

    def allocate(self, size: int) -> None:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._fd, 0, size)
            self.size = size
        else:
            while self.size < size:
                self.append(bytes(min(size - self.size, 1 << 20)))

    def sync(self) -> None:
        _sync(self._fd)
        if os.fstat(self._fd).st_nlink == 0:
            raise FileNotFoundError(errno.ENOENT, "the file was deleted while it was in use")

    def close(self) -> None:
        os.close(self._fd)


class LocalDisk:
    """A directory of the file system. Satisfies `Disk`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __str__(self) -> str:
        return str(self._directory)

    def names(self) -> Sequence[str]:
        return os.listdir(self._directory)

    def size(self, name: str) -> int:
        return os.stat(self._directory / name).st_size

    def open(self, name: str) -> BinaryIO:
        return open(self._directory / name, "rb")

    def create(self, name: str) -> DiskFile:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        return _LocalFile(os.open(self._directory / name, flags, FILE_MODE))

    def rename(self, old: str, new: str) -> None:
        os.rename(self._directory / old, self._directory / new)

    def remove(self, name: str) -> None:
        os.unlink(self._directory / name)

    def sync_directory(self) -> None:
        _sync_directory(self._directory)

    def free_bytes(self) -> int:
        stat = os.statvfs(self._directory)
        blocks = stat.f_bfree if os.geteuid() == 0 else stat.f_bavail
        return blocks * stat.f_frsize


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(directory: Path) -> None:
    """Make a directory and those above it, durably. Leaves what is there as it is.

    Raises OSError (among others NotADirectoryError, PermissionError) when that is not possible.
    """
    missing = []
    while not directory.is_dir():
        missing.append(directory)
        directory = directory.parent
    for child in reversed(missing):
        child.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        _sync_directory(child.parent)


class DirectoryLock:
    """Exclusive use of a directory, for as long as this process lives.

    The file says by whom, and through which socket.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "LOCK"
        self._fd: int | None = None

    def acquire(self) -> str:
        """Acquire the lock and return the note of its last holder.

        Raises BlockingIOError when a living process has it, other OSErrors when the file cannot be made.
        """
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise
        self._fd = fd
        return os.pread(fd, 4096, 0).decode(errors="replace").strip()

    def release(self) -> None:
        """Release the lock before this process ends."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def holder(self) -> str:
        """The note of whoever has the lock; empty when it cannot be read."""
        with contextlib.suppress(OSError):
            return self._path.read_text(errors="replace").strip()
        return ""

    def write_note(self, note: str) -> None:
        """Say who has the lock. Costs nothing when it fails: a full disk must not stop a start."""
        assert self._fd is not None
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, note.encode(), 0)
