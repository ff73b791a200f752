"""The kill lab: a short run of all of it, and each part on its own, with servers that lie."""

import contextlib
import http.server
import itertools
import json
import random
import re
import signal
import socket
import sys
import threading
from collections import Counter

import pytest

from logd.shared.etag import etag
from tests.killlab import kills, lab, measure, options, report
from tests.killlab.cluster import FOLLOWER, LEADER, ROLES_OF
from tests.killlab.kills import Kill, Order
from tests.killlab.mix import Mix
from tests.support.etcd_nodes import find_program
from tests.support.harness import await_true, free_port, running_tool
from tests.support.history import (
    ABSENT,
    FOREIGN,
    Fault,
    History,
    Kind,
    Operation,
    Outcome,
    Transaction,
    Verdict,
    Violation,
    check,
    missing_writes,
)
from tests.support.load import Load
from tests.support.recorder import (
    BROKEN,
    REFUSED,
    TIMED_OUT,
    UNFOUNDED,
    Clients,
    Failure,
    Record,
    make_each,
)
from tests.support.requests import Answer, Requests

OK, REFUSED_OUTCOME, UNKNOWN, NOT_MET = Outcome


# The command ---------------------------------------------------------------------------------------------


def running_lab(*arguments):
    return running_tool([sys.executable, "-m", "tests.killlab", *arguments], {"PATH": "/usr/bin:/bin:/usr/local/bin"})


def test_a_short_run_with_kills_of_every_role(tmp_path):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    orders = "logd@1s,worker@1.8s,gunicorn@2.6s,supervisor@4s,group@5.5s,stop:logd@7s+300ms"
    load = ("--clients=16", "--keys=40", "--preload=100", "--clear-share=0.001", f"--seed={seed}", "--strict")
    page = tmp_path / "page.html"
    with running_lab("--seconds=8", "--kill", orders, *load, "--report", str(page), "--", "--workers=2") as process:
        output, log = process.communicate()
        print(output, log)
        assert process.returncode == 0
    assert "all is well" in output
    assert f"seed {seed}" in log
    assert [line.split()[2] for line in log.splitlines() if ", pid " in line] == [
        "logd,",
        "worker,",
        "gunicorn,",
        "supervisor,",
        "group,",
        "stop:logd,",
    ]
    data = data_of(page.read_text())
    assert data["problems"] == []
    assert len(data["kills"]) == 6
    assert data["requests"] > 1_000
    assert sum(data["failed"].values()) > 0


def test_a_short_run_on_etcd_with_two_servers():
    find_program("etcd")
    orders = "etcd-leader@1s,logd@5s,group@5.5s,stop:etcd-follower@6.5s+1s"
    load = ("--clients=8", "--keys=20", "--clear-share=0.001", "--strict")
    with running_lab(
        "--engine=etcd", "--servers=2", "--seconds=9", "--kill", orders, *load, "--", "--workers=2"
    ) as lab:
        output, log = lab.communicate()
        print(output, log)
        assert lab.returncode == 0
    assert "all is well" in output
    assert "the engine counts too many or too few: 0, of" in output
    assert len([line for line in log.splitlines() if ", pid " in line]) == 4


def test_ctrl_c_is_the_end_of_a_show_and_all_that_was_seen_is_judged():
    with running_lab("--live", "--every=1s", "--roles=logd", "--clients=4") as process:
        assert process.stderr
        await_true(lambda: "/console" in process.stderr.readline(), 30, "where to watch it")
        await_true(lambda: "logd, pid" in process.stderr.readline(), 30, "a kill")
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "all is well" in output


def test_ctrl_c_ends_everything_and_the_history_is_still_judged():
    with running_lab("--seconds=60", "--kill=logd@1s", "--clients=4") as process:
        assert process.stderr
        await_true(lambda: "logd, pid" in process.stderr.readline(), 30, "a kill")
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 128 + signal.SIGINT
        assert "linearizable: yes" in output
        assert "NOT WELL: interrupted" in output


# The command line ----------------------------------------------------------------------------------------


def test_orders_are_parsed():
    assert kills.parse_orders("logd@3s, worker@500ms,group@2m,stop:logd@1+2.5s") == [
        Order(3.0, "logd"),
        Order(0.5, "worker"),
        Order(120.0, "group"),
        Order(1.0, "logd", 2.5),
    ]
    assert [str(order) for order in kills.parse_orders("logd@3s,stop:worker@1.5s+2s")] == [
        "logd@3s",
        "stop:worker@1.5s+2s",
    ]


@pytest.mark.parametrize(
    "text", ["", "logd", "logd@", "logd@3x", "nobody@3s", "stop:logd@3s", "logd@3s+2s", "logd@3s,,"]
)
def test_orders_that_make_no_sense_are_refused(text):
    with pytest.raises(ValueError, match="neither ROLE@3s nor stop:ROLE"):
        kills.parse_orders(text)


def test_without_orders_each_role_is_killed_once():
    parsed = options.parse(["--seconds", "14"])
    assert [str(order) for order in parsed.orders] == [
        f"{role}@{2 * n}s" for n, role in enumerate(ROLES_OF["local"], 1)
    ]
    assert [order.role for order in options.parse(["--roles=logd,worker"]).orders] == ["logd", "worker"]


def test_with_etcd_its_nodes_have_roles_too_and_there_is_no_checkpoint():
    parsed = options.parse(["--engine=etcd", "--servers=2"])
    assert {LEADER, FOLLOWER} < {order.role for order in parsed.orders} == set(ROLES_OF["etcd"])
    assert not any("checkpoint" in flag for flag in parsed.server_flags)


def test_random_orders_follow_from_the_seed():
    first, same, other = (options.parse(["--random=20", f"--seed={seed}", "--roles=logd,group"]) for seed in (1, 1, 2))
    assert first.orders == same.orders != other.orders
    assert len(first.orders) == 20
    assert {order.role for order in first.orders} == {"logd", "group"}
    assert all(1 <= order.at_s <= 29 for order in first.orders)
    assert list(first.orders) == sorted(first.orders)


def test_an_order_after_each_interval():
    assert [order.at_s for order in options.parse(["--every=2s", "--seconds=10"]).orders] == [2, 4, 6, 8]
    assert len(options.parse(["--every=2s", "--minutes=10"]).orders) == 299
    assert options.parse(["--random=0"]).orders == ()


def test_a_show_goes_on_until_it_is_ended_with_a_kill_every_few_seconds():
    show = options.parse(["--live", "--every=2s", "--roles=logd"])
    assert show.live
    assert show.seconds > 3600
    assert show.orders[:2] == (Order(2.0, "logd"), Order(4.0, "logd"))
    assert options.parse(["--live"]).orders[0].at_s <= 5


def test_flags_of_the_server_come_last():
    parsed = options.parse(["--clients=3", "--", "--workers=4", "--log-level", "debug"])
    assert parsed.clients == 3
    assert parsed.server_flags[-3:] == ("--workers=4", "--log-level", "debug")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kill=nobody@3s"], "neither ROLE@3s"),
        (["--kill=logd@31s"], "comes after the end"),
        (["--roles=nobody"], "is no role"),
        (["--kill=etcd-leader@3s"], "there is no etcd-leader with --engine local"),
        (["--engine=etcd", "--kill=checkpoint@3s"], "there is no checkpoint with --engine etcd"),
        (["--servers=2"], "--servers needs --engine etcd"),
        (["--read-share=1.5"], "not between 0 and 1"),
        (["--read-share=0.9", "--delete-share=0.2"], "more than 1 together"),
        (["--live", "--seconds=3"], "not allowed with"),
        (["--clients=0"], "less than 1"),
        (["--seconds=0"], "not more than 0"),
        (["--every=soon"], "not a time"),
        (["--seconds=1", "--minutes=1"], "not allowed with"),
        (["--unknown"], "unrecognized"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        options.parse(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


# The clients, with servers that lie ----------------------------------------------------------------------


class Liar(http.server.ThreadingHTTPServer):
    """An HTTP server that answers what `answer` returns: a status and a body, or None to break the connection."""

    daemon_threads = False

    def __init__(self, answer, port=0):
        super().__init__(("127.0.0.1", port), LiarsHandler)
        self.data = {}
        self.requests = 0
        self.answer = answer
        self.atomic = threading.Lock()

    def __enter__(self):
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self._thread.join()
        super().__exit__(*error)


class LiarsHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # so that an answer in pieces is quick

    def handle_one_request(self):
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def do(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.atomic:
            self.server.requests += 1
            answer = self.server.answer(self.server, self.command, self.path.removeprefix("/kv/"), body)
        if answer is None:
            self.close_connection = True
            return
        status, found, *headers = answer
        self.send_response(status)
        for name, value in [("Content-Length", str(len(found))), *headers]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(found[:3])
        self.wfile.write(found[3:])

    do_GET = do_PUT = do_DELETE = do

    def log_message(self, *_):
        pass


def honest(server, method, key, body):
    if method == "PUT":
        server.data[key] = body
    elif method == "DELETE":
        server.data.pop(key, None)
    elif key in server.data:
        return 200, server.data[key]
    else:
        return 404, b"key not found\n"
    return 200, b""


def forgetful(server, method, key, body):
    """Acknowledges a write now and then that it does not keep."""
    if method == "PUT" and server.requests % 50 == 0:
        return 200, b""
    return honest(server, method, key, body)


def failing(server, method, key, body):
    """Answers now and then what no client should get."""
    return (500, b"internal server error\n") if server.requests % 50 == 0 else honest(server, method, key, body)


def made(answer, *requests, clients=1, value_bytes=20):
    """What clients record of these requests."""
    record = Record(["a", "b"], value_bytes)
    with Liar(answer) as server:
        make_each(server.server_port, clients, record, requests)
    return record


def last(record):
    history = record.history
    return Outcome(history.outcome[-1]), history.value[-1], [failure.reason for failure in record.failures]


def test_clients_record_what_they_wrote_and_found():
    record = made(honest, (Kind.PUT, 0), (Kind.GET, 0), (Kind.PUT, 0), (Kind.GET, 0), (Kind.DELETE, 0), (Kind.GET, 0))
    history = record.history
    assert list(history.value) == [1, 1, 2, 2, ABSENT, ABSENT]
    assert set(history.outcome) == {OK}
    assert list(history.start) == sorted(history.start)
    assert all(start < end for start, end in zip(history.start, history.end, strict=True))
    assert record.failures == []
    assert check(history).is_linearizable


@pytest.mark.parametrize(
    ("answer", "outcome", "failures"),
    [
        ((503, b"not now\n"), REFUSED_OUTCOME, ["503"]),
        ((507, b"full\n"), REFUSED_OUTCOME, ["507"]),
        ((504, b"who knows\n"), UNKNOWN, ["504"]),
        ((500, b"oh\n"), UNKNOWN, ["500"]),
        ((404, b"oh\n"), UNKNOWN, ["404"]),
        (None, UNKNOWN, [BROKEN]),
    ],
)
def test_an_answer_says_what_became_of_a_write(answer, outcome, failures):
    assert last(made(lambda *_: answer, (Kind.PUT, 0))) == (outcome, 1, failures)


@pytest.mark.parametrize("body", [b"7", b"", b"0000000000000001....!", b"0000000000000001...", b"000000000000000x...."])
def test_a_value_that_is_not_whole_is_foreign(body):
    assert last(made(lambda *_: (200, body), (Kind.GET, 0))) == (OK, FOREIGN, [])


def test_a_connection_that_the_server_closes_after_an_answer_is_no_failure():
    def closing(*arguments):
        return (*honest(*arguments), ("Connection", "close"))

    record = made(closing, (Kind.PUT, 0), (Kind.GET, 0))
    assert last(record) == (OK, 1, [])


def test_a_client_gives_up_on_a_server_that_does_not_answer():
    record = Record(["a"], 20)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        make_each(mute.getsockname()[1], 1, record, [(Kind.PUT, 0)], timeout_s=0.1)
    assert last(record) == (UNKNOWN, 1, [TIMED_OUT])


def test_a_refused_connection_is_tried_again_and_counted_once():
    record = Record(["a"], 20)
    port = free_port()
    with Clients(port, record, [iter([(Kind.PUT, 0)])]):
        await_true(lambda: record.failures, what="a refused connection")
        with Liar(honest, port):
            await_true(lambda: len(record.history) == 1, what="the request")
    assert last(record) == (OK, 1, [REFUSED])


@pytest.mark.parametrize(("behaviour", "is_good"), [(honest, True), (forgetful, False)])
def test_a_server_that_forgets_is_found_out(behaviour, is_good):
    record = Record([f"key{n}" for n in range(5)], 20)
    mix = Mix(reads=0.5, deletes=0.05, clears=0.0)
    with Liar(behaviour) as server:
        with Clients(server.server_port, record, [mix.script(5, random.Random(n)) for n in range(4)]):
            await_true(lambda: len(record.history) > 2_000, 30, "some requests")
        quiet_since = max(record.history.end)
        make_each(server.server_port, 4, record, [(Kind.GET, key) for key in range(5)])
    verdict = check(record.history)
    assert verdict.is_linearizable == is_good
    if is_good:
        assert missing_writes(record.history, quiet_since) == []
    else:
        assert {violation.fault for violation in verdict.violations} <= {Fault.LOST, Fault.CAME_BACK}


@pytest.mark.parametrize(
    ("behaviour", "complaint"), [(honest, None), (forgetful, "missing|come back|explains"), (failing, "'500'")]
)
def test_the_load_of_the_specifications_judges_a_server(behaviour, complaint):
    with Liar(behaviour) as server:
        with Load(server.server_port, clients=4) as load:
            await_true(lambda: len(load.record.history) > 2_000, 30, "some requests")
        with pytest.raises(AssertionError, match=complaint) if complaint else contextlib.nullcontext():
            load.verify()


# What clients know, and name -----------------------------------------------------------------------------


def answered(status, body=b"", etag=None):
    """An answer, as a client takes it."""
    head = b"http/1.1 %d ok\r\n" % status + (b'etag: "%s"\r\n' % etag.encode() if etag else b"") + b"content-length: 0"
    return Answer(status, head, body)


def test_a_condition_names_what_is_known_and_the_answer_tells_what_was_there():
    requests = Requests(["a", "b"], 20)
    stored = requests.make(Kind.PUT, 0, {})
    fresh = requests.make(Kind.CAS, 0, {})
    assert b"\r\nIf-None-Match: *\r\n" in fresh.data
    built = requests.make(Kind.CAS, 0, {0: stored.value})
    tag = etag(stored.data.partition(b"\r\n\r\n")[2])
    assert b'\r\nIf-Match: "%s"\r\n' % tag.encode() in built.data
    assert built.reads == {0: stored.value}
    assert requests.found(Kind.CAS, built, 0, answered(200)) == built.writes
    assert requests.found(Kind.CAS, fresh, 0, answered(412, etag=tag)) == {0: stored.value}
    assert requests.found(Kind.CAS, built, 0, answered(412)) == {0: ABSENT}
    assert requests.found(Kind.CAS, built, 0, answered(412, etag="0" * 32)) == {0: FOREIGN}
    assert requests.found(Kind.CAS, built, 0, answered(503)) is None


def test_a_batch_checks_what_is_known_and_the_answer_tells_of_the_checks_that_failed():
    requests = Requests(["a", "b", "c", "d"], 20)
    stored = requests.make(Kind.PUT, 0, {})
    asked = requests.make(Kind.BATCH, 1, {0: stored.value, 2: ABSENT, 3: 7})
    operations = [json.loads(line) for line in asked.data.partition(b"\r\n\r\n")[2].splitlines()]
    assert [(each["op"], each["key"]) for each in operations[:3]] == [("check", "a"), ("check", "c"), ("put", "a")]
    assert asked.reads == {0: stored.value, 2: ABSENT}
    assert set(asked.writes) == {0, 1, 2}
    failed = b'{"key":"c","etag":"%s"}\n' % operations[0]["etag"].encode()
    assert requests.found(Kind.BATCH, asked, 1, answered(412, failed)) == {0: stored.value, 2: stored.value}


def test_a_read_of_several_keys_tells_of_each():
    requests = Requests(["a", "b", "c"], 20)
    stored = requests.make(Kind.PUT, 1, {})
    asked = requests.make(Kind.READ, 0, {})
    assert asked.data.startswith(b"GET /keys?key=a&key=b&key=c&values=1 ")
    line = json.dumps({"key": "b", "value": stored.data.partition(b"\r\n\r\n")[2].decode()}).encode()
    assert requests.found(Kind.READ, asked, 0, answered(200, line)) == {0: ABSENT, 1: stored.value, 2: ABSENT}


def test_a_412_for_a_condition_that_held_is_an_answer_that_no_request_should_get():
    record = made(lambda *_: (412, b""), (Kind.CAS, 0))
    assert last(record) == (NOT_MET, ABSENT, [UNFOUNDED])
    assert not record.failures[0].is_allowed


def test_a_mix_has_the_shares_that_were_asked_for():
    mix = Mix(0.2, 0.1, 0.0, conditional=0.1, batches=0.1, counts=0.1, reads_of_many=0.1)
    script = mix.script(10, random.Random(1))
    made_of = Counter(kind for kind, _ in itertools.islice(script, 12_500))
    assert made_of[Kind.CAS] == pytest.approx(1_000, abs=150)
    assert made_of[Kind.BATCH] == pytest.approx(1_000, abs=150)
    assert made_of[Kind.COUNT] == pytest.approx(2_000, abs=250)
    assert made_of[Kind.GET] == pytest.approx(3_000, abs=250)
    assert made_of[Kind.READ] == pytest.approx(1_500, abs=200)
    script = Mix(reads=0.5, deletes=0.1, clears=0.1).script(10, random.Random(1))
    made_of = Counter(kind for kind, _ in (next(script) for _ in range(10_000)))
    assert made_of[Kind.GET] == pytest.approx(5_000, abs=300)
    assert made_of[Kind.PUT] == pytest.approx(3_000, abs=300)
    assert made_of[Kind.DELETE] == pytest.approx(1_000, abs=200)
    assert made_of[Kind.CLEAR] == pytest.approx(1_000, abs=200)


# Figures -------------------------------------------------------------------------------------------------

MS = 1_000_000


def failure(reason, start, end):
    return Failure(reason, start, end, client=0, kind=Kind.PUT)


def a_result(*flags, killed=(), failures=(), silences=()):
    """Ten seconds in which a read and a write are answered every 5 ms, but for the silences, given in ms."""
    result = lab.Result(options.parse(["--seconds=10", "--seed=7", *flags]), Record(["a", "b"], 20))
    result.began, result.ended, result.reads_at_rest = 0, 10_000 * MS, 2
    history: History = result.record.history
    for at in range(5, 10_000, 5):
        if not any(start < at < end for start, end in silences):
            history.add(0, Operation(0, Kind.GET, ABSENT, (at - 2) * MS, at * MS, OK))
            history.add(1, Operation(1, Kind.PUT, at, (at - 4) * MS, at * MS, OK))
    result.record.failures += [failure(reason, start * MS, end * MS) for reason, start, end in failures]
    result.kills += [Kill(Order(at / 1000, role), at * MS, 100 + n) for n, (role, at) in enumerate(killed)]
    return result


def test_figures_of_an_undisturbed_load():
    figures = measure.measure(a_result())
    assert figures.requests == 2 * 1_999
    assert figures.acknowledged_writes == 1_999
    assert figures.throughput == pytest.approx(399.8)
    assert figures.latency == measure.Latency(2.0, 4.0, 4.0)
    assert figures.bucket_ms == 100
    assert len(figures.buckets) == 100
    assert figures.buckets[50] == measure.Bucket(20, 20, measure.Latency(2.0, 4.0, 4.0), Counter())
    assert figures.effects == []


def test_a_silence_belongs_to_the_kill_that_caused_it():
    killed = [("logd", 1_003), ("supervisor", 3_000), ("worker", 3_400), ("gunicorn", 6_003)]
    figures = measure.measure(a_result(killed=killed, silences=[(1_000, 1_300), (3_000, 4_000), (6_007, 6_500)]))
    assert [round(effect.silence_s, 3) for effect in figures.effects] == [0.3, 1.0, 0.005, 0.495]
    assert figures.buckets[35].latency is None
    assert {role: len(effects) for role, effects in figures.by_role().items()} == {
        "supervisor": 1,
        "gunicorn": 1,
        "logd": 1,
        "worker": 1,
    }


def test_a_failure_belongs_to_the_kill_during_it_or_before_it():
    failures = [("503", 500, 501), (BROKEN, 998, 1_002), ("504", 1_500, 4_000), (REFUSED, 3_001, 3_002)]
    figures = measure.measure(a_result(killed=[("worker", 1_000), ("group", 3_000)], failures=failures))
    assert [effect.failed for effect in figures.effects] == [{BROKEN: 1}, {"504": 1, REFUSED: 1}]
    assert figures.failed == {"503": 1, BROKEN: 1, "504": 1, REFUSED: 1}


def test_a_broken_connection_belongs_to_the_last_kill_before_it_broke():
    failures = [(BROKEN, 990, 3_001), ("504", 990, 3_001)]
    figures = measure.measure(a_result(killed=[("logd", 1_000), ("worker", 3_000)], failures=failures))
    assert [effect.failed for effect in figures.effects] == [{"504": 1}, {BROKEN: 1}]


def test_a_long_experiment_has_wider_buckets():
    result = a_result()
    result.ended = 600_000 * MS
    assert measure.measure(result).bucket_ms == 500


A_VIOLATION = Violation("a", Fault.CAME_BACK, [Operation(0, Kind.GET, 3, 1, 2, OK)])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda result: None, None),
        (lambda result: result.missing.append("a"), "missing at the end"),
        (lambda result: setattr(result, "verdict", Verdict(1, 1, [A_VIOLATION], 2)), "3 keys is not linearizable"),
        (lambda result: setattr(result, "unread", 4), "4 keys could not be read"),
        (lambda result: result.errors.append("it ended by itself"), "it ended by itself"),
        (lambda result: result.record.failures.append(failure("500", 5, 6)), "1 × 500"),
        (lambda result: setattr(result, "is_interrupted", True), "interrupted"),
        (lambda result: setattr(result, "record", Record(["a"], 20)), "not one request succeeded"),
    ],
)
def test_each_problem_is_reported(change, problem):
    result = a_result(killed=[("logd", 1_000)], failures=[(BROKEN, 999, 1_001)])
    change(result)
    figures = measure.measure(result)
    found = measure.problems(result, figures)
    assert (problem in found[0] and len(found) == 1) if problem else found == []
    assert ("all is well" in report.summary(result, figures)) == (not problem)


@pytest.mark.parametrize(("counter", "is_good"), [(2, False), (3, True), (4, True), (5, False)])
def test_a_counter_is_what_was_acknowledged_and_at_most_what_is_not_known_more(counter, is_good):
    result = a_result()
    for outcome in (OK, OK, OK, NOT_MET, REFUSED_OUTCOME, UNKNOWN):
        result.record.history.add(0, Operation(0, Kind.COUNT, 1, 5 * MS, 6 * MS, outcome))
    result.counter = counter
    complaint = f"the counter is {counter}, and 3 to 4 increments were made"
    assert measure.problems(result, measure.measure(result)) == ([] if is_good else [complaint])


def test_only_when_asked_strictly_a_failure_after_a_kill_of_logd_is_an_error():
    failures = [(BROKEN, 999, 1_001), ("503", 4_999, 5_001)]
    result = a_result("--strict", killed=[("worker", 1_000), ("logd", 5_000)], failures=failures)
    assert measure.problems(result, measure.measure(result)) == ["requests failed when logd was killed: 1 × 503"]


def test_a_leader_of_etcd_is_to_be_missed_by_nobody():
    result = a_result("--engine=etcd", "--strict", killed=[(LEADER, 5_000)], failures=[("503", 4_999, 5_001)])
    assert measure.problems(result, measure.measure(result)) == ["requests failed when etcd-leader was killed: 1 × 503"]


@pytest.mark.parametrize(
    ("counted", "others", "is_right"),
    [
        (4, [], True),
        (3, [], True),  # the one whose outcome is unknown was not made
        (5, [], False),  # five were sent, and one of them was refused
        (2, [], False),
        (2, [Operation(1, Kind.DELETE, ABSENT, 9, 10, OK)], True),  # they are counted from there on
        (2, [Operation(1, Kind.PUT, 6, 9, 10, OK)], True),  # of concurrent ones, only the last may be made
        (5, [Operation(1, Kind.PUT, 6, 9, 10, OK)], True),
        (6, [Operation(1, Kind.PUT, 6, 9, 10, OK)], False),
    ],
)
def test_puts_are_as_many_as_the_engine_counts(counted, others, is_right):
    result = lab.Result(options.parse(["--engine=etcd"]), Record(["a"], 20))
    for value, outcome in enumerate([OK, OK, OK, UNKNOWN, REFUSED_OUTCOME], 1):
        result.record.history.add(0, Operation(0, Kind.PUT, value, value, value + 1, outcome))
    for each in others:
        result.record.history.add(0, each)
    result.puts_counted = {"a": counted}
    assert (measure.counts(result).wrong == []) == is_right


# The report ----------------------------------------------------------------------------------------------


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_the_summary_has_a_line_for_each_kill_and_each_role():
    result = a_result(killed=[("logd", 1_000), ("logd", 2_000), ("worker", 4_000)], silences=[(2_000, 2_750)])
    result.not_carried_out = [Order(5.0, "checkpoint")]
    lines = report.summary(result, measure.measure(result)).splitlines()
    assert "2.00 s  logd    101  750 ms   none" in lines
    assert "logd    2      750 ms           5 ms    0" in [re.sub(r" +$", "", line) for line in lines]
    assert "not carried out, because there was no such process: checkpoint@5s" in lines
    assert "to repeat this: --seed 7" in lines


def test_the_report_counts_what_became_of_each_kind_of_request():
    result = a_result()
    for outcome in (OK, NOT_MET, NOT_MET, UNKNOWN):
        transaction = Transaction(0, Kind.CAS, {0: 1}, {0: 9}, 1 * MS, 2 * MS, outcome)
        result.record.history.add_transaction(transaction)
    figures = measure.measure(result)
    assert (figures.requests, figures.acknowledged_writes) == (2 * 1_999 + 3, 1_999 + 1)
    lines = report.summary(result, figures).splitlines()
    assert "compare-and-set  1      2                  0        1" in lines
    assert ["compare-and-set", 1, 2, 0, 1] in data_of(report.page(result, figures, []))["outcomes"]


def test_a_violation_is_explained_in_the_summary_and_on_the_page():
    result = a_result()
    result.verdict = Verdict(1, 1, [A_VIOLATION], 0)
    figures = measure.measure(result)
    assert Fault.CAME_BACK.value in report.summary(result, figures)
    assert Fault.CAME_BACK.value in data_of(report.page(result, figures, []))["explained"][0]


def test_the_page_needs_no_other_file_and_holds_the_figures():
    result = a_result(killed=[("logd", 1_000)], failures=[("</script><b>", 999, 1_001)])
    page = report.page(result, measure.measure(result), ["--report", "a b.html"])
    assert not re.search(r"https?://|\bsrc=|\bhref=|url\(|@import|</script><b>", page)
    data = data_of(page)
    assert data["kills"][0]["what"] == "logd"
    assert data["kills"][0]["failed"] == {"</script><b>": 1}
    assert data["buckets"][50] == {"reads": 20, "writes": 20, "latency": [2.0, 4.0, 4.0], "failed": {}}
    assert dict(data["circumstances"])["command"] == "python -m tests.killlab --report 'a b.html'"
