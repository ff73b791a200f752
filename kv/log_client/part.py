"""What the client and its parts know of each other.

A part owns the requests of one kind and their messages. To add a message, declare its method in the `replies` of the
part; the client finds it there.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

Replies: TypeAlias = Mapping[type, Callable[[Any], None]]


class Link(Protocol):
    """What a part needs of the client."""

    loop: asyncio.AbstractEventLoop
    is_connected: bool

    def send(self, message: bytes) -> None:
        """Hand a message to the socket. Without a connection it is lost, and `is_connected` is False from then on."""

    def flush_soon(self) -> None:
        """Have all parts flushed, in one of the next turns of the event loop."""


class Part(Protocol):
    """The requests of one kind."""

    replies: Replies
    """The method for each message of logd that belongs to these requests."""

    def flush(self) -> None:
        """Send what can be sent. What cannot waits for the next flush."""

    def resend(self) -> None:
        """Send again, in order, what was sent on an earlier connection and not answered."""

    def expire(self, now: float, reason: str = "") -> None:
        """Fail the requests whose deadline is not after `now`, with `reason` where one is given."""

    def gauges(self) -> dict[str, float]:
        """What the part holds now, by the name of the gauge."""
