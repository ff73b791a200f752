"""How far each session of a lane has come, and the record in which etcd keeps that.

A record is part of each transaction of its lane, so it and the writes are there together or not at all. That is what
makes batches exactly once: whoever reads it knows which transaction was the last, and which batches were in it.

Knows no gRPC and no keys of users.
"""

import enum
import time
from typing import Final, Self

import msgspec

from logd.shared.protocol import Outcomes, WriteBatch

SESSIONS_MAX: Final = 64
"""In a record. Beyond them, the session that wrote least recently is dropped."""


class Record(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The value of a record's key, in MessagePack."""

    owner: bytes
    """The process that wrote it."""
    number: int
    """Of the transaction, counted by its owner."""
    sessions: dict[bytes, int]
    """The last batch applied for each session, least recently used first."""
    written_at: float
    """In seconds since 1970, for others to tell a record that nobody needs any more."""
    outcomes: dict[bytes, dict[int, Outcomes]]
    """By session and number, what was not made of batches whose answer the worker may not have."""


_encode: Final = msgspec.msgpack.Encoder().encode
decode: Final = msgspec.msgpack.Decoder(Record).decode


class Admission(enum.Enum):
    """What a table says of a batch."""

    NEW = enum.auto()
    REPEAT = enum.auto()
    """It was applied before."""
    UNKNOWN = enum.auto()
    """Its session is not known (any more)."""


class Table:
    """The sessions of a lane."""

    def __init__(
        self, sessions: dict[bytes, int] | None = None, outcomes: dict[bytes, dict[int, Outcomes]] | None = None
    ) -> None:
        self.sessions = sessions or {}
        """As in `Record`."""
        self.outcomes = outcomes or {}
        """As in `Record`."""

    @classmethod
    def of(cls, record: Record) -> Self:
        """The table that a record holds."""
        return cls(dict(record.sessions), dict(record.outcomes))

    def copy(self) -> "Table":
        """One that can be changed while this one is not."""
        return Table(dict(self.sessions), dict(self.outcomes))

    def replace(self, other: "Table") -> None:
        """Hold what the other does."""
        for mine, theirs in ((self.sessions, other.sessions), (self.outcomes, other.outcomes)):
            mine.clear()
            mine.update(theirs)  # type: ignore[arg-type]

    def encoded(self, owner: bytes, number: int) -> bytes:
        """The record that holds this table."""
        return _encode(Record(owner, number, self.sessions, time.time(), self.outcomes))

    def outcomes_of(self, session: bytes, number: int) -> dict[int, Outcomes]:
        """What was not made of an applied batch, by its number; empty when all of it was made."""
        found = self.outcomes.get(session, {}).get(number)
        return {number: found} if found else {}

    def admit(self, batch: WriteBatch) -> Admission:
        """Note that a batch is applied, unless it was before or its session is not known."""
        last = self.sessions.pop(batch.session, None)
        if last is None and batch.number != 0:
            return Admission.UNKNOWN
        if last is not None and batch.number <= last:
            self.sessions[batch.session] = last
            return Admission.REPEAT
        self.sessions[batch.session] = batch.number
        if len(self.sessions) > SESSIONS_MAX:
            dropped = next(iter(self.sessions))
            del self.sessions[dropped]
            self.outcomes.pop(dropped, None)
        self._forget_outcomes(batch.session, batch.base)
        return Admission.NEW

    def note_outcomes(self, batch: WriteBatch, outcomes: Outcomes) -> None:
        """Keep what was not made of a batch, until its worker has the answer."""
        self.outcomes[batch.session] = self.outcomes.get(batch.session, {}) | {batch.number: outcomes}

    def _forget_outcomes(self, session: bytes, base: int) -> None:
        """The worker has all answers below the base."""
        if session in self.outcomes:
            kept = {number: each for number, each in self.outcomes.pop(session).items() if number >= base}
            if kept:
                self.outcomes[session] = kept
