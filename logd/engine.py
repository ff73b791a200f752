"""What `server.py` knows of an engine: one narrow protocol, and nothing of files or of other machines.

An engine owns the data. It brings all writes into one order, makes them durable, and answers reads from what is
durable. There is one today: a directory of this machine (logd/local/engine.py).

The server calls it from one thread, in turns:

    1. wait until a message comes or `fileno` is readable;
    2. `submit` every write and `read` every read that came;
    3. when `fileno` is readable, `collect`, and send what is returned;
    4. `commit`, so that the writes of this turn become durable together.

No call waits for a network, and none but a `commit` in quiet times for a sync.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias

from logd.shared.protocol import Reply, Stats, WriteBatch

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
        """Look keys up. Their values at once, or None: then they will be collected, with `origin`.

        Only what is durable is seen, all keys at one point of the order of writes, and that point is not before any
        write whose reply was collected before this call.
        """

    def commit(self, *, is_quiet: bool = False) -> None:
        """Begin to make durable what was accepted, as far as the engine can at this moment.

        When it `is_quiet`, no reads came lately, and this may take as long as a sync usually takes.

        What has to wait for something else is begun by the engine itself, from `collect`.
        """

    def collect(self) -> Collected:
        """Finish what is durable. Raises an exception when nothing can be known any more: the process has to end."""

    def idle(self) -> bool:
        """True when no reply and no read is still to be collected."""

    def unavailable_reason(self) -> str:
        """Why writes would be refused now; empty when they would be accepted."""

    def stats(self, number: int) -> Stats:
        """The engine's numbers, as the answer to the request of this number."""

    def stop(self) -> None:
        """Release everything, whether or not it is idle. No call may follow."""
