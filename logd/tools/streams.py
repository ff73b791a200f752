"""What a command reads and writes beside the directory: a named file, or the standard streams.

Every failure is a CannotRun that names the stream. A reader of standard output that has gone away is no failure.
"""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

from tqdm import tqdm

from logd.local.disk import LocalDisk
from logd.local.publish import TEMPORARY_SUFFIX, publish
from logd.shared.protocol import Exit
from logd.tools.errors import CannotRun, because_of, naming

STANDARD: Final = "-"
"""Stands for standard input or output on a command line."""

_Item = TypeVar("_Item")


class ReaderGone(Exception):
    """Whoever reads standard output, such as head(1), has seen enough."""


def print_lines(lines: Iterable[str]) -> None:
    """Write lines to standard output, as UTF-8 whatever the locale; a file name that is no text is escaped."""
    _write_out(f"{line}\n".encode(errors="backslashreplace") for line in lines)


def write(name: str, parts: Iterable[bytes]) -> None:
    """Write a file: whole, durable and for its owner alone, or not at all. A pipe or a device is written to as it is.

    The parts must not come from a disk: its errors would be taken for those of the file.
    """
    if name == STANDARD:
        _write_out(parts)
        return
    with naming(name):
        path = Path(os.path.realpath(name))  # a link stays one
        if path.exists() and not path.is_file():
            with path.open("wb") as file:
                file.writelines(parts)
        else:
            temporary = f"{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}"  # another backup may run at the same time
            publish(LocalDisk(path.parent), path.name, parts, temporary=temporary).close()


def _write_out(parts: Iterable[bytes]) -> None:
    if sys.stdout is None:
        raise CannotRun(Exit.USAGE, "standard output is closed")
    try:
        for part in parts:
            with _standard_output():
                sys.stdout.buffer.write(part)
    finally:  # also when there are no more parts because of damage
        with _standard_output():
            sys.stdout.buffer.flush()


@contextlib.contextmanager
def _standard_output() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to flush at exit goes nowhere
        if isinstance(error, BrokenPipeError):
            raise ReaderGone from error
        raise because_of(error, "standard output") from error


def describe_input(name: str) -> str:
    """What `reading` reads, in words."""
    return "standard input" if name == STANDARD else name


@contextlib.contextmanager
def reading(name: str) -> Iterator[BinaryIO]:
    """Open a file, or standard input, to read it."""
    if name == STANDARD and sys.stdin is None:
        raise CannotRun(Exit.USAGE, "standard input is closed; name a FILE")
    with naming(describe_input(name)):
        if name == STANDARD:
            yield sys.stdin.buffer
        else:
            with open(name, "rb") as file:
                yield file


def progress(items: Iterable[_Item], unit: str, total: int | None = None) -> Iterable[_Item]:
    """The items, with a bar on standard error when a person watches it."""
    is_watched = sys.stderr is not None and sys.stderr.isatty()
    return tqdm(items, unit=f" {unit}", total=total, disable=not is_watched)
