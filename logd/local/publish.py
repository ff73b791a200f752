"""The one way in which a file comes into being: whole and durable, or not at all.

    file = publish(disk, name, parts)                   # any iterable of bytes
    file = publish(disk, name, parts, temporary=other)  # where two processes may publish the same name at a time

Segments, snapshots, what `repair` keeps and exports are made by it. Knows nothing of what a file holds. A crash at any
step leaves the old file or the new one, and beside it at most a temporary file, which the next start removes.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import Final

from logd.local.disk import Disk, DiskFile, is_no_space

TEMPORARY_SUFFIX: Final = ".tmp"
_TEMPORARY: Final = re.compile(r"(wal-\d{20}\.log|snapshot-\d{20}\.snap)(\.damaged-\d+(-\d+)?)?\.tmp")
"""The temporary names of all files that are published in a directory of data."""


class NoSpace(OSError):
    """The device, or the user's share of it, is full. Nothing is in doubt: the same may be tried again."""


def publish(disk: Disk, name: str, parts: Iterable[bytes | bytearray], *, temporary: str | None = None) -> DiskFile:
    """Make a file of these parts, in place of one of that name, and return it open for appending.

    Each part is synced by itself: the sync of a log beside it waits for all data that is not yet on the disk, so that
    should never be much.

    Raises NoSpace, another OSError, or whatever `parts` raises; the temporary file is removed then.
    """
    temporary = temporary or name + TEMPORARY_SUFFIX
    with no_space_by_name():
        file = disk.create(temporary)
        with _removed_on_failure(disk, temporary, file):
            for part in parts:
                file.append(part)
                file.sync()
            disk.rename(temporary, name)
            disk.sync_directory()
    return file


@contextlib.contextmanager
def no_space_by_name() -> Iterator[None]:
    """Raise NoSpace in place of an error that means it. Not where a file is in doubt after it."""
    try:
        yield
    except OSError as error:
        if is_no_space(error):
            raise NoSpace(*error.args) from error
        raise


@contextlib.contextmanager
def _removed_on_failure(disk: Disk, temporary: str, file: DiskFile) -> Iterator[None]:
    try:
        yield
    except BaseException:  # also an interrupt from the keyboard
        file.close()
        with contextlib.suppress(OSError):  # it has the other name already, or the disk fails altogether
            disk.remove(temporary)
        raise


def remove_temporaries(disk: Disk) -> None:
    """Remove what a process was writing that is gone. Other files are not ours, whatever their names end with."""
    for name in disk.names():
        if _TEMPORARY.fullmatch(name):
            disk.remove(name)
