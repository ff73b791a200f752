"""What the connections of a worker share. Made once by kv/http/worker.py, and handed to each of them."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias

from kv.config import Config
from kv.http.buffer_budget import BufferBudget
from kv.http.lingering import ReaderProgress
from kv.scoreboard import Slot

Receive: TypeAlias = Callable[[], Awaitable[dict[str, Any]]]
Send: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]

TEXT: Final = "text/plain; charset=utf-8"
"""The type of refusals, and of plain answers."""
WITHOUT_BODY: Final = frozenset({204, 304})
"""Answers with these statuses have no body, and no length."""
SHORTCUT: Final = "kv.shortcut"
"""Where the scope of a request has its `Shortcut`; other hosts have none."""


class Shortcut(Protocol):
    """What most requests need instead of ASGI's events, which remain for all that is not whole or not plain."""

    def take_body(self) -> bytes | None:
        """The body, or what of it no event has brought. None when it is not complete, or was taken before."""

    def answer(self, status: int, text: bytes, etag: bytes) -> bool:
        """Answer the request with a text and, if there is one, its tag.

        False when that is not possible at once: then nothing has happened, and events have to bring the answer.
        """


class Application(Protocol):
    """The ASGI application, and what the worker's sweep needs to know of it."""

    def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        """Answer one request."""

    def gauges(self) -> dict[str, float]:
        """Values for the scoreboard, by the names of its gauges."""

    def reads_wait_for_room(self) -> bool:
        """True while reads of large values wait for memory that slow readers hold."""


class OpenConnection(Protocol):
    """What the worker's sweep needs of a connection."""

    reader: ReaderProgress

    @property
    def in_flight(self) -> int:
        """How many requests have no answer yet."""

    def look(self, now: float) -> None:
        """Note the client's progress."""

    def is_overdue(self, now: float) -> bool:
        """True when a deadline of the client has passed."""

    def time_out(self) -> None:
        """End the connection, with a 408 where one can be sent."""

    def shutdown(self) -> None:
        """Answer what is in flight, then close."""


@dataclass(slots=True)
class WorkerContext:
    """One worker's options, counters, budget and application, and its open connections."""

    options: Config
    application: Application
    counters: Slot
    budget: BufferBudget
    connections: set[OpenConnection] = field(default_factory=set)
    all_closed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the last connection has closed."""
    is_stopping: bool = False

    def on_closed(self, connection: OpenConnection) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        if not self.connections:
            self.all_closed.set()
