"""What `server.py` knows of an engine: one narrow protocol, and nothing of files or of other machines.

An engine owns the data. It brings all writes into one order, makes them durable, and answers reads from what is
durable. There are two: a directory of this machine (logd/local/engine.py), and a cluster of etcd (logd/etcd/engine.py).

The server calls it from one thread, in turns:

    1. wait until a message comes or `fileno` is readable;
    2. `submit` every write and `read` every read that came;
    3. when `fileno` is readable, `collect`, and send what is returned;
    4. `commit`, so that the writes of this turn become durable together.

No call waits for a network, and none but a `commit` in quiet times for a sync.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from logd.shared.protocol import PAGE_BYTES_MAX, LargeEntry, Page, PageRequest, Reply, Stats, WriteBatch

Found: TypeAlias = list[bytes | None]
"""The values of keys, in their order; None for a key that is not there."""

Origin: TypeAlias = tuple[bytes, int, int]
"""Whose read it is: the connection, the number of its request, and how many bytes a value may have that is sent there.
An engine only hands it back."""


class Collected(NamedTuple):
    """Replies and reads that are finished since the last `collect`."""

    replies: Sequence[tuple[bytes, Reply]]
    """To writes that were accepted, each with its session: `Committed`, `Refused` or `Dropped`."""
    reads: Sequence[tuple[Origin, Found]] = ()
    """Only those for which `read` returned None."""
    pages: Sequence[tuple[bytes, Page | LargeEntry]] = ()
    """Only those for which `page` returned None, each with the connection that it is for."""


class Engine(Protocol):
    """Accepts writes, answers reads, and reports its state."""

    def fileno(self) -> int:
        """A descriptor that is readable when `collect` has something to return."""

    def submit(self, raw: bytes, batch: WriteBatch) -> Reply | None:
        """Accept a write batch, or reply to it at once.

        None means accepted: exactly one reply to it will be collected, after the batch is durable and applied, or
        certainly is not. A repeat of a batch that is on its way is None too, and shares that one reply. `raw` is the
        message that `batch` was decoded from, and is what the engine stores.
        """

    def read(self, keys: Sequence[str], origin: Origin) -> Found | None:
        """Look keys up. Their values at once, or None: then they will be collected, with `origin`, unless
        the worker has stopped waiting by then.

        Only what is durable is seen, all keys at one point of the order of writes, and that point is not before any
        write whose reply was collected before this call.
        """

    def page(self, request: PageRequest, peer: bytes) -> Page | LargeEntry | None:
        """A page of keys (`cut_page`) at once, or None: then it will be collected, with `peer`, as for `read`.

        What is seen is what `read` would see.
        """

    def commit(self, *, is_quiet: bool = False) -> None:
        """Begin to make durable what was accepted, as far as the engine can at this moment.

        When it `is_quiet`, no reads came lately, and this may take as long as a sync usually takes.

        What has to wait for something else is begun by the engine itself, from `collect`.
        """

    def collect(self) -> Collected:
        """Finish what is durable. Raises an exception when nothing can be known any more: the process has to end."""

    def idle(self) -> bool:
        """True when no reply, no read and no page is still to be collected."""

    def unavailable_reason(self) -> str:
        """Why writes would be refused now; empty when they would be accepted."""

    def stats(self, number: int) -> Stats:
        """The engine's numbers, as the answer to the request of this number."""

    def stop(self) -> None:
        """Release everything, whether or not it is idle. No call may follow."""


def cut_page(request: PageRequest, entries: Iterable[tuple[str, bytes | None]]) -> Page | LargeEntry:
    """The page that begins with these entries: keys in order, with their values, or b"" where none are asked for.

    Entries are taken only as far as the page goes, and one more. None for a value: there is no such key.
    """
    query, bytes_max = request.query, request.bytes_max
    keys: list[str] = []
    values: list[bytes] = []
    size = left = 0
    for seen, (key, value) in enumerate(entries):
        if value is None:
            continue
        entry_size = len(key) + len(value)
        if len(keys) == query.limit or size >= PAGE_BYTES_MAX or size + entry_size > bytes_max:
            if not keys:
                return LargeEntry(request.number, entry_size)
            left = 1 if query.keys is None else len(query.keys) - seen
            break
        keys.append(key)
        values.append(value)
        size += entry_size
    return Page(request.number, keys, values if query.with_values else [], left)
