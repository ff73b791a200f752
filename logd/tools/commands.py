"""Commands for a person, on a directory: look, verify, mend, move in and out.

They use the decoders of the server itself, so what they say is what it would do. Only `repair --yes` and `import`
change anything; `repair` keeps whatever it cuts off in files of its own, and `dump --set-aside` reads those. All others
but `export` want a stopped server; `export` only reads, and knows that files may change and vanish under its feet.
"""

import contextlib
import errno
import io
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Annotated, Any, BinaryIO, Final

import msgspec
from tqdm import tqdm

from logd.local import frame, recovery, snapshot, wal
from logd.local.disk import Disk, DiskFile
from logd.local.publish import TEMPORARY_SUFFIX, publish
from logd.local.store import Store
from logd.shared.protocol import DECODE_ERRORS, KEY_PATTERN, WriteBatch, decode_write_batches

_READ_ATTEMPTS_MAX: Final = 20
_PART_BYTES: Final = 1 << 20
_SET_ASIDE: Final = re.compile(r"((?:wal|snapshot)-\d{20}\.\w+)\.damaged(?:-\d+)*")


class NoData(Exception):
    """There is no data in the directory: most likely it is another one that is meant."""


class CannotImport(Exception):
    """The input is not what `export` writes, or the directory is not empty; the message says which and where."""


@dataclass
class FileReport:
    """What one file holds. `trouble` is empty when there is nothing wrong with it."""

    name: str
    bytes: int
    first: int = 0
    """Sequence of the first frame of a segment; of the state in a snapshot."""
    last: int = 0
    frames: int = 0
    batches: int = 0
    puts: int = 0
    deletes: int = 0
    clears: int = 0
    keys: int = 0
    end: str = ""
    trouble: str = ""


@dataclass
class Report:
    """What a directory holds, and what recovery would do with it, and why."""

    files: list[FileReport] = field(default_factory=list)
    recovery: str = ""
    refuses: bool = False
    keys: int = 0
    sequence: int = 0

    def is_bad(self) -> bool:
        """True when anything is damaged, also when recovery would do without it."""
        return self.refuses or any(file.trouble for file in self.files)


def inspect(disk: Disk, *, progress: bool = False) -> Report:
    """Read every byte of every file, and ask recovery."""
    names = disk.names()
    report = Report()
    segments, snapshots = wal.list_segments(names), snapshot.list_snapshots(names)
    with tqdm(total=len(segments) + len(snapshots) + 1, unit=" files", disable=not progress) as bar:
        for found in snapshots:
            report.files.append(_inspect_snapshot(disk, found))
            bar.update()
        for segment in segments:
            report.files.append(_inspect_segment(disk, segment, is_last=segment is segments[-1]))
            bar.update()
        _ask_recovery(disk, report)
        bar.update()
    return report


def _ask_recovery(disk: Disk, report: Report) -> None:
    try:
        recovered = recovery.load(disk)
    except recovery.Damaged as error:
        report.recovery, report.refuses = f"{error.finding.value}. {error}", True
        return
    report.recovery = f"{recovered.finding.value} [{recovered.finding.name}]"
    report.keys, report.sequence = len(recovered.store.data), recovered.sequence


def _inspect_snapshot(disk: Disk, found: snapshot.Snapshot) -> FileReport:
    report = FileReport(found.name, disk.size(found.name), first=found.sequence, last=found.sequence)
    try:
        store, _ = snapshot.read(disk, found.name)
        report.keys, report.end = len(store.data), frame.End.CLEAN.value
    except (snapshot.BadSnapshot, frame.OtherVersion) as error:
        report.trouble = str(error)
    return report


def _inspect_segment(disk: Disk, segment: wal.Segment, *, is_last: bool) -> FileReport:
    report = FileReport(segment.name, disk.size(segment.name), first=segment.first, last=segment.first - 1)
    data = _read(disk, segment.name)
    try:
        frames = frame.FrameReader(data, wal.decode_segment_header(data), segment.first)
        for each in frames:
            report.last, report.frames = each.sequence, report.frames + 1
            for batch in decode_write_batches(each.payload):
                _count(report, batch)
    except frame.BadHeader as error:
        report.trouble = str(error)
        return report
    except DECODE_ERRORS as error:
        report.trouble = f"frame {report.last} holds what this program does not write: {error}"
        return report
    report.end = frames.end.value
    if recovery.ENDINGS[frames.end, is_last].refuses:
        report.trouble = f"frame {frames.sequence + 1} at offset {frames.offset} is bad"
    return report


def _count(report: FileReport, batch: WriteBatch) -> None:
    report.batches += 1
    report.puts += len(batch.puts)
    report.deletes += len(batch.deletes)
    report.clears += batch.clear


def dump(disk: Disk, out: IO[str]) -> None:
    """Write the operations in the log as JSON lines, oldest first, up to the first damage.

    Raises recovery.Damaged at damage, after what is before it.
    """
    segments = wal.list_segments(disk.names())
    for segment in segments:
        data = _read(disk, segment.name)
        try:
            frames = frame.FrameReader(data, wal.decode_segment_header(data), segment.first)
        except frame.OtherVersion as error:
            raise recovery.Damaged(recovery.Finding.OTHER_VERSION, segment.name, 0, str(error)) from error
        except frame.BadHeader as error:
            raise recovery.Damaged(recovery.Finding.BAD_SEGMENT, segment.name, 0, str(error)) from error
        for each in frames:
            for batch in decode_write_batches(each.payload):
                _write_lines(out, {"sequence": each.sequence}, _operations(batch))
        ending = recovery.ENDINGS[frames.end, segment is segments[-1]]
        if ending.refuses:
            raise recovery.Damaged(ending, segment.name, frames.offset, f"frame {frames.sequence + 1} is bad")


def _operations(batch: WriteBatch) -> Iterator[dict[str, Any]]:
    origin = {"session": batch.session.hex(), "batch": batch.number}
    if batch.clear:
        yield {**origin, "operation": "clear"}
    for key, value in batch.puts.items():
        yield {**origin, **_put(key, value)}
    for key in batch.deletes:
        yield {**origin, "operation": "delete", "key": key}


def dump_set_aside(disk: Disk, out: IO[str]) -> Iterator[str]:
    """Write what the whole frames hold of all that was set aside as damaged, as `dump` does; a line about each file.

    Nothing tells whether a frame was acknowledged. Its sequence may be that of another one in the log of today.
    """
    for name in sorted(disk.names()):
        if match := _SET_ASIDE.fullmatch(name):
            data = _read(disk, name)
            frames = _whole_frames(data, [*_markers_of(disk, match[1]), *frame.likely_markers(data)])
            readable = sum([_dump_frame(out, name, each) for each in frames])
            yield f"{name}: {len(data)} bytes, {len(frames)} whole frames, {readable} of them readable"


def _markers_of(disk: Disk, name: str) -> list[bytes]:
    """Those that the header of a file has, if there is still such a file."""
    with contextlib.suppress(FileNotFoundError, frame.BadHeader), disk.open(name) as file:
        return [wal.decode_segment_header(file.read(frame.HEADER_BYTES)).marker]
    return []


def _whole_frames(data: bytes, markers: Iterable[bytes]) -> list[frame.Frame]:
    """With the first of the markers that is before any frame. Zeros would be found everywhere in unused space."""
    found = (list(frame.find_frames(data, 0, marker)) for marker in markers if any(marker))
    return next(filter(None, found), [])


def _dump_frame(out: IO[str], name: str, each: frame.Frame) -> bool:
    """False when it does not hold what this program writes."""
    try:
        if name.startswith("wal-"):
            operations = [line for batch in decode_write_batches(each.payload) for line in _operations(batch)]
        else:
            operations = [_put(key, value) for key, value in snapshot.entries(each.payload).items()]
    except DECODE_ERRORS:
        return False
    _write_lines(out, {"file": name, "sequence": each.sequence}, operations)
    return True


def _write_lines(out: IO[str], origin: dict[str, Any], operations: Iterable[dict[str, Any]]) -> None:
    for operation in operations:
        json.dump({**origin, **operation}, out, ensure_ascii=False)
        out.write("\n")


def _put(key: str, value: bytes) -> dict[str, Any]:
    return {"operation": "put", "key": key, "value": value.decode(errors="replace")}


def read_state(disk: Disk) -> recovery.Recovered:
    """The state after the last frame that is whole, also while a server writes and checkpoints remove what they cover.

    Raises recovery.Damaged, NoData, or OSError. What is found twice, in the same place, is not a trace of a change.
    """
    found: tuple[object, ...] = ()
    for _ in range(_READ_ATTEMPTS_MAX):
        try:
            recovered = recovery.load(disk)
        except (recovery.Damaged, FileNotFoundError) as error:
            before, found = found, _place(error)
            if found == before:
                raise
        else:
            if recovered.finding is recovery.Finding.NEW:
                raise NoData
            return recovered
    raise TimeoutError(errno.ETIMEDOUT, f"its files changed {_READ_ATTEMPTS_MAX} times while they were read")


def _place(error: recovery.Damaged | FileNotFoundError) -> tuple[object, ...]:
    if isinstance(error, recovery.Damaged):
        return error.finding, error.name, error.offset
    return (error.filename,)


class _Line(msgspec.Struct):
    key: Annotated[str, msgspec.Meta(pattern=rf"\A{KEY_PATTERN}\Z")]
    value: Annotated[str, msgspec.Meta(min_length=1)]


def export(store: Store, *, progress: bool = False) -> Iterator[bytes]:
    """The state as JSON lines, `{"key": …, "value": …}`, many to a part."""
    encode = msgspec.json.Encoder().encode_into
    part = bytearray()
    for key, value in tqdm(store.data.items(), unit=" keys", disable=not progress):
        encode(_Line(key, value.decode()), part, -1)
        part += b"\n"
        if len(part) >= _PART_BYTES:
            yield bytes(part)
            part.clear()
    yield bytes(part)


def write_durably(disk: Disk, name: str, parts: Iterable[bytes]) -> None:
    """Make a file of these parts, whole or not at all, in place of one of that name."""
    temporary = f"{name}.{os.getpid()}{TEMPORARY_SUFFIX}"  # another backup may run at the same time
    file = disk.create(temporary)
    try:
        for part in parts:
            file.append(part)
        file.sync()
        disk.rename(temporary, name)
    except BaseException:  # also when somebody does not want to wait
        disk.remove(temporary)
        raise
    finally:
        file.close()
    disk.sync_directory()


def import_(disk: Disk, lines: Iterable[bytes], *, progress: bool = False) -> int:
    """Make an empty directory hold the state that `export` wrote, durably; how many keys. Raises CannotImport."""
    if wal.list_segments(disk.names()) or snapshot.list_snapshots(disk.names()):
        raise CannotImport("the directory holds data; import only into an empty one")
    store = Store()
    decode = msgspec.json.Decoder(_Line).decode
    for number, line in enumerate(tqdm(lines, unit=" keys", disable=not progress), start=1):
        try:
            entry = decode(line)
        except DECODE_ERRORS as error:
            raise CannotImport(f"line {number}: {error}") from error
        store.data[entry.key] = entry.value.encode()
    snapshot.write(disk, store, 0)
    wal.Wal(disk, 1, segment_bytes=1).close()
    return len(store.data)


@dataclass
class Step:
    """One thing that `repair` does: keep the first bytes of a file, set the rest aside; or begin a segment."""

    name: str
    aside: str = ""
    """The file that will hold what is set aside; empty when there is nothing, because a segment is begun."""
    kept_bytes: int = 0
    frames: int = 0
    """Whole frames in what is set aside, as far as they can be told."""


@dataclass
class Plan:
    """What `repair` would do, and what the directory would hold after it."""

    damage: list[str]
    steps: list[Step]
    keys: int
    sequence: int


def plan_repair(disk: Disk) -> Plan:
    """The least that has to be set aside so that recovery serves what is before the damage. Changes nothing.

    Raises recovery.Damaged for files of another version: they are whole, and nothing of them may be set aside.
    """
    view = _View(disk)
    plan = Plan([], [], 0, 0)
    while True:
        try:
            recovered = recovery.load(view)
        except recovery.Damaged as damage:
            if damage.finding is recovery.Finding.OTHER_VERSION:
                raise
            plan.damage.append(str(damage))
            for step in _steps(view, damage):
                _apply(view, step)
                plan.steps.append(step)
            continue
        plan.keys, plan.sequence = len(recovered.store.data), recovered.sequence
        return plan


def _steps(disk: Disk, damage: recovery.Damaged) -> Iterator[Step]:
    """What one finding takes away: the damaged place and, as no frame may be missing before another, all behind it."""
    names = disk.names()
    if damage.finding is recovery.Finding.BAD_SNAPSHOT:
        yield Step(damage.name, _aside(names, damage.name, 0))
        return
    segments = [segment.name for segment in wal.list_segments(names)]
    for name in segments:
        if name == damage.name and damage.offset > frame.HEADER_BYTES:
            yield _step(disk, name, damage.offset)
        elif name >= damage.name:
            yield _step(disk, name, 0)
    if damage.name not in segments:
        yield Step(damage.name)


def _aside(names: Sequence[str], name: str, kept_bytes: int) -> str:
    """A name that nothing has yet: an earlier repair may have set aside something of the same file."""
    wanted = f"{name}.damaged-{kept_bytes}"
    others = (f"{wanted}-{count}" for count in itertools.count(2))
    return next(free for free in itertools.chain([wanted], others) if free not in names)


def _step(disk: Disk, name: str, kept_bytes: int) -> Step:
    data = _read(disk, name)
    frames = 0
    with contextlib.suppress(frame.BadHeader):
        frames = sum(1 for _ in frame.find_frames(data, kept_bytes, wal.decode_segment_header(data).marker))
    return Step(name, _aside(disk.names(), name, kept_bytes), kept_bytes, frames)


def _apply(disk: Disk, step: Step) -> None:
    if not step.aside:
        [segment] = wal.list_segments([step.name])
        wal.Wal(disk, segment.first, segment_bytes=1).close()
    elif step.kept_bytes:
        data = _read(disk, step.name)
        publish(disk, step.aside, [data[step.kept_bytes :]]).close()
        publish(disk, step.name, [data[: step.kept_bytes]]).close()
    else:
        disk.rename(step.name, step.aside)
        disk.sync_directory()


def repair(disk: Disk, plan: Plan) -> None:
    """Carry a plan out. May be interrupted: a new plan then goes on from there."""
    for step in plan.steps:
        _apply(disk, step)


class _View:
    """The files of a disk, and changes to them that are only remembered. Satisfies `Disk`."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._changed: dict[str, bytes | None] = {}

    def names(self) -> Sequence[str]:
        unchanged = [name for name in self._disk.names() if name not in self._changed]
        return unchanged + [name for name, data in self._changed.items() if data is not None]

    def size(self, name: str) -> int:
        data = self._changed.get(name)
        return self._disk.size(name) if data is None else len(data)

    def open(self, name: str) -> BinaryIO:
        data = self._changed.get(name)
        return self._disk.open(name) if data is None else io.BytesIO(data)

    def create(self, name: str) -> DiskFile:
        self._changed[name] = b""
        return _ViewFile(self._changed, name)

    def rename(self, old: str, new: str) -> None:
        self._changed[new], self._changed[old] = _read(self, old), None

    def remove(self, name: str) -> None:
        self._changed[name] = None

    def sync_directory(self) -> None:
        pass

    def free_bytes(self) -> int:
        return self._disk.free_bytes()


class _ViewFile:
    def __init__(self, files: dict[str, bytes | None], name: str) -> None:
        self._files = files
        self._name = name
        self.size = 0

    def append(self, data: bytes, zeros_bytes: int = 0) -> None:
        self._files[self._name] = (self._files[self._name] or b"") + data
        self.size += len(data)

    def truncate(self, size: int) -> None:
        self._files[self._name] = (self._files[self._name] or b"")[:size]
        self.size = size

    def allocate(self, size: int) -> None:
        self.append(bytes(size))

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


def _read(disk: Disk, name: str) -> bytes:
    with disk.open(name) as file:
        return file.read()


# For people -------------------------------------------------------------------------------------------------


def describe(report: Report) -> Iterator[str]:
    """The lines of a report."""
    for file in report.files:
        if file.name.startswith("wal-"):
            held = f"frames {file.first} to {file.last}" if file.frames else "no frames"
            held += f", {file.batches} batches: {file.puts} puts, {file.deletes} deletes, {file.clears} clears"
        else:
            held = f"{file.keys} keys as of frame {file.last}"
        ending = f"DAMAGED: {file.trouble}" if file.trouble else f"ends {file.end}"
        yield f"{file.name}  {file.bytes:>12,} bytes  {held}; {ending}"
    yield f"recovery would: {report.recovery}"
    if not report.refuses:
        yield f"and have {report.keys} keys as of frame {report.sequence}"


def describe_plan(plan: Plan) -> Iterator[str]:
    """The lines of a plan."""
    if not plan.steps:
        yield "nothing to repair: recovery serves this directory as it is"
        return
    for damage in plan.damage:
        yield f"found: {damage}"
    for step in plan.steps:
        if not step.aside:
            yield f"begin an empty {step.name}"
        else:
            what = f"what is behind its first {step.kept_bytes} bytes" if step.kept_bytes else "all of it"
            yield f"cut {step.name}: {what} is kept in {step.aside}; {step.frames} whole frames are lost with it"
    yield f"after that there are {plan.keys} keys as of frame {plan.sequence}"
