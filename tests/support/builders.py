"""What several specifications build: batches, segments, whole directories; and a disk that is watched and made to fail.

Knows the formats and the disk of the log; knows no server and no HTTP.

The history is the same everywhere: frame 1 opens session A, and frame n holds its batch n - 1. `group(n)` is that
frame, `state(n)` the store after it, and `lay_out` writes parts of this history into a directory.
"""

import contextlib
import errno
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from logd.local import frame, snapshot, wal
from logd.local.disk import DiskFile, LocalDisk
from logd.local.group import decode as decode_group
from logd.local.store import Store
from logd.shared import protocol
from logd.shared.protocol import Histogram, Stats, Transaction, WriteBatch
from tests.support.harness import await_true

A, B, C = b"a" * 16, b"b" * 16, b"c" * 16
MARKER, OTHER_MARKER = b"\xa1\xb2\xc3\xd4", b"\x11\x22\x33\x44"


def batch(
    session: bytes = A,
    number: int = 0,
    *,
    base: int = 0,
    clear: bool = False,
    puts: dict[str, bytes] | None = None,
    deletes: Iterable[str] = (),
    transactions: Iterable[Transaction] = (),
) -> WriteBatch:
    """A batch of writes; without arguments, the one that opens session A."""
    return WriteBatch(session, number, base, clear, puts or {}, list(deletes), list(transactions))


def encode_payload(raws: Iterable[bytes]) -> bytes:
    """The payload of a frame with these batches, encoded already."""
    return b"".join(wal.payload_parts(list(raws)))


def payload_of(*batches: WriteBatch) -> bytes:
    """What a frame of these batches holds."""
    return encode_payload([protocol.encode(each) for each in batches])


def group(sequence: int) -> WriteBatch:
    """What frame `sequence` of the history holds: it puts, replaces and deletes; the fourth clears."""
    puts = {f"k{sequence}": b"v%d" % sequence, "last": b"%d" % sequence}
    return batch(A, sequence - 1, base=sequence - 1, clear=sequence == 4, puts=puts, deletes=[f"k{sequence - 2}"])


def state(sequence: int) -> Store:
    """The store after frame `sequence` of the history."""
    store = Store()
    for each in range(1, sequence + 1):
        assert store.apply(group(each))
    return store


def same(one: Store, other: Store) -> bool:
    """True for stores that are equal in keys, values, their size, outcomes, and the order of their sessions."""
    sessions = [list(store.sessions.items()) for store in (one, other)]
    states = [(store.data, store.data_bytes, store.outcomes) for store in (one, other)]
    return states[0] == states[1] and sessions[0] == sessions[1]


GARBAGE = {
    "nothing": b"",
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "no array": bytes.fromhex("01"),
    "no tag": bytes.fromhex("90"),
    "an unknown tag": bytes.fromhex("92 63 01"),
    "a bool for a number": bytes.fromhex("92 03 c3"),
    "a length beyond the end": bytes.fromhex("93 02 01 dd ffffffff"),
    "text for bytes": bytes.fromhex("97 01 a161 00 00 c2 80 90"),
    "bytes for text": bytes.fromhex("93 02 01 91 c40161"),
    "a key to get that is not UTF-8": bytes.fromhex("93 02 01 91 a1ff"),
    "a key to put that is not UTF-8": bytes.fromhex(f"97 01 c410{A.hex()} 00 00 c2 81 a1ff c400 90"),
    "a reason that is not UTF-8": bytes.fromhex("93 10 01 a1ff"),
    "a nest without end": bytes.fromhex("94 02 01 90") + b"\x91" * 100_000 + b"\x01",
}
"""Bytes that are no message, by what is wrong with them."""


def stats(number: int) -> Stats:
    """Statistics as logd may report them."""
    return Stats(
        number=number,
        unavailable_reason="",
        keys=2,
        data_bytes=300,
        sessions=3,
        groups=4,
        batches=5,
        refused={"gap": 6},
        writes_not_made={"data_limit": 19},
        group_writes=Histogram([1.0], [7, 8], 0.5),
        sync_seconds=Histogram([], [9], 0.0),
        appended_bytes=10,
        log_bytes=11,
        segments=12,
        free_bytes=13,
        snapshot_bytes=14,
        checkpoint_due_bytes=15,
        checkpoints={"done": 16},
        checkpoint_seconds=1.0,
        checkpoint_at=2.0,
        finding="NEW",
        recovery_seconds=0.0,
        dropped_bytes=17,
        cpu_seconds=0.5,
        resident_bytes=18,
        pages=20,
        unsorted_keys=21,
    )


# Files ---------------------------------------------------------------------------------------------------


def framed(payload: bytes, sequence: int, marker: bytes = MARKER) -> bytes:
    """One frame."""
    return bytes(frame.encode_frame(marker, sequence, [payload]))


def segment(payloads: Iterable[bytes], first: int = 1, marker: bytes = MARKER) -> bytes:
    """A whole segment file."""
    frames = (framed(payload, sequence, marker) for sequence, payload in enumerate(payloads, first))
    return b"".join([wal.encode_segment_header(frame.Header(marker, first)), *frames])


def lay_out(directory: Path, layout: str) -> LocalDisk:
    """Write files of the history. "1-5" is a segment of frames 1 to 5, "6-5" an empty one, "@5" a snapshot."""
    directory.mkdir(exist_ok=True)
    disk = LocalDisk(directory)
    for token in layout.split():
        if token.startswith("@"):
            snapshot.write(disk, state(int(token[1:])), int(token[1:]))
        else:
            first, last = map(int, token.split("-"))
            payloads = (payload_of(group(sequence)) for sequence in range(first, last + 1))
            (directory / file_name(token)).write_bytes(segment(payloads, first))
    return disk


def file_name(token: str) -> str:
    """The file that a token of a layout stands for."""
    if token.startswith("@"):
        return snapshot.snapshot_name(int(token[1:]))
    return wal.segment_name(int(token.partition("-")[0]))


def file_names(layout: str) -> set[str]:
    """The files that a layout stands for."""
    return set(map(file_name, layout.split()))


def contents(directory: Path) -> dict[str, bytes]:
    """Every file of a directory and its bytes."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def read_segment(data: bytes) -> tuple[list[frame.Frame], frame.FrameReader]:
    """All whole frames of a segment, and how they ended. Raises frame.BadHeader."""
    header = wal.decode_segment_header(data)
    reader = frame.FrameReader(data, header, header.sequence)
    return list(reader), reader


def read_log(directory: Path) -> dict[int, list[WriteBatch]]:
    """The batches of every frame in the segments of a directory; the last segment may be torn."""
    found = {}
    for name, _ in wal.list_segments(os.listdir(directory)):
        for each in read_segment((directory / name).read_bytes())[0]:
            found[each.sequence] = decode_group(each.payload).batches
    return found


def offsets(data: bytes) -> list[int]:
    """Where the frames of a file begin, and where the last one ends."""
    found, at = [frame.HEADER_BYTES], frame.HEADER_BYTES
    while at < len(data):
        at += frame.FRAME_HEADER_BYTES + int.from_bytes(data[at + 4 : at + 8], "little")
        found.append(at)
    return found


def of_other_version(data: bytes) -> bytes:
    """The file as the next version of the format might begin it."""
    header = data[:8] + (frame.VERSION + 1).to_bytes(4, "little") + data[12:28]
    return header + zlib.crc32(header).to_bytes(4, "little") + data[32:]


def flipped(data: bytes, bit: int) -> bytes:
    """The data with one bit changed."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


class PipedSegment:
    """A directory in which one segment is a named pipe, so that its reader blocks until `release`."""

    def __init__(self, directory: Path, layout: str, token: str) -> None:
        lay_out(directory, layout)
        self.directory = directory
        self.path = directory / file_name(token)
        self.data = self.path.read_bytes()
        self.path.unlink()
        os.mkfifo(self.path)
        self._writer: int | None = None

    def await_reader(self) -> None:
        """Wait until a reader has opened the segment, and so is blocked."""
        await_true(self._open, 30, "a reader of the segment")

    @contextlib.contextmanager
    def reader(self) -> Iterator[None]:
        """Wait for a reader; it stays blocked as long as the block lasts, and finds an empty segment then."""
        self.await_reader()
        try:
            yield
        finally:
            self.close()

    def _open(self) -> bool:
        try:
            self._writer = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:  # no reader yet
                raise
        return self._writer is not None

    def release(self) -> None:
        """Give the reader the bytes of the segment, and make it a file again for later readers."""
        assert self._writer is not None
        os.write(self._writer, self.data)
        self.path.unlink()
        self.path.write_bytes(self.data)
        self.close()

    def close(self) -> None:
        """End the input of the reader."""
        if self._writer is not None:
            os.close(self._writer)
            self._writer = None


# A disk --------------------------------------------------------------------------------------------------


class Call(NamedTuple):
    """A call that changes the disk."""

    operation: str
    name: str = ""


class WatchedDisk(LocalDisk):
    """A real directory that writes down every call which changes it, has only so much room, and fails on demand.

    `before` is called before each such call: it may raise, or wait. An append that does not fit writes what fits, as a
    full device does, and raises `full`.
    """

    def __init__(self, directory: Path, before: Callable[[Call], None] = lambda _: None, *, syncs: bool = True) -> None:
        super().__init__(directory)
        self.before = before
        self.calls: list[Call] = []
        self.open_files: list[str] = []
        self.room = math.inf
        self.full = errno.ENOSPC
        self.syncs = syncs  # False: for speed, in tests without crashes

    def note(self, operation: str, name: str = "") -> None:
        """Write down a call that is about to be made."""
        self.before(Call(operation, name))
        self.calls.append(Call(operation, name))

    def free_bytes(self) -> int:
        return int(min(self.room, super().free_bytes()))

    def create(self, name: str) -> "WatchedFile":
        self.note("create", name)
        return WatchedFile(self, name, super().create(name))

    def rename(self, old: str, new: str) -> None:
        self.note("rename", f"{old} {new}")
        super().rename(old, new)

    def remove(self, name: str) -> None:
        self.note("remove", name)
        super().remove(name)

    def sync_directory(self) -> None:
        self.note("sync_directory")
        if self.syncs:
            super().sync_directory()


class WatchedFile:
    """A file of a WatchedDisk, under the name that it was made with."""

    def __init__(self, disk: WatchedDisk, name: str, file: DiskFile) -> None:
        self._disk = disk
        self._name = name
        self._file = file
        self.size = file.size
        disk.open_files.append(name)

    def append(self, data: bytes | bytearray, zeros_bytes: int = 0) -> None:
        self._disk.note("append", self._name)
        fits = int(min(len(data), self._disk.room))
        self._disk.room -= fits
        self._file.append(data[:fits], int(min(zeros_bytes, self._disk.room)))
        self.size = self._file.size
        if fits < len(data):
            raise OSError(self._disk.full, os.strerror(self._disk.full))

    def truncate(self, size: int) -> None:
        self._disk.note("truncate", self._name)
        self._disk.room += self.size - size
        self._file.truncate(size)
        self.size = self._file.size

    def allocate(self, size: int) -> None:
        self._disk.note("allocate", self._name)
        self._file.allocate(size)
        self.size = self._file.size

    def sync(self) -> None:
        self._disk.note("sync", self._name)
        if self._disk.syncs:
            self._file.sync()

    def close(self) -> None:
        self._disk.open_files.remove(self._name)
        self._file.close()


def failing(at: Call | str, error: int | BaseException = errno.EIO) -> Callable[[Call], None]:
    """A `before` that raises at one call, or at one kind of call."""

    def before(call: Call) -> None:
        if at in (call, call.operation):
            raise error if isinstance(error, BaseException) else OSError(error, os.strerror(error))

    return before


def once(before: Callable[[Call], None]) -> Callable[[Call], None]:
    """A `before` that raises at the first call at which the given one does, and never again."""
    is_over = False

    def before_once(call: Call) -> None:
        nonlocal is_over
        if not is_over:
            try:
                before(call)
            except BaseException:
                is_over = True
                raise

    return before_once


class Crash(BaseException):
    """The process ends here: no handler of errors may catch it and clean up."""


def crash_at(count: int) -> Callable[[Call], None]:
    """A `before` that raises Crash at the call with this index, and at every call after it."""
    left = [count]

    def before(_: Call) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Crash

    return before


def operations(calls: Sequence[Call]) -> list[str]:
    """Calls in words, to compare with."""
    return [f"{call.operation} {call.name}".strip() for call in calls]
