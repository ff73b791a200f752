"""The authoritative state: keys and their values, and how far each session has come.

Knows what an operation means; knows no files and no sockets. Applying the same batches in the same order gives the same
state, always: replay depends on it, so nothing here may look at a clock, a random number or an option.
"""

from typing import Final

from logd.protocol import WriteBatch

SESSIONS_MAX: Final = 1024
"""Part of the format, not an option: replay has to drop the same sessions that were dropped at first."""


class Store:
    """Keys, values and sessions. What it holds is durable: a group is applied only after its sync."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.data_bytes = 0
        """The size of all keys and values."""
        self.sessions: dict[bytes, int] = {}
        """The last batch applied for each session, least recently used first."""

    def apply(self, batch: WriteBatch) -> bool:
        """Apply a batch exactly once. False when its session is not known: then nothing was applied.

        A session is opened by its batch 0. The one that wrote least recently makes room when there are too many.
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

    def put(self, entries: dict[str, bytes]) -> None:
        """Add or replace entries. Many at once cost no Python code for each."""
        data = self.data
        replaced = list(filter(None, map(data.get, entries)))
        if len(replaced) < len(entries):
            self.data_bytes += sum([len(key) for key in entries if key not in data])
        self.data_bytes += sum(map(len, entries.values())) - sum(map(len, replaced))
        data.update(entries)

    def _write(self, batch: WriteBatch) -> None:
        if batch.clear:
            self.data = {}
            self.data_bytes = 0
        if batch.puts:
            self.put(batch.puts)
        for key in batch.deletes:
            value = self.data.pop(key, None)
            if value is not None:
                self.data_bytes -= len(key) + len(value)
