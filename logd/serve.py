"""Serving a directory. Started by the supervisor, which obeys the exit status."""

import argparse
import contextlib
import errno
import gc
import logging
import os
import select
import shutil
import signal
import threading
import time
from pathlib import Path

import setproctitle
import zmq

from logd import server
from logd.local import ballast, checkpoint, recovery
from logd.local.commit import DiskFailed, GroupCommit
from logd.local.disk import DirectoryLock, LocalDisk, make_directory
from logd.local.publish import NoSpace, remove_temporaries
from logd.local.stats import Observer, Recovery
from logd.local.wal import Wal
from logd.shared.protocol import Exit

_LOCK_PATIENCE_SECONDS = 3.0  # a predecessor whose supervisor was killed needs a moment to end

log = logging.getLogger("logd")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What a serving logd is told by its supervisor."""
    parser.add_argument("directory", metavar="DIR", type=Path)
    parser.add_argument("--socket", required=True, metavar="ADDRESS", help="where to listen, as ipc://PATH")
    parser.add_argument("--lifeline-fd", required=True, type=int, help="the read end of a pipe; its end means stop")
    parser.add_argument(
        "--ready-fd", required=True, type=int, help="the write end of a pipe; written to once recovered"
    )
    parser.add_argument("--message-bytes-max", required=True, type=int)
    parser.add_argument("--data-bytes-max", default=0, type=int)
    parser.add_argument("--segment-bytes", required=True, type=int)
    parser.add_argument("--checkpoint-log-bytes", required=True, type=int)
    parser.add_argument("--checkpoint-ratio", required=True, type=float)
    parser.add_argument(
        "--must-exist", action="store_true", help="refuse a directory without data: it was served before"
    )


def _ignore_signals() -> None:
    """Those for the group are for the supervisor, which ends us when it is our turn."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def run(arguments: argparse.Namespace) -> int:
    """Serve until the lifeline ends; the exit status."""
    _ignore_signals()
    setproctitle.setproctitle(f"kv: logd {arguments.directory}")
    directory: Path = arguments.directory
    reserve_bytes = arguments.segment_bytes + arguments.message_bytes_max  # the largest that the last segment can be
    lock = DirectoryLock(directory)
    try:
        if not arguments.must_exist:
            make_directory(directory)
        previous = _lock(lock)
        if previous != arguments.socket:
            _remove_socket_directory(previous)
        lock.write_note(arguments.socket)
        disk = LocalDisk(directory)
        gate = _stop_while_reading(arguments.lifeline_fd)
        recovered = recovery.load(disk)
        gate.acquire()
        if arguments.must_exist and recovered.finding is recovery.Finding.NEW:
            raise FileNotFoundError(errno.ENOENT, "its files are gone, and were there when this server started")
        _report(recovered)
        wal = _open_log(disk, recovered, arguments.segment_bytes)
        ballast.ensure(disk, reserve_bytes)
    except BlockingIOError:
        log.critical("%s is in use by a living server, on %s", directory, lock.holder() or "an unknown socket")
        return Exit.LOCKED
    except NoSpace:
        log.critical("no space left on the device of %s: recovery needs room to write the last segment anew", directory)
        return Exit.UNUSABLE
    except OSError as error:
        if error.errno == errno.EIO:
            raise DiskFailed(str(error)) from error
        log.critical("%s cannot be used: %s", directory, error)
        return Exit.UNUSABLE

    checkpointer = checkpoint.Checkpointer(
        directory,
        checkpoint.Policy(arguments.checkpoint_log_bytes, arguments.checkpoint_ratio),
        recovered.log_bytes,
        recovered.snapshot_bytes,
        reserve_bytes,
        last_at=_modified_at(directory, recovered.snapshot),
    )
    storage = GroupCommit(
        disk,
        wal,
        recovered.store,
        group_bytes_max=arguments.message_bytes_max,
        data_bytes_max=arguments.data_bytes_max,
        on_group=lambda: checkpointer.maybe_start(wal.sealed),
    )
    observer = Observer(disk, recovered.store, storage, checkpointer, Recovery.of(recovered))
    del recovered
    gc.freeze()  # what was loaded is not garbage: collections need not look at it
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        socket = server.open_socket(context, arguments.socket, arguments.message_bytes_max)
        os.write(arguments.ready_fd, b"\n")
        os.close(arguments.ready_fd)
        server.Server(socket, storage, arguments.lifeline_fd, observer.stats).run()
        storage.stop()
        socket.close()
    finally:
        if checkpointer.stop():
            remove_temporaries(disk)
    context.term()
    log.info("stopped at frame %d", wal.last_sequence)
    return Exit.STOPPED


def _modified_at(directory: Path, name: str | None) -> float:
    return (directory / name).stat().st_mtime if name else 0.0


def _stop_while_reading(lifeline_fd: int) -> threading.Lock:
    """End this process at once when it is told to stop, until the caller takes the lock and begins to write."""
    gate = threading.Lock()

    def watch() -> None:
        select.select([lifeline_fd], [], [])
        if gate.acquire(blocking=False):
            os._exit(Exit.STOPPED)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
    return gate


def _open_log(disk: LocalDisk, recovered: recovery.Recovered, segment_bytes: int) -> Wal:
    """Make durable what was recovered, and begin a fresh segment. Raises NoSpace when the reserve does not help."""
    try:
        recovery.make_durable(disk, recovered)
        return Wal(disk, recovered.sequence + 1, segment_bytes)
    except NoSpace:
        if not ballast.release(disk):
            raise
    return _open_log(disk, recovered, segment_bytes)


def _lock(lock: DirectoryLock) -> str:
    deadline = time.monotonic() + _LOCK_PATIENCE_SECONDS
    while True:
        try:
            return lock.acquire()
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.05)


def _remove_socket_directory(address: str) -> None:
    """Remove what a killed predecessor left in the directory for temporary files."""
    path = Path(address.removeprefix("ipc://"))
    if path.name == "logd.sock" and path.parent.name.startswith("kv-"):
        with contextlib.suppress(OSError):
            if path.parent.stat().st_uid == os.geteuid():
                shutil.rmtree(path.parent)


def _report(recovered: recovery.Recovered) -> None:
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
