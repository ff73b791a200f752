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
import select
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import setproctitle
import zmq

from logd import server
from logd.local import ballast, checkpoint, recovery, throttle
from logd.local.commit import DiskFailed, GroupCommit
from logd.local.disk import DirectoryLock, LocalDisk, is_no_space, make_directory
from logd.local.publish import NoSpace, remove_temporaries
from logd.local.stats import Observer, Recovery
from logd.local.wal import Wal
from logd.shared import logging_setup
from logd.shared.protocol import Exit
from logd.tools import commands as tools

_ROOT = Path(__file__).resolve().parent.parent
_LOCK_PATIENCE_SECONDS = 3.0  # a predecessor whose supervisor was killed needs a moment to end

log = logging.getLogger("logd")


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit status is an `Exit`."""
    arguments = _parse(argv)
    logging_setup.set_up(arguments.role, arguments.log_level, arguments.log_format)
    try:
        return Exit(arguments.command(arguments))
    except recovery.Damaged as error:
        tool = f"{sys.executable} -m logd"
        log.critical("%s. Nothing was changed", error)
        if error.finding is recovery.Finding.OTHER_VERSION:
            log.critical("nothing has to be mended: start the version of the program that wrote it")
            return Exit.DAMAGED
        log.critical("to see more: %s inspect DIR; to mend: %s repair DIR, in %s", tool, tool, _ROOT)
        return Exit.DAMAGED
    except BrokenPipeError:  # head(1) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to flush goes nowhere
        return Exit.CRASHED
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
    serve.add_argument("--data-bytes-max", default=0, type=int)
    serve.add_argument("--segment-bytes", required=True, type=int)
    serve.add_argument("--checkpoint-log-bytes", required=True, type=int)
    serve.add_argument("--checkpoint-ratio", required=True, type=float)
    serve.add_argument(
        "--must-exist", action="store_true", help="refuse a directory without data: it was served before"
    )
    serve.set_defaults(command=_serve, role="logd")

    fold = commands.add_parser("fold", help="write a snapshot of sealed segments (started by a serving logd)")
    fold.add_argument("directory", metavar="DIR", type=Path)
    fold.add_argument("--upto", required=True, type=int, metavar="SEQUENCE")
    fold.add_argument("--reserve-bytes", type=int, default=0)
    fold.set_defaults(command=_fold, role="checkpoint")

    for command in (serve, fold):
        logging_setup.add_flags(command)
    _add_tools(commands)
    return parser.parse_args(argv)


def _add_tools(commands: Any) -> None:  # noqa: ANN401 - argparse does not say what add_subparsers returns
    """The commands for people. All but `export` and `dump --set-aside` take a directory that no server uses."""

    def add(name: str, run: Callable[[LocalDisk, argparse.Namespace], int], meaning: str) -> argparse.ArgumentParser:
        tool: argparse.ArgumentParser = commands.add_parser(name, help=meaning, description=meaning)
        tool.add_argument("directory", metavar="DIR", type=Path)
        tool.set_defaults(command=lambda arguments: _use_tool(run, arguments), role=name)
        tool.set_defaults(log_level="warning", log_format="text")
        return tool

    look = add(
        "inspect",
        _inspect,
        "what is in each file, and what recovery would do with them, and why; the exit status is that of verify",
    )
    look.add_argument("--json", action="store_true", help="as JSON")
    add("verify", _verify, "read every byte; the exit status is 0 when all is well")
    log_of = add("dump", _dump, "the operations in the log as JSON lines")
    log_of.add_argument(
        "--set-aside", action="store_true", help="those in what repair has cut off, as far as it is whole"
    )
    mend = add("repair", _repair, "show what has to be cut off so that the server starts, and what is lost with it")
    mend.add_argument("--yes", action="store_true", help="do it; what is cut off is kept in files of its own")
    out = add("export", _export, "the keys and values as JSON lines, also while a server runs")
    out.add_argument(
        "file", metavar="FILE", nargs="?", default="-", help="where to, whole or not at all; - is standard output"
    )
    into = add("import", _import, "make an empty directory hold what export wrote")
    into.add_argument("file", metavar="FILE", nargs="?", default="-", help="where from; - is standard input")


def _use_tool(run: Callable[[LocalDisk, argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    directory: Path = arguments.directory
    lock = DirectoryLock(directory)
    try:
        if run is _import:
            make_directory(directory)
        if run is not _export and not vars(arguments).get("set_aside"):  # no server touches what is set aside
            lock.acquire()
        return run(LocalDisk(directory), arguments)
    except BlockingIOError:
        log.critical("%s is in use by a living server, on %s", directory, lock.holder() or "an unknown socket")
        return Exit.LOCKED
    except tools.CannotImport as error:
        log.critical("%s: %s", arguments.file, error)
        return Exit.USAGE
    except tools.NoData:
        log.critical("there is no data in %s", directory)
        return Exit.UNUSABLE
    except NoSpace:
        log.critical("no space left on the device of %s", directory)
        return Exit.UNUSABLE
    except BrokenPipeError:
        raise
    except OSError as error:
        log.critical("%s: %s", error.filename or directory, error.strerror)
        return Exit.UNUSABLE
    finally:
        lock.release()


def _inspect(disk: LocalDisk, arguments: argparse.Namespace) -> int:
    report = tools.inspect(disk, progress=_is_watched())
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(report)).decode())
    else:
        print(*tools.describe(report), sep="\n")
    return Exit.DAMAGED if report.is_bad() else Exit.STOPPED


def _verify(disk: LocalDisk, arguments: argparse.Namespace) -> int:
    report = tools.inspect(disk, progress=_is_watched())
    bad = [file for file in report.files if file.trouble]
    for file in bad:
        print(f"{file.name}: {file.trouble}")
    print(f"{len(report.files)} files, {len(bad)} damaged; recovery would: {report.recovery}")
    return Exit.DAMAGED if report.is_bad() else Exit.STOPPED


def _dump(disk: LocalDisk, arguments: argparse.Namespace) -> int:
    if not arguments.set_aside:
        tools.dump(disk, sys.stdout)
        return Exit.STOPPED
    told = list(tools.dump_set_aside(disk, sys.stdout))
    for line in told or [f"nothing is set aside in {arguments.directory}"]:
        log.warning("%s", line)
    return Exit.STOPPED


def _repair(disk: LocalDisk, arguments: argparse.Namespace) -> int:
    plan = tools.plan_repair(disk)
    print(*tools.describe_plan(plan), sep="\n")
    if plan.steps and arguments.yes:
        tools.repair(disk, plan)
        print("done")
    elif plan.steps:
        print("nothing was changed; --yes does it")
    return Exit.STOPPED


def _export(disk: LocalDisk, arguments: argparse.Namespace) -> int:
    recovered = tools.read_state(disk)
    parts = tools.export(recovered.store, progress=_is_watched())
    path = Path(os.path.realpath(arguments.file))
    if arguments.file == "-":
        sys.stdout.buffer.writelines(parts)
    elif path.exists() and not path.is_file():  # a pipe or a device, which must not be replaced
        with path.open("wb") as file:
            file.writelines(parts)
    else:
        _write_durably(path, parts)
    log.warning("exported %d keys as of frame %d", len(recovered.store.data), recovered.sequence)
    return Exit.STOPPED


def _write_durably(path: Path, parts: Iterable[bytes]) -> None:
    try:
        tools.write_durably(LocalDisk(path.parent), path.name, parts)
    except OSError as error:
        error.filename = path  # not that of the temporary file, nor none
        raise


def _import(disk: LocalDisk, arguments: argparse.Namespace) -> int:
    with _opened(arguments.file) as file:
        count = tools.import_(disk, file, progress=_is_watched())
    log.warning("imported %d keys", count)
    return Exit.STOPPED


def _opened(name: str) -> contextlib.AbstractContextManager[BinaryIO]:
    return contextlib.nullcontext(sys.stdin.buffer) if name == "-" else open(name, "rb")


def _is_watched() -> bool:
    return sys.stderr.isatty()


def _ignore_signals() -> None:
    """Those for the group are for the supervisor, which ends us when it is our turn."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _serve(arguments: argparse.Namespace) -> int:
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


def _fold(arguments: argparse.Namespace) -> int:
    _ignore_signals()
    setproctitle.setproctitle(f"kv: checkpoint {arguments.directory}")
    os.nice(19)
    threading.Thread(target=_obey_parent, daemon=True).start()
    disk = LocalDisk(arguments.directory)
    try:
        with throttle.unhurried():
            _fold_with_reserve(disk, arguments.upto)
    except OSError as error:
        log.error("%s: %s", error.filename or arguments.directory, error.strerror)
        return Exit.CRASHED
    finally:
        ballast.ensure(disk, arguments.reserve_bytes)
    return Exit.STOPPED


def _fold_with_reserve(disk: LocalDisk, upto: int) -> None:
    try:
        checkpoint.fold(disk, upto)
    except OSError as error:
        if not is_no_space(error) or not ballast.release(disk):
            raise
        checkpoint.fold(disk, upto)


def _obey_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):  # it ends when the log writer has closed its end, or died
        throttle.hurry()
        log.info("the next checkpoint is due: no more rests")
    os._exit(Exit.CRASHED)


if __name__ == "__main__":
    sys.exit(main())
