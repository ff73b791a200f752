"""The authoritative state: keys and their values, and how far each session has come.

Knows what an operation means; knows no disk and no sockets. Applying the same batches in the same order gives the same
state, always: replay depends on it, so nothing here may look at a clock, a random number or an option.
"""

from collections.abc import Callable
from typing import Final

from logd.shared.protocol import WriteBatch

SESSIONS_MAX: Final = 1024
"""Part of the format, not an option: replay has to drop the same sessions that were dropped at first."""


class Store:
    """Keys, values and sessions. What it holds is durable: a group is applied only after its sync."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.discard: Callable[[dict[str, bytes]], None] = lambda _: None
        """Frees what was cleared. Where nobody waits, it may be freed at once."""
        self.sessions: dict[bytes, int] = {}
        """The last batch applied for each session, least recently used first."""
        self._data_bytes: int | None = None

    @property
    def data_bytes(self) -> int:
        """Keys and values together.

        Counted when it is first asked for, and kept up to date from then on, so that replay and checkpoints do not pay
        for it.
        """
        if self._data_bytes is None:
            self._data_bytes = sum(map(len, self.data)) + sum(map(len, self.data.values()))
        return self._data_bytes

    def apply(self, batch: WriteBatch) -> bool:
        """Apply a batch exactly once. False when its session is not known: then nothing was applied.

        A session is opened by its batch 0. When there are too many, the one that wrote least recently is dropped.
        """
        last = self.sessions.pop(batch.session, None)
        if last is None and batch.number != 0:
            return False
        if last is not None and batch.number <= last:
            self.sessions[batch.session] = last
            return True
        self.sessions[batch.session] = batch.number
        if len(self.sessions) > SESSIONS_MAX:
            del self.sessions[next(iter(self.sessions))]
        self._write(batch)
        return True

    def _write(self, batch: WriteBatch) -> None:
        if batch.clear:
            old, self.data = self.data, {}
            self.discard(old)
            self._data_bytes = None if self._data_bytes is None else 0
        if self._data_bytes is not None:
            self._data_bytes += self._growth_bytes(batch.puts)
        self.data.update(batch.puts)
        for key in batch.deletes:
            value = self.data.pop(key, None)
            if value is not None and self._data_bytes is not None:
                self._data_bytes -= len(key) + len(value)

    def _growth_bytes(self, puts: dict[str, bytes]) -> int:
        """What these would add to the bytes of data; below 0 when they shrink it. Only new keys are looked at."""
        data = self.data
        replaced = list(filter(None, map(data.get, puts)))
        growth = sum(map(len, puts.values())) - sum(map(len, replaced))
        if len(replaced) < len(puts):
            growth += sum([len(key) for key in puts if key not in data])
        return growth
