"""A lane: the sessions that share a record, and their groups, one in flight at a time.

etcd applies concurrent calls in any order, so what must stay in order goes one after the other. Several lanes make use
of the time in which one waits for the cluster; a session always has the same lane.

Owns what waits and what is in flight, on the main thread, and the thread that brings groups to etcd. The two meet in a
queue and in the mailbox: while a group is in flight, the table is not changed. Beside that, the main thread reads what
the writer says of itself, `is_full` and `found_applied`.

When a group has had no answer for long, the lane is stalled: what waits behind that group, and what comes, was never
sent, and is refused.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

from logd.etcd.group import Folded, count_that_fit
from logd.etcd.link import Closed
from logd.etcd.mailbox import Inbox
from logd.etcd.records import Table
from logd.etcd.writer import Refusal, Writer
from logd.intake import Accepted, Intake
from logd.shared.protocol import Reason, Reply, WriteBatch

_TOUCH_SECONDS: Final = 24 * 3600.0
"""A record is written that often when nobody writes, so that others see that it is needed."""
_REFUSED_SECONDS: Final = 2.0
"""So soon after a refusal, to see whether there is space again."""

log = logging.getLogger("logd.etcd.lane")

Replies: TypeAlias = list[tuple[bytes, Reply]]


class Ended(NamedTuple):
    """The lane was taken over (`result` is its table), or its group has an end."""

    lane: int
    result: Table | Folded | Refusal
    seconds: float = 0.0


class Lane:
    """The sessions of a lane. Used by the main thread."""

    def __init__(
        self,
        writer: Writer,
        ended: Inbox[Ended | Exception],
        *,
        group_bytes_max: int,
        stall_s: float,
        may_begin: threading.Event,
    ) -> None:
        self.writer = writer
        self.table = Table()
        self.is_ours = False
        """The record. Until then nobody knows what a predecessor has applied, and nothing may be submitted."""
        self.in_flight: list[Accepted] | None = None
        self._began_at = 0.0
        self._alone = 0
        """So many of the batches that wait go one by one, as etcd has found them too large together."""
        self._touch_at = time.monotonic() + _TOUCH_SECONDS
        self._group_bytes_max = group_bytes_max
        self._stall_s = stall_s
        self._intake = Intake(self.table)
        self._groups: queue.SimpleQueue[tuple[list[Accepted], Table] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=_run, args=(writer, self._groups, ended, may_begin.wait), name=f"lane {writer.lane}", daemon=True
        )
        self._thread.start()

    def submit(self, raw: bytes, batch: WriteBatch) -> Reply | None:
        """Accept a batch, or reply to it at once. What a stalled lane accepts, `refuse_if_stalled` has to refuse."""
        return self._intake.submit(raw, batch)

    def begin(self) -> None:
        """Send what waits, unless a group is in flight."""
        if not self.is_ours or self.in_flight is not None:
            return
        waiting = self._intake.waiting
        if waiting or time.monotonic() > self._touch_at:
            count = count_that_fit(waiting, self._group_bytes_max)
            if waiting and self._alone:
                count = 1
                self._alone -= 1
            self.in_flight = self._intake.take(count)
            self._began_at = time.monotonic()
            self._groups.put((self.in_flight, self.table))

    def taken_over(self, table: Table) -> None:
        """The record is ours, and the table that it held is final."""
        self.table.replace(table)
        self.is_ours = True

    def end(self, result: Folded | Refusal) -> Replies:
        """Finish the group in flight, and begin the next. Replies to the one that ended, or to all that waits."""
        assert self.in_flight is not None
        group, self.in_flight = self.in_flight, None
        self._touch_at = time.monotonic() + (_REFUSED_SECONDS if isinstance(result, Refusal) else _TOUCH_SECONDS)
        if isinstance(result, Refusal) and result.is_too_large:
            return self._divide(group, result)
        if isinstance(result, Refusal):
            return self._intake.refuse([*group, *self._intake.take(len(self._intake.waiting))], result.reason)
        self.table.replace(result.table)
        self._intake.settle(group)
        self.begin()
        return result.replies

    def refuse_if_stalled(self) -> Replies:
        """Replies to all that waits behind a group that has had no answer for long; it was never sent."""
        waiting = self._intake.waiting
        return self._intake.refuse(self._intake.take(len(waiting)), Reason.UNREACHABLE) if self.is_stalled() else []

    def _divide(self, group: list[Accepted], refusal: Refusal) -> Replies:
        """Have the batches of a group that is too large sent one by one; refuse one that is by itself."""
        replies: Replies = []
        if len(group) > 1:
            self._intake.put_back(group)
            self._alone = len(group)
        else:
            log.error("etcd refuses a batch: %s", refusal.text)
            later = [each for _, batch in group for each in self._intake.take_of(batch.session)]
            replies = self._intake.refuse([*group, *later], refusal.reason)
        self.begin()
        return replies

    def is_stalled(self) -> bool:
        """True when a group has had no answer for long."""
        return self.in_flight is not None and time.monotonic() - self._began_at > self._stall_s

    def is_idle(self) -> bool:
        """True when no reply is still to come."""
        return self.in_flight is None and not self._intake.waiting

    def give_up(self) -> None:
        """Begin to remove the record, unless a group is in flight. No worker may be left that could send again."""
        if self.is_ours and self.is_idle():
            self._groups.put(None)

    def join(self, seconds: float) -> None:
        """Wait for the end of the thread."""
        self._thread.join(seconds)

    def stop(self) -> None:
        """End the thread. The link has to be closed by then."""
        self._groups.put(None)
        self._thread.join()


def _run(
    writer: Writer,
    groups: "queue.SimpleQueue[tuple[list[Accepted], Table] | None]",
    ended: Inbox[Ended | Exception],
    await_begin: Callable[[], object],
) -> None:
    """The thread of a lane."""
    try:
        await_begin()
        ended.put(Ended(writer.lane, writer.take_over()))
        while (job := groups.get()) is not None:
            began = time.perf_counter()
            ended.put(Ended(writer.lane, writer.write(*job), time.perf_counter() - began))
        if not writer.link.is_closed:
            writer.give_up()
    except Closed:
        return
    except Exception as error:  # whatever it is, the main thread has to learn of it
        ended.put(error)
