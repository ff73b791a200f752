"""The table of the commands for people, and the command line that follows from it.

What a command needs of its directory (a lock, data, or none of either) is in `opens`. To add a command, add a row and a
module.
"""

import argparse
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from logd.shared.protocol import Exit
from logd.tools import directory, dump, export, import_, inspect, repair
from logd.tools.streams import STANDARD


class Argument(NamedTuple):
    """An argument or a flag, and what argparse is told of it."""

    name: str
    options: dict[str, Any]


class Command(NamedTuple):
    """One row of the table. `run` gets `opens`, to open its directory with, and the parsed arguments."""

    name: str
    opens: directory.OpenDirectory
    run: Callable[[directory.OpenDirectory, argparse.Namespace], Exit]
    arguments: tuple[Argument, ...]
    description: str


def _argument(name: str, **options: Any) -> Argument:  # noqa: ANN401 - they are argparse's
    return Argument(name, options)


def _name(text: str) -> str:
    if not text:  # as from a shell variable that is not set; for a directory it would mean the current one
        raise argparse.ArgumentTypeError("it must not be empty")
    return text


def _path(text: str) -> Path:
    return Path(_name(text))


_directory: Final = partial(_argument, "directory", metavar="DIR", type=_path)
_file: Final = partial(_argument, "file", metavar="FILE", type=_name, nargs="?", default=STANDARD)

_STOPPED: Final = _directory(help="the --working-dir of a server that is stopped")
_SERVED: Final = _directory(help="the --working-dir of a server, which may be running")
_NEW: Final = _directory(help="made when it is missing; must not hold data")

COMMANDS: Final = (
    Command(
        "inspect",
        directory.exclusive,
        inspect.run,
        (_STOPPED, _argument("--json", action="store_true", help="write the report as JSON")),
        "show what each file holds, what recovery would do with them, and why; the exit status is that of verify",
    ),
    Command(
        "verify",
        directory.exclusive,
        inspect.run_verify,
        (_STOPPED,),
        "read every byte; the exit status is 0 when all is well, and 11 when anything is damaged",
    ),
    Command(
        "dump",
        directory.exclusive,
        dump.run,
        (
            _argument(
                "paths",
                metavar="DIR|FILE",
                type=_path,
                nargs="+",
                help="the --working-dir of a server that is stopped: its log is shown, up to the first damage; or"
                " files, at any time: whatever is whole in them is shown, also in those that repair has cut off",
            ),
        ),
        "write the operations in the log, or in single files, as JSON lines",
    ),
    Command(
        "repair",
        directory.exclusive,
        repair.run,
        (_STOPPED, _argument("--yes", action="store_true", help="do it; what is cut off is kept in files of its own")),
        "show what has to be cut off so that the server starts, and what is lost with it",
    ),
    Command(
        "export",
        directory.shared,
        export.run,
        (_SERVED, _file(help="where to, written whole or not at all; - (the default) is standard output")),
        "write the keys and values as JSON lines, also while a server runs",
    ),
    Command(
        "import",
        directory.new,
        import_.run,
        (_NEW, _file(help="where from; - (the default) is standard input")),
        "make a new or empty directory hold what export wrote",
    ),
)


def add_to(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add all of them to a command line; `run` of the parsed arguments is the function to call with these."""
    for command in COMMANDS:
        parser = subparsers.add_parser(command.name, help=command.description, description=command.description)
        for argument in command.arguments:
            parser.add_argument(argument.name, **argument.options)
        parser.set_defaults(run=partial(command.run, command.opens), role=command.name)
        parser.set_defaults(log_level="warning", log_format="text", warnings_fd=None)
    logging.getLogger("logd.tools").setLevel(logging.INFO)  # what a tool has done is said, and is no warning
