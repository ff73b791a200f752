"""Which loads are put on which targets, in which order, and how long that takes.

Knows neither processes nor load generators.
"""

from collections.abc import Callable, Container, Iterable, Sequence
from typing import Final, NamedTuple

from tests.bench.cases import PUT_AND_GET, Case, Operation, Section

_MIB: Final = 1 << 20
_VALUE_BYTES: Final = 100
_KEYS: Final = 1_000
_CONNECTIONS: Final = 64
_CONNECTIONS_OF_LARGE_VALUES: Final = 8
_CONNECTIONS_OF_BATCHES: Final = 16
_VALUES_BYTES_MAX: Final = 64 * _MIB  # of all values of one size together: the server holds them in memory
_DESCRIPTORS_BESIDE: Final = 200  # that a load generator or a target has open beside its connections

HEADLINE_CONNECTIONS: Final = (1, 64, 512)
CONNECTIONS: Final = (1, 4, 16, 64, 256, 1_024, 4_096)
PEER_CONNECTIONS: Final = (1, 64, 1_024)
VALUES: Final = (1, 100, 1 << 10, 64 << 10, 1 << 20)
CLUSTER_CONNECTIONS: Final = (1, 64, 256)
KEYS: Final = (1_000, 100_000, 1_000_000)
SYNC_CASE: Final = Case(Section.SYNC, Operation.PUT, 1, _VALUE_BYTES, _KEYS)

RUN_OVERHEAD_SECONDS: Final = 0.5
START_SECONDS: Final = 4.0
LARGE_FILL_SECONDS: Final = 15.0


class Stage(NamedTuple):
    """Targets that run side by side, one of them loaded at a time. The server holds the keys of these cases alone."""

    cases: tuple[Case, ...]
    peer_cases: tuple[Case, ...] = ()
    """Those of the cases that peers are measured with too."""
    only_named_peers: bool = False
    """True where no peers are measured but those that `--peer` names."""

    @property
    def is_on_cluster(self) -> bool:
        """True for the one whose targets share a cluster of etcd."""
        return self.cases[0].section is Section.CLUSTER

    @property
    def seconds_to_start(self) -> float:
        return START_SECONDS + (LARGE_FILL_SECONDS if any(case.keys > 500_000 for case in self.cases) else 0)


def stages(
    sections: Iterable[Section], connections: Sequence[int], descriptors_max: int
) -> tuple[list[Stage], list[str]]:
    """The stages of these sections, and what has to be left out, and why, in words.

    `connections` are those of the section of that name; when none are given, it has its own.
    """
    planned = [stage for section in sections for stage in _stages(section, connections)]
    counts = {case.connections for stage in planned for case in stage.cases}
    too_many = {count for count in counts if descriptors_needed(count) > descriptors_max}
    kept = [
        stage._replace(cases=_without(stage.cases, too_many), peer_cases=_without(stage.peer_cases, too_many))
        for stage in planned
    ]
    why = f"connections: a process may open only {descriptors_max:,} files"
    return [stage for stage in kept if stage.cases], [f"{count:,} {why}" for count in sorted(too_many)]


def descriptors_needed(connections: int) -> int:
    """How many files a process with so many connections may have open."""
    return connections + _DESCRIPTORS_BESIDE


def _without(cases: Iterable[Case], connections: Container[int]) -> tuple[Case, ...]:
    return tuple(case for case in cases if case.connections not in connections)


def _stages(section: Section, connections: Sequence[int]) -> list[Stage]:
    """Those of one section; none of a probe."""
    if section is Section.CONNECTIONS:
        return _connections(connections)
    plans = {
        Section.HEADLINE: _headline,
        Section.VALUES: _values,
        Section.KEYS: _keys,
        Section.CLUSTER: _cluster,
        Section.TRANSACTIONS: _transactions,
    }
    return plans[section]() if section in plans else []


def seconds(planned: Iterable[Stage], rounds: int, seconds_each: int, peers: Callable[[Stage], int]) -> float:
    """About how long it takes to carry out a plan: of each target a warm-up, and then its rounds.

    `peers` says how many there are in a stage.
    """
    total = 0.0
    for stage in planned:
        runs = 2 * (1 + rounds * len(stage.cases)) + peers(stage) * (1 + rounds * len(stage.peer_cases))
        total += stage.seconds_to_start + runs * (seconds_each + RUN_OVERHEAD_SECONDS)
    return total


def _both(section: Section, connections: int, value_bytes: int = _VALUE_BYTES, keys: int = _KEYS) -> tuple[Case, Case]:
    put, get = (Case(section, operation, connections, value_bytes, keys) for operation in PUT_AND_GET)
    return put, get


def _headline() -> list[Stage]:
    cases = tuple(case for count in HEADLINE_CONNECTIONS for case in _both(Section.HEADLINE, count))
    return [Stage(cases, cases, only_named_peers=True)]


def _connections(asked: Sequence[int]) -> list[Stage]:
    cases = tuple(case for count in asked or CONNECTIONS for case in _both(Section.CONNECTIONS, count))
    return [Stage(cases, tuple(case for case in cases if case.connections in (asked or PEER_CONNECTIONS)))]


def _values() -> list[Stage]:
    cases: list[Case] = []
    for value_bytes in VALUES:
        connections = _CONNECTIONS if value_bytes < _MIB else _CONNECTIONS_OF_LARGE_VALUES
        cases += _both(Section.VALUES, connections, value_bytes, min(_KEYS, _VALUES_BYTES_MAX // value_bytes))
    return [Stage(tuple(cases))]


def _keys() -> list[Stage]:
    return [Stage(_both(Section.KEYS, _CONNECTIONS, keys=keys)) for keys in KEYS]


def _cluster() -> list[Stage]:
    cases = tuple(case for count in CLUSTER_CONNECTIONS for case in _both(Section.CLUSTER, count))
    return [Stage(cases, cases)]


def _transactions() -> list[Stage]:
    """Each beside the plain PUT that it is compared with."""
    loads = [(operation, _CONNECTIONS) for operation in (Operation.PUT, Operation.CONDITIONAL_PUT)]
    loads += [(operation, _CONNECTIONS_OF_BATCHES) for operation in (Operation.PUT, Operation.BATCH)]
    cases = (Case(Section.TRANSACTIONS, operation, count, _VALUE_BYTES, _KEYS) for operation, count in loads)
    return [Stage(tuple(cases))]
