"""The write-ahead log: segments of frames, appended to, sealed, and read back.

One frame holds one group: the write batches that were synced together, exactly as the workers encoded them. This module
owns segment files and their names; it does not know what a batch means, nor when a segment may be removed.

Rules. A frame is written at once and the next one only after the sync of the last, so a whole frame behind a bad one is
damage and never a torn write. A segment gets its name only when its header is durable. A file that another process
wrote is never appended to.
"""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from logd.local import frame
from logd.local.disk import Disk, DiskFile, is_no_space
from logd.local.publish import NoSpace, publish
from logd.shared.protocol import MESSAGE_BYTES_CEILING

MAGIC: Final = b"KVLOGSEG"

_NAME: Final = re.compile(r"wal-(\d{20})\.log")
_ARRAY_HEADER_BYTES: Final = 5
_ZEROS_AHEAD_BYTES: Final = 1 << 20
_LARGE_FRAME_BYTES: Final = 128 << 10
"""A segment grows in steps of so many zeros, which frames then overwrite: a sync that need not record that the file has
grown takes about half as long. A large frame is dear for its bytes, and is not made dearer by zeros. A reader takes
zeros up to the end of the file for unused space."""

assert MESSAGE_BYTES_CEILING + _ARRAY_HEADER_BYTES <= frame.PAYLOAD_BYTES_MAX


class Segment(NamedTuple):
    """A segment file: frames from sequence `first` on."""

    name: str
    first: int


class Sealed(NamedTuple):
    """What one `Wal` has sealed so far: how many bytes, and up to which sequence.

    Replaced as a whole, never changed.
    """

    bytes: int
    sequence: int


def segment_name(first: int) -> str:
    """The file name of the segment that begins with this sequence."""
    return f"wal-{first:020d}.log"


def list_segments(names: Sequence[str]) -> list[Segment]:
    """The segments among file names, oldest first."""
    found = [Segment(name, int(match[1])) for name in names if (match := _NAME.fullmatch(name))]
    return sorted(found, key=lambda segment: segment.first)


def encode_payload(batches: Sequence[bytes]) -> bytes:
    """One MessagePack array of batches that are encoded already."""
    return b"".join([b"\xdd", len(batches).to_bytes(4, "big"), *batches])


def encode_segment_header(header: frame.Header) -> bytes:
    """The first bytes of a segment."""
    return frame.encode_header(MAGIC, header)


def decode_segment_header(data: bytes) -> frame.Header:
    """Read the first bytes of a segment. Raises frame.BadHeader."""
    return frame.decode_header(MAGIC, data)


class Wal:
    """The segment that is being written. Used by one thread at a time.

    After an OSError that is not `NoSpace` the object, and the process, must not be used for writing again: what is on
    the disk is not known (DESIGN rule 6).
    """

    def __init__(self, disk: Disk, next_sequence: int, segment_bytes: int) -> None:
        self._disk = disk
        self._segment_bytes = segment_bytes
        self._next = next_sequence
        self._marker = b""
        self._file = self._open_segment()
        self.sealed = Sealed(0, next_sequence - 1)

    @property
    def last_sequence(self) -> int:
        """The sequence of the last frame that was appended."""
        return self._next - 1

    def append(self, batches: Sequence[bytes]) -> None:
        """Write one group as one frame. It is durable only after `sync`.

        Raises NoSpace when there is no room, and then the log is as before; OSError when nothing is known any more.
        """
        if self._file.size >= self._segment_bytes:
            self._seal()
        payload = encode_payload(batches)
        whole = frame.encode_frame_header(self._marker, self._next, payload) + payload
        start = self._file.size
        try:
            self._file.append(whole, self._zeros_ahead_bytes(len(whole)))
        except OSError as error:
            if not is_no_space(error):
                raise
            self._file.truncate(start)
            raise NoSpace(*error.args) from error
        self._next += 1

    def _zeros_ahead_bytes(self, frame_bytes: int) -> int:
        if frame_bytes > _LARGE_FRAME_BYTES:
            return 0
        return max(0, min(self._segment_bytes - self._file.size - frame_bytes, _ZEROS_AHEAD_BYTES))

    def sync(self) -> None:
        """Wait until all that was appended is on the disk. After an OSError the process has to end."""
        self._file.sync()

    def close(self) -> None:
        """Let go of the segment."""
        self._file.close()

    def _seal(self) -> None:
        """Go on in a fresh segment. What was appended before is synced already."""
        sealed = self._file
        self._file = self._open_segment()
        self.sealed = Sealed(self.sealed.bytes + sealed.size, self.last_sequence)
        sealed.close()

    def _open_segment(self) -> DiskFile:
        name = segment_name(self._next)
        marker = frame.new_marker()
        file = publish(self._disk, name, [encode_segment_header(frame.Header(marker, self._next))])
        self._marker = marker
        return file
