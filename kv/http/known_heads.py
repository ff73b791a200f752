"""What a client's header fields were found to mean, so that the same bytes need not be parsed with every request.

Clients send the same few header blocks thousands of times: all fields of a request, with the empty line after them.
What is kept was found by the parser, so it means the same again. Each connection keeps its own: no client can change
what the request of another means, nor take the room of another. Knows no parser and no socket.
"""

from typing import Any, Final
from weakref import WeakValueDictionary

BLOCKS_MAX: Final = 4
"""As of reads, and of writes of a few lengths."""
BYTES_MAX: Final = 4096
"""What all blocks together may take of memory, for each connection."""


class Fields(list[tuple[bytes, bytes]]):
    """The fields of a head: names in lower case; values without white space around them."""

    __slots__ = ("meaning",)

    def __init__(self) -> None:
        super().__init__()
        self.meaning: Any = None
        """What the application has found in them, kept for the next request with the same."""


class Known:
    """A header block, and what was found in it."""

    __slots__ = ("__weakref__", "block", "body_bytes", "fields", "size")

    def __init__(self, block: bytes, fields: Fields, body_bytes: int, size: int) -> None:
        self.block = block
        self.fields = fields
        self.body_bytes = body_bytes
        """The announced length of the body."""
        self.size = size
        """What all of this takes of memory, in bytes."""


_alive: WeakValueDictionary[bytes, Known] = WeakValueDictionary()
"""What any connection keeps: the same block of many takes memory once."""


class KnownHeads:
    """What one connection keeps. The oldest makes room for a new one."""

    __slots__ = ("_bytes_max", "_known", "find")

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self._bytes_max = min(bytes_max, BYTES_MAX)
        self._known: dict[bytes, Known] = {}
        """By block, oldest first."""
        self.find = self._known.get
        """What was found in a block; None when it is not known. Without a call of Python's, for each request."""

    def add(self, known: Known) -> None:
        """Keep a block, unless it is known or too large."""
        if known.block in self._known or known.size > self._bytes_max:
            return
        while len(self._known) == BLOCKS_MAX or self._size() + known.size > self._bytes_max:
            del self._known[next(iter(self._known))]
        known = _alive.setdefault(known.block, known)
        self._known[known.block] = known

    def _size(self) -> int:
        return sum(each.size for each in self._known.values())
