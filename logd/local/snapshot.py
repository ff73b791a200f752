"""The snapshot file: the whole state as of one sequence, written durably and read back verified.

Owns the file's content and name; does not know the log, nor when a snapshot is due.

The file is a header and frames (logd/local/frame.py), numbered from 1: first the sessions, then chunks of entries,
last a footer with the counts. Without its footer a snapshot is not whole. A chunk holds many entries in one
MessagePack map, so that loading runs at the speed of the decoder.
"""

import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Final, NamedTuple

import msgspec

from logd.local import frame
from logd.local.disk import Disk
from logd.local.publish import publish
from logd.local.sorted_keys import SortedKeys
from logd.local.store import Store
from logd.shared.protocol import DECODE_ERRORS, Outcomes

MAGIC: Final = b"KVLOGSNP"
_NAME: Final = re.compile(r"snapshot-(\d{20})\.snap")
CHUNK_BYTES: Final = 1 << 18  # encoded and synced at once, in a process that must not work long without a rest


class BadSnapshot(Exception):
    """The file is not a whole snapshot; the message says where and in what way."""


class Sessions(msgspec.Struct, tag=1, array_like=True, frozen=True):
    """The last batch number of each session, least recently used first, and outcomes that its worker may not have."""

    numbers: list[tuple[bytes, int]]
    outcomes: dict[bytes, dict[int, Outcomes]] = {}
    """Version 1 of the format did not have them."""


class Entries(msgspec.Struct, tag=2, array_like=True, frozen=True):
    """Some of the keys, with their values."""

    data: dict[str, bytes]


class Footer(msgspec.Struct, tag=3, array_like=True, frozen=True):
    """The end, and proof that nothing is missing."""

    sequence: int
    keys: int
    sessions: int


_Chunk = Sessions | Entries | Footer
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Chunk).decode


class Snapshot(NamedTuple):
    """A snapshot file: the state after the frame `sequence`."""

    name: str
    sequence: int


def snapshot_name(sequence: int) -> str:
    """The file name of the snapshot as of this sequence."""
    return f"snapshot-{sequence:020d}.snap"


def list_snapshots(names: Sequence[str]) -> list[Snapshot]:
    """The snapshots among file names, oldest first."""
    found = [Snapshot(name, int(match[1])) for name in names if (match := _NAME.fullmatch(name))]
    return sorted(found, key=lambda snapshot: snapshot.sequence)


def write(disk: Disk, store: Store, sequence: int) -> int:
    """Publish the state as the snapshot of that sequence. Returns its size in bytes.

    Raises publish.NoSpace or another OSError.
    """
    file = publish(disk, snapshot_name(sequence), _encode_file(store, sequence))
    file.close()
    return file.size


def _encode_file(store: Store, sequence: int) -> Iterator[bytes | bytearray]:
    marker = frame.new_marker()
    yield frame.encode_header(MAGIC, frame.Header(marker, sequence))
    for number, chunk in enumerate(_chunks(store, sequence), start=1):
        yield frame.encode_frame(marker, number, [_encode(chunk)])


def _chunks(store: Store, sequence: int) -> Iterator[_Chunk]:
    yield Sessions(list(store.sessions.items()), store.outcomes)
    chunk: dict[str, bytes] = {}
    chunk_bytes = count = 0
    for key in _in_order(store):
        count += 1
        chunk[key] = value = store.data[key]
        chunk_bytes += len(key) + len(value)
        if chunk_bytes >= CHUNK_BYTES:
            yield Entries(chunk)
            chunk, chunk_bytes = {}, 0
    if chunk:
        yield Entries(chunk)
    if count != len(store.data):  # what is removed for this snapshot would be gone
        raise RuntimeError(f"a snapshot would hold {count} of {len(store.data)} keys")
    yield Footer(sequence, count, len(store.sessions))


def _in_order(store: Store) -> SortedKeys:
    """The keys as the next start wants them: it can have them in order at hardly any cost."""
    while not store.sorted_keys.is_sorted:
        store.sort_some()
    return store.sorted_keys


def read(disk: Disk, name: str) -> tuple[Store, int]:
    """Load a snapshot, every byte of it verified, and its sequence.

    Raises BadSnapshot when any of it is not as it was written, frame.OtherVersion when it is whole and another version
    of this program wrote it, OSError when it cannot be read.
    """
    with disk.open(name) as file:
        try:
            header = frame.decode_header(MAGIC, file.read(frame.HEADER_BYTES))
        except frame.OtherVersion:
            raise
        except frame.BadHeader as error:
            raise BadSnapshot(str(error)) from error
        store = Store()
        footer = _read_chunks(file, header, store)
        if file.read(1):
            raise BadSnapshot(f"bytes follow its footer at offset {file.tell() - 1}")
    if footer != Footer(header.sequence, len(store.data), len(store.sessions)):
        raise BadSnapshot("its footer does not match what it holds")
    return store, header.sequence


def entries(payload: bytes | memoryview) -> dict[str, bytes]:
    """The keys and values in one frame of a snapshot; none in some frames. Raises one of DECODE_ERRORS."""
    chunk = _decode(payload)
    return chunk.data if isinstance(chunk, Entries) else {}


def _read_chunks(file: BinaryIO, header: frame.Header, store: Store) -> Footer:
    number = 0
    while True:
        number += 1
        offset = file.tell()
        payload = frame.read_frame(file, header.marker, number)
        if payload is None:
            raise BadSnapshot(f"chunk {number} at offset {offset} is damaged or cut short")
        try:
            chunk = _decode(payload)
        except DECODE_ERRORS as error:
            raise BadSnapshot(f"chunk {number} at offset {offset} cannot be decoded: {error}") from error
        if isinstance(chunk, Footer):
            return chunk
        if isinstance(chunk, Sessions):
            store.sessions.update(chunk.numbers)
            store.outcomes.update(chunk.outcomes)
        else:
            store.load(chunk.data)
