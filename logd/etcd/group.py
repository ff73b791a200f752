"""A group: the batches that become one transaction of etcd, and what is left of them when they are folded.

Applying the batches one after the other gives the same state as applying, at once, the last write of each key; etcd
accepts no key twice in a transaction. Folding also decides the checks of the batches, against what is known of the
keys in etcd. That it is still so is a condition of the transaction; when it is not, the group is folded anew.

Knows no gRPC.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from logd.etcd.records import Admission, Table
from logd.intake import Accepted
from logd.shared.etag import etag
from logd.shared.protocol import Committed, Dropped, FailedCheck, Outcomes, Reply, Transaction, WriteBatch

WRITES_MAX: Final = 3000
CHECKED_KEYS_MAX: Final = 48
"""Each is a condition, and a read in case one does not hold. Reading the record and the generation too makes 50, before
which 64 nested writes have room: etcd adds up, along a path, the longest list of each level, and allows 128."""
_WRITE_OVERHEAD_BYTES: Final = 64
"""What a write takes in a transaction beside its key and value: prefix, generation, lengths."""
_CHECK_OVERHEAD_BYTES: Final = 128
"""The same for a check, with what its outcome takes in the record."""


class Present(NamedTuple):
    """What etcd has of a key: the revision that wrote it, and the tag of its value. 0 and None when it is not there."""

    revision: int = 0
    tag: str | None = None


@dataclass(slots=True)
class Folded:
    """What a group comes to, if `relied_on` is what etcd has when it is applied."""

    table: Table
    """As it will be."""
    writes: dict[str, bytes | None] = field(default_factory=dict)
    """The last write of each key; None deletes it."""
    clears: bool = False
    """All keys are removed before these writes."""
    relied_on: dict[str, int] = field(default_factory=dict)
    """The revisions of keys that decided checks."""
    replies: list[tuple[bytes, Reply]] = field(default_factory=list)


def fold(group: Sequence[Accepted], table: Table, present: Mapping[str, Present]) -> Folded:
    """Fold a group. `present` has every key that a check of it names."""
    folded = Folded(table.copy())
    committed: dict[bytes, Committed] = {}
    for _, batch in group:
        admission = folded.table.admit(batch)
        if admission is Admission.UNKNOWN:
            folded.replies.append((batch.session, Dropped(batch.session, batch.number)))
            continue
        if admission is Admission.NEW and (outcomes := _apply(batch, folded, present)):
            folded.table.note_outcomes(batch, outcomes)
        reply = committed.setdefault(batch.session, Committed(batch.session, [], {}))
        reply.numbers.append(batch.number)
        reply.outcomes.update(folded.table.outcomes_of(batch.session, batch.number))
    folded.replies += committed.items()
    return folded


def checked_keys(group: Iterable[Accepted]) -> set[str]:
    """The keys that checks of a group name."""
    return {check.key for _, batch in group for each in batch.transactions for check in each.checks}


def count_that_fit(waiting: deque[Accepted], bytes_max: int) -> int:
    """How many of the batches that wait fit into one transaction; at least one, whether etcd takes it or not."""
    size = writes = 0
    checked: set[str] = set()
    for count, accepted in enumerate(waiting):
        batch_writes, batch_checks = _counts(accepted.batch)
        size += len(accepted.raw) + batch_writes * _WRITE_OVERHEAD_BYTES
        writes += batch_writes
        if batch_checks:
            keys = checked_keys([accepted])
            checked |= keys
            # Each goes out as a condition and as a read; `raw` has it once.
            size += batch_checks * _CHECK_OVERHEAD_BYTES + sum(len(key.encode()) for key in keys)
        if count and (size > bytes_max or writes > WRITES_MAX or len(checked) > CHECKED_KEYS_MAX):
            return count
    return len(waiting)


def _counts(batch: WriteBatch) -> tuple[int, int]:
    """The numbers of writes and of checks."""
    writes, checks = len(batch.puts) + len(batch.deletes), 0
    for each in batch.transactions:
        writes += len(each.puts) + len(each.deletes)
        checks += len(each.checks)
    return writes, checks


def _apply(batch: WriteBatch, folded: Folded, present: Mapping[str, Present]) -> Outcomes | None:
    """Add the writes of a batch; those that are not made, if any."""
    if batch.clear:
        folded.clears = True
        folded.writes.clear()
    folded.writes.update(batch.puts)
    folded.writes.update(dict.fromkeys(batch.deletes))
    failed: dict[int, list[FailedCheck]] = {}
    for index, transaction in enumerate(batch.transactions):
        if found := _execute(transaction, folded, present):
            failed[index] = found
    return Outcomes([], failed) if failed else None


def _execute(transaction: Transaction, folded: Folded, present: Mapping[str, Present]) -> list[FailedCheck]:
    """Add the writes of a transaction, or return the checks that do not hold."""
    failed: list[FailedCheck] = []
    for index, check in enumerate(transaction.checks):
        tag = _tag(check.key, folded, present)
        if not check.holds(tag):
            failed.append((index, tag))
    if not failed:
        folded.writes.update(transaction.puts)
        folded.writes.update(dict.fromkeys(transaction.deletes))
    return failed


def _tag(key: str, folded: Folded, present: Mapping[str, Present]) -> str | None:
    """The tag of a key at this point of the group; None when it is not there."""
    if key in folded.writes:
        value = folded.writes[key]
        return None if value is None else etag(value)
    if folded.clears:
        return None
    folded.relied_on[key] = present[key].revision
    return present[key].tag
