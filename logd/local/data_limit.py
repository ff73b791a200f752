"""The limit on the bytes of data: which values of a batch do not fit.

Decided once, when a batch is taken in; what is in the log was taken, so replay never asks. Knows the state, and what
was taken and is not applied yet; no sessions, no answers, no files.

What batches on their way may add is counted, what they may take away is not: for each key the largest of the values
that it has or would be given. So the data never exceeds the limit, whichever of those batches are applied in the end
(a group may find no space on the disk); and since the answer to a delete comes after it was applied, a client that
has it finds the room.
"""

from collections import deque
from typing import NamedTuple

from logd.local.store import Store
from logd.shared.protocol import WriteBatch


class _Taken(NamedTuple):
    raw_bytes: int
    puts: dict[str, bytes]


class DataLimit:
    """Asked by one thread about every batch, in the order in which they are taken."""

    def __init__(self, store: Store, bytes_max: int) -> None:
        self._store = store
        self._bytes_max = bytes_max
        self._taken: deque[_Taken] = deque()
        self._taken_raw_bytes = 0
        self._expected: _Expected | None = None
        """None while the limit is so far away that nothing has to be looked at."""

    def admit(self, raw_bytes: int, batch: WriteBatch) -> list[str]:
        """The keys of those values in a batch that do not fit. With none, the batch counts as taken.

        `raw_bytes` is the size of the whole message, and so more than the batch can add.
        """
        if self._expected is None and self._is_near(raw_bytes):
            self._expected = _Expected(self._store)
            for taken in self._taken:
                self._expected.admit(taken.puts, None)
        too_large = self._expected.admit(batch.puts, self._bytes_max) if self._expected else []
        if not too_large:
            self._taken.append(_Taken(raw_bytes, batch.puts))
            self._taken_raw_bytes += raw_bytes
        return too_large

    def _is_near(self, raw_bytes: int) -> bool:
        return self._store.data_bytes + self._taken_raw_bytes + raw_bytes > self._bytes_max

    def settle(self, count: int) -> None:
        """Of what was taken, the first so many are applied, or never will be."""
        for _ in range(count):
            self._taken_raw_bytes -= self._taken.popleft().raw_bytes
        self._expected = None


class _Expected:
    """The most that the data can come to, for each key and in all."""

    def __init__(self, store: Store) -> None:
        self._data = store.data
        self._data_bytes = store.data_bytes
        self._sizes: dict[str, int] = {}

    def admit(self, puts: dict[str, bytes], bytes_max: int | None) -> list[str]:
        """The keys whose values would take the data beyond the limit. With none, they are expected from now on."""
        data_bytes, sizes, too_large = self._data_bytes, {}, []
        for key, value in puts.items():
            size = len(key) + len(value)
            growth = size - self._size(key)
            if growth <= 0:
                continue
            if bytes_max is not None and data_bytes + growth > bytes_max:
                too_large.append(key)
            else:
                data_bytes += growth
                sizes[key] = size
        if not too_large:
            self._data_bytes = data_bytes
            self._sizes.update(sizes)
        return too_large

    def _size(self, key: str) -> int:
        size = self._sizes.get(key)
        if size is None:
            value = self._data.get(key)
            size = 0 if value is None else len(key) + len(value)
        return size
