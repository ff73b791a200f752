"""The authoritative state: keys and their values, how far each session has come, and what came of its last writes.

Knows what an operation means; knows no disk and no sockets. Applying the same batches in the same order gives the same
state, always: replay depends on it, so nothing here may look at a clock, a random number or an option.
"""

from collections.abc import Callable, Iterable
from typing import Final

from logd.local.sorted_keys import SortedKeys
from logd.local.table import Table
from logd.shared.etag import etag
from logd.shared.protocol import Check, FailedCheck, Outcomes, Transaction, WriteBatch

SESSIONS_MAX: Final = 1024
"""Part of the format, not an option: replay has to drop the same sessions that were dropped at first."""


class Store:
    """Keys, values and sessions. What it holds is durable: a group is applied only after its sync."""

    def __init__(self) -> None:
        self.data = Table()
        self.sorted_keys = SortedKeys()
        """The keys of `data`. They wait there until somebody has them put in order: replay does not pay for that."""
        self.discard: Callable[[Table, list[list[str]]], None] = lambda _data, _keys: None
        """Frees what was cleared. Where nobody waits, it may be freed at once."""
        self.sessions: dict[bytes, int] = {}
        """The last batch applied for each session, least recently used first."""
        self.outcomes: dict[bytes, dict[int, Outcomes]] = {}
        """By session and number, of batches whose answer the worker may not have: what was not made of them.

        Few have an entry: those batches of which not every write was made.
        """
        self._data_bytes: int | None = None

    @property
    def data_bytes(self) -> int:
        """Keys and values together.

        Counted when it is first asked for, and kept up to date from then on, so that replay and checkpoints do not pay
        for it.
        """
        if self._data_bytes is None:
            sizes = (sum(map(len, part)) + sum(map(len, part.values())) for part in self.data.parts)
            self._data_bytes = sum(sizes)
        return self._data_bytes

    def load(self, data: dict[str, bytes]) -> None:
        """Add or replace values that no batch brings: those of a snapshot, or of an import."""
        self.sorted_keys.add(self.data.put_all(data))

    def sort_some(self) -> None:
        """Put some of the keys that wait in order, if any do."""
        self.sorted_keys.sort_some(self.data.__contains__)

    def apply(self, batch: WriteBatch, data_bytes_max: int = 0) -> bool:
        """Apply a batch exactly once. False when its session is not known: then nothing was applied.

        Writes that would take the data beyond `data_bytes_max` are not made; 0 is no limit. A session is opened by its
        batch 0. When there are too many, the one that wrote least recently is dropped.
        """
        last = self.sessions.pop(batch.session, None)
        if last is None and batch.number != 0:
            return False
        if last is not None and batch.number <= last:
            self.sessions[batch.session] = last
            return True
        self.sessions[batch.session] = batch.number
        if len(self.sessions) > SESSIONS_MAX:
            self._drop_session(next(iter(self.sessions)))
        if self.outcomes:
            self._forget_outcomes(batch.session, batch.base)
        if outcomes := self._write(batch, data_bytes_max):
            self.outcomes.setdefault(batch.session, {})[batch.number] = outcomes
        return True

    def outcomes_of(self, session: bytes, number: int) -> dict[int, Outcomes]:
        """What was not made of an applied batch, by its number; empty when all of it was made."""
        found = self.outcomes.get(session, {}).get(number)
        return {number: found} if found else {}

    # Sessions --------------------------------------------------------------------------------------------

    def _drop_session(self, session: bytes) -> None:
        del self.sessions[session]
        self.outcomes.pop(session, None)

    def _forget_outcomes(self, session: bytes, base: int) -> None:
        """The worker has all answers below the base."""
        kept = {number: each for number, each in self.outcomes.pop(session, {}).items() if number >= base}
        if kept:
            self.outcomes[session] = kept

    # Writes ----------------------------------------------------------------------------------------------

    def _write(self, batch: WriteBatch, bytes_max: int) -> Outcomes | None:
        """Make the writes of a batch; those that were not made, if any."""
        if batch.clear:
            old, self.data = self.data, Table()
            self.discard(old, self.sorted_keys.empty())
            self._data_bytes = None if self._data_bytes is None else 0
        over_limit = self._over_limit(batch.puts, bytes_max) if bytes_max else []
        self._put(_without(batch.puts, over_limit) if over_limit else batch.puts)
        self._delete(batch.deletes)
        if not batch.transactions and not over_limit:
            return None
        results = [self._execute(each, bytes_max) for each in batch.transactions]
        failed = {index: failure for index, failure in enumerate(results) if failure is not None}
        return Outcomes(over_limit, failed) if over_limit or failed else None

    def _execute(self, transaction: Transaction, bytes_max: int) -> list[FailedCheck] | None:
        """Make all writes of a transaction, and return None; or none, and return the checks that do not hold.

        No check is returned when it is the limit on the data that forbids the writes.
        """
        failed = self._failed(transaction.checks)
        if failed or (bytes_max and self._exceeds(transaction, bytes_max)):
            return failed
        self._put(transaction.puts)
        self._delete(transaction.deletes)
        return None

    def _failed(self, checks: Iterable[Check]) -> list[FailedCheck]:
        failed: list[FailedCheck] = []
        for index, check in enumerate(checks):
            value = self.data.get(check.key)
            matches = value is not None and (check.tags is None or etag(value) in check.tags)
            if matches == check.negated:
                failed.append((index, None if value is None else etag(value)))
        return failed

    def _put(self, puts: dict[str, bytes]) -> None:
        if self._data_bytes is not None:
            self._data_bytes += self._growth_bytes(puts)
        if added := self.data.put_all(puts):
            self.sorted_keys.add(added)

    def _delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            value = self.data.pop(key, None)
            if value is None:
                continue
            if self._data_bytes is not None:
                self._data_bytes -= len(key) + len(value)
            self.sorted_keys.remove(key)

    # The bytes of data -----------------------------------------------------------------------------------

    def _growth_bytes(self, puts: dict[str, bytes]) -> int:
        """What these would add to the bytes of data; below 0 when they shrink it. Only new keys are looked at."""
        replaced = list(filter(None, self.data.get_all(puts)))
        growth = sum(map(len, puts.values())) - sum(map(len, replaced))
        if len(replaced) < len(puts):
            growth += sum([len(key) for key in puts if key not in self.data])
        return growth

    def _over_limit(self, puts: dict[str, bytes], bytes_max: int) -> list[str]:
        """The keys of those puts that do not fit, one after the other. What does not grow always fits."""
        data_bytes = self.data_bytes
        if data_bytes + sum(map(len, puts)) + sum(map(len, puts.values())) <= bytes_max:
            return []  # as nearly always: no value has to be compared
        over_limit = []
        for key, value in puts.items():
            growth = len(key) + len(value) - self._size(key)
            if growth > 0 and data_bytes + growth > bytes_max:
                over_limit.append(key)
            else:
                data_bytes += growth
        return over_limit

    def _exceeds(self, transaction: Transaction, bytes_max: int) -> bool:
        """True when the writes of a transaction, taken together, grow the data beyond the limit."""
        growth = self._growth_bytes(transaction.puts) - sum(map(self._size, transaction.deletes))
        return growth > 0 and self.data_bytes + growth > bytes_max

    def _size(self, key: str) -> int:
        value = self.data.get(key)
        return 0 if value is None else len(key) + len(value)


def _without(puts: dict[str, bytes], keys: list[str]) -> dict[str, bytes]:
    left_out = set(keys)
    return {key: value for key, value in puts.items() if key not in left_out}
