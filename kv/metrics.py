"""GET /metrics: how the server is, in the Prometheus text format.

Owns what each number is called where it is shown, its type, labels and meaning (docs/metrics.md has them in a table).
Knows what the board and logd tell; not how they count. Answers without logd too, and then says that it is away.

The families are made anew for each scrape, from plain numbers: the counters and histograms of prometheus_client would
cost each request more than everything else that is counted about it.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import falcon.asgi
from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from kv import __version__
from kv.log_client.outcomes import Unavailable
from kv.request import Request, Resource
from kv.resources.storage import Storage
from kv.scoreboard import BOUNDS_SECONDS, METHODS, OTHER, Board, Role, Totals
from logd.shared.protocol import Histogram, Stats

_CHILDREN: Final = (Role.LOGD, Role.GUNICORN)


class MetricsResource(Resource):
    """/metrics"""

    def __init__(self, storage: Storage, board: Board, workers: int) -> None:
        self._storage = storage
        self._board = board
        self._workers = workers

    async def on_get(self, req: Request, resp: falcon.asgi.Response) -> None:
        """Answer with all that can be told at the moment."""
        try:
            stats = await self._storage.stats()
        except Unavailable:
            stats = None
        resp.data = generate_latest(_Scrape(self._board, self._workers, stats))

    on_head = on_get


class _Scrape(Collector):
    """The families of one scrape."""

    def __init__(self, board: Board, workers: int, stats: Stats | None) -> None:
        self._board = board
        self._workers = workers
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        totals, stats = self._board.totals(), self._stats
        yield _gauge("kv_logd_up", "1 when logd has answered this scrape.", stats is not None)
        yield _gauge(
            "kv_ready",
            "1 when reads and writes can be taken, as /health says.",
            bool(stats and not stats.unavailable_reason),
        )
        yield from _http(totals)
        yield from _processes(totals, self._board, self._workers, stats)
        if stats:
            yield from _log(stats)
            yield from _checkpoints(stats)
            yield from _data(stats)
            yield from _recovery(stats)


def _http(totals: Totals) -> Iterator[Metric]:
    requests = CounterMetricFamily("kv_http_requests", "Requests answered.", labels=("method", "status"))
    for (method, status), each in totals.requests.items():
        if each.answered or OTHER not in (
            method,
            status,
        ):  # what is known is there from the start, or its first is not seen
            requests.add_metric((method, str(status)), each.answered)
    yield requests
    help_ = "From the last byte of a request to its answer being handed to the network."
    durations = HistogramMetricFamily("kv_http_request_duration_seconds", help_, labels=("method",))
    for method in (*METHODS, OTHER):
        timed = [each for key, each in totals.requests.items() if key[0] == method]
        counts = [sum(bucket) for bucket in zip(*(each.buckets for each in timed), strict=True)]
        buckets, seconds = _cumulative(BOUNDS_SECONDS, counts), sum(each.seconds for each in timed)
        durations.add_metric((method,), buckets, seconds)
    yield durations
    yield _gauge("kv_http_requests_in_flight", "Requests that have no answer yet.", totals.in_flight)
    yield _gauge("kv_http_connections", "Open connections.", totals.connections)
    yield _gauge("kv_http_queued_writes", "Writes that wait for logd.", totals.queued_writes)
    yield _gauge("kv_http_queued_bytes", "Memory that is taken by writes that wait for logd.", totals.queued_bytes)
    large = "Memory that is taken by values over 64 KiB that are being read."
    yield _gauge("kv_http_large_values_bytes", large, totals.large_bytes)
    waiting = "Reads of such values that wait for room."
    yield _gauge("kv_http_large_reads_waiting", waiting, totals.large_reads_waiting)
    yield _gauge("kv_http_unsent_bytes", "Answers that clients have not taken yet.", totals.unsent_bytes)


def _processes(totals: Totals, board: Board, workers: int, stats: Stats | None) -> Iterator[Metric]:
    yield _gauges("kv_build_info", "1; the version that runs.", "version", {__version__: 1})
    yield _gauge("kv_workers", "Living HTTP workers.", totals.workers)
    yield _gauge("kv_workers_configured", "HTTP workers that there should be.", workers)
    restarts = {role.name.lower(): board.restarts(role) for role in _CHILDREN} | {"worker": totals.worker_restarts}
    yield _counters("kv_process_restarts", "Starts of a process after it had ended unasked.", "role", restarts)
    started = {role.name.lower(): board.started_at(role) for role in Role}
    yield _gauges("kv_process_start_time_seconds", "The last start of a process, since 1970.", "role", started)
    cpu = {"worker": totals.cpu_seconds} | ({"logd": stats.cpu_seconds} if stats else {})
    yield _counters("kv_process_cpu_seconds", "Processor time, user and system.", "role", cpu)
    resident = {"worker": totals.resident_bytes} | ({"logd": stats.resident_bytes} if stats else {})
    yield _gauges("kv_process_resident_memory_bytes", "Memory in use, of all processes of a role.", "role", resident)


def _log(stats: Stats) -> Iterator[Metric]:
    yield _counter("kv_log_groups", "Groups of batches that were written and synced together.", stats.groups)
    yield _counter("kv_log_batches", "Batches of writes in these groups.", stats.batches)
    refused = "Batches that were not taken."
    yield _counters("kv_log_batches_refused", refused, "reason", stats.refused)
    yield _histogram("kv_log_group_writes", "Writes in a group.", stats.group_writes)
    yield _histogram("kv_log_sync_duration_seconds", "How long a sync of the log took.", stats.sync_seconds)
    yield _counter("kv_log_appended_bytes", "Bytes that were appended to the log.", stats.appended_bytes)
    yield _gauge("kv_log_bytes", "Log that is in no snapshot, and is replayed at a start.", stats.log_bytes)
    yield _gauge("kv_log_segments", "Files of the log.", stats.segments)
    yield _gauge("kv_disk_free_bytes", "Free space where the data is.", stats.free_bytes)


def _checkpoints(stats: Stats) -> Iterator[Metric]:
    yield _counters("kv_checkpoints", "Checkpoints that ended.", "outcome", stats.checkpoints)
    yield _gauge("kv_checkpoint_due_bytes", "Sealed log that makes a checkpoint due.", stats.checkpoint_due_bytes)
    last = "How long the last checkpoint took; 0 when there was none."
    yield _gauge("kv_checkpoint_last_duration_seconds", last, stats.checkpoint_seconds)
    finished = "When the newest snapshot was finished, since 1970; 0 when there is none."
    yield _gauge("kv_checkpoint_last_timestamp_seconds", finished, stats.checkpoint_at)
    yield _gauge("kv_snapshot_bytes", "Size of the newest snapshot.", stats.snapshot_bytes)


def _data(stats: Stats) -> Iterator[Metric]:
    yield _gauge("kv_keys", "Keys.", stats.keys)
    yield _gauge("kv_data_bytes", "Keys and values, without what it costs to hold them.", stats.data_bytes)
    yield _gauge("kv_sessions", "Sessions of workers that logd remembers, dead ones included.", stats.sessions)


def _recovery(stats: Stats) -> Iterator[Metric]:
    yield _gauges("kv_recovery_info", "1; what the last start of logd found.", "finding", {stats.finding: 1})
    yield _gauge("kv_recovery_duration_seconds", "How long reading the data took.", stats.recovery_seconds)
    dropped = "Bytes of a write that was cut short and never acknowledged."
    yield _gauge("kv_recovery_dropped_bytes", dropped, stats.dropped_bytes)


# Families ------------------------------------------------------------------------------------------------


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(name, meaning, value=float(value))


def _counter(name: str, meaning: str, value: float) -> Metric:
    return CounterMetricFamily(name, meaning, value=value)


def _gauges(name: str, meaning: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, meaning, labels=(label,))
    for each, value in values.items():
        family.add_metric((each,), value)
    return family


def _counters(name: str, meaning: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, meaning, labels=(label,))
    for each, value in values.items():
        family.add_metric((each,), value)
    return family


def _histogram(name: str, meaning: str, values: Histogram) -> Metric:
    return HistogramMetricFamily(name, meaning, _cumulative(values.bounds, values.counts), values.total)


def _cumulative(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Buckets as Prometheus wants them: each with all that is smaller."""
    names = [*map(floatToGoString, bounds), "+Inf"]
    return list(zip(names, itertools.accumulate(counts), strict=True))
