"""`import`: a new directory that holds what `export` wrote. All of the input is read before anything is made."""

import argparse
import contextlib
import logging
from collections.abc import Iterable

import msgspec

from logd.local import snapshot, wal
from logd.local.disk import Disk
from logd.local.store import Store
from logd.shared.protocol import DECODE_ERRORS, Exit
from logd.tools import streams
from logd.tools.directory import OpenDirectory
from logd.tools.errors import CannotRun
from logd.tools.export import Entry

log = logging.getLogger("logd.tools")


class BadLine(Exception):
    """A line is not what `export` writes; the message says which one, and in what way."""


def run(open_directory: OpenDirectory, arguments: argparse.Namespace) -> Exit:
    """The command `import`."""
    with streams.reading(arguments.file) as lines:
        try:
            store = decode(lines)
        except BadLine as error:
            name = streams.describe_input(arguments.file)
            raise CannotRun(Exit.USAGE, f"{name}: {error}; nothing was imported") from error
    with open_directory(arguments.directory) as disk:
        write(disk, store)
    log.info("imported %d keys", len(store.data))
    return Exit.STOPPED


def decode(lines: Iterable[bytes]) -> Store:
    """The state that these lines are of. Raises BadLine."""
    store = Store()
    decode_entry = msgspec.json.Decoder(Entry).decode
    for number, line in enumerate(streams.progress(lines, "keys"), start=1):
        try:
            entry = decode_entry(line)
        except DECODE_ERRORS as error:
            raise BadLine(f"line {number}: {error}") from error
        store.load({entry.key: entry.value.encode()})
    return store


def write(disk: Disk, store: Store) -> None:
    """Make a directory without data hold this state, durably: a snapshot, and the empty log that follows it.

    Raises OSError, and then leaves the directory without data.
    """
    try:
        snapshot.write(disk, store, 0)
        wal.Wal(disk, 1, segment_bytes=1).close()
    except OSError:
        for name in (snapshot.snapshot_name(0), wal.segment_name(1)):
            with contextlib.suppress(OSError):
                disk.remove(name)
        raise
