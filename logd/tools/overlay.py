"""A disk whose changes are only remembered: to see what a change would lead to before it is made."""

import io
from collections.abc import Sequence
from typing import BinaryIO

from logd.local.disk import Disk, DiskFile


class Overlay:
    """The files of a disk, and changes to them that nobody else sees. Satisfies `Disk`."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._changed: dict[str, bytes | None] = {}
        """The content of each file that is not as on the disk; None where it is removed."""

    def names(self) -> Sequence[str]:
        unchanged = [name for name in self._disk.names() if name not in self._changed]
        return unchanged + [name for name, data in self._changed.items() if data is not None]

    def size(self, name: str) -> int:
        data = self._changed.get(name)
        return self._disk.size(name) if data is None else len(data)

    def open(self, name: str) -> BinaryIO:
        data = self._changed.get(name)
        return self._disk.open(name) if data is None else io.BytesIO(data)

    def create(self, name: str) -> DiskFile:
        self._changed[name] = b""
        return _OverlayFile(self._changed, name)

    def rename(self, old: str, new: str) -> None:
        with self.open(old) as file:
            self._changed[new] = file.read()
        self._changed[old] = None

    def remove(self, name: str) -> None:
        self._changed[name] = None

    def sync_directory(self) -> None:
        pass

    def free_bytes(self) -> int:
        return self._disk.free_bytes()


class _OverlayFile:
    def __init__(self, files: dict[str, bytes | None], name: str) -> None:
        self._files = files
        self._name = name
        self.size = 0

    def append(self, data: bytes | bytearray, zeros_bytes: int = 0) -> None:
        self._files[self._name] = (self._files[self._name] or b"") + data
        self.size += len(data)

    def truncate(self, size: int) -> None:
        self._files[self._name] = (self._files[self._name] or b"")[:size]
        self.size = size

    def allocate(self, size: int) -> None:
        self.append(bytes(size))

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass
