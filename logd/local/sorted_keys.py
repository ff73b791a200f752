"""The keys of a store in byte order, so that a page of them costs no more than the page has.

Knows no values and no pages. Keys are ASCII, so the order of strings is that of bytes.

The order is made a little at a time (`sort_some`), because the thread that does it also answers requests: to sort a
million keys takes it more than a second. What is added waits until then; nothing may be read before all is in order. A
list of short sorted lists costs 4 µs for each key that comes out of order, among a million, and hardly anything for
those that come in order, as from a snapshot. (sortedcontainers does the same; measured, it is no faster, and it can
neither be filled nor be emptied in steps.)
"""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Collection, Iterator
from itertools import chain, islice
from typing import Final

SORTED_AT_ONCE: Final = 1000
"""How many keys are put in order before others have their turn: some milliseconds, when none is in its place."""
_CHUNK_KEYS_MAX: Final = 2000


class SortedKeys:
    """A set of keys: all in `_chunks`, one chunk after the other, but for those that wait in `_unsorted`."""

    def __init__(self) -> None:
        self._chunks: list[list[str]] = [[]]
        self._lows: list[str] = [""]
        """A bound for each chunk: its keys are not below it, and those of the chunk before it are."""
        self._unsorted: deque[list[str]] = deque()
        """Lists of keys. Some may have been removed since, and some may be there twice."""

    def __iter__(self) -> Iterator[str]:
        return self.walk("")

    @property
    def is_sorted(self) -> bool:
        """True when no key waits."""
        return not self._unsorted

    @property
    def unsorted(self) -> int:
        """About how many keys wait."""
        return sum(map(len, self._unsorted))

    def add(self, keys: Collection[str]) -> None:
        """Have these keys sorted, after those that wait already."""
        if not keys:
            return
        if not self._unsorted or len(self._unsorted[-1]) >= SORTED_AT_ONCE:
            self._unsorted.append([])
        self._unsorted[-1].extend(keys)

    def remove(self, key: str) -> None:
        """Remove a key. One that waits is left out when its turn comes."""
        index = bisect_right(self._lows, key) - 1
        chunk = self._chunks[index]
        at = bisect_left(chunk, key)
        if at < len(chunk) and chunk[at] == key:
            del chunk[at]
            if not chunk and len(self._chunks) > 1:
                del self._chunks[index], self._lows[index]
                self._lows[0] = ""

    def sort_some(self, is_key: Callable[[str], bool]) -> None:
        """Put some of the keys that wait in order: those that still are keys.

        The first to come are the first, as keys that come in order need only be appended.
        """
        if not self._unsorted:
            return
        waiting = self._unsorted[0]
        some, waiting[:SORTED_AT_ONCE] = waiting[:SORTED_AT_ONCE], []
        if not waiting:
            self._unsorted.popleft()
        keys = sorted(dict.fromkeys(filter(is_key, some)))  # once each, and still in order where they were
        last = self._chunks[-1]
        if not keys:
            return
        if not last or keys[0] > last[-1]:
            self._append(keys)
        else:
            for key in keys:
                self._insert(key)

    def walk(self, first: str) -> Iterator[str]:
        """The keys from `first` on, in order. Nothing may be changed meanwhile."""
        index = bisect_right(self._lows, first) - 1
        chunk = self._chunks[index]
        rest = islice(self._chunks, index + 1, None)
        return chain(islice(chunk, bisect_left(chunk, first), None), chain.from_iterable(rest))

    def empty(self) -> list[list[str]]:
        """Remove all keys. Returns what held them, for the caller to free."""
        held = [*self._chunks, *self._unsorted]
        self._chunks, self._lows, self._unsorted = [[]], [""], deque()
        return held

    def _append(self, keys: list[str]) -> None:
        """Add keys that come after all others, in order."""
        last = self._chunks[-1]
        if len(last) + len(keys) <= _CHUNK_KEYS_MAX:
            last += keys
        else:
            self._chunks.append(keys)
            self._lows.append(keys[0])

    def _insert(self, key: str) -> None:
        index = bisect_right(self._lows, key) - 1
        chunk = self._chunks[index]
        at = bisect_left(chunk, key)
        if at < len(chunk) and chunk[at] == key:
            return
        chunk.insert(at, key)
        if len(chunk) > _CHUNK_KEYS_MAX:
            half = len(chunk) // 2
            self._chunks.insert(index + 1, chunk[half:])
            self._lows.insert(index + 1, chunk[half])
            del chunk[half:]
