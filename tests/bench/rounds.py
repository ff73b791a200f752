"""The rounds: puts every load on every target, in turns, and runs the probes.

Owns the order in which things are done, and the directory of the data; nothing that it starts is left when it returns
or raises. Knows neither figures nor reports.

In a round each load is put on all targets, one after the other, before the next load; so what is compared was
measured within seconds. Which target begins changes from round to round, so that none always follows the same one.
"""

import contextlib
import shutil
import tempfile
import unittest
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from tests.bench import cluster, plan, sync, targets
from tests.bench.cases import Case, Sample, Section
from tests.bench.generators import LoadFailed
from tests.bench.logd_alone import LogdAlone, Rate
from tests.bench.options import Options
from tests.bench.targets import Target

_WARM_UP_SECONDS: Final = 1


class Progress(Protocol):
    """Where the course of the measurement is shown."""

    def log(self, text: str) -> None:
        """Show one line of text."""

    def doing(self, text: str) -> None:
        """Show what is being done now."""

    def done(self, seconds: float) -> None:
        """Count so many of the planned seconds as over."""


class SyncRound(NamedTuple):
    """A PUT on one connection, and a bare write and sync of what it writes."""

    put: Sample
    bare: sync.BareSync


class LogdRound(NamedTuple):
    """One round of the probe of logd alone."""

    write: Rate
    read: Rate


@dataclass
class Measured:
    """All samples. Those of a case are in the order of the rounds, for each target; None where one failed."""

    samples: dict[tuple[Case, str], list[Sample | None]] = field(default_factory=lambda: defaultdict(list))
    notes: dict[str, str] = field(default_factory=dict)
    """What a reader has to know of a target."""
    sync: list[SyncRound] = field(default_factory=list)
    logd: list[LogdRound] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """What could not be measured, and why."""
    is_interrupted: bool = False


def run(options: Options, stages: Sequence[plan.Stage], progress: Progress) -> Measured:
    """Measure everything. Ctrl-C ends it early; what was measured until then is returned."""
    measured = Measured()
    try:
        for stage in stages:
            try:
                _run_stage(options, stage, measured, progress)
            except unittest.SkipTest as why:
                measured.problems.append(str(why))
        if Section.SYNC in options.sections:
            _run_sync(options, measured, progress)
        if Section.LOGD in options.sections:
            _run_logd(options, measured, progress)
    except KeyboardInterrupt:
        measured.is_interrupted = True
    return measured


@contextlib.contextmanager
def _data_directory(options: Options) -> Iterator[Path]:
    """On the disk of the results: that of temporary files may be no disk at all."""
    directory = Path(tempfile.mkdtemp(prefix="data-", dir=options.out)).absolute()
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


# Loads ---------------------------------------------------------------------------------------------------


def _run_stage(options: Options, stage: plan.Stage, measured: Measured, progress: Progress) -> None:
    with _data_directory(options) as directory, contextlib.ExitStack() as stack:
        progress.doing("starting")
        if stage.is_on_cluster:
            chosen = _on_cluster(options, stage, directory, stack)
        else:
            chosen = targets_of(options, stage, directory)
        running = [stack.enter_context(target) for target in chosen]
        measured.notes.update((target.name, target.note) for target in running)
        progress.done(stage.seconds_to_start)
        for target in running:
            _measure(target, stage.cases[-1], _WARM_UP_SECONDS, progress)
        for number in range(options.rounds):
            first = number % len(running)
            _run_round(options, stage, [*running[first:], *running[:first]], measured, progress)


def _on_cluster(options: Options, stage: plan.Stage, directory: Path, stack: contextlib.ExitStack) -> list[Target]:
    return cluster.targets(directory, stage.cases, (f"--workers={options.workers}", *options.server_flags), stack)


def targets_of(options: Options, stage: plan.Stage, directory: Path) -> list[Target]:
    """Those of a stage that is not on a cluster; none of them is started."""
    kinds = {kind.name: kind for kind in (targets.Etcd, targets.Redis)}
    cases = stage.peer_cases
    found = [kinds[name](directory / name, cases) for name in _found_peers(options, stage)]
    named = [targets.Peer(name, url, cases) for name, url in options.peers if cases]
    hello = targets.HelloWorld(directory / "hello", options.workers)
    return [_server(options, directory, stage.cases), hello, *found, *named]


def _server(options: Options, directory: Path, cases: Sequence[Case]) -> Target:
    return targets.KvServer(directory / "server", cases, (f"--workers={options.workers}", *options.server_flags))


def _found_peers(options: Options, stage: plan.Stage) -> list[str]:
    is_without = options.without_peers or stage.only_named_peers or not stage.peer_cases
    return [] if is_without else targets.found_peers()


def peer_count(options: Options, stage: plan.Stage) -> int:
    """How many targets a stage has beside two."""
    if stage.is_on_cluster:
        return 1
    return len(_found_peers(options, stage)) + (len(options.peers) if stage.peer_cases else 0)


def _run_round(
    options: Options, stage: plan.Stage, running: Sequence[Target], measured: Measured, progress: Progress
) -> None:
    for case in stage.cases:
        for target in running:
            if case in stage.peer_cases or not _is_peer(target):
                sample = _measure(target, case, options.seconds, progress, measured.problems)
                measured.samples[case, target.name].append(sample)


def _is_peer(target: Target) -> bool:
    return not isinstance(target, targets.KvServer | targets.HelloWorld)


def _measure(
    target: Target, case: Case, seconds: int, progress: Progress, problems: list[str] | None = None
) -> Sample | None:
    """One run; None, and a problem, when it fails."""
    progress.doing(f"{target.name}: {case}")
    sample = None
    try:
        sample = target.measure(case, seconds)
        target.settle()
    except LoadFailed as error:
        if problems is not None:
            problems.append(f"{target.name}, {case}: {error}")
    if problems is not None:
        progress.log(f"{target.name:12} {case!s:52} {_in_words(sample)}")
    progress.done(seconds + plan.RUN_OVERHEAD_SECONDS)
    return sample


def _in_words(sample: Sample | None) -> str:
    if not sample:
        return "FAILED"
    errors = "".join(f", {count:,} {kind} ERRORS" for kind, count in sample.errors.items())
    return f"{sample.throughput:10,.0f}/s  p50 {sample.p50_us:9,.0f} µs  p99 {sample.p99_us:9,.0f} µs{errors}"


# Probes --------------------------------------------------------------------------------------------------


def _run_sync(options: Options, measured: Measured, progress: Progress) -> None:
    case = plan.SYNC_CASE
    frame_bytes = sync.frame_bytes(f"{case.key_prefix}{case.keys}", case.value_bytes)
    with _data_directory(options) as directory, _server(options, directory, (case,)) as server:
        progress.done(plan.START_SECONDS)
        _measure(server, case, _WARM_UP_SECONDS, progress)
        for _ in range(options.rounds):
            put = _measure(server, case, options.seconds, progress, measured.problems)
            bare = sync.measure(directory, frame_bytes, options.seconds)
            progress.log(f"{'bare sync':12} {f'{frame_bytes} B':52} {'':12}  p50 {bare.p50_us:9,.0f} µs")
            progress.done(options.seconds)
            if put:
                measured.sync.append(SyncRound(put, bare))


def _run_logd(options: Options, measured: Measured, progress: Progress) -> None:
    with _data_directory(options) as directory, LogdAlone(directory / "data") as logd:
        progress.done(plan.START_SECONDS)
        logd.read(_WARM_UP_SECONDS)
        for _ in range(options.rounds):
            progress.doing("logd alone")
            both = LogdRound(logd.write(options.seconds), logd.read(options.seconds))
            progress.log(f"logd alone   {both.write.throughput:,.0f} writes/s, {both.read.throughput:,.0f} reads/s")
            progress.done(2 * options.seconds)
            measured.logd.append(both)


def probe_seconds(options: Options) -> float:
    """About how long the probes take."""
    each = {Section.SYNC: 2.0 * options.seconds + plan.RUN_OVERHEAD_SECONDS, Section.LOGD: 2.0 * options.seconds}
    asked = [section for section in options.sections if section in each]
    return sum(plan.START_SECONDS + _WARM_UP_SECONDS + options.rounds * each[section] for section in asked)
