"""`export`: the keys and values as JSON lines, also while a server writes them.

It takes no lock and writes nothing to the directory. It knows that files may grow, and that checkpoints may remove
them, while it reads.
"""

import argparse
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import msgspec

from logd.local import recovery
from logd.local.disk import Disk
from logd.local.store import Store
from logd.shared.protocol import KEY_PATTERN, Exit
from logd.tools import streams
from logd.tools.directory import OpenDirectory
from logd.tools.errors import CannotRun, naming

_READ_ATTEMPTS_MAX: Final = 20
_PART_BYTES: Final = 1 << 20

log = logging.getLogger("logd.tools")


class Entry(msgspec.Struct):
    """One line of an export, `{"key": …, "value": …}`."""

    key: Annotated[str, msgspec.Meta(pattern=rf"\A{KEY_PATTERN}\Z")]
    value: Annotated[str, msgspec.Meta(min_length=1)]


def run(open_directory: OpenDirectory, arguments: argparse.Namespace) -> Exit:
    """The command `export`."""
    with naming(arguments.file):
        _refuse_inside(arguments.directory, arguments.file)
    with open_directory(arguments.directory) as disk:
        recovered = read_state(disk)
    streams.write(arguments.file, encode(recovered.store))
    log.info("exported %d keys as of frame %d", len(recovered.store.data), recovered.sequence)
    return Exit.STOPPED


def _refuse_inside(directory: Path, file: str) -> None:
    """A file of the server would be replaced, or a temporary one be taken by it for one of its own, and removed."""
    if file != streams.STANDARD and Path(os.path.realpath(file)).parent == Path(os.path.realpath(directory)):
        raise CannotRun(Exit.USAGE, f"{file} is in {directory}, where only the server may write; name another place")


def read_state(disk: Disk) -> recovery.Recovered:
    """The state after the last frame that is whole, also while a server writes and checkpoints remove what they cover.

    What fails twice in the same place is no trace of a change. Raises recovery.Damaged or OSError.
    """
    last: tuple[object, ...] = ()
    for _ in range(_READ_ATTEMPTS_MAX):
        try:
            recovered = recovery.load(disk)
            if recovered.finding is recovery.Finding.NEW:
                raise FileNotFoundError(errno.ENOENT, "all its files were taken away while they were read")
            return recovered
        except (recovery.Damaged, FileNotFoundError) as error:
            before, last = last, _place(error)
            if last == before:
                raise
    raise TimeoutError(errno.ETIMEDOUT, f"its files changed {_READ_ATTEMPTS_MAX} times while they were read")


def _place(error: recovery.Damaged | FileNotFoundError) -> tuple[object, ...]:
    if isinstance(error, recovery.Damaged):
        return error.finding, error.name, error.offset
    return (error.filename,)


def encode(store: Store) -> Iterator[bytes]:
    """The state as lines, many to a part."""
    encode_into = msgspec.json.Encoder().encode_into
    part = bytearray()
    for key, value in streams.progress(store.data.items(), "keys", len(store.data)):
        encode_into(Entry(key, value.decode()), part, -1)
        part += b"\n"
        if len(part) >= _PART_BYTES:
            yield bytes(part)
            part.clear()
    yield bytes(part)
