"""Requests for how logd is. They answer /health and /metrics, which do not wait for a connection.

A new one fails at once when it is known that there is none; those that were sent before are sent again.
"""

import asyncio
from typing import Any, Final

from kv.log_client.outcomes import NO_ANSWER, NOT_REACHABLE, Unavailable
from kv.log_client.part import Link, Replies
from kv.log_client.pending import Pending, fail, fail_overdue
from logd.shared import protocol
from logd.shared.protocol import Stats, StatsRequest, Status, StatusRequest

_TIMEOUT_SECONDS: Final = 2.0


class _PendingStatus(Pending[Any]):
    __slots__ = ("is_sent", "message")

    message: bytes
    is_sent: bool


class StatusRequests:
    """The requests for status and stats of one worker."""

    def __init__(self, link: Link, timeout_s: float) -> None:
        self._link = link
        self._timeout_s = min(timeout_s, _TIMEOUT_SECONDS)
        self._last_request_id = 0
        self._pending: dict[int, _PendingStatus] = {}
        """By request id."""
        self._was_connected = False
        self.replies: Replies = {Status: self._on_reply, Stats: self._on_reply}

    async def unavailable_reason(self) -> str:
        """Why reads or writes are not possible; empty when they are. Raises Unavailable when logd does not answer."""
        status: Status = await self._request(StatusRequest)
        return status.unavailable_reason

    async def stats(self) -> Stats:
        """How logd is. Raises Unavailable when it does not answer."""
        stats: Stats = await self._request(StatsRequest)
        return stats

    def flush(self) -> None:
        """Send what was not sent yet. A worker that has just started waits for its first connection."""
        for request_id, request in list(self._pending.items()):
            if request.is_sent:
                continue
            if self._link.is_connected:
                self._link.send(request.message)
                request.is_sent = self._link.is_connected  # else the send has found out that there is none
            if not request.is_sent and self._was_connected:
                del self._pending[request_id]
                fail(request, Unavailable(NOT_REACHABLE))

    def resend(self) -> None:
        """Send all of them again."""
        self._was_connected = True
        for request in self._pending.values():
            request.is_sent = True
            self._link.send(request.message)

    def expire(self, now: float, reason: str = "") -> None:
        """Fail those whose deadline has passed."""
        for request_id, request in list(self._pending.items()):
            if not fail_overdue([request], now, Unavailable(reason or NO_ANSWER)):
                break
            del self._pending[request_id]

    def gauges(self) -> dict[str, float]:
        """Nothing: these requests are few and small."""
        return {}

    def _request(self, kind: type[StatusRequest | StatsRequest]) -> asyncio.Future[Any]:
        self._last_request_id += 1
        loop = self._link.loop
        message = protocol.encode(kind(self._last_request_id))
        request = _PendingStatus(loop=loop)
        request.message, request.is_sent, request.deadline = message, False, loop.time() + self._timeout_s
        self._pending[self._last_request_id] = request
        self._link.flush_soon()
        return request

    def _on_reply(self, reply: Status | Stats) -> None:
        request = self._pending.pop(reply.number, None)
        if request and not request.done():
            request.set_result(reply)
