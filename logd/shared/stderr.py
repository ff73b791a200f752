"""Where every log ends: stderr, which nobody may be reading.

A pipe whose reader has stalled, or a terminal after Ctrl-S, takes some lines and then blocks who writes; a server must
not stop for that. So a line that cannot be written at once is dropped and counted, and when lines can be written again
one of them says how many were dropped. Knows bytes and descriptors; the format is logd/shared/logging_setup.py's.
"""

import contextlib
import logging
import os
import select
import socket
import stat
import sys
from collections.abc import Callable
from typing import Final

_STDERR: Final = 2
_ATOMIC_BYTES: Final = select.PIPE_BUF

log = logging.getLogger("logd.shared.stderr")


class StderrHandler(logging.Handler):
    """Writes each record as a line, or drops it."""

    def __init__(self) -> None:
        super().__init__()
        self._write = _writer()
        self._rest = b""
        """Of a line that was written in part: without it the next one would not begin a line."""
        self._dropped = 0
        os.register_at_fork(after_in_child=self._begin_anew)

    def _begin_anew(self) -> None:
        """What the parent could not write is not the child's."""
        self._rest, self._dropped = b"", 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, and before it, where lines were dropped, one that says so."""
        try:
            line = self._line(record)
        except Exception:
            self.handleError(record)
            return
        if not (self._write_rest() and self._report_dropped() and self._write_line(line)):
            self._dropped += 1

    def _line(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode(errors="backslashreplace")

    def _write_rest(self) -> bool:
        self._rest = self._rest[self._write(self._rest) :] if self._rest else b""
        return not self._rest

    def _report_dropped(self) -> bool:
        if not self._dropped:
            return True
        message = "%d lines of the log were dropped, because they could not be written at once"
        report = log.makeRecord(log.name, logging.WARNING, __file__, 0, message, (self._dropped,), None)
        if not self._write_line(self._line(report)):
            return False
        self._dropped = 0
        return not self._rest

    def _write_line(self, line: bytes) -> bool:
        """False when nothing of it was written."""
        written = self._write(line)
        self._rest = line[written:] if written else b""
        return written > 0


def _writer() -> Callable[[bytes], int]:
    """A function that writes to stderr what can be written without waiting; how many bytes that was.

    The stream itself cannot be made non-blocking: others share it, such as the shell that has started the server.
    """
    kind = 0
    with contextlib.suppress(OSError):
        kind = os.fstat(_STDERR).st_mode
    if stat.S_ISREG(kind):
        return _writes_to(_STDERR)
    if stat.S_ISSOCK(kind):
        return _sends()
    with contextlib.suppress(
        OSError
    ):  # a descriptor of our own for the same pipe; not to be had for that of another user
        if sys.platform == "linux":
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            return _writes_to(os.open(f"/proc/self/fd/{_STDERR}", flags))
    return _writes_when_ready()


def _writes_to(fd: int) -> Callable[[bytes], int]:
    def write(data: bytes) -> int:
        with contextlib.suppress(OSError):  # would block; the reader is gone; the disk is full
            return os.write(fd, data)
        return 0

    return write


def _sends() -> Callable[[bytes], int]:
    stream = socket.socket(fileno=os.dup(_STDERR))

    def write(data: bytes) -> int:
        with contextlib.suppress(OSError):
            return stream.send(data, socket.MSG_DONTWAIT)
        return 0

    return write


def _writes_when_ready() -> Callable[[bytes], int]:
    """In pieces for which a pipe that is ready has room, unless another process writes at the same moment."""
    poll = select.poll()
    poll.register(_STDERR, select.POLLOUT)

    def write(data: bytes) -> int:
        written = 0
        with contextlib.suppress(OSError):
            while written < len(data) and poll.poll(0):
                written += os.write(_STDERR, data[written : written + _ATOMIC_BYTES])
        return written

    return write
