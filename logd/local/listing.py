"""Pages of keys from the store, and the order of its keys, which is made between requests.

Knows the store and what a page is; no disk and no sockets. A page waits for as long as keys are not in order: some
seconds after a start with a million keys that no sorted snapshot holds; else hardly, because what a group added is
sorted while the next group is synced.
"""

from bisect import bisect_left
from collections.abc import Iterable
from itertools import islice

from logd.engine import cut_page
from logd.local.sorted_keys import SORTED_AT_ONCE
from logd.local.store import Store
from logd.shared.protocol import LargeEntry, Page, PageQuery, PageRequest


class Listing:
    """Answers requests for pages, at once or when the keys are in order."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._keys = store.sorted_keys
        self._unsorted = self._keys.unsorted  # when the last step had been made
        self._waiting: list[tuple[bytes, PageRequest]] = []
        self.pages = 0
        """That were answered."""

    @property
    def unsorted_keys(self) -> int:
        """How many keys are not in order yet."""
        return self._keys.unsorted

    @property
    def is_behind(self) -> bool:
        """True when there is something to sort, or to collect."""
        return not self._keys.is_sorted or bool(self._waiting)

    def is_idle(self) -> bool:
        """True when no page waits."""
        return not self._waiting

    def sort_some(self) -> None:
        """Put some keys in order, if any are not: more than have come since, so that pages have a turn."""
        goal = max(0, self._unsorted - SORTED_AT_ONCE)
        while self._keys.unsorted > goal:
            self._store.sort_some()
        self._unsorted = self._keys.unsorted

    def page(self, request: PageRequest, peer: bytes) -> Page | LargeEntry | None:
        """As `logd.engine.Engine.page`."""
        if request.query.keys is None and not self._keys.is_sorted:
            self._waiting.append((peer, request))
            return None
        return self._cut(request)

    def collect(self) -> list[tuple[bytes, Page | LargeEntry]]:
        """The pages that waited, once the keys are in order. To be called before a group adds others."""
        if not self._keys.is_sorted:
            return []
        waiting, self._waiting = self._waiting, []
        return [(peer, self._cut(request)) for peer, request in waiting]

    def _cut(self, request: PageRequest) -> Page | LargeEntry:
        self.pages += 1
        return cut_page(request, self._entries(request.query))

    def _entries(self, query: PageQuery) -> Iterable[tuple[str, bytes | None]]:
        data = self._store.data
        keys = self._range(query) if query.keys is None else query.keys
        if query.with_values:
            return zip(keys, map(data.get, keys), strict=True)
        return ((key, b"" if key in data else None) for key in keys)

    def _range(self, query: PageQuery) -> list[str]:
        """As many keys as a page may have, and one more, which tells that there are more."""
        keys = list(islice(self._keys.walk(query.first), query.limit + 1))
        end = bisect_left(keys, True, key=lambda key: not key.startswith(query.prefix))
        return keys[:end]
