"""What is measured, and what comes of measuring it once.

Owns the words that all other modules speak in. Knows nothing of how anything is measured or shown.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple

SERVER = "server"
HELLO = "hello-world"
"""The names of the two targets that are always there: ours, and the one that ratios are relative to."""
SERVER_ON_ETCD = "server on etcd"
ETCD_GATEWAY = "etcd's gateway"
ETCD_GRPC = "etcd by gRPC"
"""Those of the section `cluster`; there, ratios are relative to the gateway."""


class Section(Enum):
    """A question that the bench answers; the value is its name on the command line."""

    HEADLINE = "headline"
    CONNECTIONS = "connections"
    VALUES = "values"
    KEYS = "keys"
    TRANSACTIONS = "transactions"
    SYNC = "sync"
    LOGD = "logd"
    CLUSTER = "cluster"


WITH_NAMED_PEERS: Final = (Section.HEADLINE, Section.CONNECTIONS)
"""Those in which a server that `--peer` names is measured."""


class Operation(Enum):
    """What a load asks for."""

    PUT = "PUT"
    GET = "GET"
    CONDITIONAL_PUT = "conditional PUT"
    BATCH = "batch"


PUT_AND_GET: Final = (Operation.PUT, Operation.GET)
BATCH_KEYS: Final = 100
"""The puts of a batch."""


class Case(NamedTuple):
    """One load. Two targets are compared when the same case was put on both."""

    section: Section
    operation: Operation
    connections: int
    value_bytes: int
    keys: int

    @property
    def key_prefix(self) -> str:
        """Values of one size have keys of their own, so that a read finds the size that it was asked for."""
        return f"v{self.value_bytes}-"

    @property
    def reference(self) -> str:
        """The target that ratios are relative to."""
        return ETCD_GATEWAY if self.section is Section.CLUSTER else HELLO

    def __str__(self) -> str:
        connections = f"{self.connections:,} connection{'s' if self.connections > 1 else ''}"
        return f"{self.operation.value}, {connections}, {human_bytes(self.value_bytes)}, {self.keys:,} keys"


@dataclass(frozen=True)
class Sample:
    """One run of a load generator on one target."""

    requests: int
    seconds: float
    p50_us: float
    p99_us: float
    max_us: float
    p90_us: float | None = None
    """None where the load generator does not report it."""
    errors: dict[str, int] = field(default_factory=dict)
    """How many of each kind; kinds that did not happen are not here."""
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    """By role, for the whole run; `load` is the load generator itself."""
    rss_bytes: dict[str, int] = field(default_factory=dict)
    """By role, after the run: the sum over its processes."""

    @property
    def throughput(self) -> float:
        """Requests a second, answered in whatever way."""
        return self.requests / self.seconds


def human_bytes(count: int) -> str:
    """`100 B`, `64 KiB`, `1 MiB`."""
    for unit, size in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size and count % size == 0:
            return f"{count // size} {unit}"
    return f"{count:,} B"


def human_us(us: float) -> str:
    """`415 µs`, `2.65 ms`, `1.2 s`."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if us >= 0.9995 * size:
            return f"{us / size:.3g} {unit}"
    return f"{us:.3g} µs"
