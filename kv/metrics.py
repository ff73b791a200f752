"""GET /metrics: the state of the server in the Prometheus text format.

Owns the names, types, labels and help texts of all metrics but the gauges of the workers, which are declared in
kv/scoreboard.py; docs/metrics.md explains each one. A number that logd sends is one row of `_OF_LOGD`, one that only
the engine on etcd has a row of `_OF_CLUSTER`. Does not know how anything is counted. Answers without logd too; then
`kv_logd_up` is 0 and the numbers of logd are missing.

The families are made anew for each scrape, from plain numbers: with the counters and histograms of prometheus_client,
counting a request would cost more than everything else that is counted about it.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import falcon.asgi
from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from kv import __version__
from kv.log_client.outcomes import Unavailable
from kv.request import Request, Resource
from kv.resources.storage import Storage
from kv.scoreboard import BOUNDS_SECONDS, GAUGES, METHODS, OTHER, Requests, Role, Scoreboard, Totals
from logd.shared.protocol import ClusterStats, Histogram, Stats

_Numbers: TypeAlias = float | Mapping[str, float]
"""One number, or a number for each value of a label."""

# Families ------------------------------------------------------------------------------------------------


def _counter(name: str, help_: str, value: _Numbers, label: str = "") -> Metric:
    """Shown as NAME_total."""
    return _filled(CounterMetricFamily(name, help_, labels=(label,) if label else ()), value)


def _gauge(name: str, help_: str, value: _Numbers, label: str = "") -> Metric:
    return _filled(GaugeMetricFamily(name, help_, labels=(label,) if label else ()), value)


def _filled(family: CounterMetricFamily | GaugeMetricFamily, value: _Numbers) -> Metric:
    if isinstance(value, Mapping):
        for each, number in value.items():
            family.add_metric((each,), number)
    else:
        family.add_metric((), float(value))
    return family


def _histogram(name: str, help_: str, value: Histogram, label: str = "") -> Metric:
    return HistogramMetricFamily(name, help_, _cumulative(value.bounds, value.counts), value.total)


def _cumulative(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Buckets as Prometheus counts them: each includes all smaller values."""
    names = [*map(floatToGoString, bounds), "+Inf"]
    return list(zip(names, itertools.accumulate(counts), strict=True))


# What is shown -------------------------------------------------------------------------------------------


class _LogdMetric(NamedTuple):
    """A field of `Stats` or `ClusterStats`, and how it is shown. One that is None is not."""

    field: str
    family: Callable[[str, str, Any, str], Metric]
    name: str
    help: str
    label: str = ""
    """When the field is a mapping: the label whose values are its keys."""


_OF_LOGD: Final = (
    _LogdMetric("groups", _counter, "kv_log_groups", "Groups of batches, each written and synced at once."),
    _LogdMetric("batches", _counter, "kv_log_batches", "Batches of writes in these groups."),
    _LogdMetric("refused", _counter, "kv_log_batches_refused", "Batches that were not accepted.", "reason"),
    _LogdMetric(
        "writes_not_made",
        _counter,
        "kv_log_writes_not_made",
        "Writes that were in the log and were not made, as their conditions or the limit on the data forbade them.",
        "reason",
    ),
    _LogdMetric("group_writes", _histogram, "kv_log_group_writes", "Writes in a group."),
    _LogdMetric("sync_seconds", _histogram, "kv_log_sync_duration_seconds", "Duration of a sync of the log."),
    _LogdMetric("appended_bytes", _counter, "kv_log_appended_bytes", "Bytes that were appended to the log."),
    _LogdMetric("log_bytes", _gauge, "kv_log_bytes", "Log that is in no snapshot, and is replayed at a start."),
    _LogdMetric("segments", _gauge, "kv_log_segments", "Segments of the log."),
    _LogdMetric("free_bytes", _gauge, "kv_disk_free_bytes", "Free space on the device of the data."),
    _LogdMetric("checkpoints", _counter, "kv_checkpoints", "Checkpoints that ended.", "outcome"),
    _LogdMetric("checkpoint_due_bytes", _gauge, "kv_checkpoint_due_bytes", "Sealed log that makes a checkpoint due."),
    _LogdMetric(
        "checkpoint_seconds",
        _gauge,
        "kv_checkpoint_last_duration_seconds",
        "Duration of the last checkpoint; 0 when there was none.",
    ),
    _LogdMetric(
        "checkpoint_at",
        _gauge,
        "kv_checkpoint_last_timestamp_seconds",
        "When the newest snapshot was finished, since 1970; 0 when there is none.",
    ),
    _LogdMetric("snapshot_bytes", _gauge, "kv_snapshot_bytes", "Size of the newest snapshot."),
    _LogdMetric("keys", _gauge, "kv_keys", "Keys."),
    _LogdMetric("unsorted_keys", _gauge, "kv_keys_unsorted", "Keys that pages wait for until they are in order."),
    _LogdMetric("pages", _counter, "kv_pages", "Pages of keys that were read."),
    _LogdMetric("data_bytes", _gauge, "kv_data_bytes", "Keys and values, without the memory that holding them costs."),
    _LogdMetric("sessions", _gauge, "kv_sessions", "Sessions of workers that logd remembers, dead ones included."),
    _LogdMetric("recovery_seconds", _gauge, "kv_recovery_duration_seconds", "Duration of reading the data at a start."),
    _LogdMetric(
        "dropped_bytes",
        _gauge,
        "kv_recovery_dropped_bytes",
        "Bytes of a write that was cut short and never acknowledged.",
    ),
)
_OF_CLUSTER: Final = (
    _LogdMetric("calls", _counter, "kv_etcd_calls", "Requests that were sent to etcd, each try by itself.", "outcome"),
    _LogdMetric("retries", _counter, "kv_etcd_retries", "Tries beyond the first of a request."),
    _LogdMetric(
        "applied_by_earlier_try",
        _counter,
        "kv_etcd_applied_by_earlier_try",
        "Groups that turned out to have been applied by a try that had no answer.",
    ),
    _LogdMetric("endpoint_switches", _counter, "kv_etcd_endpoint_switches", "Changes to another endpoint."),
    _LogdMetric("read_seconds", _histogram, "kv_etcd_read_duration_seconds", "Duration of transactions that read."),
    _LogdMetric("generation", _gauge, "kv_etcd_generation", "How often everything was cleared."),
    _LogdMetric("db_bytes", _gauge, "kv_etcd_db_bytes", "Size of the database file of the member in use."),
    _LogdMetric("db_bytes_in_use", _gauge, "kv_etcd_db_in_use_bytes", "What defragmentation would leave of it."),
    _LogdMetric("raft_term", _gauge, "kv_etcd_raft_term", "Rises with every election of a leader."),
    _LogdMetric(
        "no_answer_seconds",
        _gauge,
        "kv_etcd_no_answer_seconds",
        "For how long requests wait and etcd has answered none; 0 when none waits.",
    ),
)
_CHILDREN: Final = (Role.LOGD, Role.GUNICORN)


class MetricsResource(Resource):
    """/metrics"""

    def __init__(self, storage: Storage, scoreboard: Scoreboard, workers: int) -> None:
        self._storage = storage
        self._scoreboard = scoreboard
        self._workers = workers

    async def on_get(self, req: Request, resp: falcon.asgi.Response) -> None:
        """Answer with the numbers of this moment."""
        try:
            stats = await self._storage.stats()
        except Unavailable:
            stats = None
        resp.data = generate_latest(_Scrape(self._scoreboard, self._workers, stats))

    on_head = on_get


class _Scrape(Collector):
    """The families of one scrape."""

    def __init__(self, scoreboard: Scoreboard, workers: int, stats: Stats | None) -> None:
        self._scoreboard = scoreboard
        self._workers = workers
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        totals, stats = self._scoreboard.totals(), self._stats
        ready = stats is not None and not stats.unavailable_reason
        yield _gauge("kv_logd_up", "1 when logd has answered this scrape.", stats is not None)
        yield _gauge("kv_ready", "1 when reads and writes are accepted, as /health says.", ready)
        yield _requests(totals.requests)
        yield _durations(totals.requests)
        for gauge in GAUGES:
            yield _gauge(gauge.metric, gauge.help, totals.gauges[gauge.name])
        yield from _processes(totals, self._scoreboard, self._workers, stats)
        if stats:
            yield from _of_logd(stats)


def _of_logd(stats: Stats) -> Iterator[Metric]:
    yield from _shown(_OF_LOGD, stats)
    if stats.finding is not None:
        yield _gauge("kv_recovery_info", "1; the finding of the last start of logd.", {stats.finding: 1.0}, "finding")
    if stats.cluster:
        yield from _shown(_OF_CLUSTER, stats.cluster)
        yield _endpoint(stats.cluster)


def _shown(metrics: Iterable[_LogdMetric], numbers: object) -> Iterator[Metric]:
    """The families of those numbers that this engine has."""
    for metric in metrics:
        if (value := getattr(numbers, metric.field)) is not None:
            yield metric.family(metric.name, metric.help, value, metric.label)


def _endpoint(cluster: ClusterStats) -> Metric:
    help_ = "1; the endpoint of etcd that is in use, and the version of that member."
    family = GaugeMetricFamily("kv_etcd_endpoint_info", help_, labels=("endpoint", "version"))
    family.add_metric((cluster.endpoint, cluster.version), 1.0)
    return family


def _requests(requests: Mapping[tuple[str, int | str], Requests]) -> Metric:
    """Series of known methods and statuses are there from the start, or Prometheus would miss their first increase."""
    family = CounterMetricFamily("kv_http_requests", "Requests answered.", labels=("method", "status"))
    for (method, status), each in requests.items():
        if each.answered or OTHER not in (method, status):
            family.add_metric((method, str(status)), each.answered)
    return family


def _durations(requests: Mapping[tuple[str, int | str], Requests]) -> Metric:
    help_ = "From the last byte of a request to its answer being handed to the network."
    family = HistogramMetricFamily("kv_http_request_duration_seconds", help_, labels=("method",))
    for method in (*METHODS, OTHER):
        timed = [each for key, each in requests.items() if key[0] == method]
        counts = [sum(bucket) for bucket in zip(*(each.buckets for each in timed), strict=True)]
        seconds = sum(each.seconds for each in timed)
        family.add_metric((method,), _cumulative(BOUNDS_SECONDS, counts), seconds)
    return family


def _processes(totals: Totals, scoreboard: Scoreboard, workers: int, stats: Stats | None) -> Iterator[Metric]:
    yield _gauge("kv_build_info", "1; the version that runs.", {__version__: 1}, "version")
    yield _gauge("kv_workers", "HTTP workers that are alive.", totals.workers)
    yield _gauge("kv_workers_configured", "HTTP workers that there should be.", workers)
    restarts = {role.name.lower(): scoreboard.restarts(role) for role in _CHILDREN} | {"worker": totals.worker_restarts}
    yield _counter("kv_process_restarts", "Starts of a process after an unexpected end.", restarts, "role")
    started = {role.name.lower(): scoreboard.started_at(role) for role in Role}
    help_ = "The last start of a process, since 1970."
    yield _gauge("kv_process_start_time_seconds", help_, started, "role")
    cpu = {"worker": totals.cpu_seconds} | ({"logd": stats.cpu_seconds} if stats else {})
    yield _counter("kv_process_cpu_seconds", "Processor time, user and system.", cpu, "role")
    resident = {"worker": totals.resident_bytes} | ({"logd": stats.resident_bytes} if stats else {})
    help_ = "Memory in use, of all processes of a role."
    yield _gauge("kv_process_resident_memory_bytes", help_, resident, "role")
