"""`python -m tests.bench`: the only place that knows the process it runs in. `run.sh` beside this sets up for it."""

import functools
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.bench import generators, options, plan, report, rounds, targets
from tests.bench.cases import Section
from tests.bench.options import Options
from tests.bench.progress import Bar
from tests.bench.publish import NotPublished, publish
from tests.support.harness import ROOT

_WITHOUT_WRK: Final = frozenset({Section.LOGD})


def main(arguments: list[str]) -> int:
    """Measure and report; the exit status."""
    parsed = options.parse(arguments)
    if not _WITHOUT_WRK.issuperset(parsed.sections) and (message := generators.missing("wrk")):
        print(message, file=sys.stderr)
        return 1
    if message := targets.trouble_with(parsed.peers):
        print(message, file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parsed.out.mkdir(parents=True, exist_ok=True)
    stages, left_out = plan.stages(parsed.sections, parsed.connections, _raise_descriptor_limit(parsed.connections))
    measured = _measure(parsed, stages)
    measured.problems += left_out
    results = report.collect(measured, parsed, arguments)
    for path in _write(results, parsed.out):
        print(path)
    for problem in results.problems:
        print(f"NOT MEASURED AS ASKED: {problem}", file=sys.stderr)
    if measured.is_interrupted:
        return 128 + signal.SIGINT
    if parsed.publish:
        try:
            print(*publish(results, parsed.out, ROOT), sep="\n")
        except NotPublished as error:
            print(f"NOT PUBLISHED: {error}", file=sys.stderr)
    return 1 if results.problems or any(row.is_marred for row in results.rows) else 0


def _write(results: report.Results, directory: Path) -> list[Path]:
    """Draw and write; which files there are now."""
    from tests.bench.plots import draw  # takes a second to import, and is in the environment of run.sh alone

    plots = draw(results.rows, directory)
    return [*report.write(results, plots, directory), *(plot.path for plot in plots)]


def _measure(parsed: Options, stages: Sequence[plan.Stage]) -> rounds.Measured:
    peers = functools.partial(rounds.peer_count, parsed)
    seconds = plan.seconds(stages, parsed.rounds, parsed.seconds, peers) + rounds.probe_seconds(parsed)
    with Bar(seconds) as bar:
        bar.log(f"this takes about {seconds / 60:.0f} min" if seconds >= 120 else f"this takes about {seconds:.0f} s")
        return rounds.run(parsed, stages, bar)


def _raise_descriptor_limit(connections: Sequence[int]) -> int:
    """A connection costs a descriptor in what is started from here; how many there may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, *map(plan.descriptors_needed, (*connections, *plan.CONNECTIONS)))
    granted = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    resource.setrlimit(resource.RLIMIT_NOFILE, (granted, hard))
    return granted


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:  # before the first load, or for the second time
        sys.exit(128 + signal.SIGINT)
