"""`repair`: cut off the least that has to go so that recovery serves what is before the damage.

A plan is made on an overlay, by asking recovery again and again and cutting off what it refuses; carrying it out takes
the same steps on the disk. What is cut off is kept in files that the server leaves alone.
"""

import argparse
import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

from logd.local import frame, recovery, wal
from logd.local.disk import Disk
from logd.local.publish import publish
from logd.shared.protocol import Exit
from logd.tools.directory import OpenDirectory
from logd.tools.overlay import Overlay
from logd.tools.streams import print_lines


class Cut(NamedTuple):
    """Keep the first bytes of a file, none at all if that is 0, and move the rest to another file."""

    name: str
    kept_bytes: int
    rest_name: str
    rest_frames: int
    """Whole frames in the rest; 0 when the header that would tell them is damaged."""


class Begin(NamedTuple):
    """Make an empty segment that continues a snapshot."""

    name: str


Step: TypeAlias = Cut | Begin


class Plan(NamedTuple):
    """What is damaged, what repair would do, and what the directory would hold after that."""

    damage: list[str]
    steps: list[Step]
    keys: int
    sequence: int


def run(open_directory: OpenDirectory, arguments: argparse.Namespace) -> Exit:
    """The command `repair`."""
    with open_directory(arguments.directory) as disk:
        plan = plan_repair(disk)
        print_lines(describe(plan))
        if plan.steps and arguments.yes:
            repair(disk, plan)
            print_lines(["done"])
        elif plan.steps:
            print_lines(["nothing was changed; --yes does it"])
    return Exit.STOPPED


def plan_repair(disk: Disk) -> Plan:
    """The least that has to be cut off. Changes nothing.

    Raises recovery.Damaged for files of another version: they are whole, and nothing of them may be cut off.
    """
    overlay = Overlay(disk)
    damage: list[str] = []
    steps: list[Step] = []
    while True:
        try:
            recovered = recovery.load(overlay)
        except recovery.Damaged as found:
            if found.finding is recovery.Finding.OTHER_VERSION:
                raise
            damage.append(str(found))
            for step in _steps(overlay, found):
                _take(overlay, step)
                steps.append(step)
        else:
            return Plan(damage, steps, len(recovered.store.data), recovered.sequence)


def _steps(disk: Disk, damage: recovery.Damaged) -> Iterator[Step]:
    """What one finding takes away: from the damaged place on everything, as no frame may be missing before another."""
    if damage.finding is recovery.Finding.BAD_SNAPSHOT:
        yield Cut(damage.name, 0, _free_name(disk.names(), damage.name, 0), 0)
        return
    segments = [segment.name for segment in wal.list_segments(disk.names())]
    for name in segments:
        if name == damage.name and damage.offset > frame.HEADER_BYTES:
            yield _cut_segment(disk, name, damage.offset)
        elif name >= damage.name:
            yield _cut_segment(disk, name, 0)
    if damage.name not in segments:
        yield Begin(damage.name)


def _cut_segment(disk: Disk, name: str, kept_bytes: int) -> Cut:
    data = _read(disk, name)
    frames = 0
    with contextlib.suppress(frame.BadHeader):
        frames = sum(1 for _ in frame.find_frames(data, kept_bytes, wal.decode_segment_header(data).marker))
    return Cut(name, kept_bytes, _free_name(disk.names(), name, kept_bytes), frames)


def _free_name(names: Sequence[str], name: str, kept_bytes: int) -> str:
    """For the rest of a file. An earlier repair may have cut off something at the same place."""
    wanted = f"{name}.damaged-{kept_bytes}"
    others = (f"{wanted}-{count}" for count in itertools.count(2))
    return next(free for free in itertools.chain([wanted], others) if free not in names)


def repair(disk: Disk, plan: Plan) -> None:
    """Carry a plan out. May be interrupted: a new plan then goes on from there. Raises OSError."""
    for step in plan.steps:
        _take(disk, step)


def _take(disk: Disk, step: Step) -> None:
    if isinstance(step, Begin):
        [segment] = wal.list_segments([step.name])
        wal.Wal(disk, segment.first, segment_bytes=1).close()
    elif step.kept_bytes:
        data = _read(disk, step.name)
        publish(disk, step.rest_name, [data[step.kept_bytes :]]).close()
        publish(disk, step.name, [data[: step.kept_bytes]]).close()
    else:
        disk.rename(step.name, step.rest_name)
        disk.sync_directory()


def _read(disk: Disk, name: str) -> bytes:
    with disk.open(name) as file:
        return file.read()


def describe(plan: Plan) -> Iterator[str]:
    """The lines of a plan."""
    if not plan.steps:
        yield "nothing to repair: recovery serves this directory as it is"
        return
    for damage in plan.damage:
        yield f"found: {damage}"
    for step in plan.steps:
        yield _describe_step(step)
    yield f"after that there are {plan.keys} keys as of frame {plan.sequence}"


def _describe_step(step: Step) -> str:
    if isinstance(step, Begin):
        return f"begin an empty {step.name}"
    what = f"all after its first {step.kept_bytes} bytes" if step.kept_bytes else "all of it"
    return f"cut {step.name}: {what} is kept in {step.rest_name}; {step.rest_frames} whole frames are lost with it"
