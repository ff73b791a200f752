"""`dump`: operations as JSON lines, of the log of a directory or of single files.

Of a directory it shows the log as recovery reads it, oldest first, up to the first damage. Of files it shows whatever
frames are whole, damaged header or not, in a file of any name: so one sees what is in a file that `repair` has cut off.
Nothing tells whether such a frame was acknowledged, and its sequence may be that of another one in the log of today.
"""

import argparse
import contextlib
import json
import logging
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from logd.local import frame, group, recovery, snapshot, wal
from logd.local.disk import Disk
from logd.shared.protocol import DECODE_ERRORS, Check, Exit, Transaction, WriteBatch
from logd.tools.directory import OpenDirectory
from logd.tools.errors import CannotRun, naming
from logd.tools.streams import print_lines

_CUT_OFF: Final = re.compile(r"((?:wal|snapshot)-\d{20}\.\w+)\.damaged(?:-\d+)*")
"""The name of a file that holds the damaged rest of another, and the name of that."""

log = logging.getLogger("logd.tools")


def run(open_directory: OpenDirectory, arguments: argparse.Namespace) -> Exit:
    """The command `dump`. What it shows of each file is logged."""
    paths: list[Path] = arguments.paths
    files = [path for path in paths if _is_file(path)]
    if len(paths) == 1 and not files:
        with open_directory(paths[0]) as disk:
            print_lines(log_lines(disk))
        return Exit.STOPPED
    for path in paths:
        if path not in files:
            raise CannotRun(Exit.USAGE, f"{path} is not a file; name one directory, or files")
    print_lines(line for path in files for line in file_lines(path))
    return Exit.STOPPED


def _is_file(path: Path) -> bool:
    with naming(path):
        return stat.S_ISREG(path.stat().st_mode)


def log_lines(disk: Disk) -> Iterator[str]:
    """The operations in the log, oldest first. Raises recovery.Damaged at damage, after what is before it."""
    segments = wal.list_segments(disk.names())
    for segment in segments:
        yield from _segment_lines(disk, segment, is_last=segment is segments[-1])


def _segment_lines(disk: Disk, segment: wal.Segment, *, is_last: bool) -> Iterator[str]:
    with disk.open(segment.name) as file:
        data = file.read()
    frames = frame.FrameReader(data, recovery.read_header(segment, data), segment.first)
    for each in frames:
        try:
            yield from _lines({"sequence": each.sequence}, _logged_operations(each))
        except DECODE_ERRORS as error:
            detail = f"frame {each.sequence}: {error}"
            raise recovery.Damaged(recovery.Finding.UNREADABLE_FRAME, segment.name, each.offset, detail) from error
    ending = recovery.ENDINGS[frames.end, is_last]
    if ending.refuses:
        raise recovery.Damaged(ending, segment.name, frames.offset, f"frame {frames.sequence + 1} is bad")


def file_lines(path: Path) -> Iterator[str]:
    """The operations in the whole frames of a file; in the end, how many there were is logged. Raises CannotRun."""
    with naming(path):
        data = path.read_bytes()
    frames = _whole_frames(data, [*_marker_beside(path), *frame.likely_markers(data)])
    readable = 0
    for each in frames:
        with contextlib.suppress(*DECODE_ERRORS):
            yield from _lines({"file": str(path), "sequence": each.sequence}, _operations(each))
            readable += 1
    log.info("%s: %d bytes, %d whole frames, %d of them readable", path, len(data), len(frames), readable)


def _marker_beside(path: Path) -> list[bytes]:
    """The marker in the file that this one was cut off from, if that is still there."""
    if match := _CUT_OFF.fullmatch(path.name):
        with contextlib.suppress(OSError, frame.BadHeader), path.with_name(match[1]).open("rb") as file:
            return [wal.decode_segment_header(file.read(frame.HEADER_BYTES)).marker]
    return []


def _whole_frames(data: bytes, markers: Iterable[bytes]) -> list[frame.Frame]:
    """Those of the first marker that has any. Zeros are no marker: unused space is full of them."""
    found = (list(frame.find_frames(data, 0, marker)) for marker in markers if any(marker))
    return next(filter(None, found), [])


def _operations(each: frame.Frame) -> list[dict[str, Any]]:
    """What a frame of a segment or of a snapshot holds. Raises one of DECODE_ERRORS."""
    try:
        return _logged_operations(each)
    except DECODE_ERRORS:
        return [_put(key, value) for key, value in snapshot.entries(each.payload).items()]


def _logged_operations(each: frame.Frame) -> list[dict[str, Any]]:
    return [operation for batch in group.decode(each.payload).batches for operation in _batch_operations(batch)]


def _batch_operations(batch: WriteBatch) -> Iterator[dict[str, Any]]:
    origin = {"session": batch.session.hex(), "batch": batch.number}
    if batch.clear:
        yield {**origin, "operation": "clear"}
    for write in _writes(batch):
        yield {**origin, **write}
    for transaction in batch.transactions:
        checks = list(map(_check, transaction.checks))
        yield {**origin, "operation": "transaction", "checks": checks, "writes": list(_writes(transaction))}


def _writes(of: WriteBatch | Transaction) -> Iterator[dict[str, Any]]:
    for key, value in of.puts.items():
        yield _put(key, value)
    for key in of.deletes:
        yield {"operation": "delete", "key": key}


def _check(check: Check) -> dict[str, Any]:
    """As it was asked for: what came of it is decided by the state, which a dump does not have."""
    return {"key": check.key, "etags": "*" if check.tags is None else check.tags, "negated": check.negated}


def _put(key: str, value: bytes) -> dict[str, Any]:
    return {"operation": "put", "key": key, "value": value.decode(errors="replace")}


def _lines(origin: dict[str, Any], operations: Iterable[dict[str, Any]]) -> Iterator[str]:
    for operation in operations:
        yield json.dumps({**origin, **operation}, ensure_ascii=False)
