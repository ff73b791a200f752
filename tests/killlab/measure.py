"""Figures: a result in numbers, and whether all is well.

Knows neither how the result came about nor how figures are shown. Latency is from sending a request to its answer; that
a client had to wait before it could send shows in the silences.
"""

import bisect
import itertools
import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from tests.killlab.cluster import DISK, FOLLOWER, LEADER
from tests.killlab.kills import Kill
from tests.killlab.lab import Result
from tests.support.history import READS, Fault, Kind, Outcome
from tests.support.recorder import BROKEN

_BUCKETS_MS: Final = (100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000)
UNNOTICED: Final = ("logd", LEADER, FOLLOWER, DISK)
"""Roles whose death should fail no request."""
_BUCKETS_MAX: Final = 1_200
_ANSWERED: Final = (Outcome.OK, Outcome.NOT_MET)
_SILENCE_MIN: Final = 1_000_000  # nanoseconds; a shorter one is none
_LAST_ANSWERS: Final = 50_000_000  # nanoseconds; so long after a kill answers may still arrive from before it


@dataclass(frozen=True)
class Latency:
    """In milliseconds."""

    p50: float
    p99: float
    max: float


@dataclass(frozen=True)
class Effect:
    """What clients felt of one kill."""

    kill: Kill
    at_s: float
    failed: Counter[str]
    silence_s: float
    """The longest time around it in which no client got an answer."""


@dataclass(frozen=True)
class Bucket:
    """What ended in one stretch of time: requests that succeeded, their latency, and those that failed."""

    reads: int
    """With the writes whose condition did not hold."""
    writes: int
    latency: Latency | None
    failed: Counter[str]


@dataclass(frozen=True)
class Figures:
    """What happened under load."""

    seconds: float
    requests: int
    """That succeeded."""
    acknowledged_writes: int
    latency: Latency | None
    failed: Counter[str]
    outcomes: dict[Kind, Counter[Outcome]]
    effects: list[Effect]
    bucket_ms: int
    buckets: list[Bucket]

    @property
    def throughput(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds

    def by_role(self) -> dict[str, list[Effect]]:
        """The effects of kills of one kind, those first that silenced the longest."""
        roles: dict[str, list[Effect]] = defaultdict(list)
        for effect in sorted(self.effects, key=lambda effect: -effect.silence_s):
            roles[effect.kill.what].append(effect)
        return dict(roles)


def measure(result: Result) -> Figures:
    """Work out the figures of a result."""
    history = result.record.history
    succeeded = array("Q")  # there may be many millions
    for i, (end, outcome) in enumerate(zip(history.end, history.outcome, strict=True)):
        if result.began <= end <= result.ended and outcome in _ANSWERED:
            succeeded.append(i)
    bucket_ms = _bucket_ms(result.ended - result.began)
    buckets = _buckets(result, succeeded, bucket_ms)
    return Figures(
        seconds=(result.ended - result.began) / 1e9,
        requests=len(succeeded),
        acknowledged_writes=sum(bucket.writes for bucket in buckets),
        latency=_latency([history.end[i] - history.start[i] for i in succeeded]),
        failed=sum((bucket.failed for bucket in buckets), Counter()),
        outcomes=_outcomes(result),
        effects=_effects(result, (history.end[i] for i in succeeded)),
        bucket_ms=bucket_ms,
        buckets=buckets,
    )


def _outcomes(result: Result) -> dict[Kind, Counter[Outcome]]:
    """How often each outcome came of each kind of request, before and after the load too."""
    history = result.record.history
    counts = Counter(zip(history.kind, history.outcome, strict=True))
    outcomes: dict[Kind, Counter[Outcome]] = defaultdict(Counter)
    for (kind, outcome), count in sorted(counts.items()):
        outcomes[Kind(kind)][Outcome(outcome)] = count
    return outcomes


def increments(result: Result) -> tuple[int, int]:
    """The least and the most that the counter may be: what was acknowledged, and what is not known."""
    history = result.record.history
    counts = Counter(outcome for kind, outcome in zip(history.kind, history.outcome, strict=True) if kind == Kind.COUNT)
    return counts[Outcome.OK], counts[Outcome.OK] + counts[Outcome.UNKNOWN]


def lost_and_doubled(result: Result) -> tuple[int, int]:
    """Keys with an acknowledged write that is missing, and keys with a value that came back."""
    violations = result.verdict.violations
    lost = {violation.key for violation in violations if violation.fault == Fault.LOST}
    return len(lost.union(result.missing)), result.verdict.count(Fault.CAME_BACK)


class Counts(NamedTuple):
    """How an engine that counts the puts of each key agrees with the clients."""

    wrong: list[str]
    """Keys with more puts than can have been made, or fewer than were acknowledged."""
    exact: int
    """Keys of which it is known how many puts are the least: one client made all writes, and they are puts."""


def counts(result: Result) -> Counts:
    """Compare. Where several clients write a key, fewer puts are right: the last of concurrent ones replaces others."""
    history, wrong, exact = result.record.history, [], 0
    for key, operations in history.registers():
        puts = [each for each in operations if each.kind == Kind.PUT]
        acknowledged = sum(each.outcome == Outcome.OK for each in puts)
        possible = sum(each.outcome != Outcome.REFUSED for each in puts)
        is_exact = {each.kind for each in operations} <= {Kind.GET, Kind.PUT} and len(
            {each.client for each in puts}
        ) == 1
        exact += is_exact
        counted = result.puts_counted.get(history.keys[key], 0)
        if counted > possible or (is_exact and counted < acknowledged):
            wrong.append(history.keys[key])
    return Counts(wrong, exact)


def problems(result: Result, figures: Figures) -> list[str]:
    """Why not all is well, in words."""
    found = ["interrupted"] if result.is_interrupted else []
    found += result.errors
    if not figures.requests:
        found.append("not one request succeeded")
    if result.missing:
        found.append(f"an acknowledged write is missing at the end from {len(result.missing)} keys")
    if not result.verdict.is_linearizable:
        count = len(result.verdict.violations) + result.verdict.unexplained
        found.append(f"the history of {count} keys is not linearizable")
    least, most = increments(result)
    if result.counter is not None and not least <= result.counter <= most:
        found.append(f"the counter is {result.counter:,}, and {_range(least, most)} increments were made")
    if result.unread:
        found.append(f"{result.unread} keys could not be read at the end")
    if result.puts_counted and (wrong := counts(result).wrong):
        found.append(f"the engine counts other puts than were made of {len(wrong)} keys: {', '.join(wrong[:3])}")
    if unexpected := Counter(each.reason for each in result.record.failures if not each.is_allowed):
        found.append(f"answers that no request should get: {_in_words(unexpected)}")
    if result.options.strict:
        found += [
            f"requests failed when {role} was killed: {_in_words(failed)}"
            for role in UNNOTICED
            if (failed := sum((each.failed for each in figures.effects if each.kill.what == role), Counter[str]()))
        ]
    return found


def _range(least: int, most: int) -> str:
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _in_words(failed: dict[str, int]) -> str:
    return ", ".join(f"{count} × {kind}" for kind, count in failed.items())


def _bucket_ms(duration: int) -> int:
    return next((ms for ms in _BUCKETS_MS if duration / 1e6 / ms <= _BUCKETS_MAX), _BUCKETS_MS[-1])


def _buckets(result: Result, succeeded: Sequence[int], bucket_ms: int) -> list[Bucket]:
    history, began, width = result.record.history, result.began, bucket_ms * 1_000_000
    count = max(1, math.ceil((result.ended - began) / width))
    of_bucket = [array("Q") for _ in range(count)]
    for i in succeeded:
        of_bucket[min((history.end[i] - began) // width, count - 1)].append(i)
    failed: list[Counter[str]] = [Counter() for _ in range(count)]
    for failure in result.record.failures:
        if began <= failure.end <= result.ended:
            failed[min((failure.end - began) // width, count - 1)][failure.reason] += 1
    return [
        Bucket(
            reads=(reads := sum(history.kind[i] in READS or history.outcome[i] != Outcome.OK for i in members)),
            writes=len(members) - reads,
            latency=_latency([history.end[i] - history.start[i] for i in members]),
            failed=failed[n],
        )
        for n, members in enumerate(of_bucket)
    ]


def _latency(nanoseconds: list[int]) -> Latency | None:
    """Percentiles, by the nearest rank."""
    if not nanoseconds:
        return None
    nanoseconds.sort()
    p50, p99 = (nanoseconds[math.ceil(len(nanoseconds) * share) - 1] for share in (0.5, 0.99))
    return Latency(p50 / 1e6, p99 / 1e6, nanoseconds[-1] / 1e6)


def _effects(result: Result, answered: Iterable[int]) -> list[Effect]:
    """For each kill, the failures and the silences of which it is the cause."""
    times = [kill.at for kill in result.kills]
    failed: list[Counter[str]] = [Counter() for _ in times]
    silences = [0] * len(times)
    for failure in result.record.failures:
        since = failure.end if failure.reason == BROKEN else failure.start  # a connection breaks at once
        if failure.end <= result.ended and (n := _cause(times, since, failure.end)) is not None:
            failed[n][failure.reason] += 1
    for start, end in itertools.pairwise(itertools.chain([result.began], answered, [result.ended])):
        if end - start >= _SILENCE_MIN and (n := _cause(times, start - _LAST_ANSWERS, end)) is not None:
            silences[n] = max(silences[n], end - start)
    return [
        Effect(kill, (kill.at - result.began) / 1e9, failed[n], silences[n] / 1e9)
        for n, kill in enumerate(result.kills)
    ]


def _cause(kills: Sequence[int], start: int, end: int) -> int | None:
    """The first kill in a stretch of time, or else the last one before it."""
    first = bisect.bisect_left(kills, start)
    if first < len(kills) and kills[first] <= end:
        return first
    return first - 1 if first else None
