"""`inspect` and `verify`: what each file holds, what is damaged, and what recovery would do.

Both read every byte. They differ in what they print, not in what they find.
"""

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from logd.local import frame, group, recovery, snapshot, wal
from logd.local.disk import Disk
from logd.shared.protocol import DECODE_ERRORS, Exit, WriteBatch
from logd.tools.directory import OpenDirectory
from logd.tools.streams import print_lines, progress


@dataclass
class FileReport:
    """What one file holds, as far as it is whole."""

    name: str
    bytes: int
    first: int
    """Sequence of the first frame of a segment; of the state in a snapshot."""
    last: int
    frames: int = 0
    batches: int = 0
    puts: int = 0
    deletes: int = 0
    clears: int = 0
    transactions: int = 0
    keys: int = 0
    end: str = ""
    """One of `frame.End`; empty when reading did not come so far."""
    damage: str = ""
    """Empty when there is none."""


@dataclass
class Report:
    """What a directory holds, and what recovery would do with it, and why."""

    files: list[FileReport] = field(default_factory=list)
    recovery: str = ""
    refuses: bool = False
    keys: int = 0
    sequence: int = 0

    def damaged_files(self) -> list[FileReport]:
        """Also those that recovery would do without."""
        return [file for file in self.files if file.damage]

    def status(self) -> Exit:
        """That of both commands."""
        return Exit.DAMAGED if self.refuses or self.damaged_files() else Exit.STOPPED


def run(open_directory: OpenDirectory, arguments: argparse.Namespace) -> Exit:
    """The command `inspect`."""
    with open_directory(arguments.directory) as disk:
        report = inspect(disk)
    print_lines([_as_json(report)] if arguments.json else describe(report))
    return report.status()


def run_verify(open_directory: OpenDirectory, arguments: argparse.Namespace) -> Exit:
    """The command `verify`."""
    with open_directory(arguments.directory) as disk:
        report = inspect(disk)
    print_lines(summarize(report))
    return report.status()


def inspect(disk: Disk) -> Report:
    """Read every byte of every file, and ask recovery. Raises OSError when a file cannot be read."""
    names = disk.names()
    segments, snapshots = wal.list_segments(names), snapshot.list_snapshots(names)
    files = itertools.chain(
        (_inspect_snapshot(disk, found) for found in snapshots),
        (_inspect_segment(disk, segment, is_last=segment is segments[-1]) for segment in segments),
    )
    report = Report(list(progress(files, "files", len(segments) + len(snapshots))))
    _ask_recovery(disk, report)
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
        report.damage = str(error)
    return report


def _inspect_segment(disk: Disk, segment: wal.Segment, *, is_last: bool) -> FileReport:
    report = FileReport(segment.name, disk.size(segment.name), first=segment.first, last=segment.first - 1)
    with disk.open(segment.name) as file:
        data = file.read()
    try:
        frames = frame.FrameReader(data, wal.decode_segment_header(data), segment.first)
        for each in frames:
            report.last, report.frames = each.sequence, report.frames + 1
            for batch in group.decode(each.payload).batches:
                _count(report, batch)
    except frame.BadHeader as error:
        report.damage = str(error)
        return report
    except DECODE_ERRORS as error:
        report.damage = f"frame {report.last} holds what this program does not write: {error}"
        return report
    report.end = frames.end.value
    if recovery.ENDINGS[frames.end, is_last].refuses:
        report.damage = f"frame {frames.sequence + 1} at offset {frames.offset} is bad"
    return report


def _count(report: FileReport, batch: WriteBatch) -> None:
    report.batches += 1
    report.puts += len(batch.puts)
    report.deletes += len(batch.deletes)
    report.clears += batch.clear
    report.transactions += len(batch.transactions)


def _as_json(report: Report) -> str:
    return msgspec.json.format(msgspec.json.encode(report)).decode()


def describe(report: Report) -> Iterator[str]:
    """A line for each file, and what recovery would do."""
    for file in report.files:
        ending = f"DAMAGED: {file.damage}" if file.damage else f"ends {file.end}"
        yield f"{file.name}  {file.bytes:>12,} bytes  {_contents(file)}; {ending}"
    yield f"recovery would: {report.recovery}"
    if not report.refuses:
        yield f"and have {report.keys} keys as of frame {report.sequence}"


def _contents(file: FileReport) -> str:
    if file.name.startswith("snapshot-"):
        return f"{file.keys} keys as of frame {file.last}"
    frames = f"frames {file.first} to {file.last}" if file.frames else "no frames"
    transactions = f", {file.transactions} transactions" if file.transactions else ""
    writes = f"{file.puts} puts, {file.deletes} deletes, {file.clears} clears{transactions}"
    return f"{frames}, {file.batches} batches: {writes}"


def summarize(report: Report) -> Iterator[str]:
    """A line for each damaged file, and one for all."""
    damaged = report.damaged_files()
    for file in damaged:
        yield f"{file.name}: {file.damage}"
    yield f"{len(report.files)} files, {len(damaged)} damaged; recovery would: {report.recovery}"
