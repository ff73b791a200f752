"""A simulated disk that loses what was not synced. Stands in for `logd.local.disk.LocalDisk` behind the same protocol.

It keeps what a process sees apart from what has reached the platter. `cut_at` stops it at the n-th call that changes
anything, as a power cut does, and `survivors` then enumerates the disks that could be left: for each file with unsynced
data, the data lost, cut, zeroed, garbage, or written in the wrong order of sectors; for each unsynced change of a name,
made or not, independently. `fail_at` makes calls fail: no space (after a short write), or an I/O error, after which, as
on Linux, the data can still be read but is not on the platter and never will be.

Knows nothing of logs. The method is that of LevelDB's `fault_injection_test.cc` and redb's `crash_consistency.rs`.
"""

import errno
import io
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

SECTOR_BYTES = 16  # small, so that a frame has many
_NAME_CHANGES_MAX = 6  # beyond it only prefixes of the changes are tried, not every subset


class PowerCut(OSError):
    """Raised by the call at which the power is cut, and by every call after it."""


Change = dict[str, "Inode | None"]
"""One change of the directory: names, and their files after it; None where the name is gone."""


@dataclass
class Inode:
    """A file apart from its name: what is on the platter, and what a process sees."""

    durable: bytes = b""
    cached: bytearray = field(default_factory=bytearray)
    lost: bool = False
    """True after a failed sync: what was unsynced then counts as clean, and no later sync writes it."""
    doubtful: bytes | None = None
    """What it held when a sync failed: all of that may have reached the platter nevertheless."""

    def survivors(self) -> list[bytes]:
        """What the file may hold after a power cut, without repeats."""
        doubtful = [] if self.doubtful is None else [self.doubtful]
        return list(dict.fromkeys(self._survivors() + doubtful))

    def _survivors(self) -> list[bytes]:
        old, new = self.durable, bytes(self.cached)
        if old == new:
            return [old]
        if len(new) < len(old):
            return [old, new]
        grown = old + bytes(len(new) - len(old))
        differ = [at for at, (a, b) in enumerate(zip(grown, new, strict=True)) if a != b]
        start, stop = (differ[0], differ[-1] + 1) if differ else (len(old), len(new))
        half = start + ((stop - start) // 2 // SECTOR_BYTES * SECTOR_BYTES or (stop - start) // 2)
        variants = [
            old,
            new,
            grown,
            new[:half] + grown[half:],
            grown[:half] + new[half:],
            new[:start] + bytes(byte ^ 0x5A for byte in new[start:stop]) + new[stop:],
            new[: max(half, len(old))],  # the length is written apart from the data
            new[: max(len(new) - 1, len(old))],
        ]
        return list(dict.fromkeys(variants))


class SimFile:
    """Satisfies `logd.local.disk.DiskFile`."""

    def __init__(self, disk: "SimDisk", inode: Inode) -> None:
        self._disk = disk
        self._inode = inode
        self.size = 0

    def append(self, data: bytes | bytearray, zeros_bytes: int = 0) -> None:
        self._disk.step("append", self, bytes(data))
        self.put(bytes(data))
        self.size += len(data)
        if self.size == len(self._inode.cached):
            self._inode.cached += bytes(zeros_bytes)

    def put(self, data: bytes) -> None:
        """Write at the end, over what is there."""
        self._inode.cached[self.size : self.size + len(data)] = data

    def truncate(self, size: int) -> None:
        self._disk.step("truncate")
        del self._inode.cached[size:]
        self.size = size

    def allocate(self, size: int) -> None:
        self._disk.step("allocate")
        self._inode.cached[:] = bytes(size)
        self.size = size

    def sync(self) -> None:
        self._disk.step("sync", self)
        if not self._inode.lost:
            self._inode.durable = bytes(self._inode.cached)

    def close(self) -> None:
        pass

    def write_short(self, data: bytes) -> None:
        """Write as much as a full disk does before it fails."""
        self.put(data[: len(data) // 2])
        self.size += len(data) // 2

    def fail_sync(self) -> None:
        """Lose what is unsynced now, for ever."""
        self._inode.lost = True
        self._inode.doubtful = bytes(self._inode.cached)


class SimDisk:
    """Satisfies `logd.local.disk.Disk`."""

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self._durable = {name: Inode(data, bytearray(data)) for name, data in (files or {}).items()}
        self._names = dict(self._durable)
        self._changes: list[Change] = []
        self.calls = 0
        self.cut_at: int | None = None
        self.fail_at: dict[int, int] = {}
        """Numbers of calls, and the errno with which each fails."""
        self.is_cut = False

    def step(self, call: str, file: SimFile | None = None, data: bytes = b"") -> None:
        """Count a call that changes the disk. Raises PowerCut or OSError where one is due."""
        self.calls += 1
        if self.is_cut or self.calls == self.cut_at:
            if call == "append" and file and not self.is_cut:
                file.put(data)  # the write may have begun
            self.is_cut = True
            raise PowerCut(errno.EIO, f"power cut at call {self.calls}: {call}")
        if number := self.fail_at.get(self.calls):
            if call == "append" and file:
                file.write_short(data)
            if call == "sync" and file:
                file.fail_sync()
            raise OSError(number, os.strerror(number))

    def names(self) -> Sequence[str]:
        return list(self._names)

    def size(self, name: str) -> int:
        return len(self._find(name).cached)

    def open(self, name: str) -> BinaryIO:
        return io.BytesIO(bytes(self._find(name).cached))

    def create(self, name: str) -> SimFile:
        self.step("create")
        inode = Inode()
        self._change({name: inode})
        return SimFile(self, inode)

    def rename(self, old: str, new: str) -> None:
        self.step("rename")
        self._change({old: None, new: self._find(old)})

    def remove(self, name: str) -> None:
        self.step("remove")
        self._find(name)
        self._change({name: None})

    def sync_directory(self) -> None:
        self.step("sync_directory")
        self._durable = dict(self._names)
        self._changes = []

    def free_bytes(self) -> int:
        return 1 << 40

    def _find(self, name: str) -> Inode:
        if name not in self._names:
            raise FileNotFoundError(errno.ENOENT, "no such file", name)
        return self._names[name]

    def _change(self, change: "Change") -> None:
        self._changes.append(change)
        _apply(self._names, change)

    def survivors(self) -> Iterator["SimDisk"]:
        """Every disk that could be left if the power were cut now."""
        for names in self._surviving_names():
            inodes = list({id(inode): inode for inode in names.values()}.values())
            for contents in itertools.product(*(inode.survivors() for inode in inodes)):
                data = dict(zip(map(id, inodes), contents, strict=True))
                yield SimDisk({name: data[id(inode)] for name, inode in names.items()})

    def content(self) -> dict[str, bytes]:
        """What a process sees."""
        return {name: bytes(inode.cached) for name, inode in self._names.items()}

    def _surviving_names(self) -> Iterator[dict[str, Inode]]:
        changes = self._changes
        every: Iterator[Sequence[Change]]
        if len(changes) <= _NAME_CHANGES_MAX:
            every = itertools.chain.from_iterable(
                itertools.combinations(changes, count) for count in range(len(changes) + 1)
            )
        else:
            every = (changes[:count] for count in range(len(changes) + 1))
        for made in every:
            names = dict(self._durable)
            for change in made:
                _apply(names, change)
            yield names


def _apply(names: dict[str, Inode], change: Change) -> None:
    for name, inode in change.items():
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode
