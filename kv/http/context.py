"""What the connections of a worker share. Made once by kv/http/worker.py, and handed to each of them."""

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from kv.config import Config
from kv.http.buffer_budget import BufferBudget
from kv.scoreboard import Slot

if TYPE_CHECKING:
    from kv.http.connection import Connection


Receive: TypeAlias = Callable[[], Awaitable[dict[str, Any]]]
Send: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]


class Application(Protocol):
    """The ASGI application, and what the worker asks it about itself."""

    def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        """Answer one request."""

    def gauges(self) -> dict[str, float]:
        """Values for the scoreboard, by the names of its gauges."""

    def reads_wait_for_room(self) -> bool:
        """True while reads of large values wait for memory that slow readers take."""


@dataclass(slots=True)
class WorkerContext:
    """One worker's options, counters, budget and application, and its open connections."""

    options: Config
    application: Application
    counters: Slot
    budget: BufferBudget
    connections: set["Connection"] = field(default_factory=set)
    is_stopping: bool = False
