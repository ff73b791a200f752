"""Frames: bytes are stored so that a reader can distinguish what is whole, torn, or damaged.

A file is one header and then frames. Both kinds of file, log segments and snapshots, are made of them; this module does
not know which it is looking at, nor what a frame holds. `logd/FORMAT.md` has the same in words, with an example.

    header   magic 8 | version u32 | marker 4 | sequence u64 | reserved u32 = 0 | crc u32          32 bytes
    frame    marker 4 | length u32 | crc u32 | sequence u64                                        20 bytes
             payload, `length` bytes

All integers are little-endian. The header's crc covers the bytes before it; a frame's covers marker, length,
sequence and payload, so a frame of another file, or from an earlier use of the space, is never mistaken for
one of this file. Sequences rise by one from frame to frame.

The marker is random for each file. It lets a reader find the next frame after a bad one in one pass: a client who
puts bytes of a log into a value cannot know the marker, so values neither look like frames nor slow the search down
(the idea of the salt in SQLite's write-ahead log).
"""

import enum
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Final, NamedTuple

_HEADER: Final = struct.Struct("<8sI4sQI")
_FRAME: Final = struct.Struct("<4sIIQ")
_SEALED: Final = struct.Struct("<4sIQ")  # what a frame's checksum covers beside the payload
_CRC: Final = struct.Struct("<I")

VERSION: Final = 2
_VERSIONS_READ: Final = (1, 2)
_READABLE: Final = " and ".join(map(str, _VERSIONS_READ))
HEADER_BYTES: Final = _HEADER.size + _CRC.size
FRAME_HEADER_BYTES: Final = _FRAME.size
_HEADER_ROOM: Final = bytes(FRAME_HEADER_BYTES)
_MARKER_BYTES: Final = 4
_MARKER_AT: Final = 12  # in the header

PAYLOAD_BYTES_MAX: Final = 1 << 30
"""The largest payload.

The length field could hold four times as much; a damaged one must not make a reader allocate that memory.
"""


class BadHeader(Exception):
    """The file does not begin with a header of the wanted kind; the message says in what way."""


class OtherVersion(BadHeader):
    """The header is whole, and says that another version of this program wrote the file. Nothing is damaged."""


class End(enum.Enum):
    """How the frames of a file end."""

    CLEAN = "clean"
    """With the last byte of the last frame, or with unused space after it: zeros up to the end of the file."""
    TORN = "torn"
    """In a write that was cut short: nothing that follows is a frame."""
    CORRUPT = "corrupt"
    """In damage: whole frames follow that were written after the bad one was."""


class Header(NamedTuple):
    """`sequence` is that of the first frame in a segment, and the last one covered in a snapshot."""

    marker: bytes
    sequence: int


class Frame(NamedTuple):
    """`payload` is a view into the buffer that was read."""

    offset: int
    sequence: int
    payload: memoryview


def new_marker() -> bytes:
    """A marker for a new file: random, and without the zero bytes that empty space is full of."""
    return bytes(byte or 0xA5 for byte in os.urandom(_MARKER_BYTES))


def encode_header(magic: bytes, header: Header) -> bytes:
    """The 32 bytes that a file begins with."""
    packed = _HEADER.pack(magic, VERSION, header.marker, header.sequence, 0)
    return packed + _CRC.pack(zlib.crc32(packed))


def decode_header(magic: bytes, data: bytes | memoryview) -> Header:
    """Read the first 32 bytes of a file. Raises BadHeader, of which OtherVersion is one."""
    if len(data) < HEADER_BYTES:
        raise BadHeader(f"its header is cut short at {len(data)} of {HEADER_BYTES} bytes")
    found, version, marker, sequence, _ = _HEADER.unpack_from(data)
    if found != magic:
        raise BadHeader("it is not a file of this kind")
    if _CRC.unpack_from(data, _HEADER.size)[0] != zlib.crc32(data[: _HEADER.size]):
        raise BadHeader("its header is damaged")
    if version not in _VERSIONS_READ:
        raise OtherVersion(f"it has format version {version}, and this program reads versions {_READABLE}")
    return Header(marker, sequence)


def likely_markers(data: bytes) -> list[bytes]:
    """What may be the marker of a file whose header is damaged, or of a part of a file that begins with a frame."""
    return [data[at : at + _MARKER_BYTES] for at in (_MARKER_AT, 0, HEADER_BYTES)]


def encode_frame(marker: bytes, sequence: int, parts: Sequence[bytes]) -> bytearray:
    """A frame whose payload is these parts. They are copied once."""
    encoded = bytearray().join([_HEADER_ROOM, *parts])
    payload = memoryview(encoded)[FRAME_HEADER_BYTES:]
    crc = _crc(marker, sequence, payload)
    _FRAME.pack_into(encoded, 0, marker, len(payload), crc, sequence)
    return encoded


def _crc(marker: bytes, sequence: int, payload: bytes | memoryview) -> int:
    return zlib.crc32(payload, zlib.crc32(_SEALED.pack(marker, len(payload), sequence)))


def frame_at(data: memoryview, offset: int, marker: bytes) -> Frame | None:
    """The whole frame at an offset, of whatever sequence; None when there is none."""
    if len(data) - offset < FRAME_HEADER_BYTES:
        return None
    found, length, crc, sequence = _FRAME.unpack_from(data, offset)
    start = offset + FRAME_HEADER_BYTES
    if found != marker or length > len(data) - start:
        return None
    payload = data[start : start + length]
    if crc != _crc(marker, sequence, payload):
        return None
    return Frame(offset, sequence, payload)


def find_frames(data: bytes, offset: int, marker: bytes) -> Iterator[Frame]:
    """Whole frames at or after an offset, of whatever sequence. Trusts no length: every marker is tried."""
    view = memoryview(data)
    found = data.find(marker, offset)
    while found >= 0:
        each = frame_at(view, found, marker)
        if each:
            yield each
        found = data.find(marker, found + (FRAME_HEADER_BYTES + len(each.payload) if each else 1))


def read_frame(file: BinaryIO, marker: bytes, sequence: int) -> bytes | None:
    """The payload of the next frame of a file, if it is whole and has this sequence."""
    head = file.read(FRAME_HEADER_BYTES)
    if len(head) < FRAME_HEADER_BYTES:
        return None
    found, length, crc, found_sequence = _FRAME.unpack(head)
    if length > PAYLOAD_BYTES_MAX:
        return None
    payload = file.read(length)
    if (found, found_sequence, crc, len(payload)) != (marker, sequence, _crc(marker, sequence, payload), length):
        return None
    return payload


class FrameReader:
    """Iterates over the whole frames of a file, and then knows how they ended, and where.

    `data` is the file from its first byte. After the iteration `end` says how it ended, `offset` is where the last
    whole frame ends, `rest_bytes` how much follows it, without zeros up to the end of the file, `sequence` the last one
    read, and `follows` the first whole frame after the damage, if any.
    """

    def __init__(self, data: bytes, header: Header, first_sequence: int) -> None:
        self._data = memoryview(data)
        self._raw = data
        self._marker = header.marker
        self.sequence = first_sequence - 1
        self.offset = HEADER_BYTES
        self.rest_bytes = 0
        self.end = End.CLEAN
        self.follows: Frame | None = None

    def __iter__(self) -> Iterator[Frame]:
        while frame := frame_at(self._data, self.offset, self._marker):
            if frame.sequence != self.sequence + 1:
                break
            self.sequence += 1
            self.offset += FRAME_HEADER_BYTES + len(frame.payload)
            yield frame
        self._judge()

    def _judge(self) -> None:
        self.rest_bytes = len(self._raw[self.offset :].rstrip(b"\0"))
        if not self.rest_bytes:
            return
        later = find_frames(self._raw, self.offset, self._marker)
        self.follows = next((found for found in later if found.sequence > self.sequence), None)
        self.end = End.CORRUPT if self.follows else End.TORN
