"""The intake: which batch of a session may come next, and the accepted batches that wait for their group.

Owns the progress of sessions; knows no log, no disk and no sockets. What happens to a batch is decided by the first row
whose condition holds:

| label           | condition                                                                    | decision         |
|-----------------|------------------------------------------------------------------------------|------------------|
| UNKNOWN_SESSION | the state does not have the session, and the batch does not open it: its     | Dropped          |
|                 | number is not 0, or it was applied before and the session dropped since      |                  |
| APPLIED         | the number is not above the last one that was applied                        | Committed, again |
| PENDING         | the number is not above the last one that was accepted                       | none: its group  |
|                 |                                                                              | is the answer    |
| AFTER_REFUSAL   | the base is not above the last one that was refused: the batch was sent      | Refused, for the |
|                 | before its worker knew of that                                               | same reason      |
| OUT_OF_ORDER    | it is not the next one: the base, or one more than the last that was         | Gap              |
|                 | accepted, whichever is higher                                                |                  |
| NEXT            | none of these                                                                | accept           |

Why AFTER_REFUSAL: if a later batch was accepted, the refused one would look like a repeat of something applied.
"""

import enum
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, Protocol

from logd.shared.protocol import Committed, Dropped, Gap, Outcomes, Reason, Refused, Reply, WriteBatch

FOLLOWED_MAX: Final = 2048
"""When more sessions are followed, those are forgotten that the state has dropped."""


class Applied(Protocol):
    """The part of an engine's state that decides what may come next."""

    sessions: dict[bytes, int]
    """The last batch applied for each session. The engine changes it, and never replaces it."""

    def outcomes_of(self, session: bytes, number: int) -> dict[int, Outcomes]:
        """What was not made of an applied batch, by its number; empty when all of it was made."""


class Decision(enum.Enum):
    """What happens to a batch; a row each of the table above."""

    UNKNOWN_SESSION = enum.auto()
    APPLIED = enum.auto()
    PENDING = enum.auto()
    AFTER_REFUSAL = enum.auto()
    OUT_OF_ORDER = enum.auto()
    NEXT = enum.auto()


_NEXT: Final = Decision.NEXT  # what happens to nearly every batch; to look a member up is slow in Python 3.11


class Accepted(NamedTuple):
    """A batch that was accepted, with the bytes that go into the log."""

    raw: bytes
    batch: WriteBatch


class Progress:
    """How far a session has come. Not durable: after a restart it is what the log says.

    `accepted` and `refused` are the highest such numbers, -1 when there is none; `pending` is how many batches were
    accepted and have no reply yet; `reason` is that of the last refusal.
    """

    __slots__ = ("accepted", "pending", "reason", "refused")

    def __init__(self, accepted: int) -> None:
        self.accepted = accepted
        self.pending = 0
        self.refused = -1
        self.reason = Reason.NO_SPACE

    def next(self, base: int) -> int:
        """The only number that may come now. Numbers below the base have their answers, and are never sent again."""
        return max(self.accepted + 1, base)

    def refuse(self, number: int, reason: Reason) -> None:
        """Remember that a batch was refused, and why."""
        self.refused = max(self.refused, number)
        self.reason = reason


def decide(number: int, base: int, applied: int | None, progress: Progress) -> Decision:
    """The table above. `applied` is the last number of the session in the state, None when it is not there."""
    if applied is None and (number > 0 or (progress.accepted >= 0 and not progress.pending)):
        return Decision.UNKNOWN_SESSION
    if applied is not None and number <= applied:
        return Decision.APPLIED
    if number <= progress.accepted:
        return Decision.PENDING
    if base <= progress.refused:
        return Decision.AFTER_REFUSAL
    if number != progress.next(base):
        return Decision.OUT_OF_ORDER
    return _NEXT


class Intake:
    """Accepts batches, hands them out in groups, and is told what became of each group."""

    def __init__(self, state: Applied) -> None:
        self._state = state
        self._applied = state.sessions
        self._sessions: dict[bytes, Progress] = {}
        self.waiting: deque[Accepted] = deque()
        """Accepted, and in no group yet; oldest first."""

    def submit(self, raw: bytes, batch: WriteBatch) -> Reply | None:
        """Accept a batch, or reply to it at once; None when its group will be the reply."""
        session, number = batch.session, batch.number
        progress = self._sessions.get(session) or self._follow(session)
        decision = decide(number, batch.base, self._applied.get(session), progress)
        if decision is _NEXT:
            progress.accepted = number
            progress.pending += 1
            self.waiting.append(Accepted(raw, batch))
            return None
        match decision:
            case Decision.APPLIED:
                return Committed(session, [number], self._state.outcomes_of(session, number))
            case Decision.OUT_OF_ORDER:
                return Gap(session, number, progress.next(batch.base))
            case Decision.AFTER_REFUSAL:
                progress.refuse(number, progress.reason)
                return Refused(session, [number], progress.reason)
            case Decision.UNKNOWN_SESSION:
                return Dropped(session, number)
        return None

    def is_empty(self) -> bool:
        """True when no batch waits for its group."""
        return not self.waiting

    def take_group(self, bytes_max: float) -> list[Accepted]:
        """The batches that have waited longest, as many as are no larger than this together."""
        group: list[Accepted] = []
        group_bytes = 0
        while self.waiting and (group_bytes := group_bytes + len(self.waiting[0].raw)) <= bytes_max:
            group.append(self.waiting.popleft())
        return group

    def take(self, count: int) -> list[Accepted]:
        """That many of the batches that have waited longest."""
        return [self.waiting.popleft() for _ in range(count)]

    def take_of(self, session: bytes) -> list[Accepted]:
        """The batches of a session that wait."""
        taken = [accepted for accepted in self.waiting if accepted.batch.session == session]
        self.waiting = deque(accepted for accepted in self.waiting if accepted.batch.session != session)
        return taken

    def put_back(self, group: Sequence[Accepted]) -> None:
        """Have the oldest batches that were taken wait again."""
        self.waiting.extendleft(reversed(group))

    def settle(self, group: Sequence[Accepted]) -> None:
        """The oldest batches that were taken have their replies: they are applied, or never will be."""
        for _, batch in group:
            self._sessions[batch.session].pending -= 1

    def refuse(self, group: Sequence[Accepted], reason: Reason) -> list[tuple[bytes, Reply]]:
        """Take back that these were accepted. All that was accepted after them goes too, or there would be a gap."""
        self.settle(group)
        refused: list[tuple[bytes, Reply]] = []
        for session, numbers in _numbers_by_session(group).items():
            progress = self._sessions[session]
            progress.accepted = numbers[0] - 1  # what was accepted before them may still be on its way
            progress.refuse(numbers[-1], reason)
            refused.append((session, Refused(session, numbers, reason)))
        return refused

    def _follow(self, session: bytes) -> Progress:
        if len(self._sessions) > FOLLOWED_MAX:
            self._forget_dropped_sessions()
        progress = self._sessions[session] = Progress(self._applied.get(session, -1))
        return progress

    def _forget_dropped_sessions(self) -> None:
        self._sessions = {
            session: progress
            for session, progress in self._sessions.items()
            if progress.pending or session in self._applied
        }


def _numbers_by_session(group: Iterable[Accepted]) -> dict[bytes, list[int]]:
    numbers: dict[bytes, list[int]] = {}
    for _, batch in group:
        numbers.setdefault(batch.session, []).append(batch.number)
    return numbers
