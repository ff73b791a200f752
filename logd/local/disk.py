"""The few system calls that the files need.

One directory, named files, bytes; nothing here knows what the bytes mean. Everything that a crash can take away goes
through a `Disk`, so that a test can put another one in its place and crash at any call.

What is assumed of a disk: synced data stays. Data that is not synced may be lost, cut short or garbage, sector by
sector and in any order. A sector that is not being written stays as it is. A rename happens as a whole or not at all,
and it, like every change of a name, is durable only after a sync of the directory.
"""

import contextlib
import enum
import errno
import fcntl
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Final, Protocol

FILE_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700
LOCK_NAME: Final = "LOCK"
_NOTE_BYTES_MAX: Final = 4096
_NOTE: Final = re.compile(rb"process \d+")
_FORMER_NOTE: Final = re.compile(rb"ipc://.*")
"""What earlier versions wrote: where logd listened."""
_NO_DIRECTORY_LOCKS: Final = frozenset({errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP})
"""What file systems answer that lock no directories."""


class Call(enum.Enum):
    """A kind of call that changes a file or a name."""

    WRITE = "create, append, allocate, rename, remove"
    TRUNCATE = "truncate"
    SYNC = "sync, sync_directory"


class Meaning(enum.Enum):
    """What the error of a call says about the file, and what is to be done."""

    REFUSED = "nothing of it was done, apart from a part of the data: cut that off, refuse the write, go on"
    IN_DOUBT = "nothing is known of the file: write it anew before anything else, then refuse the write and go on"
    FAILED = "the disk is not to be trusted: acknowledge nothing, and end this process"


_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SCARCE: Final = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)  # of memory, or of descriptors
_RECOVERABLE: Final = {
    Call.WRITE: Meaning.REFUSED,
    Call.TRUNCATE: Meaning.IN_DOUBT,
    Call.SYNC: Meaning.IN_DOUBT,
}

MEANINGS: Final = {(call, number): meaning for call, meaning in _RECOVERABLE.items() for number in _NO_ROOM + _SCARCE}
"""What those errors mean that are not the disk's: a full device, a quota, `ulimit -f`, no memory. Others: FAILED."""


def meaning(call: Call, error: OSError) -> Meaning:
    """What an error of a call means."""
    return MEANINGS.get((call, error.errno or 0), Meaning.FAILED)


def is_scarce(error: OSError) -> bool:
    """True when an error says that it is not room on the disk that is wanted, but memory or descriptors."""
    return error.errno in _SCARCE


def is_no_space(error: OSError) -> bool:
    """True when an error says that there is no room or no memory for this write: it may be tried again."""
    return meaning(Call.WRITE, error) is Meaning.REFUSED


class DiskFile(Protocol):
    """A file that is written, always at its end."""

    size: int
    """In bytes, without zeros that were written ahead."""

    def append(self, data: bytes | bytearray, zeros_bytes: int = 0) -> None:
        """Write all of `data` at the end. After an OSError part of it may be there: `truncate` removes it.

        When this makes the file longer, up to `zeros_bytes` zeros are written ahead as well, as far as there is room.
        The next data overwrites them, and its sync is cheaper because the file does not grow.
        """

    def truncate(self, size: int) -> None:
        """Cut the file back to `size` bytes."""

    def allocate(self, size: int) -> None:
        """Make an empty file occupy `size` bytes of the disk, whatever they are."""

    def sync(self) -> None:
        """Wait until data and size have reached the disk. After an OSError nothing may be assumed of either.

        A file that was deleted meanwhile is an OSError too: its data would be lost.
        """

    def close(self) -> None:
        """Close the file. Does not sync."""


class Disk(Protocol):
    """One directory of files."""

    def names(self) -> Sequence[str]:
        """The names in the directory, in any order."""

    def size(self, name: str) -> int:
        """The size of a file in bytes."""

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading."""

    def create(self, name: str) -> DiskFile:
        """Make an empty file; it replaces one of that name."""

    def rename(self, old: str, new: str) -> None:
        """Give a file another name; it replaces one of that name."""

    def remove(self, name: str) -> None:
        """Delete a file."""

    def sync_directory(self) -> None:
        """Wait until every new, changed or removed name has reached the disk."""

    def free_bytes(self) -> int:
        """How much this user may still write."""


if sys.platform == "darwin":  # fsync there leaves the data in the drive's cache

    def _sync(fd: int) -> None:
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)

else:
    _sync = os.fdatasync


class _LocalFile:
    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._link = f"/proc/self/fd/{fd}"
        self._zeros_end = 0  # where the zeros that were written ahead end
        self.size = 0

    def append(self, data: bytes | bytearray, zeros_bytes: int = 0) -> None:
        rest = memoryview(data)
        while rest:  # a disk that becomes full first writes less than it was given, without an error
            written = os.pwrite(self._fd, rest, self.size)
            self.size += written
            rest = rest[written:]
        if zeros_bytes and self.size > self._zeros_end:
            self._write_zeros(zeros_bytes)

    def _write_zeros(self, count: int) -> None:
        try:
            self._zeros_end = self.size + os.pwrite(self._fd, bytes(count), self.size)
        except MemoryError:
            pass
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
        if self._is_deleted():
            raise FileNotFoundError(errno.ENOENT, "the file was deleted while it was in use")

    def _is_deleted(self) -> bool:
        """Whether the file has lost its name. Asked of the kernel's table of descriptors, where there is one.

        Since Linux 6.13, a question for the times of a file, as fstat is, makes the next write record them exactly, and
        the next sync takes half as long again (measured on ext4).
        """
        try:
            return os.readlink(self._link).endswith(" (deleted)")
        except OSError:
            return os.fstat(self._fd).st_nlink == 0

    def close(self) -> None:
        os.close(self._fd)


def directory_id(directory: Path) -> str:
    """What tells a directory from another one of that name. Raises OSError."""
    stat = os.stat(directory)
    return f"{stat.st_dev}:{stat.st_ino}"


class LocalDisk:
    """A directory of the file system. Satisfies `Disk`.

    With an id, nothing is changed in another directory that has taken its place: that raises FileNotFoundError.
    """

    def __init__(self, directory: Path, id_: str = "") -> None:
        self._directory = directory
        self.id = id_

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
        return _LocalFile(os.open(self._of_same_directory(name), flags, FILE_MODE))

    def rename(self, old: str, new: str) -> None:
        os.rename(self._of_same_directory(old), self._directory / new)

    def remove(self, name: str) -> None:
        os.unlink(self._of_same_directory(name))

    def sync_directory(self) -> None:
        _sync_directory(self._directory)

    def _of_same_directory(self, name: str) -> Path:
        if self.id and self.id != directory_id(self._directory):
            detail = "another directory has taken its place"
            raise FileNotFoundError(errno.ENOENT, detail, str(self._directory))
        return self._directory / name

    def free_bytes(self) -> int:
        stat = os.statvfs(self._directory)
        blocks = stat.f_bfree if os.geteuid() == 0 else stat.f_bavail
        return blocks * stat.f_frsize


_NOT_SUPPORTED: Final = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno in _NOT_SUPPORTED:
            detail = f"its file system cannot sync a directory ({error.strerror})"
            raise OSError(error.errno, detail, str(directory)) from error
        raise
    finally:
        os.close(fd)


def make_directory(directory: Path) -> None:
    """Make a directory and those above it, durably. What is there already stays as it is.

    Raises OSError (among others NotADirectoryError, PermissionError) when that is not possible.
    """
    missing = []
    while not directory.is_dir():
        missing.append(directory)
        directory = directory.parent
    for child in reversed(missing):
        try:
            child.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        except FileExistsError as error:  # as something else
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(child)) from error
        _sync_directory(child.parent)


class DirectoryLock:
    """Exclusive use of a directory, for as long as this process lives or until `release`.

    The lock is on the directory itself, because a file in it can be removed, and made anew, while its holder lives. It
    is on the file LOCK too: earlier versions lock only that, and some file systems (NFS) lock no directories.

    The text of LOCK, the note, says which process holds the lock. It is for people: a copy of the directory has the
    same note, so nothing is ever done to what it names.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._fds: list[int] = []

    def acquire(self) -> None:
        """Lock the directory.

        Raises BlockingIOError when a living process holds the lock, another OSError when LOCK cannot be made.
        """
        try:
            self._fds.append(os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            _flock(self._fds[0], ignored=_NO_DIRECTORY_LOCKS)
            self._fds.append(os.open(self._directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE))
            _flock(self._fds[1])
        except OSError:
            self.release()
            raise
        self._write_note(self._fds[1])

    def release(self) -> None:
        """Unlock the directory, if it is locked by this object."""
        while self._fds:
            os.close(self._fds.pop())

    def holder(self) -> str:
        """The note of the present holder, whoever that is; empty when there is none."""
        with contextlib.suppress(OSError):
            note = (self._directory / LOCK_NAME).read_bytes()
            return note.decode() if _NOTE.fullmatch(note) else ""
        return ""

    def _write_note(self, fd: int) -> None:
        """Replace the note; a text that this program has not written stays. A full disk must not stop a start."""
        with contextlib.suppress(OSError):
            present = os.pread(fd, _NOTE_BYTES_MAX, 0)
            if not present or _NOTE.fullmatch(present) or _FORMER_NOTE.fullmatch(present):
                os.ftruncate(fd, 0)
                os.pwrite(fd, b"process %d" % os.getpid(), 0)


def _flock(fd: int, ignored: frozenset[int] = frozenset()) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in ignored:
            raise
