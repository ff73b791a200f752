"""The write-ahead log: segments of frames, appended to, sealed, and read back.

One frame holds one group: the write batches that were synced together, exactly as the workers encoded them. This module
owns segment files and their names; it does not know what a batch means, nor when a segment may be removed.

Rules. A frame is written at once and the next one only after the sync of the last, so a whole frame after a bad one is
damage and never a torn write. A segment gets its name only when its header is durable. A file that another process
wrote, or whose sync failed, is never appended to.
"""

import contextlib
import errno
import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from logd.local import frame
from logd.local.disk import Call, Disk, DiskFile, Meaning, is_no_space, meaning
from logd.local.publish import NoSpace, publish
from logd.shared.protocol import MESSAGE_BYTES_CEILING

MAGIC: Final = b"KVLOGSEG"

_NAME: Final = re.compile(r"wal-(\d{20})\.log")
_ARRAY_HEADER_BYTES: Final = 5
_LARGE_FRAME_BYTES: Final = 128 << 10
_ZEROS_AHEAD_BYTES: Final = 1 << 20
"""A segment grows by this many zeros at a time, which frames then overwrite: a sync that need not record that the file
has grown takes about half as long. A large frame brings no zeros: its own bytes cost enough. For a reader, zeros up to
the end of the file are unused space."""

assert MESSAGE_BYTES_CEILING + _ARRAY_HEADER_BYTES <= frame.PAYLOAD_BYTES_MAX


class Segment(NamedTuple):
    """A segment file: frames from sequence `first` on."""

    name: str
    first: int


class Sealed(NamedTuple):
    """What one `Wal` has sealed so far: how many bytes, and up to which sequence.

    One value, because another thread reads it.
    """

    bytes: int
    sequence: int


class InDoubt(OSError):
    """There was no room, and what is in the segment after the last sync is not known. `Wal.rewrite` mends that."""


def segment_name(first: int) -> str:
    """The file name of the segment that begins with this sequence."""
    return f"wal-{first:020d}.log"


def list_segments(names: Sequence[str]) -> list[Segment]:
    """The segments among file names, oldest first."""
    found = [Segment(name, int(match[1])) for name in names if (match := _NAME.fullmatch(name))]
    return sorted(found, key=lambda segment: segment.first)


def payload_parts(elements: Sequence[bytes]) -> list[bytes]:
    """One MessagePack array of what is encoded already: its header, and the elements."""
    return [b"\xdd" + len(elements).to_bytes(4, "big"), *elements]


def encode_segment_header(header: frame.Header) -> bytes:
    """The first bytes of a segment."""
    return frame.encode_header(MAGIC, header)


def decode_segment_header(data: bytes) -> frame.Header:
    """Read the first bytes of a segment. Raises frame.BadHeader."""
    return frame.decode_header(MAGIC, data)


class Wal:
    """The segment that is being written. Used by one thread at a time.

    After `InDoubt` only `rewrite` is allowed. After an OSError that is neither that nor `NoSpace` the object, and the
    process, must not be used for writing again: what is on the disk is not known.
    """

    def __init__(self, disk: Disk, next_sequence: int, segment_bytes: int) -> None:
        self._disk = disk
        self._segment_bytes = segment_bytes
        self._next = next_sequence
        self._marker = b""
        self._segment: Segment
        self._durable_bytes: int
        """How much of the segment was synced."""
        self._must_seal = False
        """The next segment has its name already, perhaps for good: the next frame must not be in this one."""
        self._file = self._open_segment()
        self.sealed = Sealed(0, next_sequence - 1)

    @property
    def last_sequence(self) -> int:
        """The sequence of the last frame that was appended."""
        return self._next - 1

    @property
    def is_full(self) -> bool:
        """True when the next frame begins a segment, which takes several syncs."""
        return self._must_seal or self._file.size >= self._segment_bytes

    def append(self, elements: Sequence[bytes]) -> int:
        """Write one group as one frame, and return the size of the frame in bytes. It is durable only after `sync`.

        The elements of the group are encoded as logd/local/group.py does it.
        Raises NoSpace or MemoryError, and then the log is as before; InDoubt; another OSError when nothing is known any
        more.
        """
        if self.is_full:
            self.seal()
        encoded = frame.encode_frame(self._marker, self._next, payload_parts(elements))
        start = self._file.size
        try:
            self._file.append(encoded, self._zeros_ahead_bytes(len(encoded)))
        except MemoryError:
            self._cut_back(start)
            raise
        except OSError as error:
            if not is_no_space(error):
                raise
            self._cut_back(start)
            raise NoSpace(*error.args) from error
        self._next += 1
        return len(encoded)

    def _cut_back(self, size: int) -> None:
        with _doubts(Call.TRUNCATE):
            self._file.truncate(size)

    def _zeros_ahead_bytes(self, frame_bytes: int) -> int:
        if frame_bytes > _LARGE_FRAME_BYTES:
            return 0
        return max(0, min(self._segment_bytes - self._file.size - frame_bytes, _ZEROS_AHEAD_BYTES))

    def sync(self) -> None:
        """Wait until all that was appended is on the disk.

        Raises InDoubt; after another OSError the process has to end.
        """
        with _doubts(Call.SYNC):
            self._file.sync()
        self._durable_bytes = self._file.size

    def rewrite(self) -> None:
        """Write the segment anew, with all that was synced and nothing else, and go on in the new file.

        A failed sync says nothing of what is on the disk: neither that the group is there, nor that it is not. A later
        sync of that file would say nothing either (Rebello et al., ATC '20). So it is replaced, as at a start
        (logd/local/recovery.py).

        Raises NoSpace, and then it may be tried again, or another OSError.
        """
        with self._disk.open(self._segment.name) as old:
            synced = old.read(self._durable_bytes)
        frames = frame.FrameReader(synced, decode_segment_header(synced), self._segment.first)
        for _ in frames:
            pass
        if frames.offset != self._durable_bytes:
            raise OSError(errno.EIO, "what was synced cannot be read back", self._segment.name)
        file = publish(self._disk, self._segment.name, [synced])
        self._file.close()
        self._file = file
        self._next = frames.sequence + 1

    def close(self) -> None:
        """Close the segment. Does not sync."""
        self._file.close()

    def seal(self) -> None:
        """Go on in a fresh segment, unless this one is. What was appended before is synced already. Raises NoSpace."""
        if self._segment.first == self._next:
            return
        sealed = self._file
        try:
            self._file = self._open_segment()
        except NoSpace:  # only the sync of its name may have failed
            self._must_seal = segment_name(self._next) in self._disk.names()
            raise
        self._must_seal = False
        self.sealed = Sealed(self.sealed.bytes + sealed.size, self.last_sequence)
        sealed.close()

    def _open_segment(self) -> DiskFile:
        marker = frame.new_marker()
        header = encode_segment_header(frame.Header(marker, self._next))
        segment = Segment(segment_name(self._next), self._next)
        file = publish(self._disk, segment.name, [header])
        self._marker, self._segment, self._durable_bytes = marker, segment, file.size
        return file


@contextlib.contextmanager
def _doubts(call: Call) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if meaning(call, error) is Meaning.IN_DOUBT:
            raise InDoubt(*error.args) from error
        raise
