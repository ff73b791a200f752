"""Clients that are slower than the server: those that still send after their answer, and those that read slowly.

Owns how progress is measured, and when bounds are exceeded; kv/http/connection.py closes the connection.

Lingering close (the idea, and its name, are nginx's): a socket that is closed with unread data sends a reset, and the
reset discards the answer in the client's receive buffer. A client that writes all before it reads would never see why
its upload was refused. So the server answers, closes its write side, and discards what still arrives until the client
closes too, within bounds.
"""

import contextlib
import fcntl
import struct
import termios
from asyncio import WriteTransport
from typing import Final

SLOW_BYTES_PER_S: Final = 64 * 1024
"""A client that reads less than this, over `_WINDOW_SECONDS`, is cut off when others need the memory."""
_WINDOW_SECONDS: Final = 5.0
_INT: Final = struct.Struct("i")


class Discard:
    """The rest of a request that has its answer: its bytes are counted, never kept."""

    __slots__ = ("_last_at", "_since", "bytes")

    def __init__(self, now: float) -> None:
        self.bytes = 0
        self._since = self._last_at = now

    def take(self, size: int, now: float) -> None:
        """Count a piece that was discarded."""
        self.bytes += size
        self._last_at = now

    def is_overdue(self, now: float, timeout_s: float, idle_s: float) -> bool:
        """True when the client has sent for longer than `timeout_s` in all, or nothing for `idle_s`."""
        return now - self._since > timeout_s or now - self._last_at > idle_s


class ReaderProgress:
    """How far a client has come with reading its answers.

    Progress is what the client has acknowledged: the kernel's buffers hold megabytes that it has not read. Where the
    system does not provide that, progress is what the kernel has accepted.
    """

    __slots__ = ("_progress_at", "_read_bytes", "_window_read_bytes", "_window_since", "slowness", "unsent_bytes")

    def __init__(self) -> None:
        self.unsent_bytes = 0
        """Bytes of answers that the kernel had not accepted at the last look."""
        self.slowness = 0.0
        """How many times slower than `SLOW_BYTES_PER_S` it was in the last window; 0 when nothing is left to read."""
        self._progress_at: float | None = None
        self._read_bytes = 0
        self._window_since = 0.0
        self._window_read_bytes = 0

    def look(self, now: float, transport: WriteTransport, written_bytes: int) -> None:
        """Note how much the client has read of all that was written to it."""
        self.unsent_bytes = transport.get_write_buffer_size()
        if not self.unsent_bytes and not transport.is_closing():  # TLS hides what waits when the connection closes
            self._progress_at, self.slowness = None, 0.0
            return
        self._note(now, written_bytes - self.unsent_bytes - _unacknowledged_bytes(transport))

    def _note(self, now: float, read_bytes: int) -> None:
        if self._progress_at is None:
            self._window_since, self._window_read_bytes = now, read_bytes
        if self._progress_at is None or read_bytes != self._read_bytes:
            self._progress_at, self._read_bytes = now, read_bytes
        seconds = now - self._window_since
        if seconds >= _WINDOW_SECONDS:
            if seconds < 2 * _WINDOW_SECONDS:  # else this process was paused, and the client was not slow
                self.slowness = SLOW_BYTES_PER_S * seconds / max(1, read_bytes - self._window_read_bytes)
            self._window_since, self._window_read_bytes = now, read_bytes

    def is_reading(self) -> bool:
        """True when the client had something left to read at the last look."""
        return self._progress_at is not None

    def stalled_s(self, now: float) -> float:
        """How long the client has read nothing although there is something to read."""
        return 0.0 if self._progress_at is None else now - self._progress_at


def _unacknowledged_bytes(transport: WriteTransport) -> int:
    """Bytes that the client has not acknowledged; 0 where the system does not provide that."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: the socket is closed
        fd: int = transport.get_extra_info("socket").fileno()
        (size,) = _INT.unpack(fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(_INT.size)))
        return int(size)
    return 0
