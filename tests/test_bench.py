"""The bench: each part of it on its own, from fixed inputs; and, where wrk is installed, a very short run of all.

Nothing here depends on how fast anything is.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys

import psutil
import pytest

from logd.shared import protocol
from logd.shared.protocol import WriteBatch
from tests.bench import figures, generators, options, plan, publish, report, rounds, sync, targets
from tests.bench.__main__ import main as bench_main
from tests.bench.cases import (
    ETCD_GATEWAY,
    HELLO,
    SERVER,
    SERVER_ON_ETCD,
    Case,
    Operation,
    Sample,
    Section,
    human_bytes,
    human_us,
)
from tests.bench.generators import LoadFailed
from tests.bench.logd_alone import LogdAlone, Rate
from tests.bench.rounds import LogdRound, Measured, SyncRound
from tests.bench.senders import BatchTemplate
from tests.bench.targets import entries
from tests.support.harness import ROOT, Server, await_true, running_tool

needs_wrk = pytest.mark.skipif(not shutil.which("wrk"), reason="wrk is missing")
LOAD = ROOT / "tests" / "load"
PATIENCE_SECONDS = 240

# What load generators print ------------------------------------------------------------------------------

WRK = """Running 1s test @ http://127.0.0.1:9300
  1 threads and 8 connections
Requests/sec:   8128.19
{"requests":8924,"duration_us":1097904,"bytes":704996,"latency_us":{"p50":905,"p90":1224,"p99":1930,"max":4035},\
"errors":{"connect":0,"read":0,"write":0,"timeout":0,"status":0}}
"""
REDIS = """"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms",\
"max_latency_ms"
"SET","40000.00","0.895","0.152","0.903","1.271","2.095","7.399"
"""


def test_what_wrk_prints_is_read():
    assert generators.parse_wrk(WRK) == Sample(8924, 1.097904, p50_us=905, p90_us=1224, p99_us=1930, max_us=4035)
    assert generators.parse_wrk(WRK).throughput == pytest.approx(8128.2, abs=0.1)


def test_errors_that_wrk_counts_are_kept():
    printed = WRK.replace('"timeout":0,"status":0', '"timeout":3,"status":17')
    assert generators.parse_wrk(printed).errors == {"timeout": 3, "status": 17}


@pytest.mark.parametrize(
    "printed", ["", "nonsense", "{}", "[]", WRK.replace("8924", "0"), WRK.replace("905", '"x"')[:-9]]
)
def test_wrk_without_a_result_has_failed(printed):
    with pytest.raises(LoadFailed):
        generators.parse_wrk(printed)


def test_what_redis_benchmark_prints_is_read():
    expected = Sample(20_000, 0.5, p50_us=903, p99_us=2095, max_us=7399)
    assert generators.parse_redis_benchmark(REDIS, 20_000) == expected


@pytest.mark.parametrize("printed", ["", REDIS.splitlines()[0], REDIS.replace("40000.00", "0.00"), "ERROR: no"])
def test_redis_benchmark_without_a_result_has_failed(printed):
    with pytest.raises(LoadFailed):
        generators.parse_redis_benchmark(printed, 20_000)


# The command line ----------------------------------------------------------------------------------------


def test_without_options_everything_is_measured():
    parsed = options.parse([])
    assert set(Section) - set(parsed.sections) == {Section.CLUSTER}
    assert (parsed.rounds, parsed.seconds, parsed.peers, parsed.server_flags) == (3, 5, (), ())


def test_quick_is_one_round_of_one_second_unless_other_options_say_more():
    quick, slower = options.parse(["--quick"]), options.parse(["--quick", "--rounds=2"])
    assert (quick.rounds, quick.seconds) == (1, 1)
    assert (slower.rounds, slower.seconds) == (2, 1)


def test_what_the_command_line_says_is_what_is_measured():
    arguments = ["--only=logd,connections", "--connections=8,2,8", "--peer=mine=http://127.0.0.1:9000/", "--no-peers"]
    parsed = options.parse([*arguments, "--", "--segment-bytes=4096"])
    assert parsed.sections == (Section.CONNECTIONS, Section.LOGD)
    assert parsed.connections == (2, 8)
    assert parsed.peers == (("mine", "http://127.0.0.1:9000"),)
    assert parsed.without_peers
    assert parsed.server_flags == ("--segment-bytes=4096",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only=nothing"], "is none of headline, connections"),
        (["--rounds=0"], "less than 1"),
        (["--seconds=0"], "less than 1"),
        (["--seconds=soon"], "invalid literal"),
        (["--connections=1,0"], "less than 1"),
        (["--peer=http://127.0.0.1:9000"], "not NAME=http"),
        (["--peer=mine=https://127.0.0.1"], "not NAME=http"),
        (["--peer=mine=http://127.0.0.1:9000/kv"], "not NAME=http"),
        (["--peer=server=http://127.0.0.1:9000"], "'server' is used already"),
        (["--peer=a=http://127.0.0.1:1", "--peer=a=http://127.0.0.1:2"], "'a' is used already"),
        (["--peer=a=http://127.0.0.1:1", "--only=values,logd"], "--peer needs headline or connections"),
        (["--publish", "--only=logd"], "--publish needs"),
        (["--publish", "--connections=1"], "--publish needs"),
        (["--unknown"], "unrecognized"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        options.parse(arguments)
    printed = capsys.readouterr().err
    assert error.value.code == 2
    assert message in printed
    assert printed.count("\n") == 1


def test_without_wrk_one_line_says_how_to_install_it(tmp_path):
    command = [sys.executable, "-m", "tests.bench", "--quick", f"--out={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "wrk is missing; install it (on Debian and Ubuntu: apt install wrk)\n"
    assert done.stdout == ""


@needs_wrk
def test_a_peer_that_cannot_be_measured_is_named_before_anything_is_measured(tmp_path, capsys):
    out = tmp_path / "out"
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    assert bench_main([f"--peer=mine={url}", f"--out={out}"]) == 1
    expected = f"--peer mine: {url} does not answer: [Errno {errno.ECONNREFUSED}] Connection refused\n"
    assert capsys.readouterr().err == expected
    assert not out.exists()


# The plan ------------------------------------------------------------------------------------------------


def test_a_named_peer_is_measured_in_the_sections_that_its_note_names_with_or_without_the_others(tmp_path):
    stages, _ = plan.stages(Section, (), 100_000)
    for flags in ([], ["--no-peers"]):
        parsed = options.parse(["--peer=mine=http://127.0.0.1:1", *flags])
        of_stages = [(stage, rounds.targets_of(parsed, stage, tmp_path)) for stage in stages if not stage.is_on_cluster]
        with_mine = {stage.cases[0].section for stage, found in of_stages if "mine" in [each.name for each in found]}
        assert with_mine == {Section.HEADLINE, Section.CONNECTIONS}
        (note,) = {each.note for _, found in of_stages for each in found if each.name == "mine"}
        assert note == "given by --peer; measured in headline and connections"


def test_in_the_headline_no_peer_is_measured_that_is_not_named(tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "found_peers", lambda: ["etcd", "redis"])
    (headline, connections), _ = plan.stages([Section.HEADLINE, Section.CONNECTIONS], (), 100_000)
    names = [
        [target.name for target in rounds.targets_of(options.parse([]), stage, tmp_path)]
        for stage in (headline, connections)
    ]
    assert names == [[SERVER, HELLO], [SERVER, HELLO, "etcd", "redis"]]


def test_a_stage_has_each_load_for_writes_and_for_reads():
    (stage,), left_out = plan.stages([Section.CONNECTIONS], (), 100_000)
    assert [case.connections for case in stage.cases[::2]] == list(plan.CONNECTIONS)
    assert [case.operation for case in stage.cases] == [Operation.PUT, Operation.GET] * len(plan.CONNECTIONS)
    assert {case.connections for case in stage.peer_cases} == set(plan.PEER_CONNECTIONS)
    assert left_out == []


def test_connections_of_the_command_line_are_for_peers_too():
    (stage,), _ = plan.stages([Section.CONNECTIONS], (2, 8), 100_000)
    assert stage.cases == stage.peer_cases
    assert {case.connections for case in stage.cases} == {2, 8}


def test_connections_beyond_the_descriptors_are_left_out_and_reported():
    stages, left_out = plan.stages([Section.CONNECTIONS, Section.KEYS], (), 1_024)
    assert max(case.connections for stage in stages for case in stage.cases) == 256
    assert left_out == [f"{count} connections: a process may open only 1,024 files" for count in ("1,024", "4,096")]


def test_values_of_one_size_fit_into_memory_and_have_keys_of_their_own():
    (stage,), _ = plan.stages([Section.VALUES], (), 100_000)
    assert all(case.keys * case.value_bytes <= 64 << 20 for case in stage.cases)
    assert len({case.key_prefix for case in stage.cases}) == len(plan.VALUES)


def test_a_plan_takes_as_long_as_its_warm_ups_and_its_rounds():
    stage = plan.Stage((A_PUT, A_GET), (A_GET,))
    of_two = 2 * (1 + 3 * 2)
    of_a_peer = 1 + 3
    for peers, runs in ((0, of_two), (1, of_two + of_a_peer)):
        seconds = plan.seconds([stage], 3, 5, lambda _, peers=peers: peers)
        assert seconds == pytest.approx(plan.START_SECONDS + runs * 5.5)


# Figures -------------------------------------------------------------------------------------------------

A_PUT = Case(Section.CONNECTIONS, Operation.PUT, 64, 100, 2)
A_GET = A_PUT._replace(operation=Operation.GET)


def a_sample(requests, p50_us=100.0, **more):
    return Sample(requests, 1.0, p50_us=p50_us, p90_us=2 * p50_us, p99_us=3 * p50_us, max_us=9 * p50_us, **more)


def measured(ours, hellos, case=A_PUT):
    found = Measured()
    found.samples[case, SERVER] += ours
    found.samples[case, HELLO] += hellos
    return found


def test_a_row_has_the_median_and_the_spread_of_its_rounds():
    ours, _ = figures.rows(measured([a_sample(n, p50_us=n / 10) for n in (900, 700, 1_000)], []))
    assert ours.throughput == (900, 700, 1_000)
    assert ours.p50_us == (90, 70, 100)
    assert ours.max_us.high == 900
    assert ours.ratio is None
    assert not ours.is_marred


def test_a_ratio_is_taken_in_each_round_before_the_median():
    """The machine got ten times slower in the second round, for both; the ratio of medians would be 0.5."""
    ours, hello = figures.rows(
        measured([a_sample(n) for n in (500, 90, 800)], [a_sample(n) for n in (1000, 100, 1000)])
    )
    assert ours.ratio == pytest.approx((0.8, 0.5, 0.9))
    assert hello.ratio == (1, 1, 1)


def test_ratios_to_a_named_peer_are_beside_those_to_the_hello_world(tmp_path):
    found = measured([a_sample(n) for n in (500, 90, 800)], [a_sample(n) for n in (1000, 100, 1000)])
    found.samples[A_PUT, "mine"] += [a_sample(n) for n in (250, 100, 400)]
    found.samples[A_GET, SERVER] += [a_sample(1)]
    text = report.markdown(results(tmp_path, found, "--peer=mine=http://127.0.0.1:1"), [])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    titles, _, *rows = lines
    place = titles.index("of hello-world")
    assert titles[place + 1] == "of mine"
    assert {(row[0], row[2]): row[place : place + 2] for row in rows} == {
        ("PUT", SERVER): ["0.80", "2.00"],
        ("PUT", HELLO): ["", "2.50"],
        ("PUT", "mine"): ["0.40", ""],
        ("GET", SERVER): ["", ""],
    }


def test_on_a_cluster_ratios_are_relative_to_the_gateway():
    case = A_PUT._replace(section=Section.CLUSTER)
    found = Measured()
    found.samples[case, SERVER_ON_ETCD].append(a_sample(300))
    found.samples[case, ETCD_GATEWAY].append(a_sample(100))
    ours, gateway = figures.rows(found)
    assert (ours.ratio, gateway.ratio) == ((3, 3, 3), (1, 1, 1))
    table = report.markdown(report.Results({}, [], [ours, gateway], {}, None, None, found), [])
    assert "of etcd's gateway" in table


def test_a_round_that_failed_is_left_out_of_both_and_counted():
    ours, _ = figures.rows(measured([a_sample(500), None], [a_sample(1000), a_sample(10)]))
    assert ours.ratio == (0.5, 0.5, 0.5)
    assert ours.failed_rounds == 1
    assert ours.is_marred
    (nothing, _) = figures.rows(measured([None], [None]))
    assert (nothing.throughput, nothing.ratio, nothing.failed_rounds) == (None, None, 1)


def test_errors_are_added_up_and_mar_a_row():
    ours, _ = figures.rows(
        measured([a_sample(5, errors={"status": 2}), a_sample(5, errors={"status": 1, "read": 4})], [])
    )
    assert ours.errors == {"status": 3, "read": 4}
    assert ours.is_marred


def test_processor_time_of_a_request_by_role():
    samples = [a_sample(1000, cpu_seconds={"logd": 0.01, "load": 0.1}), a_sample(1000, cpu_seconds={"logd": 0.03})]
    ours, _ = figures.rows(measured(samples, []))
    assert ours.cpu_us == pytest.approx({"logd": 20, "load": 50})


def test_the_memory_that_a_key_costs():
    few, many = (Case(Section.KEYS, Operation.PUT, 64, 100, keys) for keys in (1_000, 101_000))
    found = Measured()
    found.samples[few, SERVER].append(a_sample(1, rss_bytes={"logd": 10_000_000}))
    found.samples[many, SERVER].append(a_sample(1, rss_bytes={"logd": 40_000_000}))
    assert figures.logd_bytes_per_key(figures.rows(found)) == 300
    assert figures.logd_bytes_per_key(figures.rows(found)[:1]) is None


def test_conditions_and_batches_beside_plain_puts_of_as_many_connections():
    found = Measured()
    for (operation, connections), rate in {
        (Operation.PUT, 64): 1000,
        (Operation.CONDITIONAL_PUT, 64): 900,
        (Operation.PUT, 16): 500,
        (Operation.BATCH, 16): 100,
    }.items():
        case = Case(Section.TRANSACTIONS, operation, connections, 100, 1000)
        found.samples[case, SERVER].append(a_sample(rate))
        found.samples[case, HELLO].append(a_sample(5 * rate))
    rows = figures.rows(found)
    assert figures.times_a_put(rows, Operation.CONDITIONAL_PUT) == pytest.approx(0.9)
    assert figures.times_a_put(rows, Operation.BATCH, 100) == pytest.approx(20)
    assert figures.times_a_put(rows[:2], Operation.BATCH, 100) is None


def test_the_difference_to_a_bare_sync_is_taken_in_each_round():
    rounds = [(300, 100), (900, 800), (500, 200)]
    found = figures.of_sync([SyncRound(a_sample(1, put), sync.BareSync(bare, 2 * bare)) for put, bare in rounds])
    assert found.difference_us == (200, 100, 300)
    assert figures.of_sync([]) is None


def test_the_figures_of_logd_are_of_all_rounds():
    found = figures.of_logd([LogdRound(Rate(n, 1.0), Rate(10 * n, 0.1)) for n in (3, 1, 2)])
    assert (found.writes, found.reads) == ((2, 1, 3), (20, 10, 30))
    assert figures.of_logd([]) is None


@pytest.mark.parametrize(
    ("us", "shown"), [(0.5, "0.5 µs"), (415, "415 µs"), (999.7, "1 ms"), (2650, "2.65 ms"), (1.2e6, "1.2 s")]
)
def test_a_time_is_shown_in_its_unit_with_three_digits(us, shown):
    assert human_us(us) == shown


@pytest.mark.parametrize(
    ("count", "shown"), [(1, "1 B"), (100, "100 B"), (1024, "1 KiB"), (1536, "1,536 B"), (1 << 20, "1 MiB")]
)
def test_a_size_is_shown_in_the_largest_unit_that_is_exact(count, shown):
    assert human_bytes(count) == shown


# The report ----------------------------------------------------------------------------------------------


def results(tmp_path, found, *arguments):
    parsed = options.parse([f"--out={tmp_path}", *arguments])
    return report.collect(found, parsed, arguments)


def test_a_row_with_errors_cannot_be_overlooked(tmp_path):
    found = measured([a_sample(900, errors={"status": 17}), None], [a_sample(1000), a_sample(1000)])
    text = report.markdown(results(tmp_path, found), [])
    row = next(line for line in text.splitlines() if f"| {SERVER} |" in line)
    assert row.startswith("| PUT | 64 | server | 900 | 900 – 900 | 0.90 | 100 µs |")
    assert row.endswith("| ⚠ 17 status, 1 of the rounds failed |")


def test_the_page_needs_no_other_file_and_escapes(tmp_path):
    picture = tmp_path / "plot.png"
    picture.write_bytes(b"PNG")
    found = measured([a_sample(900)], [a_sample(1000)])
    found.samples[A_GET, SERVER].append(a_sample(2000))
    found.samples[A_GET, HELLO].append(a_sample(2000))
    found.problems.append("</p><script>")
    page = report.page(
        results(tmp_path, found, "--only", "connections"), [report.Plot(picture, "A <plot>", "What & how")]
    )
    assert not re.search(r'https?://|\bhref=|url\(|@import|<script|src="(?!data:)', page)
    assert "900 durable writes a second, 2,000 reads." in page
    assert "90% and 100% of what" in page
    assert '<img alt="A &lt;plot&gt;" src="data:image/png;base64,UE5H">' in page
    assert "--only connections" in page


def test_the_page_begins_with_the_ratios_to_the_hello_world_and_to_named_peers(tmp_path):
    found = Measured()
    for case in (A_PUT, A_GET):
        for target, rate in {SERVER: 900, HELLO: 1000, "mine": 450, "other": 600}.items():
            found.samples[case, target].append(a_sample(rate))
    flags = ("--peer=mine=http://127.0.0.1:1", "--peer=other=http://127.0.0.1:2")
    page = report.page(results(tmp_path, found, *flags), [])
    assert "90% and 90% of what a bare hello-world" in page
    assert "200% and 200% of mine, 150% and 150% of other;" in page


def test_the_json_has_every_sample(tmp_path):
    found = measured([a_sample(900), None], [a_sample(1000), a_sample(1000)])
    found.samples[A_PUT, "mine"] += [a_sample(450), a_sample(450)]
    found.sync.append(SyncRound(a_sample(1, 300), sync.BareSync(100, 200)))
    report.write(results(tmp_path, found, "--peer=mine=http://127.0.0.1:1"), [], tmp_path)
    written = json.loads((tmp_path / "results.json").read_text())
    ours, *_ = written["rows"]
    assert ours["case"] == {
        "section": "connections",
        "operation": "PUT",
        "connections": 64,
        "value_bytes": 100,
        "keys": 2,
    }
    assert ours["throughput"] == {"median": 900, "low": 900, "high": 900}
    assert ours["ratio_to_peers"] == {"mine": {"median": 2, "low": 2, "high": 2}}
    assert ours["samples"][0]["requests"] == 900
    assert ours["samples"][1] is None
    assert written["sync"]["difference_us"]["median"] == 200
    assert written["logd"] is None
    assert written["circumstances"]["Python"]


def test_the_report_of_an_interrupted_run_says_so(tmp_path):
    found = Measured(is_interrupted=True)
    assert "interrupted: not everything was measured" in report.markdown(results(tmp_path, found), [])


# The documents -------------------------------------------------------------------------------------------

BLOCK = f"before\n{publish.BEGIN}old\n{publish.END}after\n"


@pytest.fixture
def project(tmp_path):
    """Documents with figures, and the plot of a run."""
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/performance.md"):
        (tmp_path / name).write_text(BLOCK)
    (tmp_path / "throughput-connections.png").write_bytes(b"PNG")
    return tmp_path


def of_all_connections(**more):
    found = Measured()
    for case in plan.stages([Section.CONNECTIONS], (), 100_000)[0][0].cases:
        found.samples[case, SERVER].append(a_sample(30_000, cpu_seconds={"worker": 0.3, "logd": 0.03}, **more))
        found.samples[case, HELLO].append(a_sample(60_000))
        if case.connections in plan.PEER_CONNECTIONS:
            found.samples[case, "go"].append(a_sample(40_000))
    return found


def test_the_documents_show_the_figures_of_a_run_and_keep_what_is_around_them(project):
    found = publish.publish(results(project, of_all_connections()), project, project)
    assert [path.name for path in found] == ["README.md", "performance.md", "throughput.png"]
    assert found[2].read_bytes() == b"PNG"
    few, everything = (path.read_text() for path in found[:2])
    for text in (few, everything):
        assert text.startswith(f"before\n{publish.BEGIN}")
        assert text.endswith(f"{publish.END}after\n")
        assert "old" not in text
    assert [line for line in few.splitlines() if "30,000" in line] == [
        f"| {operation} | {count} | 30,000 | 0.50 | 100 µs | 300 µs |"
        for operation in ("PUT", "GET")
        for count in ("64", "1,024")
    ]
    assert "| GET | 4,096 | 30,000 | 0.50 | 100 µs | 300 µs | 10, 1 |" in everything
    assert "| go | PUT | 1,024 | 40,000 | 0.67 | 100 µs | 300 µs |" in everything
    assert "| hello-world | PUT | 4,096 | 60,000 | | 100 µs | 300 µs |" in everything


def without_large_counts():
    return measured([a_sample(900)], [a_sample(1000)])


def with_errors():
    return of_all_connections(errors={"status": 1})


def interrupted():
    found = of_all_connections()
    found.is_interrupted = True
    return found


@pytest.mark.parametrize("make", [without_large_counts, with_errors, interrupted])
def test_figures_that_are_not_what_was_asked_for_change_no_document(project, make):
    with pytest.raises(publish.NotPublished):
        publish.publish(results(project, make()), project, project)
    assert {(project / name).read_text() for name in ("README.md", "docs/performance.md")} == {BLOCK}
    assert not (project / "docs/throughput.png").exists()


@pytest.mark.parametrize("name", ["README.md", "docs/performance.md"])
def test_the_documents_of_the_project_have_a_place_for_figures(name):
    text = (ROOT / name).read_text()
    assert 0 < text.find(publish.BEGIN) < text.find(publish.END)


# Messages and probes -------------------------------------------------------------------------------------


def test_a_template_that_is_numbered_is_the_encoded_batch():
    session, puts = bytes(range(16)), {"a": b"1", "b": b"22"}
    raw = BatchTemplate(session, puts).numbered(70_000, 69_999)
    assert protocol.decode_request(raw) == WriteBatch(session, 70_000, 69_999, False, puts, [])


def test_the_entries_are_every_key_of_the_cases_once():
    cases = [A_PUT, A_GET, A_PUT._replace(value_bytes=1, keys=1)]
    assert list(entries(cases)) == [("v1-1", "v"), ("v100-1", "v" * 100), ("v100-2", "v" * 100)]


def test_a_bare_sync_leaves_nothing(tmp_path):
    found = sync.measure(tmp_path, sync.frame_bytes("v100-1", 100), 0.01)
    assert 0 < found.p50_us <= found.p99_us
    assert list(tmp_path.iterdir()) == []


def test_a_percentile_is_the_least_value_that_such_a_share_does_not_exceed():
    assert sync.percentile(range(1, 101), 0.5) == 50
    assert sync.percentile(range(1, 101), 0.99) == 99
    assert sync.percentile([7], 0.99) == 7


def test_logd_alone_is_measured_again_and_again(tmp_path):
    with LogdAlone(tmp_path / "data") as logd:
        for rate in (logd.write(0.2), logd.read(0.2), logd.write(0.2)):
            assert rate.throughput > 0


# The command ---------------------------------------------------------------------------------------------


def running_bench(*arguments):
    return running_tool([ROOT / "tests/bench/run.sh", *arguments], dict(os.environ))


@needs_wrk
def test_a_very_short_run_measures_each_target_and_writes_each_file(tmp_path, server):
    flags = ("--only=connections", "--connections=2", "--no-peers", "--quick", f"--out={tmp_path}", "--workers=1")
    with running_bench(*flags, f"--peer=other=http://127.0.0.1:{server.port}") as process:
        output, log = process.communicate(timeout=PATIENCE_SECONDS)
        print(output, log)
        assert process.returncode == 0
    files = {"results.json", "results.md", "index.html", "throughput-connections.png", "latency-connections.png"}
    assert {path.name for path in tmp_path.iterdir()} == files
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [(row["case"]["operation"], row["target"]) for row in rows] == [
        ("PUT", SERVER),
        ("PUT", HELLO),
        ("PUT", "other"),
        ("GET", SERVER),
        ("GET", HELLO),
        ("GET", "other"),
    ]
    for row in rows:
        assert row["throughput"]["median"] > 0
        assert row["errors"] == {}
        assert (row["cpu_us"].get("worker", 0) > 0) == (row["target"] != "other")
        assert ("logd" in row["rss_bytes"]) == (row["target"] == SERVER)
    assert (tmp_path / "latency-connections.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/png" in (tmp_path / "index.html").read_text()


@needs_wrk
def test_an_interrupted_run_ends_everything_and_reports_what_it_has(tmp_path):
    flags = ("--only=connections", "--connections=2", "--no-peers", "--seconds=60", f"--out={tmp_path}")
    with running_bench(*flags) as process:
        await_true(lambda: is_under_load(process.pid), PATIENCE_SECONDS, "the first load")
        process.send_signal(signal.SIGINT)
        output, log = process.communicate(timeout=60)
        print(output, log)
        assert process.returncode == 128 + signal.SIGINT
    assert "interrupted" in (tmp_path / "results.md").read_text()
    assert not list(tmp_path.glob("data-*"))


def is_under_load(pid):
    with contextlib.suppress(psutil.Error):
        return any(child.name() == "wrk" for child in psutil.Process(pid).children())
    return False


@pytest.fixture(scope="module")
def server(module_path):
    with Server(module_path / "data", "--workers=1") as running:
        yield running


@needs_wrk
@pytest.mark.parametrize(
    ("script", "settings"),
    [
        ("fill", ["KEYS=20", "VALUE_BYTES=7"]),
        ("mixed", ["KEYS=20", "READ_SHARE=0.5", "SEED=3"]),
        ("put", ["KEYS=1000000"]),
        ("conditional", ["KEYS=20", "VALUE_BYTES=7"]),
        ("batch", ["KEYS=20", "BATCH_KEYS=10"]),
        ("unique", ["RUN=x", "VALUE_BYTES=1"]),
    ],
)
def test_the_load_scripts_send_requests_that_succeed(server, script, settings):
    """In this order: `mixed` reads, and `conditional` replaces, what `fill` has written."""
    command = [
        "wrk",
        "-t1",
        "-c2",
        "-d1s",
        "-s",
        LOAD / f"{script}.lua",
        f"http://127.0.0.1:{server.port}",
        "--",
        *settings,
    ]
    done = subprocess.run(command, env=os.environ | {"JSON": "1"}, capture_output=True, text=True, check=True)
    assert generators.parse_wrk(done.stdout).errors == {}
    if script == "unique":
        assert server.get("key-x-0-2") == b"v"
