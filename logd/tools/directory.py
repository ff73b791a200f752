"""Three ways in which a command may open the directory of a server.

Each is a context manager that gives a disk and, while it lasts, makes of every OSError a CannotRun that names its file.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from logd.local import snapshot, wal
from logd.local.disk import LOCK_NAME, DirectoryLock, Disk, LocalDisk, make_directory
from logd.shared.protocol import Exit
from logd.tools.errors import CannotRun, naming

OpenDirectory: TypeAlias = Callable[[Path], contextlib.AbstractContextManager[LocalDisk]]


@contextlib.contextmanager
def shared(directory: Path) -> Iterator[LocalDisk]:
    """One that has data. A server may be using it; nothing may be written."""
    with naming(directory, unless_named=True):
        disk = LocalDisk(directory)
        if not _has_data(disk):
            raise _no_data_in(directory)
        yield disk


@contextlib.contextmanager
def exclusive(directory: Path) -> Iterator[LocalDisk]:
    """One that a server has used, and that none uses, nor can use until this ends."""
    with naming(directory, unless_named=True):
        disk = LocalDisk(directory)
        if LOCK_NAME not in disk.names() and not _has_data(disk):  # no lock is left in a wrong directory
            raise _no_data_in(directory)
        with _lock(directory):
            yield disk


@contextlib.contextmanager
def new(directory: Path) -> Iterator[LocalDisk]:
    """One without data, made when it is missing, that no server can use until this ends."""
    with naming(directory, unless_named=True):
        make_directory(directory)
        with _lock(directory):
            disk = LocalDisk(directory)
            if _has_data(disk):
                raise CannotRun(Exit.USAGE, f"{directory} holds data; name a new directory, or an empty one")
            yield disk


def _no_data_in(directory: Path) -> CannotRun:
    return CannotRun(Exit.UNUSABLE, f"there is no data in {directory}; look whether it is the right directory")


def _has_data(disk: Disk) -> bool:
    names = disk.names()
    return bool(wal.list_segments(names) or snapshot.list_snapshots(names))


@contextlib.contextmanager
def _lock(directory: Path) -> Iterator[None]:
    lock = DirectoryLock(directory)
    try:
        lock.acquire()
    except BlockingIOError as error:
        holder = lock.holder() or "an unknown process"
        raise CannotRun(Exit.LOCKED, f"{directory} is in use by a living server, {holder}; stop that first") from error
    try:
        yield
    finally:
        lock.release()
