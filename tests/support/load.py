"""A load for specifications: clients that write and read back what they wrote while something is done to the server.

Owns their script, and what a test asks of them. The recorder writes down what they saw; `verify` has the checker judge
it: every acknowledged write is there, none that was refused is, and one order of all requests explains every read.
"""

import itertools
import random
import secrets
import time
from collections.abc import Iterable, Iterator
from typing import Final, Self

from tests.support.clients import ANSWER_SECONDS
from tests.support.harness import await_true
from tests.support.history import Kind, Outcome, check, missing_writes
from tests.support.recorder import Clients, Failure, Record, make_each
from tests.support.requests import Request

_KEYS_PER_CLIENT: Final = 10
_DELETES_OF_WRITES: Final = 1 / 7


class Load(Clients):
    """Clients that go on until the end of a `with` block, and whose history can be judged then.

    `failures` lists requests that were not carried out; whether one may happen is for the test to say.
    """

    def __init__(self, port: int, clients: int = 12, *, value_bytes: int = 16) -> None:
        mark = secrets.token_hex(4)  # of keys that nobody else has written
        self.record = Record([f"load-{mark}-{n}" for n in range(_KEYS_PER_CLIENT * clients)], value_bytes)
        keys = range(len(self.record.history.keys))
        super().__init__(port, self.record, [_write_and_read_back(keys) for _ in range(clients)], ANSWER_SECONDS)
        self._port = port

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self.await_progress()
        except BaseException:
            self.__exit__()
            raise
        return self

    @property
    def failures(self) -> list[Failure]:
        """What failed so far."""
        return self.record.failures

    @property
    def longest_silence_s(self) -> float:
        """The longest time between two acknowledged writes, of any clients."""
        history = self.record.history
        columns = zip(history.end, history.kind, history.outcome, strict=True)
        ends = [end for end, kind, outcome in columns if kind != Kind.GET and outcome == Outcome.OK]
        return max((later - end for end, later in itertools.pairwise(ends)), default=0) / 1e9

    def local_ports(self) -> dict[int, int]:
        """The port at this end of each open connection, and the client that has it."""
        connections = [(client.number, client.connection) for client in self.clients]
        return {connection.local_port: number for number, connection in connections if connection}

    def await_progress(self, writes: int = 5, clients: Iterable[int] | None = None) -> None:
        """Wait until each client, or each of those named, got further writes acknowledged."""
        chosen = self.clients if clients is None else [self.clients[n] for n in clients]
        goals = [(client, client.acknowledged_writes + writes) for client in chosen]

        def is_reached() -> bool:
            return self.have_ended or all(client.acknowledged_writes >= goal for client, goal in goals)

        await_true(is_reached, ANSWER_SECONDS, "progress of every client")
        assert not self.have_ended, "the clients have ended"

    def verify(self) -> None:
        """Read every key, and judge all that was seen so far. To be called when the clients have ended."""
        history, failures = self.record.history, self.failures
        assert [failure for failure in failures if not failure.is_allowed] == []
        assert any(client.acknowledged_writes for client in self.clients)
        since, failed_before = time.monotonic_ns(), len(failures)
        reads = [(Kind.GET, key) for key in range(len(history.keys))]
        make_each(self._port, len(self.clients), self.record, reads, ANSWER_SECONDS)
        assert failures[failed_before:] == []
        verdict = check(history)
        assert verdict.is_linearizable, "\n\n".join(map(str, verdict.violations))
        assert missing_writes(history, since) == []


def _write_and_read_back(keys: range) -> Iterator[Request]:
    """Requests without end: a put or a delete of any key, and a read of the same key."""
    while True:
        key = random.choice(keys)
        yield Kind.DELETE if random.random() < _DELETES_OF_WRITES else Kind.PUT, key
        yield Kind.GET, key
