"""One experiment, from the start of a cluster to the verdict.

Owns the order of things, and the directory; what it starts has ended when it returns or raises. Knows neither figures
nor reports.

When the load is over, every key is read, then all processes are killed once more, the server is started from what is on
the disk, and every key is read again. These reads are part of the history that is judged.
"""

import contextlib
import itertools
import random
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from tests.killlab.cluster import Cluster
from tests.killlab.kills import Kill, Killer, Order
from tests.killlab.mix import Mix
from tests.killlab.options import Options
from tests.support.clients import call
from tests.support.etcd_nodes import Refused
from tests.support.history import ABSENT, Kind, Outcome, Verdict, check, missing_writes
from tests.support.recorder import Clients, Record, make_each

_TURN_SECONDS: Final = 0.05
_READ_ATTEMPTS: Final = 3
_COUNTED_KEYS: Final = 8
"""Keys that one client each writes, so that an engine that counts puts has to count as many."""


class Progress(Protocol):
    """Where the course of the experiment is shown."""

    def log(self, text: str) -> None:
        """Show one line of text."""

    def update(self, elapsed_s: float, requests: int, failed: int) -> None:
        """Show how far the load has come."""


@dataclass
class Result:
    """What happened. Times are in nanoseconds, of the clock of the clients."""

    options: Options
    record: Record
    kills: list[Kill] = field(default_factory=list)
    not_carried_out: list[Order] = field(default_factory=list)
    began: int = 0
    ended: int = 0
    quiet_since: int = 0
    """When the last write had ended."""
    reads_at_rest: int = 0
    unread: int = 0
    missing: list[str] = field(default_factory=list)
    counter: int | None = None
    """What it was at the end; None when it was not read."""
    puts_counted: Mapping[str, int] = field(default_factory=dict)
    """How often the engine says that each key was put since it was last created; empty where it does not count."""
    verdict: Verdict = field(default_factory=lambda: Verdict(0, 0, [], 0))
    judged_s: float = 0.0
    is_interrupted: bool = False
    errors: list[str] = field(default_factory=list)
    """Why the experiment could not be carried out to its end."""
    evidence: Path | None = None
    """Where data and log of the server are, when they are kept."""


def run(options: Options, progress: Progress) -> Result:
    """Carry out an experiment."""
    mark = secrets.token_hex(4)  # so that keys of an earlier experiment in the same directory do not matter
    counted = _COUNTED_KEYS if options.engine == "etcd" else 0
    keys = [f"lab-{mark}-{n}" for n in range(options.keys + options.preload + counted)]
    result = Result(options, Record(keys, options.value_bytes))
    with _directory(result) as directory:
        with Cluster(options.engine, options.servers, directory, options.server_flags) as cluster:
            if options.live:
                progress.log(f"to watch it: http://127.0.0.1:{cluster.ports[0]}/console (Ctrl-C ends it)")
            _preload(cluster, result, progress)
            try:
                _put_under_load(cluster, result, progress)
                if not result.errors:
                    _read_back(cluster, result, progress)
            except KeyboardInterrupt:  # what was recorded so far is judged all the same
                result.is_interrupted = True
        _judge(result, progress)
    return result


@contextlib.contextmanager
def _directory(result: Result) -> Iterator[Path]:
    """The directory for data and log of the server; a temporary one is removed when nothing went wrong."""
    if result.options.directory:
        result.evidence = result.options.directory
        yield result.options.directory.absolute()
        return
    temporary = Path(tempfile.mkdtemp(prefix="killlab-"))
    try:
        yield temporary / "data"
    finally:
        if result.errors or result.unread or result.missing or not result.verdict.is_linearizable:
            result.evidence = temporary
        else:
            shutil.rmtree(temporary)


def _preload(cluster: Cluster, result: Result, progress: Progress) -> None:
    options = result.options
    if options.preload:
        progress.log(f"writing {options.preload:,} keys")
        writes = [(Kind.PUT, options.keys + n) for n in range(options.preload)]
        make_each(cluster.ports, options.clients, result.record, writes)


def _put_under_load(cluster: Cluster, result: Result, progress: Progress) -> None:
    """The experiment proper."""
    options, record = result.options, result.record
    mix = _offered(options.mix, cluster)
    scripts = [mix.script(options.keys, random.Random(f"{options.seed}/{n}")) for n in range(options.clients)]
    first_counted = options.keys + options.preload
    scripts += [itertools.repeat((Kind.PUT, key)) for key in range(first_counted, len(record.history.keys))]
    killer = Killer(cluster, options.orders, random.Random(options.seed))
    result.began = time.monotonic_ns()
    try:
        ends_a_show = contextlib.suppress(KeyboardInterrupt) if options.live else contextlib.nullcontext()
        with Clients(cluster.ports, record, scripts), contextlib.closing(killer), ends_a_show:
            _kill_what_is_due(killer, cluster, result, progress)
    finally:
        result.ended = time.monotonic_ns()
        elapsed_s = (result.ended - result.began) / 1e9
        result.not_carried_out = [order for order in killer.waiting if order.at_s < elapsed_s]


def _offered(mix: Mix, cluster: Cluster) -> Mix:
    """A mix without reads of several keys where the server has none."""
    is_offered = call(cluster.ports[0], "GET", "/keys?key=x&values=1").status == 200
    return mix if is_offered else mix._replace(reads=mix.reads + mix.reads_of_many, reads_of_many=0.0)


def _kill_what_is_due(killer: Killer, cluster: Cluster, result: Result, progress: Progress) -> None:
    """Carry out each order at its time, for as long as the load lasts."""
    history, failures = result.record.history, result.record.failures
    before = len(history)
    elapsed_s = 0.0
    while elapsed_s < result.options.seconds and not result.errors:
        for kill in killer.carry_out_due(elapsed_s):
            result.kills.append(kill)
            progress.log(f"{(kill.at - result.began) / 1e9:7.2f} s  {kill.what}, pid {kill.pid}")
        result.errors += [f"a server ended by itself, with status {status}" for status in cluster.ended()]
        progress.update(elapsed_s, len(history) - before, len(failures))
        time.sleep(_until_next(killer, elapsed_s))
        elapsed_s = (time.monotonic_ns() - result.began) / 1e9


def _until_next(killer: Killer, elapsed_s: float) -> float:
    """Seconds to sleep: a turn, or less when an order is due before."""
    due = (order.at_s - elapsed_s for order in killer.waiting if order.at_s > elapsed_s)
    return min(_TURN_SECONDS, next(due, _TURN_SECONDS))


def _read_back(cluster: Cluster, result: Result, progress: Progress) -> None:
    """Read every key; and again, from what is on the disk."""
    result.quiet_since = time.monotonic_ns()
    try:
        progress.log("reading every key")
        cluster.await_ready()
        _read_all(cluster, result)
        progress.log("killing all, starting again, and reading every key once more")
        cluster.crash()
        cluster.start()
        _read_all(cluster, result)
        counter = call(cluster.ports[0], "GET", f"/kv/{result.record.requests.counter}")
        result.counter = result.record.requests.value(counter.body) if counter.status == 200 else ABSENT
        result.puts_counted = cluster.puts_counted()
    except (AssertionError, Refused) as error:  # of the harness: something did not start
        result.errors.append(f"after the load: {error}")


def _read_all(cluster: Cluster, result: Result) -> None:
    history = result.record.history
    unread = set(range(len(history.keys)))
    for _ in range(_READ_ATTEMPTS):
        if unread:
            before = len(history)
            make_each(cluster.ports, result.options.clients, result.record, [(Kind.GET, key) for key in sorted(unread)])
            unread -= {history.key[i] for i in range(before, len(history)) if history.outcome[i] == Outcome.OK}
    result.unread += len(unread)
    result.reads_at_rest += 1


def _judge(result: Result, progress: Progress) -> None:
    history = result.record.history
    progress.log(f"judging {len(history):,} operations")
    began = time.monotonic()
    result.verdict = check(history)
    if result.reads_at_rest:
        result.missing = missing_writes(history, result.quiet_since)
    result.judged_s = time.monotonic() - began
