"""The last warnings of all processes of a server, in a file in memory that they share, so that any of them can tell.

Owns a ring of records of one size, and the handler that puts there what is logged as a warning or worse. Knows nothing
of who logs what. logd/shared/logging_setup.py installs the handler, and has children inherit the file.

No lock is needed: all processes have inherited one open file description, and with it its position, so that a write
takes the next place and moves the position in one step (POSIX, 2.9.7). At the end of the ring one of them sets the
position back. Of warnings at that very moment one may be lost here; on stderr it is not.
"""

import contextlib
import logging
import os
from typing import Final

import msgspec

from logd.shared.text import printable
from logd.shared.unnamed_file import make_file

WARNINGS_MAX: Final = 64
_RECORD_BYTES: Final = 512
_RING_BYTES: Final = WARNINGS_MAX * _RECORD_BYTES
_FIELDS: Final = 5
_FILLER: Final = b"\0"  # in no line: it is not printable


class Warned(msgspec.Struct, frozen=True):
    """A line of the log that was a warning or worse; a long message is cut."""

    time: float
    """Seconds since 1970."""
    level: str
    role: str
    pid: int
    message: str


class RecentWarnings(logging.Handler):
    """Keeps the last warnings. Bounded, and never waits."""

    def __init__(self, fd: int) -> None:
        super().__init__(logging.WARNING)
        self.fd = fd

    def emit(self, record: logging.LogRecord) -> None:
        """Put a record in the place of the oldest one."""
        try:
            message = printable(record.getMessage())
        except Exception:  # as in every handler: a mistake in what is logged is no failure of who logs
            self.handleError(record)
            return
        level, role = record.levelname.lower(), record.processName
        line = f"{record.created:.3f} {level} {role} {record.process} {message}".encode(errors="backslashreplace")
        with contextlib.suppress(OSError):
            os.write(self.fd, line[:_RECORD_BYTES].ljust(_RECORD_BYTES, _FILLER))
            if os.lseek(self.fd, 0, os.SEEK_CUR) >= _RING_BYTES:
                os.lseek(self.fd, 0, os.SEEK_SET)

    def read(self) -> list[Warned]:
        """The last warnings, oldest first."""
        ring = os.pread(self.fd, _RING_BYTES, 0)
        lines = (ring[start : start + _RECORD_BYTES] for start in range(0, len(ring), _RECORD_BYTES))
        found = (_parse(line.rstrip(_FILLER).decode(errors="ignore")) for line in lines)
        return sorted((each for each in found if each), key=lambda each: each.time)


def _parse(line: str) -> Warned | None:
    """None for a record that is being written just now."""
    try:
        at, level, role, pid, message = line.split(" ", _FIELDS - 1)
        return Warned(float(at), level, role, int(pid), message)
    except ValueError:
        return None


def make() -> int:
    """The descriptor of a new ring, for children to inherit."""
    return make_file("kv-warnings")


def installed() -> RecentWarnings | None:
    """The handler of this process, if it has one."""
    return next((each for each in logging.getLogger().handlers if isinstance(each, RecentWarnings)), None)
