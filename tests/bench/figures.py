"""Figures: medians, spread and ratios of what was measured.

Knows neither how it was measured nor how it is shown.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self, TypeAlias

from tests.bench.cases import SERVER, Case, Operation, Sample, Section
from tests.bench.rounds import LogdRound, Measured, SyncRound


class Spread(NamedTuple):
    """The median of the rounds, and the least and the greatest of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """The spread of some values, at least one."""
        found = list(values)
        return cls(statistics.median(found), min(found), max(found))


@dataclass(frozen=True)
class Row:
    """One case on one target. Nothing is None but where it was not measured."""

    case: Case
    target: str
    failed_rounds: int
    errors: dict[str, int]
    throughput: Spread | None = None
    ratio: Spread | None = None
    """To the reference of the case in the same round, and then the median of these ratios."""
    ratio_to_peers: dict[str, Spread] = field(default_factory=dict)
    """The same, to each peer that was named, where it was measured."""
    p50_us: Spread | None = None
    p90_us: Spread | None = None
    p99_us: Spread | None = None
    max_us: Spread | None = None
    cpu_us: dict[str, float] | None = None
    """Processor time for one request, by role: the median of the rounds."""
    rss_bytes: dict[str, int] | None = None
    """By role: the greatest of the rounds."""

    @property
    def is_marred(self) -> bool:
        """True when not every request was answered as it should be: the figures are not to be trusted."""
        return bool(self.errors or self.failed_rounds)


@dataclass(frozen=True)
class SyncFigures:
    """In microseconds; `difference_us` is taken in each round, before the median."""

    put_p50_us: Spread
    bare_p50_us: Spread
    bare_p99_us: Spread
    difference_us: Spread


@dataclass(frozen=True)
class LogdFigures:
    """Operations a second, and the processor time of logd for each."""

    writes: Spread
    reads: Spread
    write_cpu_us: Spread
    read_cpu_us: Spread


_Samples: TypeAlias = Sequence[Sample | None]


def rows(measured: Measured, peers: Sequence[str] = ()) -> list[Row]:
    """A row for each case and target, in the order in which they were first measured; `peers` are those named."""
    return [
        _row(case, target, samples, {name: measured.samples.get((case, name), []) for name in (case.reference, *peers)})
        for (case, target), samples in measured.samples.items()
    ]


def _row(case: Case, target: str, samples: _Samples, others: Mapping[str, _Samples]) -> Row:
    good = [sample for sample in samples if sample]
    errors = sum((Counter(sample.errors) for sample in good), Counter[str]())
    failed = len(samples) - len(good)
    if not good:
        return Row(case, target, failed, dict(errors))
    ratios = {name: found for name, references in others.items() if (found := ratio(samples, references))}
    return Row(
        case,
        target,
        failed,
        dict(errors),
        throughput=Spread.of(sample.throughput for sample in good),
        ratio=ratios.pop(case.reference, None),
        ratio_to_peers=ratios,
        p50_us=Spread.of(sample.p50_us for sample in good),
        p90_us=_maybe_spread(sample.p90_us for sample in good),
        p99_us=Spread.of(sample.p99_us for sample in good),
        max_us=Spread.of(sample.max_us for sample in good),
        cpu_us=_by_role(good, lambda sample, role: sample.cpu_seconds.get(role, 0.0) / sample.requests * 1e6),
        rss_bytes={role: max(sample.rss_bytes.get(role, 0) for sample in good) for role in _roles(good, "rss_bytes")},
    )


def ratio(samples: _Samples, references: _Samples) -> Spread | None:
    """Of throughputs, round by round; None when there is no round with both."""
    pairs = [(ours, theirs) for ours, theirs in zip(samples, references, strict=False) if ours and theirs]
    return _maybe_spread(ours.throughput / theirs.throughput for ours, theirs in pairs)


def _maybe_spread(values: Iterable[float | None]) -> Spread | None:
    found = [value for value in values if value is not None]
    return Spread.of(found) if found else None


def _by_role(samples: Sequence[Sample], figure: Callable[[Sample, str], float]) -> dict[str, float]:
    roles = _roles(samples, "cpu_seconds")
    return {role: statistics.median(figure(sample, role) for sample in samples) for role in roles}


def _roles(samples: Sequence[Sample], attribute: str) -> list[str]:
    return list(dict.fromkeys(role for sample in samples for role in getattr(sample, attribute)))


def logd_bytes_per_key(rows: Iterable[Row]) -> float | None:
    """How much logd grows with a key: between the most and the fewest that are stored; None without both."""
    of_keys = [row for row in rows if row.case.section is Section.KEYS and row.target == SERVER and row.rss_bytes]
    points = sorted((row.case.keys, (row.rss_bytes or {})["logd"]) for row in of_keys)
    if not points or points[0][0] == points[-1][0]:
        return None
    return (points[-1][1] - points[0][1]) / (points[-1][0] - points[0][0])


def times_a_put(rows: Sequence[Row], operation: Operation, keys: int = 1) -> float | None:
    """How many keys a second are written so, for each that plain PUTs of as many connections write; None without both.

    `keys` is how many a request writes.
    """
    ours = [row for row in rows if row.target == SERVER and row.case.section is Section.TRANSACTIONS and row.throughput]
    of_case = {row.case[1:3]: row.throughput.median for row in ours if row.throughput}
    for (each, connections), throughput in of_case.items():
        if each is operation and (plain := of_case.get((Operation.PUT, connections))):
            return keys * throughput / plain
    return None


def of_sync(rounds: Sequence[SyncRound]) -> SyncFigures | None:
    """The figures of the probe; None when it was not made."""
    if not rounds:
        return None
    return SyncFigures(
        put_p50_us=Spread.of(each.put.p50_us for each in rounds),
        bare_p50_us=Spread.of(each.bare.p50_us for each in rounds),
        bare_p99_us=Spread.of(each.bare.p99_us for each in rounds),
        difference_us=Spread.of(each.put.p50_us - each.bare.p50_us for each in rounds),
    )


def of_logd(rounds: Sequence[LogdRound]) -> LogdFigures | None:
    """The figures of the probe; None when it was not made."""
    if not rounds:
        return None
    return LogdFigures(
        writes=Spread.of(each.write.throughput for each in rounds),
        reads=Spread.of(each.read.throughput for each in rounds),
        write_cpu_us=Spread.of(each.write.cpu_us for each in rounds),
        read_cpu_us=Spread.of(each.read.cpu_us for each in rounds),
    )
