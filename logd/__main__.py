"""The command line of logd.

`serve` is what the supervisor starts; `checkpoint` is what a serving logd starts. The supervisor obeys the exit status
(`protocol.Exit`).
"""

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from logd import serve
from logd.local import checkpoint, recovery
from logd.local.commit import DiskFailed
from logd.local.disk import DirectoryLock, LocalDisk, make_directory
from logd.local.publish import NoSpace
from logd.shared import logging_setup
from logd.shared.protocol import Exit
from logd.tools import commands as tools

_ROOT = Path(__file__).resolve().parent.parent

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

    started = commands.add_parser("serve", help="own DIR and serve it on a socket (started by python -m kv)")
    serve.add_flags(started)
    logging_setup.add_flags(started)
    started.set_defaults(command=serve.run, role="logd")

    child = commands.add_parser("checkpoint", help="write a snapshot of sealed segments (started by a serving logd)")
    checkpoint.add_flags(child)
    logging_setup.add_flags(child)
    child.set_defaults(command=checkpoint.run, role="checkpoint")

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


if __name__ == "__main__":
    sys.exit(main())
