"""The command line of logd.

`serve` is what the supervisor starts; `fold` is what a checkpoint runs. The exit status is a word (`protocol.Exit`)
that the supervisor obeys.
"""

import argparse
import contextlib
import errno
import gc
import logging
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import setproctitle
import zmq

from logd import checkpoint, recovery, server
from logd.commit import DiskFailed, GroupCommit
from logd.disk import DirectoryLock, LocalDisk, make_directory
from logd.protocol import Exit
from logd.wal import NoSpace, Wal

_LOCK_PATIENCE_SECONDS = 3.0  # a predecessor whose supervisor was killed needs a moment to end

log = logging.getLogger("logd")


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit status is an `Exit`."""
    arguments = _parse(argv)
    logging.basicConfig(
        level=arguments.log_level.upper(),
        format="%(asctime)s %(name)s[%(process)d] %(levelname)s %(message)s",
        stream=sys.stderr,
    )
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # these are for the supervisor, which ends us when it is our turn
    try:
        return Exit(arguments.command(arguments))
    except recovery.Damaged as error:
        log.critical("%s; nothing was changed", error)
        return Exit.DAMAGED
    except DiskFailed as error:
        log.critical("the disk failed, nothing of that group was acknowledged: %s", error)
        return Exit.DISK_FAILED


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m logd", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="own DIR and serve it on a socket (started by python -m kv)")
    serve.add_argument("directory", metavar="DIR", type=Path)
    serve.add_argument("--socket", required=True, metavar="ADDRESS", help="where to listen, as ipc://PATH")
    serve.add_argument("--lifeline-fd", required=True, type=int, help="the read end of a pipe; its end means stop")
    serve.add_argument("--ready-fd", required=True, type=int, help="the write end of a pipe; written to once recovered")
    serve.add_argument("--message-bytes-max", required=True, type=int)
    serve.add_argument("--segment-bytes", required=True, type=int)
    serve.add_argument("--checkpoint-log-bytes", required=True, type=int)
    serve.add_argument("--checkpoint-ratio", required=True, type=float)
    serve.set_defaults(command=_serve)

    fold = commands.add_parser("fold", help="write a snapshot of sealed segments (started by a serving logd)")
    fold.add_argument("directory", metavar="DIR", type=Path)
    fold.add_argument("--upto", required=True, type=int, metavar="SEQUENCE")
    fold.set_defaults(command=_fold)

    for command in (serve, fold):
        command.add_argument("--log-level", default="info")
    return parser.parse_args(argv)


def _serve(arguments: argparse.Namespace) -> int:
    setproctitle.setproctitle(f"kv: logd {arguments.directory}")
    directory: Path = arguments.directory
    lock = DirectoryLock(directory)
    try:
        make_directory(directory)
        previous = _lock(lock)
        if previous != arguments.socket:
            _remove_socket_directory(previous)
        lock.write_note(arguments.socket)
        disk = LocalDisk(directory)
        recovered = recovery.load(disk)
        _report(recovered)
        recovery.make_durable(disk, recovered)
        wal = Wal(disk, recovered.sequence + 1, arguments.segment_bytes)
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
    )
    storage = GroupCommit(disk, wal, recovered.store, on_group=lambda: checkpointer.maybe_start(wal.sealed))
    del recovered
    gc.freeze()  # what was loaded is not garbage: collections need not look at it
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        socket = server.open_socket(context, arguments.socket, arguments.message_bytes_max)
        os.write(arguments.ready_fd, b"\n")
        os.close(arguments.ready_fd)
        server.Server(socket, storage, arguments.lifeline_fd).run()
        storage.stop()
        socket.close()
    finally:
        checkpointer.stop()
    context.term()
    log.info("stopped at frame %d", wal.last_sequence)
    return Exit.STOPPED


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


def _fold(arguments: argparse.Namespace) -> int:
    setproctitle.setproctitle(f"kv: checkpoint {arguments.directory}")
    os.nice(10)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    checkpoint.fold(LocalDisk(arguments.directory), arguments.upto)
    return Exit.STOPPED


def _exit_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # returns only when the log writer has closed its end, or died
    os._exit(Exit.CRASHED)


if __name__ == "__main__":
    sys.exit(main())
