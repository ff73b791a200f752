"""The limit on the bytes of data: which values of a batch do not fit.

Decided once, before a batch is accepted; what is in the log was accepted, so replay does not decide again. Knows the
state, and what was accepted and is not applied yet; no sessions, no replies, no files.

Of the batches on their way, what they may add counts, and what they may take away does not: for each key, the largest
of the values that it has or may get. So the data never exceeds the limit, whichever of those batches are applied in the
end (a group may find no space on the disk). The reply to a delete is sent after it was applied, so a client that has it
finds the room.
"""

from collections import deque
from typing import NamedTuple

from logd.local.store import Store
from logd.shared.protocol import WriteBatch


class _Accepted(NamedTuple):
    raw_bytes: int
    puts: dict[str, bytes]


class DataLimit:
    """Used by one thread, for every batch in the order in which they are accepted."""

    def __init__(self, store: Store, bytes_max: int) -> None:
        self._store = store
        self._bytes_max = bytes_max
        self._accepted: deque[_Accepted] = deque()
        self._accepted_bytes = 0
        self._expected: _Expected | None = None
        """None while the limit is so far away that no value has to be looked at."""

    def accept(self, raw_bytes: int, batch: WriteBatch) -> list[str]:
        """The keys of those values in a batch that do not fit. If there are none, the batch counts as accepted.

        `raw_bytes` is the size of the whole message, and so more than the batch can add.
        """
        if self._expected is None and self._is_near(raw_bytes):
            self._expected = _Expected(self._store)
            for accepted in self._accepted:
                self._expected.add(accepted.puts, None)
        too_large = self._expected.add(batch.puts, self._bytes_max) if self._expected else []
        if not too_large:
            self._accepted.append(_Accepted(raw_bytes, batch.puts))
            self._accepted_bytes += raw_bytes
        return too_large

    def settle(self, count: int) -> None:
        """Of what was accepted, the oldest `count` batches are applied, or never will be."""
        for _ in range(count):
            self._accepted_bytes -= self._accepted.popleft().raw_bytes
        self._expected = None

    def _is_near(self, raw_bytes: int) -> bool:
        return self._store.data_bytes + self._accepted_bytes + raw_bytes > self._bytes_max


class _Expected:
    """The most that the data can come to, for each key and in all."""

    def __init__(self, store: Store) -> None:
        self._data = store.data
        self._data_bytes = store.data_bytes
        self._sizes: dict[str, int] = {}

    def add(self, puts: dict[str, bytes], bytes_max: int | None) -> list[str]:
        """The keys whose values would take the data beyond the limit. If there are none, all are expected from now on.

        Without a limit everything fits.
        """
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
