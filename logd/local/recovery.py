"""From the files of a directory to a store, or to a clear refusal.

Knows the files and what may have happened to them; no sockets. Recovery changes nothing until it has understood
everything, and it may be killed at any point and started again.

What it decides (`Finding`), and the labels that its log lines and errors carry:

| label            | condition                                                              | decision              |
|------------------|------------------------------------------------------------------------|-----------------------|
| NEW              | no snapshot, no segment                                                | begin empty           |
| CLEAN            | after the last frame of the last segment is nothing, or unused space   | serve                 |
| TORN_TAIL        | the last segment ends in a cut write; no whole frame is after it       | drop the tail, say so |
| OLDER_SNAPSHOT   | the newest snapshot is bad; the log continues an older one, or has all | use that, say so      |
| BAD_SNAPSHOT     | a snapshot is bad and nothing can stand in for it                      | refuse                |
| MISSING_SEGMENT  | frames after the snapshot, or between two segments, are in no segment  | refuse                |
| BAD_SEGMENT      | the header of a segment cannot be read                                 | refuse                |
| OTHER_VERSION    | another version of this program wrote a file                           | refuse                |
| DAMAGED_FRAME    | a bad frame with whole ones, or a later segment, after it              | refuse                |
| UNREADABLE_FRAME | a frame is whole, and its payload is not what this program writes      | refuse                |
"""

import enum
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from logd.local import frame, group, snapshot, wal
from logd.local.disk import Disk
from logd.local.publish import no_space_by_name, publish, remove_temporaries
from logd.local.store import Store
from logd.shared.protocol import DECODE_ERRORS

log = logging.getLogger("logd.local.recovery")


class Finding(enum.Enum):
    """What recovery found, and what it does then; a row each of the table above."""

    NEW = "begin empty"
    CLEAN = "serve"
    TORN_TAIL = "drop the tail, serve"
    OLDER_SNAPSHOT = "use what is older, serve"
    BAD_SNAPSHOT = "refuse: a snapshot is bad and nothing can stand in for it"
    MISSING_SEGMENT = "refuse: frames are in no segment"
    BAD_SEGMENT = "refuse: the header of a segment cannot be read"
    OTHER_VERSION = "refuse: another version of this program wrote a file, and can read it"
    DAMAGED_FRAME = "refuse: whole frames follow a bad one"
    UNREADABLE_FRAME = "refuse: a whole frame does not hold what this program writes"

    @property
    def refuses(self) -> bool:
        """True when nothing may be served."""
        return self not in _SERVED


_SERVED: Final = frozenset({Finding.NEW, Finding.CLEAN, Finding.TORN_TAIL, Finding.OLDER_SNAPSHOT})

ENDINGS: Final[Mapping[tuple[frame.End, bool], Finding]] = {
    (frame.End.CLEAN, True): Finding.CLEAN,
    (frame.End.CLEAN, False): Finding.CLEAN,
    (frame.End.TORN, True): Finding.TORN_TAIL,
    (frame.End.TORN, False): Finding.DAMAGED_FRAME,
    (frame.End.CORRUPT, True): Finding.DAMAGED_FRAME,
    (frame.End.CORRUPT, False): Finding.DAMAGED_FRAME,
}
"""What it means how a segment ends. The second part of the key: is it the last segment? Only that one may be torn."""


class Damaged(Exception):
    """Acknowledged data would be lost by going on. Nothing was changed."""

    def __init__(self, finding: Finding, name: str, offset: int, detail: str) -> None:
        super().__init__(f"[{finding.name}] {name} at offset {offset}: {detail}")
        assert finding.refuses
        self.finding = finding
        self.name = name
        self.offset = offset


class Tail(NamedTuple):
    """The last segment: the bytes of it that are whole frames, and how many bytes follow them."""

    segment: wal.Segment
    whole: bytes
    dropped_bytes: int


class Summary(NamedTuple):
    """What is to be remembered of a recovery after the state is served."""

    finding: Finding
    seconds: float
    dropped_bytes: int


class Recovered(NamedTuple):
    """The state after the frame `sequence`, and what it was read from."""

    store: Store
    sequence: int
    finding: Finding
    snapshot: str | None
    bad_snapshots: list[str]
    segments: list[str]
    tail: Tail | None
    """None when only sealed segments were read."""
    log_bytes: int
    """Bytes in the segments that hold what the snapshot does not."""
    snapshot_bytes: int
    seconds: float

    def summary(self) -> Summary:
        """The facts, without the state and without the bytes of the tail."""
        return Summary(self.finding, self.seconds, self.tail.dropped_bytes if self.tail else 0)


def load(disk: Disk) -> Recovered:
    """Read the newest whole snapshot and all of the log after it. Writes nothing.

    Raises Damaged, or OSError when a file cannot be read.
    """
    names = disk.names()
    segments = wal.list_segments(names)
    recovered = _load(disk, names, segments, is_whole_log=True)
    if not recovered.segments and (segments or recovered.snapshot):
        raise _missing_after(recovered.sequence)
    return recovered


def load_sealed(disk: Disk, upto: int) -> Recovered:
    """Read the newest whole snapshot and the segments after it that were sealed up to a sequence. Writes nothing.

    `upto` is the last sequence of a sealed segment; none of these segments may be torn. Raises as `load` does.
    """
    names = disk.names()
    segments = [segment for segment in wal.list_segments(names) if segment.first <= upto]
    recovered = _load(disk, names, segments, is_whole_log=False)
    if recovered.sequence < upto:
        raise _missing_after(recovered.sequence)
    if recovered.sequence > upto:
        detail = f"the sealed log does not end at frame {upto}"
        raise Damaged(Finding.MISSING_SEGMENT, wal.segment_name(upto + 1), 0, detail)
    return recovered


def _load(disk: Disk, names: Sequence[str], segments: list[wal.Segment], *, is_whole_log: bool) -> Recovered:
    """Read the newest snapshot that these segments continue, and them. Only the end of the whole log may be torn."""
    began = time.monotonic()
    base = _load_base(disk, names, segments)
    replay = _Replay(disk, base)
    for segment in _continue(segments, base.sequence):
        replay.segment(segment, is_last=is_whole_log and segment is segments[-1])
    _check_newest_snapshot(names, replay.sequence)
    return replay.recovered(began)


class _Base(NamedTuple):
    """What replay begins with: a snapshot, or nothing. `bad` are the newer snapshots that it stands in for."""

    store: Store
    sequence: int
    name: str | None
    bad: list[str]


def _load_base(disk: Disk, names: Sequence[str], segments: list[wal.Segment]) -> _Base:
    """The newest state that the log continues, from a snapshot, or empty when the log reaches back to its beginning.

    Raises Damaged when a snapshot is bad and nothing can stand in for it.
    """
    bad: list[str] = []
    failure: Damaged | None = None
    for candidate in reversed(snapshot.list_snapshots(names)):
        if bad and not _continue(segments, candidate.sequence):
            continue
        try:
            store, sequence = snapshot.read(disk, candidate.name)
            return _Base(store, sequence, candidate.name, bad)
        except frame.OtherVersion as error:  # older ones would do, but nothing is wrong with this one
            raise Damaged(Finding.OTHER_VERSION, candidate.name, 0, str(error)) from error
        except snapshot.BadSnapshot as error:
            log.warning("[%s] %s: %s", Finding.BAD_SNAPSHOT.name, candidate.name, error)
            failure = failure or Damaged(Finding.BAD_SNAPSHOT, candidate.name, 0, str(error))
            bad.append(candidate.name)
    if failure and not _continue(segments, 0):
        raise failure
    return _Base(Store(), 0, None, bad)


def _continue(segments: list[wal.Segment], sequence: int) -> list[wal.Segment]:
    """The segments that hold the frames after a sequence; none when the first of those is missing.

    A snapshot ends where a segment was sealed, and the next one had begun then, so one begins right after it.
    """
    later = [segment for segment in segments if segment.first > sequence]
    return later if later and later[0].first == sequence + 1 else []


def _missing_after(sequence: int) -> Damaged:
    detail = f"frame {sequence + 1} and what came after it are in no segment"
    return Damaged(Finding.MISSING_SEGMENT, wal.segment_name(sequence + 1), 0, detail)


def _check_newest_snapshot(names: Sequence[str], sequence: int) -> None:
    """Raise Damaged when the newest snapshot knows more than what was replayed in its place."""
    for newest in snapshot.list_snapshots(names)[-1:]:
        if sequence < newest.sequence:
            detail = f"it is bad, and the log that could stand in for it ends at frame {sequence}"
            raise Damaged(Finding.BAD_SNAPSHOT, newest.name, 0, detail)


class _Replay:
    """Applies segments in order, and refuses where anything is missing between them."""

    def __init__(self, disk: Disk, base: _Base) -> None:
        self._disk = disk
        self._base = base
        self._segments: list[str] = []
        self._log_bytes = 0
        self._tail: Tail | None = None
        self.sequence = base.sequence

    def segment(self, segment: wal.Segment, *, is_last: bool) -> None:
        """Apply the frames of one segment. Only the last one may be torn. Raises Damaged."""
        with self._disk.open(segment.name) as file:
            data = file.read()
        if self._segments and segment.first != self.sequence + 1:
            detail = f"it begins at frame {segment.first}, and the one before ends at {self.sequence}"
            raise Damaged(Finding.MISSING_SEGMENT, segment.name, 0, detail)
        frames = frame.FrameReader(data, read_header(segment, data), segment.first)
        for each in frames:
            self._apply(segment, each)
        if ENDINGS[frames.end, is_last].refuses:
            raise _damaged_frame(segment, frames, len(data))
        self.sequence = frames.sequence
        self._segments.append(segment.name)
        self._log_bytes += frames.offset
        if is_last:
            self._tail = Tail(segment, data[: frames.offset], frames.rest_bytes)

    def recovered(self, began: float) -> Recovered:
        """All that was found, by a recovery that began at this monotonic time."""
        base = self._base
        return Recovered(
            store=base.store,
            sequence=self.sequence,
            finding=self._finding(),
            snapshot=base.name,
            bad_snapshots=base.bad,
            segments=self._segments,
            tail=self._tail,
            log_bytes=self._log_bytes,
            snapshot_bytes=self._disk.size(base.name) if base.name else 0,
            seconds=time.monotonic() - began,
        )

    def _finding(self) -> Finding:
        if self._tail and self._tail.dropped_bytes:
            return Finding.TORN_TAIL
        if self._base.bad:
            return Finding.OLDER_SNAPSHOT
        return Finding.CLEAN if self._base.name or self._segments else Finding.NEW

    def _apply(self, segment: wal.Segment, each: frame.Frame) -> None:
        try:
            batches, data_bytes_max = group.decode(each.payload)
        except DECODE_ERRORS as error:
            detail = f"frame {each.sequence}: {error}"
            raise Damaged(Finding.UNREADABLE_FRAME, segment.name, each.offset, detail) from error
        for batch in batches:
            self._base.store.apply(batch, data_bytes_max)


def read_header(segment: wal.Segment, data: bytes) -> frame.Header:
    """The header of a segment. Raises Damaged."""
    try:
        header = wal.decode_segment_header(data)
    except frame.OtherVersion as error:
        raise Damaged(Finding.OTHER_VERSION, segment.name, 0, str(error)) from error
    except frame.BadHeader as error:
        raise Damaged(Finding.BAD_SEGMENT, segment.name, 0, str(error)) from error
    if header.sequence != segment.first:
        detail = f"its header says that it begins at frame {header.sequence}"
        raise Damaged(Finding.BAD_SEGMENT, segment.name, 0, detail)
    return header


def _damaged_frame(segment: wal.Segment, frames: frame.FrameReader, size: int) -> Damaged:
    follows = "a later segment"
    if frames.follows:
        follows = f"whole frame {frames.follows.sequence} at offset {frames.follows.offset}"
    detail = f"frame {frames.sequence + 1} is bad, and what follows it in a file of {size} bytes is {follows}"
    return Damaged(Finding.DAMAGED_FRAME, segment.name, frames.offset, detail)


def make_durable(disk: Disk, recovered: Recovered) -> None:
    """Write and sync anew what recovery is about to serve, and clear what a crash left.

    A record that can be read back may still be in the page cache only: a sync that failed marks its pages clean
    (Rebello et al., ATC '20). Sealed segments and snapshots had their syncs return; the last segment may not have.
    May be done again. Raises publish.NoSpace or another OSError.
    """
    with no_space_by_name():
        remove_temporaries(disk)
        set_aside_bad_snapshots(disk, recovered)
    if recovered.tail:
        publish(disk, recovered.tail.segment.name, [recovered.tail.whole]).close()


def set_aside_bad_snapshots(disk: Disk, recovered: Recovered) -> None:
    """Rename the snapshots that something older stood in for, so that they do not count as one to fall back to."""
    for name in recovered.bad_snapshots:
        if name in disk.names():
            disk.rename(name, f"{name}.damaged")
    disk.sync_directory()
