"""How threads hand results to the main thread, which waits for them on a descriptor beside its socket."""

import contextlib
import os
import queue
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


class Inbox(Protocol[T_contra]):
    """What a thread needs of a mailbox."""

    def put(self, letter: T_contra) -> None:
        """Hand a result over."""


class Mailbox(Generic[T]):
    """Results, in the order in which they were put. Read by one thread."""

    def __init__(self) -> None:
        self._letters: queue.SimpleQueue[T] = queue.SimpleQueue()
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)  # a full pipe wakes as well as one more byte does

    def fileno(self) -> int:
        """Readable when there is something."""
        return self._read

    def put(self, letter: T) -> None:
        """Hand a result over."""
        self._letters.put(letter)
        self.wake()

    def wake(self) -> None:
        """Make the descriptor readable."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, b"\0")

    def take(self) -> Iterator[T]:
        """All that was put so far. The descriptor is not readable any more before the next."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 1 << 16)  # first, so that what is put from here on wakes again
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._letters.get_nowait()

    def close(self) -> None:
        """Release the descriptors."""
        os.close(self._read)
        os.close(self._write)
