"""Pages of keys, requested one at a time: others wait, so that no more than a page is on its way before small answers.

A page takes room as large values do, a MiB before its size is known. When its first value does not fit into that, logd
says how large it is, and the page is requested again when there is room.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from kv.log_client.large_values import Budget, Held, Room
from kv.log_client.outcomes import NO_ANSWER, NOT_REACHABLE, Unavailable
from kv.log_client.part import Link, Replies
from kv.log_client.pending import Pending, fail, fail_overdue
from logd.shared import protocol
from logd.shared.protocol import PAGE_BYTES_MAX, LargeEntry, Page, PageQuery, PageRequest


class HeldPage(Held):
    """A page that takes room."""

    __slots__ = ("page",)

    def __init__(self, page: Page, release: Callable[[], None]) -> None:
        super().__init__(release)
        self.page = page


class _PendingPage(Pending[HeldPage]):
    __slots__ = ("query", "size")

    query: PageQuery
    size: int
    """What the page may take."""


@dataclass(slots=True)
class _SentPage:
    number: int
    message: bytes
    pending: _PendingPage
    room: Room


class Pages:
    """The requests for pages of one worker."""

    def __init__(self, link: Link, timeout_s: float, budget: Budget) -> None:
        self._link = link
        self._timeout_s = timeout_s
        self._budget = budget
        self._last_request_id = 0
        self._waiting: deque[_PendingPage] = deque()
        self._sent: _SentPage | None = None
        """Kept until answered, also past the deadline: what logd sends takes room."""
        self.replies: Replies = {Page: self._on_page, LargeEntry: self._on_large_entry}

    def page(self, query: PageQuery) -> asyncio.Future[HeldPage]:
        """The first page of what a query is about. Raises Unavailable."""
        loop = self._link.loop
        pending = _PendingPage(loop=loop)
        pending.query, pending.deadline, pending.size = query, loop.time() + self._timeout_s, PAGE_BYTES_MAX
        self._waiting.append(pending)
        self._link.flush_soon()
        return pending

    def flush(self) -> None:
        """Send the next request, when the one before is answered and there is room."""
        waiting = self._waiting
        while waiting and waiting[0].done():
            waiting.popleft()
        if waiting and not self._sent and self._link.is_connected:
            room = self._budget.acquire_for_page(waiting[0].size)
            if room:
                self._send(waiting.popleft(), room)

    def resend(self) -> None:
        """Send the request again, if anybody still waits for it."""
        if self._sent and self._sent.pending.done():
            self._end().release()
        if self._sent:
            self._link.send(self._sent.message)

    def expire(self, now: float, reason: str = "") -> None:
        """Fail the requests whose deadline has passed. A page that was requested still takes room."""
        if self._sent:
            fail_overdue([self._sent.pending], now, Unavailable(reason or NO_ANSWER))
        for pending in list(self._waiting):
            if pending.deadline > now:
                continue
            self._waiting.remove(pending)
            fail(pending, Unavailable(reason or self._why_waiting()))

    def gauges(self) -> dict[str, float]:
        """Pages that wait for the one before, or for room."""
        return {"pages_waiting": len(self._waiting)}

    def wait_for_room(self) -> bool:
        """True when a page waits for room that readers of others have not released."""
        return bool(self._waiting) and not self._sent and not self._budget.has_room(self._waiting[0].size)

    def _why_waiting(self) -> str:
        return "too many pages are being read" if self._link.is_connected else NOT_REACHABLE

    def _send(self, pending: _PendingPage, room: Room) -> None:
        self._last_request_id += 1
        message = protocol.encode(PageRequest(self._last_request_id, pending.query, pending.size))
        self._sent = _SentPage(self._last_request_id, message, pending, room)
        self._link.send(message)

    def _end(self) -> Room:
        """No request is sent any more. The room of the one that was."""
        assert self._sent
        room, self._sent = self._sent.room, None
        self._link.flush_soon()
        return room

    def _on_page(self, page: Page) -> None:
        if not self._sent or self._sent.number != page.number:
            return
        pending = self._sent.pending
        room = self._end()
        if pending.done():
            room.release()
        else:
            pending.set_result(HeldPage(page, room.release))

    def _on_large_entry(self, reply: LargeEntry) -> None:
        if not self._sent or self._sent.number != reply.number:
            return
        pending = self._sent.pending
        self._end().release()
        pending.size = reply.size
        self._waiting.appendleft(pending)
