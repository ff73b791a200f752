"""A checkpoint: the newest snapshot and the sealed segments after it become a new snapshot, and old files go.

It runs in a process of its own, of low priority, from the files alone: the log writer neither stops nor forks for it.
It takes its time (logd/local/throttle.py) until it is told that the next one is due. When one is due, and who starts
it, is for logd/local/checkpointer.py to know. A checkpoint that dies leaves a temporary file at most.

Kept afterwards: the new snapshot, the one before it, and every segment since that one, so that a snapshot that rots can
be replaced. Hence the bound on the disk: two snapshots, plus twice the log that may gather before a checkpoint is due,
plus what is written while one runs: hardly more than is due, unless it cannot keep up at full speed. Where there is no
room for that (logd/local/room.py), only the new snapshot is kept, and what is after it.
"""

import argparse
import itertools
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Final

import setproctitle

from logd.local import ballast, recovery, snapshot, throttle, wal
from logd.local.disk import Disk, LocalDisk
from logd.local.publish import NoSpace
from logd.shared.protocol import Exit
from logd.shared.text import printable

SNAPSHOTS_KEPT: Final = 2

log = logging.getLogger("logd.local.checkpoint")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The command line, which logd/local/checkpointer.py writes."""
    parser.add_argument("directory", metavar="DIR", type=Path)
    parser.add_argument("--upto", required=True, type=int, metavar="SEQUENCE", help="where a sealed segment ends")
    parser.add_argument("--directory-id", default="", help="of DIR; nothing is changed in another one of that name")
    parser.add_argument("--ballast-bytes", type=int, default=0, help="what to keep free for a full disk")
    parser.add_argument("--make-room", action="store_true", help="work without rests, and keep only what is needed")


def run(arguments: argparse.Namespace) -> int:
    """Make one checkpoint; the exit status. Raises recovery.Damaged.

    The end of standard input ends it, and a byte there hurries it. Signals to the process group are ignored as the
    parent does: that is inherited.
    """
    setproctitle.setproctitle(f"kv: checkpoint {printable(arguments.directory)}")
    if arguments.make_room:
        throttle.hurry()
    else:
        os.nice(19)
    threading.Thread(target=_obey_parent, daemon=True).start()
    disk = LocalDisk(arguments.directory, arguments.directory_id)
    try:
        with throttle.throttled():
            _make_with_ballast(disk, arguments.upto, 1 if arguments.make_room else SNAPSHOTS_KEPT)
    except OSError as error:
        log.error("%s: %s", error.filename or arguments.directory, error.strerror)
        return Exit.CRASHED
    finally:
        # The room that was released is taken back whole: a margin of it would be used up by writes, bit by bit.
        ballast.ensure(disk, arguments.ballast_bytes, 0 if arguments.make_room else ballast.MARGIN_BYTES)
    return Exit.STOPPED


def _obey_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):  # nothing to read: the parent has closed its end, or is gone
        throttle.hurry()
        log.info("the next checkpoint is due: no more rests")
    os._exit(Exit.CRASHED)


def _make_with_ballast(disk: Disk, upto: int, snapshots_kept: int) -> None:
    try:
        make(disk, upto, snapshots_kept)
    except NoSpace:
        if not ballast.release(disk):
            raise
        make(disk, upto, snapshots_kept)


def make(disk: Disk, upto: int, snapshots_kept: int = SNAPSHOTS_KEPT) -> None:
    """Write the snapshot as of a sequence that ends a sealed segment, then remove what nothing needs any more.

    Where there is no room for two snapshots, that is also done before: the last one was just read, and is whole.

    Raises recovery.Damaged, publish.NoSpace or another OSError; then nothing is lost, and at most a bad snapshot is set
    aside.
    """
    began = time.monotonic()
    state = recovery.load_sealed(disk, upto)
    recovery.set_aside_bad_snapshots(disk, state)
    if snapshots_kept == 1:
        remove_covered(disk, 1)
    size = snapshot.write(disk, state.store, upto)
    remove_covered(disk, snapshots_kept)
    log.info(
        "checkpoint as of frame %d: %d keys, %d bytes, from %s and %d segments, in %.2f s",
        upto,
        len(state.store.data),
        size,
        state.snapshot or "nothing",
        len(state.segments),
        time.monotonic() - began,
    )


def remove_covered(disk: Disk, snapshots_kept: int = SNAPSHOTS_KEPT) -> None:
    """Remove snapshots older than the last ones, and the segments that only those would need.

    The snapshots must be durable. Segments go oldest first, so that a crash in between leaves no gap.
    """
    names = disk.names()
    kept = snapshot.list_snapshots(names)[-snapshots_kept:]
    if len(kept) < snapshots_kept:
        return
    segments = wal.list_segments(names)
    for old in snapshot.list_snapshots(names)[:-snapshots_kept]:
        disk.remove(old.name)
    for segment, successor in itertools.pairwise(segments):
        if successor.first <= kept[0].sequence + 1:
            disk.remove(segment.name)
    disk.sync_directory()
