"""What the resources need of storage: kv/log_client/client.py, or any other, as one in memory for tests."""

from collections.abc import Awaitable
from typing import Protocol

from kv.log_client.large_values import Found
from kv.log_client.pages import HeldPage
from logd.shared.protocol import PageQuery, Stats, Transaction


class Storage(Protocol):
    """Values by key. Its methods raise what is in kv/log_client/outcomes.py."""

    def get(self, key: str) -> Awaitable[Found]:
        """The value of a key, or None. A `LargeValue` has to be released."""

    def put(self, key: str, value: bytes) -> Awaitable[None]:
        """Store a value."""

    def delete(self, key: str) -> Awaitable[None]:
        """Remove a key, whether it is there or not."""

    def execute(self, transaction: Transaction) -> Awaitable[None]:
        """Make all writes of a transaction, or none."""

    def clear(self) -> Awaitable[None]:
        """Remove every key."""

    def page(self, query: PageQuery) -> Awaitable[HeldPage]:
        """The first page of what a query is about. It has to be released."""

    def unavailable_reason(self) -> Awaitable[str]:
        """Why reads or writes are not possible; empty when they are."""

    async def stats(self) -> Stats:
        """How the log writer is."""

    def gauges(self) -> dict[str, float]:
        """How much waits and how much memory is in use now, by the name of the gauge. Used by the worker alone."""

    def reads_wait_for_room(self) -> bool:
        """True when reads of large values or pages wait until clients have read others. Used by the worker alone."""
