"""One lane's way into etcd: each group is one transaction, sent until it is certain what became of it.

Why a group is applied exactly once, however often it is sent: each sending has the condition that the record is the one
that this writer wrote last, and the first that is applied changes the record. When the condition does not hold, the
record says why:

| the record in etcd                      | what happened                           | what follows                    |
|-----------------------------------------|-----------------------------------------|---------------------------------|
| is ours, with the number of an attempt  | an earlier try of that attempt was      | what that attempt came to       |
|                                         | applied; its answer was lost            |                                 |
| has the revision of the condition       | the generation, or a key that decided a | fold anew, as the next attempt: |
|                                         | check, has changed; nothing was applied | one more number                 |
| anything else                           | another process has taken the lane over | Fenced: nothing may be answered |

Each attempt has a number of its own, because a try of an earlier attempt may still be applied: conditions on keys may
come to hold again, when a key that was absent is absent once more.

"No space" is not certain either, so the record is read then, through the log.

When a try had no answer and the next ones are refused, the first may still be applied. If they are too large, the
record is written without the group: then nothing sent before can be applied. If there is no space, or all is denied,
not even that can be written, and the group is tried until the cluster is well again; its clients hear 504.

Knows no sockets and no sessions; used by the one thread of its lane, and blocks.
"""

import contextlib
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from logd.etcd import transactions
from logd.etcd.generation import Generation
from logd.etcd.group import Folded, checked_keys, fold
from logd.etcd.layout import Layout
from logd.etcd.link import Link, Rejected
from logd.etcd.records import Table
from logd.etcd.transactions import Condition, Standing
from logd.etcd.verdict import Verdict
from logd.intake import Accepted
from logd.shared.protocol import Reason

_RETRY_SECONDS: Final = 0.5
_LOST_MAX: Final = 2
"""Attempts that a group makes beside other lanes."""

log = logging.getLogger("logd.etcd.writer")


class Fenced(Exception):
    """Another process has the lane: whatever this one does not know to be applied, it may not answer."""


class Refusal(NamedTuple):
    """A group was not applied, and never will be."""

    reason: Reason
    text: str
    is_too_large: bool = False
    """For one transaction: there is nothing wrong with the cluster."""
    is_in_doubt: bool = False
    """Not certain yet: an earlier try may still be applied. Never so outside this module."""


@dataclass(slots=True)
class Writer:
    """The groups of one lane, one after the other."""

    link: Link
    layout: Layout
    generation: Generation
    lane: int
    owner: bytes
    turn_lock: threading.Lock
    """Shared by all lanes. Held by a group that has lost its race against others several times; they let it pass."""
    revision: int = 0
    """Of the record that this process wrote last."""
    number: int = 0
    """Of the last attempt."""
    found_applied: int = 0
    """Groups of which a try without an answer had been applied."""
    is_full: bool = False
    """The last try to take the lane over had the answer that there is no space."""

    def take_over(self) -> Table:
        """Make the record ours; the sessions that it has. Nothing that another process has sent can be applied then.

        Raises link.Closed.
        """
        standing = self._await_look((), through_log=False)
        while True:
            table = Table.of(standing.record) if standing.record else Table()
            request = transactions.take_over(
                self.layout, self.lane, standing.revision, table.encoded(self.owner, self.number)
            )
            try:
                response = self.link.txn(request)
            except Rejected as error:
                log.error("lane %d cannot be taken over: %s", self.lane, error)
                self.is_full = error.verdict is Verdict.NO_SPACE
                self.link.pause(_RETRY_SECONDS)
                standing = self._await_look((), through_log=True)
            else:
                if response.succeeded:
                    self.revision = response.header.revision
                    return table
                standing = transactions.standing(response, ())
            if standing.record and standing.record.owner == self.owner:
                self.revision = standing.revision
                return table

    def give_up(self) -> None:
        """Remove the record. No worker may be left that could send again. Raises Rejected, link.Closed."""
        self.link.txn(transactions.remove_record(self.layout.record(self.lane), self.revision))

    def write(self, group: Sequence[Accepted], table: Table) -> Folded | Refusal:
        """Apply a group; what it came to. Raises Fenced, link.Closed."""
        keys = sorted(checked_keys(group))
        attempts: dict[int, Folded | Refusal] = {}
        try:
            standing = self._look(keys, through_log=False) if keys else Standing(0, None, self.generation.value, {})
        except Rejected as error:  # nothing was sent that could be applied
            return _refusal(error)
        with contextlib.ExitStack() as held:
            while True:
                self._take_turn(len(attempts), held)
                end = self._attempt(fold(group, table, standing.present), standing.generation, keys, attempts)
                if isinstance(end, Refusal) and end.is_in_doubt:
                    end = self._rule_out(end, table, attempts)
                if not isinstance(end, Standing):
                    return end
                if end.revision != self.revision:
                    return self._applied_before(end, attempts)
                self.generation.advance_to(end.generation)
                is_of_other_keys = keys and end.generation != standing.generation
                standing = self._await_look(keys, through_log=False) if is_of_other_keys else end

    def _take_turn(self, attempts: int, held: contextlib.ExitStack) -> None:
        """Let a group pass that has lost its race several times; or, after as many attempts, be that group."""
        if attempts < _LOST_MAX:
            with self.turn_lock:
                pass
        elif attempts == _LOST_MAX:
            held.enter_context(self.turn_lock)

    def _attempt(
        self, folded: Folded, generation: int, keys: Sequence[str], attempts: dict[int, Folded | Refusal]
    ) -> Folded | Refusal | Standing:
        """Try until it is certain what came of this attempt: applied, refused, or how things stand now."""
        self.number += 1
        attempts[self.number] = folded
        record = folded.table.encoded(self.owner, self.number)
        request = transactions.group(
            self.layout, self.lane, Condition(self.revision, generation), record, folded, keys=keys
        )
        is_in_doubt = len(attempts) > 1  # a try of an earlier attempt may be under way
        while True:
            try:
                response = self.link.txn(request)
            except Rejected as error:
                is_in_doubt = is_in_doubt or error.is_in_doubt
                if error.verdict is Verdict.NO_SPACE:
                    standing = self._await_look(keys, through_log=True)
                    if standing.revision != self.revision:
                        return standing
                if not is_in_doubt or error.verdict is Verdict.TOO_LARGE:
                    return _refusal(error)._replace(is_in_doubt=is_in_doubt)
                self.link.pause(_RETRY_SECONDS)
            else:
                if not response.succeeded:
                    return transactions.standing(response, keys)
                self.revision = response.header.revision
                self.generation.advance_to(generation + folded.clears)
                return folded

    def _rule_out(self, refusal: Refusal, table: Table, attempts: dict[int, Folded | Refusal]) -> Refusal | Standing:
        """Write the record without the group, as an attempt of its own; how things stand if that is not applied."""
        self.number += 1
        attempts[self.number] = certain = refusal._replace(is_in_doubt=False)
        record = table.encoded(self.owner, self.number)
        request = transactions.take_over(self.layout, self.lane, self.revision, record)
        while True:
            try:
                response = self.link.txn(request)
            except Rejected as error:
                log.error("what became of a group in lane %d is not certain yet: %s", self.lane, error)
                self.link.pause(_RETRY_SECONDS)
            else:
                if not response.succeeded:
                    return transactions.standing(response, ())
                self.revision = response.header.revision
                return certain

    def _applied_before(self, standing: Standing, attempts: dict[int, Folded | Refusal]) -> Folded | Refusal:
        record = standing.record
        if not record or record.owner != self.owner or record.number not in attempts:
            raise Fenced(f"lane {self.lane} belongs to another process now")
        self.revision = standing.revision
        self.generation.advance_to(standing.generation)
        self.found_applied += 1
        return attempts[record.number]

    def _look(self, keys: Sequence[str], *, through_log: bool) -> Standing:
        """How things stand. Raises Rejected."""
        while True:
            generation = self.generation.value
            request = transactions.look(self.layout, self.lane, generation, keys, through_log=through_log)
            standing = transactions.standing(self.link.txn(request), keys)
            self.generation.advance_to(standing.generation)
            if standing.generation == generation or not keys:
                return standing

    def _await_look(self, keys: Sequence[str], *, through_log: bool) -> Standing:
        """How things stand, once the cluster tells."""
        reported = ""
        while True:
            try:
                return self._look(keys, through_log=through_log)
            except Rejected as error:
                if error.text != reported:
                    log.error("the state of lane %d cannot be read: %s", self.lane, error)
                    reported = error.text
                self.link.pause(_RETRY_SECONDS)


def _refusal(error: Rejected) -> Refusal:
    reason = Reason.NO_SPACE if error.verdict is Verdict.NO_SPACE else Reason.UNREACHABLE
    return Refusal(reason, error.text, error.verdict is Verdict.TOO_LARGE)
