"""Serving a directory: the order of a start, and of a stop.

    lock → recover → make durable and open the log → serve → stop

Started by the supervisor (kv/supervisor.py), which obeys the exit status. Nothing is written before recovery has
understood every file, and nothing is served before it is durable.
"""

import argparse
import errno
import gc
import logging
import os
import select
import threading
import time
from functools import partial
from pathlib import Path
from typing import Final

import setproctitle

from logd import hosting
from logd.local import ballast, recovery, room
from logd.local.checkpoint import remove_covered
from logd.local.checkpointer import Checkpointer, Newest, Policy
from logd.local.commit import DiskFailed
from logd.local.disk import DirectoryLock, Disk, LocalDisk, directory_id, make_directory
from logd.local.engine import LocalEngine
from logd.local.publish import NoSpace
from logd.local.recovery import Finding, Recovered
from logd.local.snapshot import list_snapshots
from logd.local.wal import Wal
from logd.shared.protocol import Exit
from logd.shared.text import printable

_LOCK_TIMEOUT_SECONDS: Final = 3.0  # a predecessor whose supervisor was killed needs a moment to end
_LOCK_RETRY_SECONDS: Final = 0.05
_ROOM_RETRY_SECONDS: Final = 1.0

log = logging.getLogger("logd")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The command line, which the supervisor writes."""
    parser.add_argument("directory", metavar="DIR", type=Path)
    hosting.add_flags(parser)
    parser.add_argument("--data-bytes-max", default=0, type=int)
    parser.add_argument("--segment-bytes", required=True, type=int)
    parser.add_argument("--checkpoint-log-bytes", required=True, type=int)
    parser.add_argument("--checkpoint-ratio", required=True, type=float)
    parser.add_argument(
        "--served", default="", metavar="ID", help="DIR was served before: refuse another one, or one without data"
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until the lifeline closes; the exit status. Raises recovery.Damaged or commit.DiskFailed."""
    hosting.ignore_group_signals()
    directory: Path = arguments.directory
    setproctitle.setproctitle(f"kv: logd {printable(directory)}")
    lock = DirectoryLock(directory)
    try:
        _lock(lock, arguments)
        disk = _disk(arguments)
        recovered = _recover(disk, arguments)
        sizes = room.sizes(
            disk,
            segment_bytes=arguments.segment_bytes,
            checkpoint_log_bytes=arguments.checkpoint_log_bytes,
            message_bytes_max=arguments.message_bytes_max,
        )
        wal = _await_room(disk, recovered, sizes.segment, arguments)
        ballast.ensure(disk, sizes.ballast)
    except BlockingIOError:
        log.critical("%s is in use by a living server, %s", directory, lock.holder() or "an unknown process")
        return Exit.LOCKED
    except NoSpace:
        log.critical("no space left on the device of %s: recovery needs room to write the last segment anew", directory)
        return Exit.UNUSABLE
    except OSError as error:
        if error.errno == errno.EIO:
            raise DiskFailed(str(error)) from error
        log.critical("%s cannot be used: %s", directory, error)
        return Exit.UNUSABLE
    engine = _engine(disk, wal, recovered, sizes, arguments)
    _ = engine.data_bytes()  # it is counted when it is first asked for, and now nobody waits yet
    del recovered  # its tail has the bytes of a whole segment
    gc.freeze()  # what was loaded is not garbage: collections need not look at it
    hosting.serve(engine, arguments, served=disk.id)
    log.info("stopped at frame %d", wal.last_sequence)
    return Exit.STOPPED


def _lock(lock: DirectoryLock, arguments: argparse.Namespace) -> None:
    if not arguments.served:
        make_directory(arguments.directory)
    deadline = time.monotonic() + _LOCK_TIMEOUT_SECONDS
    while True:
        try:
            return lock.acquire()
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_LOCK_RETRY_SECONDS)


def _disk(arguments: argparse.Namespace) -> LocalDisk:
    disk = LocalDisk(arguments.directory, directory_id(arguments.directory))
    if arguments.served not in ("", disk.id):
        raise FileNotFoundError(errno.ENOENT, "another directory has taken the place of the one that was served")
    return disk


def _recover(disk: Disk, arguments: argparse.Namespace) -> Recovered:
    before_writes = _stop_while_reading(arguments.lifeline_fd)
    recovered = recovery.load(disk)
    before_writes.acquire()
    if arguments.served and recovered.finding is Finding.NEW:
        raise FileNotFoundError(errno.ENOENT, "its files are gone, and were there when this server started")
    _report(recovered)
    return recovered


def _stop_while_reading(lifeline_fd: int) -> threading.Lock:
    """End this process at once when the lifeline closes, until the caller acquires the lock and begins to write."""
    before_writes = threading.Lock()

    def watch() -> None:
        select.select([lifeline_fd], [], [])
        if before_writes.acquire(blocking=False):
            os._exit(Exit.STOPPED)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
    return before_writes


def _report(recovered: Recovered) -> None:
    if recovered.tail and recovered.tail.dropped_bytes:
        log.warning(
            "[%s] %s: dropped %d bytes after offset %d, a write that was cut short and never acknowledged",
            recovered.finding.name,
            recovered.tail.segment.name,
            recovered.tail.dropped_bytes,
            len(recovered.tail.whole),
        )
    log.info(
        "recovered [%s] frame %d: %d keys from %s and %d segments (%d bytes of log) in %.3f s",
        recovered.finding.name,
        recovered.sequence,
        len(recovered.store.data),
        recovered.snapshot or "no snapshot",
        len(recovered.segments),
        recovered.log_bytes,
        recovered.seconds,
    )


def _await_room(disk: Disk, recovered: Recovered, segment_bytes: int, arguments: argparse.Namespace) -> Wal:
    """Open the log. A successor waits for room until the lifeline closes; at the start of a server, raises NoSpace."""
    is_reported = False
    while True:
        try:
            return _open_log(disk, recovered, segment_bytes)
        except NoSpace:
            if not arguments.served:
                raise
        if not is_reported:
            log.error("no space left on the device of %s: waiting for room", arguments.directory)
            is_reported = True
        if select.select([arguments.lifeline_fd], [], [], _ROOM_RETRY_SECONDS)[0]:
            raise SystemExit(Exit.STOPPED)


def _open_log(disk: Disk, recovered: Recovered, segment_bytes: int) -> Wal:
    """Make durable what was recovered, and begin a fresh segment. Raises NoSpace when nothing is left to make room."""
    for make_room in (partial(ballast.release, disk), partial(_remove_covered, disk, recovered)):
        try:
            recovery.make_durable(disk, recovered)
            return Wal(disk, recovered.sequence + 1, segment_bytes)
        except NoSpace:
            make_room()
    recovery.make_durable(disk, recovered)
    return Wal(disk, recovered.sequence + 1, segment_bytes)


def _remove_covered(disk: Disk, recovered: Recovered) -> None:
    """Remove what the newest snapshot covers, when that was found to be whole."""
    snapshots = list_snapshots(disk.names())
    if snapshots and snapshots[-1].name == recovered.snapshot:
        remove_covered(disk, 1)


def _engine(
    disk: LocalDisk, wal: Wal, recovered: Recovered, sizes: room.Sizes, arguments: argparse.Namespace
) -> LocalEngine:
    snapshot_at = (arguments.directory / recovered.snapshot).stat().st_mtime if recovered.snapshot else 0.0
    checkpointer = Checkpointer(
        arguments.directory,
        Policy(sizes.checkpoint_log, arguments.checkpoint_ratio),
        Newest(recovered.snapshot_bytes, -recovered.log_bytes, at=snapshot_at),
        sizes.ballast,
        directory_id=disk.id,
    )
    return LocalEngine(
        disk,
        wal,
        recovered,
        checkpointer,
        group_bytes_max=arguments.message_bytes_max,
        data_bytes_max=arguments.data_bytes_max,
    )
