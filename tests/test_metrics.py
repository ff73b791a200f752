"""/metrics while the server serves, is killed, or has no log writer; its documentation, alert rules and dashboard."""

import contextlib
import http.client
import itertools
import json
import re
import shutil
import signal
import socket
import subprocess

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from kv.scoreboard import GAUGES
from tests.support.clients import SlowPut, exchange, idle_connection
from tests.support.etcd_nodes import EtcdNodes
from tests.support.harness import ROOT, Server, await_true

ALERTS = ROOT / "deploy" / "alerts.yml"
DASHBOARD = ROOT / "deploy" / "grafana-dashboard.json"
ROW = re.compile(r"\| `(?P<name>kv_\w+)` \| (?P<kind>\w+) \|(?P<labels>[^|]*)\| (?P<meaning>[^|]+) \|[^|]*\|")


@pytest.fixture(scope="module")
def server(module_path):
    with Server(module_path / "data", "--workers=2") as server:
        yield server


class Scrape:
    """The metrics of one moment."""

    def __init__(self, server):
        answer = server.call("GET", "/metrics")
        assert answer.status == 200
        shown = list(text_string_to_metric_families(answer.body.decode()))
        self.families = {family.name + "_total" * (family.type == "counter"): family for family in shown}
        self.samples = [sample for family in shown for sample in family.samples]

    def value(self, name, **labels):
        """The sum of the samples that have these labels; None when there are none."""
        found = [each.value for each in self.samples if each.name == name and labels.items() <= each.labels.items()]
        return sum(found) if found else None

    def restarts(self):
        roles = ("logd", "gunicorn", "worker")
        return tuple(self.value("kv_process_restarts_total", role=role) for role in roles)


def value(server, name, **labels):
    return Scrape(server).value(name, **labels)


def await_shown(server, condition, what):
    """Wait until the condition holds for a scrape. A scrape may fail, because a process has just died."""

    def is_shown():
        with contextlib.suppress(OSError, http.client.HTTPException):
            return condition(Scrape(server))
        return False

    await_true(is_shown, 30, what)


def await_value(server, expected, name, **labels):
    await_shown(server, lambda shown: shown.value(name, **labels) == expected, f"{name} {labels} at {expected}")


def documented():
    rows = (ROOT / "docs" / "metrics.md").read_text().splitlines()
    return {match["name"]: match for row in rows if (match := ROW.fullmatch(row))}


def expressions():
    """The expressions of the alert rules, and of the dashboard with its variable filled in."""
    rules = [rule["expr"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    board = json.loads(DASHBOARD.read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return rules, [each.replace("$__rate_interval", "1m") for each in asked]


# Counting ------------------------------------------------------------------------------------------------


def test_the_answer_is_plain_text_and_head_has_the_same_headers(server):
    get, head = server.call("GET", "/metrics"), server.call("HEAD", "/metrics")
    assert (head.status, head.body) == (200, b"")
    for answer in (get, head):
        assert (
            answer.headers["content-type"] == "text/plain; charset=utf-8"
        )  # Prometheus takes it; a version is optional
        assert answer.headers["content-length"].isdecimal()


def test_each_worker_shows_the_requests_of_all_by_method_and_status(tmp_path):
    with Server(tmp_path / "data", "--workers=3") as server:
        for number in range(60):
            server.put(f"key{number % 20}", b"value")
        assert server.get("nothing") is None
        assert exchange(server.port, b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 ")
        for name in ("kv_http_requests_total", "kv_http_request_duration_seconds_count"):
            await_value(server, 60, name, method="PUT")
        await_value(server, 1, "kv_http_requests_total", method="GET", status="404")
        await_value(server, 1, "kv_http_requests_total", method="other", status="400")
        assert value(server, "kv_http_request_duration_seconds_bucket", method="PUT", le="+Inf") == 60
        assert value(server, "kv_http_request_duration_seconds_sum", method="PUT") > 0
        assert value(server, "kv_workers_configured") == 3
        await_value(server, 3, "kv_workers")  # it is ready with the first


def test_the_log_the_data_and_the_checkpoints_are_shown_also_after_a_restart(tmp_path):
    with Server(tmp_path / "data", "--segment-bytes=10000", "--checkpoint-log-bytes=80000") as server:  # one
        for number in range(100):
            server.put(f"key-{number:04}", b"x" * 1000)
        server.put("key-0000", b"shorter")
        server.call("DELETE", "/kv/key-0001")
        data_bytes = 98 * 1008 + 15
        assert (value(server, "kv_keys"), value(server, "kv_data_bytes")) == (99, data_bytes)
        assert value(server, "kv_log_group_writes_sum") == 102
        groups = value(server, "kv_log_groups_total")
        assert groups == value(server, "kv_log_sync_duration_seconds_count")
        assert groups <= value(server, "kv_log_batches_total")
        assert value(server, "kv_log_appended_bytes_total") > 100_000
        await_shown(server, lambda shown: shown.value("kv_checkpoints_total", outcome="done"), "a checkpoint")
        shown = Scrape(server)
        started = shown.value("kv_process_start_time_seconds", role="supervisor")
        assert shown.value("kv_checkpoint_last_timestamp_seconds") > started
        log_bytes = shown.value("kv_log_bytes")
        assert log_bytes < 100_000
        server.stop()
        server.start()
        assert (value(server, "kv_keys"), value(server, "kv_data_bytes")) == (99, data_bytes)
        assert value(server, "kv_recovery_info", finding="CLEAN") == 1
        assert value(server, "kv_log_bytes") == pytest.approx(
            log_bytes, abs=1000
        )  # headers of segments are not counted
        assert value(server, "kv_checkpoint_last_timestamp_seconds") > 0
        server.call("DELETE", "/clear")
        assert (value(server, "kv_keys"), value(server, "kv_data_bytes")) == (0, 0)


def test_gauges_of_requests_and_connections_return_to_0(server):
    with idle_connection(server.port), SlowPut(server.port, "slow", b"x" * 100) as put:
        await_value(server, 1, "kv_http_requests_in_flight")
        await_shown(server, lambda shown: shown.value("kv_http_connections") >= 2, "the connections")
        put.socket.close()
    await_value(server, 0, "kv_http_requests_in_flight")
    await_value(server, 0, "kv_http_connections")


# Deaths --------------------------------------------------------------------------------------------------


def test_no_death_loses_a_counted_request_and_only_unexpected_ends_are_restarts(tmp_path):
    with Server(tmp_path / "data", "--workers=2") as server:

        def await_restarts(logd, gunicorn, worker):
            await_shown(server, lambda shown: shown.restarts() == (logd, gunicorn, worker), "the restarts")

        def await_puts(count):
            await_value(server, count, "kv_http_requests_total", method="PUT", status="200")

        server.put("key", b"value")
        await_puts(1)
        await_value(server, 2, "kv_workers")
        server.role("worker")[0].kill()
        await_restarts(0, 0, 1)
        server.put("key", b"value")
        await_puts(2)
        before = {process.pid for process in server.role("worker")}
        server.only("supervisor").send_signal(signal.SIGHUP)
        await_true(lambda: before.isdisjoint(each.pid for each in server.role("worker")), what="other workers")
        await_value(server, 2, "kv_workers")
        await_restarts(0, 0, 1)
        started = value(server, "kv_process_start_time_seconds", role="logd")
        server.only("logd").kill()
        await_restarts(1, 0, 1)
        await_value(server, 1, "kv_ready")
        assert value(server, "kv_process_start_time_seconds", role="logd") > started
        server.only("gunicorn").kill()
        await_restarts(1, 1, 3)
        await_puts(2)


def test_without_logd_a_worker_shows_its_own_metrics_and_is_alive(server):
    logd = server.only("logd")
    logd.suspend()
    try:
        with socket.create_connection(("127.0.0.1", server.port), 30) as waiting:
            waiting.sendall(b"PUT /kv/key HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nvalue")
            shown = Scrape(server)  # takes as long as a worker waits for logd
            assert [shown.value(name) for name in ("kv_logd_up", "kv_ready", "kv_keys")] == [0, 0, None]
            assert shown.value("kv_http_queued_writes") == 1
            assert shown.value("kv_http_queued_bytes") > 5
            assert server.call("GET", "/live").body == b"ok"
            assert server.call("GET", "/health").headers["retry-after"].isdecimal()
            logd.resume()
            assert waiting.recv(100).startswith(b"HTTP/1.1 200 ")
    finally:
        logd.resume()
    await_value(server, 1, "kv_logd_up")
    await_value(server, 0, "kv_http_queued_writes")


# Documentation, alert rules, dashboard -------------------------------------------------------------------


OF_ETCD = {name for name in documented() if name.startswith("kv_etcd_")}
OF_A_DIRECTORY = {
    *("kv_log_appended_bytes_total", "kv_log_bytes", "kv_log_segments", "kv_disk_free_bytes", "kv_snapshot_bytes"),
    *("kv_keys", "kv_keys_unsorted", "kv_data_bytes"),
    *(name for name in documented() if name.startswith(("kv_checkpoint", "kv_recovery_"))),
}


@pytest.fixture(scope="module", params=["local", "etcd"])
def shown(request, module_path):
    """What is shown with each engine, and what is to be."""
    if request.param == "local":
        return Scrape(request.getfixturevalue("server")), set(documented()) - OF_ETCD
    directory = module_path / "on-etcd"
    with EtcdNodes(directory / "etcd", count=1) as nodes, Server(directory / "data", *nodes.server_flags) as server:
        return Scrape(server), set(documented()) - OF_A_DIRECTORY


def test_the_documentation_has_a_row_for_each_metric_with_its_type_and_labels(shown):
    scrape, expected = shown
    rows = documented()
    assert expected == set(scrape.families)
    for name, family in scrape.families.items():
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert (family.type, labels) == (rows[name]["kind"], set(re.findall(r"`(\w+)`", rows[name]["labels"])) & labels)
        assert bool(labels) == bool(rows[name]["labels"].strip())


def test_each_gauge_that_the_scoreboard_declares_is_shown_with_its_help(shown):
    families = shown[0].families
    for gauge in GAUGES:
        assert (families[gauge.metric].type, families[gauge.metric].documentation) == ("gauge", gauge.help)


def test_the_documentation_lists_all_values_of_a_label_or_none(shown):
    for name, family in shown[0].families.items():
        label, colon, listed = documented()[name]["labels"].partition(": ")
        if colon:
            values = {sample.labels[label.strip(" `")] for sample in family.samples}
            assert (name, set(re.findall(r"\w+", listed))) == (name, values)


def test_names_follow_the_conventions(shown):
    for name, family in shown[0].families.items():
        assert name.startswith("kv_")
        assert name.endswith("_total") == (family.type == "counter")
        assert not re.search(r"_(ms|us|kb|mb|percent|minutes|hours|age)(_|$)", name)
        assert family.documentation


def _used(expression):
    """The metrics in an expression; a histogram by its own name."""
    names = set(re.findall(r"\bkv_\w+", expression))
    histograms = {name for name, row in documented().items() if row["kind"] == "histogram"}
    bare = {name: re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
    return {bare[name] if bare[name] in histograms else name for name in names}


def test_rules_and_dashboard_use_only_metrics_that_exist():
    rules, panels = expressions()
    assert set().union(*map(_used, rules + panels)) <= set(documented())
    assert all(map(_used, panels))


def test_rules_and_dashboard_use_only_labels_that_exist():
    labels = {label for row in documented().values() for label in re.findall(r"`(\w+)`", row["labels"])}
    for expression in itertools.chain(*expressions()):
        selected = re.findall(r"(\w+)(?:=~|!~|!=|=)\"", expression)
        grouped = re.findall(r"\w+", " ".join(re.findall(r"(?:by|on) \(([^)]*)\)", expression)))
        assert {*selected, *grouped} <= labels | {"job", "instance", "le"}


def test_the_dashboard_shows_every_metric_but_a_few():
    assert set(documented()) - set().union(*map(_used, expressions()[1])) <= {
        "kv_workers_configured",
        "kv_recovery_info",
        "kv_recovery_dropped_bytes",
    }


@pytest.fixture
def promtool():
    found = shutil.which("promtool")
    if not found:
        pytest.skip("promtool is not installed (it comes with Prometheus)")
    return lambda *arguments: subprocess.run([found, *arguments], check=False, capture_output=True, text=True)


def test_prometheus_accepts_the_rules(promtool):
    done = promtool("check", "rules", ALERTS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_alert_when_they_should_and_not_otherwise(promtool):
    done = promtool("test", "rules", ROOT / "tests" / "alerts.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_the_expressions_of_the_dashboard(promtool, tmp_path):
    rules = [{"record": f"panel:{n}", "expr": each} for n, each in enumerate(expressions()[1])]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = promtool("check", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_the_names(server, promtool):
    text = server.call("GET", "/metrics").body.decode()
    checked = subprocess.run(
        [shutil.which("promtool"), "check", "metrics"], input=text, check=False, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
