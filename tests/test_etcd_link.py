"""The way to a cluster: what each error means, which member is asked next, tokens, and which clusters are refused."""

import os
import select
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import grpc
import pytest

from logd.etcd import checks, pages
from logd.etcd import kv_pb2 as pb
from logd.etcd.checks import Unusable
from logd.etcd.engine import carry_out
from logd.etcd.generation import Generation
from logd.etcd.layout import Layout
from logd.etcd.link import Closed, Link, Rejected, User
from logd.etcd.mailbox import Mailbox
from logd.etcd.reads import Answered, PageOf, Reader, Reads, Request
from logd.etcd.transactions import READS_MAX
from logd.etcd.verdict import Verdict, judge
from logd.etcd.writer import Fenced
from logd.serve_etcd import GRPC_SETTINGS
from logd.shared.protocol import PAGE_BYTES_MAX, LargeEntry, Page, PageQuery, PageRequest
from tests.support.fake_etcd import FakeEndpoint, FakeError, FakeEtcd, Fault
from tests.support.harness import ROOT, free_port

CODE = grpc.StatusCode
PUT = pb.TxnRequest(success=[pb.RequestOp(request_put=pb.PutRequest(key=b"k", value=b"v"))])


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr("logd.etcd.link._PAUSE_SECONDS", (0.0,))
    monkeypatch.setattr("logd.etcd.link._BUSY_SECONDS", 0.0)
    monkeypatch.setattr("logd.etcd.engine._RETRY_SECONDS", 0.0)


@pytest.fixture
def etcd():
    return FakeEtcd()


# Errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "text", "verdict"),
    [
        (CODE.UNAVAILABLE, "etcdserver: request timed out", Verdict.UNANSWERED),
        (CODE.UNAVAILABLE, "etcdserver: leader changed", Verdict.UNANSWERED),
        (CODE.UNAVAILABLE, "failed to connect to all addresses", Verdict.UNANSWERED),
        (CODE.DEADLINE_EXCEEDED, "Deadline Exceeded", Verdict.UNANSWERED),
        (CODE.UNKNOWN, "context deadline exceeded", Verdict.UNANSWERED),
        (CODE.CANCELLED, "", Verdict.UNANSWERED),
        (CODE.INTERNAL, "stream terminated", Verdict.UNANSWERED),
        (CODE.RESOURCE_EXHAUSTED, "something that is not known here", Verdict.UNANSWERED),
        (CODE.RESOURCE_EXHAUSTED, "etcdserver: too many requests", Verdict.BUSY),
        (CODE.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", Verdict.NO_SPACE),
        (CODE.RESOURCE_EXHAUSTED, "received message larger than max (3 vs. 2)", Verdict.TOO_LARGE),
        (CODE.INVALID_ARGUMENT, "etcdserver: request is too large", Verdict.TOO_LARGE),
        (CODE.INVALID_ARGUMENT, "etcdserver: too many operations in txn request", Verdict.TOO_LARGE),
        (CODE.INVALID_ARGUMENT, "etcdserver: user name is empty", Verdict.UNAUTHENTICATED),
        (CODE.UNAUTHENTICATED, "etcdserver: invalid auth token", Verdict.UNAUTHENTICATED),
        (CODE.PERMISSION_DENIED, "etcdserver: permission denied", Verdict.DENIED),
        (CODE.DATA_LOSS, "etcdserver: corrupt cluster", Verdict.DENIED),
        (CODE.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted", Verdict.NO_SUCH_REVISION),
    ],
)
def test_an_error_means_this_and_what_is_not_known_is_not_certain(code, text, verdict):
    assert judge(code, text) is verdict


# Tries ---------------------------------------------------------------------------------------------------


def test_a_request_without_an_answer_goes_to_the_next_endpoint_as_it_was(etcd):
    etcd.faults.extend([Fault.LOST, Fault.LOST])
    link = etcd.link()
    assert link.txn(PUT).succeeded
    assert etcd.requests == [PUT] * 3
    assert link.current_url == "http://node2"
    assert (link.tally.switches, link.tally.repeated) == (2, 2)
    assert (link.tally.calls["ok"], link.tally.calls["unanswered"]) == (1, 2)


def test_a_busy_cluster_is_asked_again_at_the_same_endpoint(etcd):
    etcd.faults.append(Fault.BUSY)
    link = etcd.link()
    assert link.txn(PUT).succeeded
    assert link.current_url == "http://node0"


@pytest.mark.parametrize(("faults", "is_in_doubt"), [([Fault.DENIED], False), ([Fault.LOST, Fault.DENIED], True)])
def test_a_denial_says_whether_an_earlier_try_may_still_be_applied(etcd, faults, is_in_doubt):
    etcd.faults.extend(faults)
    with pytest.raises(Rejected) as rejected:
        etcd.link().txn(PUT)
    assert (rejected.value.verdict, rejected.value.is_in_doubt) == (Verdict.DENIED, is_in_doubt)


def test_after_a_close_nothing_is_sent_again(etcd):
    etcd.faults.append(Fault.LOST)
    link = etcd.link()
    link._on_unanswered = link.close
    with pytest.raises(Closed):
        link.txn(PUT)
    assert len(etcd.requests) == 1


@pytest.mark.parametrize("count", [1, 3])
def test_an_endpoint_that_does_not_answer_is_logged_once_and_so_is_that_it_answers_again(etcd, caplog, count):
    caplog.set_level("INFO", logger="logd.etcd.link")
    link = Link([FakeEndpoint(f"http://node{number}", etcd) for number in range(count)])
    for _ in range(2):
        etcd.faults.extend([Fault.LOST] * 4 * count)
        link.txn(PUT)
    silent = [f"http://node{n} does not answer: etcdserver: request timed out" for n in range(count)]
    again = "http://node0 answers again"
    assert caplog.messages == [*silent, again, silent[0], again]


class Frozen(FakeEndpoint):
    """Never answers, and takes all of the time that a try has."""

    now = 0.0

    def call(self, method, message, seconds, metadata):
        Frozen.now += seconds
        raise FakeError(CODE.DEADLINE_EXCEEDED, "Deadline Exceeded")


class Electing(Frozen):
    """Answers when there is a leader again; but not to what it has got before the last one was missed."""

    def __init__(self, url, etcd, elected_at):
        super().__init__(url, etcd)
        self.elected_at = elected_at

    def call(self, method, message, seconds, metadata):
        if Frozen.now < self.elected_at - 0.2 or Frozen.now + seconds < self.elected_at:
            return super().call(method, message, seconds, metadata)
        Frozen.now = max(Frozen.now, self.elected_at)
        return FakeEndpoint.call(self, method, message, seconds, metadata)


@pytest.mark.parametrize("elected_at", [tenths / 10 for tenths in range(10, 31)])
def test_a_frozen_leader_is_not_missed_for_much_longer_than_an_election_takes(etcd, monkeypatch, elected_at):
    monkeypatch.setattr("logd.etcd.link.time", SimpleNamespace(monotonic=lambda: Frozen.now))
    monkeypatch.setattr(Frozen, "now", 0.0)
    others = [Electing(f"http://node{number}", etcd, elected_at) for number in (1, 2)]
    assert Link([Frozen("http://node0", etcd), *others]).txn(PUT).succeeded
    assert Frozen.now - elected_at <= 1.5


class Shut(FakeEndpoint):
    """Its channel is closed."""

    def call(self, method, message, seconds, metadata):
        raise ValueError("Cannot invoke RPC on closed channel!")


def test_whatever_is_asked_after_a_close_ends_with_closed(etcd):
    link = Link([Shut("http://node", etcd)], user=User("kv", "secret"))
    with pytest.raises(Closed):
        link.status("http://node")
    with pytest.raises(Closed):  # where it authenticates
        link.txn(PUT)


class Guarded(FakeEndpoint):
    """Wants a token, which changes with each authentication."""

    tokens = 0

    def call(self, method, message, seconds, metadata):
        if method == "authenticate":
            asked = pb.AuthenticateRequest.FromString(message)
            if (asked.name, asked.password) != ("kv", "secret"):
                raise FakeError(CODE.INVALID_ARGUMENT, "etcdserver: authentication failed, invalid user ID or password")
            Guarded.tokens += 1
            return pb.AuthenticateResponse(token=f"token{Guarded.tokens}")
        if metadata != (("token", f"token{Guarded.tokens}"),):
            raise FakeError(CODE.UNAUTHENTICATED, "etcdserver: invalid auth token")
        return super().call(method, message, seconds, metadata)


def test_a_token_is_fetched_before_the_first_request_and_when_it_is_not_known_any_more(etcd):
    link = Link([Guarded("http://node", etcd)], user=User("kv", "secret"))
    assert link.txn(PUT).succeeded
    Guarded.tokens += 1  # as after a restart of etcd
    assert link.txn(PUT).succeeded
    assert len(etcd.requests) == 2


class Forgetful(FakeEndpoint):
    """Knows none of the tokens that it gives. Its channel is closed in the end."""

    def __init__(self, events):
        self.url = "http://node"
        self.events = events

    def call(self, method, message, seconds, metadata):
        self.events.append(method)
        if len(self.events) >= 8:
            raise ValueError("Cannot invoke RPC on closed channel!")
        if method == "authenticate":
            return pb.AuthenticateResponse(token="token")
        raise FakeError(CODE.UNAUTHENTICATED, "etcdserver: invalid auth token")


def test_a_token_that_is_refused_is_fetched_anew_at_once_but_after_a_pause_if_that_does_not_help(monkeypatch):
    events = []
    link = Link([Forgetful(events)], user=User("kv", "secret"))
    monkeypatch.setattr(link, "pause", lambda _: events.append("pause"))
    with pytest.raises(Closed):
        link.txn(PUT)
    assert events == [
        "authenticate",
        "txn",
        "authenticate",
        "txn",
        "pause",
        "authenticate",
        "txn",
        "pause",
        "authenticate",
    ]


class Renewed(Guarded):
    """Another thread has fetched a new token while a request with the old one was under way."""

    authentications = 0

    def call(self, method, message, seconds, metadata):
        self.authentications += method == "authenticate"
        if method == "txn" and self.link._token == "old":
            self.link._token = f"token{Guarded.tokens}"
        return super().call(method, message, seconds, metadata)


def test_a_token_that_another_thread_has_renewed_is_not_fetched_once_more(etcd):
    endpoint = Renewed("http://node", etcd)
    endpoint.link = link = Link([endpoint], user=User("kv", "secret"))
    link._token = "old"
    assert link.txn(PUT).succeeded
    assert endpoint.authentications == 0


def test_a_wrong_password_is_a_denial_and_nothing_was_sent_that_could_be_applied(etcd):
    with pytest.raises(Rejected) as rejected:
        Link([Guarded("http://node", etcd)], user=User("kv", "wrong")).txn(PUT)
    assert (rejected.value.verdict, rejected.value.is_in_doubt) == (Verdict.DENIED, False)


class Away(FakeEndpoint):
    """Does not answer."""

    asked = ()

    def call(self, method, message, seconds, metadata):
        self.asked += (method,)
        raise FakeError(CODE.UNAVAILABLE, "failed to connect to all addresses")


def test_an_endpoint_that_gives_no_token_gets_no_request(etcd):
    away, told = Away("http://node0", etcd), []
    link = Link(
        [away, Guarded("http://node1", etcd)],
        user=User("kv", "secret"),
        on_unanswered=lambda: told.append(link.current_url),
    )
    assert link.txn(PUT).succeeded
    assert away.asked == ("authenticate",)
    assert told == ["http://node1"]


# Clusters ------------------------------------------------------------------------------------------------


def member(version, cluster=1):
    return pb.StatusResponse(version=version, header=pb.ResponseHeader(cluster_id=cluster))


@pytest.mark.parametrize("version", ["3.5.0", "3.5.2", "3.3.27", "2.3.8", "nonsense"])
def test_versions_that_lose_what_they_acknowledged_or_are_not_known_are_refused(version):
    with pytest.raises(Unusable, match="http://b"):
        checks.check_members({"http://a": member("3.4.23"), "http://b": member(version)})


def test_members_of_two_clusters_are_refused():
    with pytest.raises(Unusable, match="2 different clusters"):
        checks.check_members({"http://a": member("3.4.23"), "http://b": member("3.4.23", 2)})


@pytest.mark.parametrize(
    ("versions", "sound"),
    [
        (["3.4.42"], True),
        (["3.4.41"], False),
        (["3.5.28", "3.6.9"], True),
        (["3.5.28", "3.6.8"], False),
        (["3.7.0-rc.1"], True),
        (["3.3.99"], False),
    ],
)
def test_reads_pass_the_log_by_only_where_all_members_are_known_to_be_sound(versions, sound):
    assert checks.reads_index_is_sound(versions) == sound


# Reads ---------------------------------------------------------------------------------------------------


@pytest.fixture
def reader(etcd):
    return Reader(etcd.link(), Layout("kv", "gateway"), Generation())


def fill(etcd, values, generation=0):
    for key, value in values.items():
        etcd.put(b"kv/d/%d/%s" % (generation, key.encode()), value)


@pytest.mark.parametrize("through_log", [True, False])
def test_more_keys_than_a_transaction_may_name_are_read_as_of_one_revision(etcd, reader, through_log):
    keys = [f"k{n:04}" for n in range(2 * READS_MAX + 1)]
    fill(etcd, dict.fromkeys(keys, b"v"))
    reader.through_log = through_log
    assert reader.look_up([*keys, "none"]) == [b"v"] * len(keys) + [None]
    revisions = [[op.request_range.revision for op in request.success] for request in etcd.requests]
    assert [set(each) for each in revisions] == [{0}, {etcd.revision}, {etcd.revision}]


def test_a_read_finds_the_generation(etcd, reader):
    fill(etcd, {"k": b"old"})
    etcd.put(b"kv/gen", b"7")
    fill(etcd, {"k": b"new"}, 7)
    assert reader.look_up(["k", "none"]) == [b"new", None]


def query(**fields):
    return PageRequest(1, PageQuery(**fields), PAGE_BYTES_MAX)


@pytest.mark.parametrize("with_values", [False, True])
def test_a_page_is_the_keys_of_a_range_in_order(etcd, reader, with_values):
    data = {f"{prefix}{n:04}": b"%d" % n for prefix in "abc" for n in range(1200)}
    fill(etcd, data)
    fill(etcd, {"b0000": b"of another"}, 1)
    inside = sorted(key for key in data if key.startswith("b"))

    def page(**fields):
        made = pages.page(reader, query(with_values=with_values, **fields))
        assert made.values == ([data[key] for key in made.keys] if with_values else [])
        return made.keys, made.left

    assert page(prefix="b") == (inside, 0)
    assert page(prefix="b", after="b0099", limit=1000) == (inside[100:1100], 1)
    assert page(prefix="b", after="c") == ([], 0)
    assert page(after="c1197") == (["c1198", "c1199"], 0)
    assert page(limit=10_000) == (sorted(data), 0)
    assert page(keys=["b0007", "none", "a0001"]) == (["b0007", "a0001"], 0)


def test_a_page_ends_at_its_bytes_and_a_value_that_is_larger_is_told_of(etcd, reader):
    fill(etcd, {f"k{n}": b"x" * 400_000 for n in range(5)} | {"l": b"y" * 2_000_000})
    first = pages.page(reader, query(with_values=True))
    assert (first.keys, first.left) == (["k0", "k1"], 1)
    assert pages.page(reader, query(prefix="l", with_values=True)) == LargeEntry(1, 2_000_001)
    assert pages.page(reader, query(prefix="l")) == Page(1, ["l"], [], 0)


# Reads that cannot be answered ---------------------------------------------------------------------------

ORIGIN = (b"peer", 1, PAGE_BYTES_MAX)


class Denying(FakeEndpoint):
    """Denies some transactions, and those of many operations."""

    denials_left = 0
    operations_max = 128
    verdict = (CODE.PERMISSION_DENIED, "etcdserver: permission denied")

    def call(self, method, message, seconds, metadata):
        self.denials_left -= 1
        if self.denials_left >= 0 or len(pb.TxnRequest.FromString(message).success) > self.operations_max:
            raise FakeError(*self.verdict)
        return super().call(method, message, seconds, metadata)


@pytest.fixture
def denying(etcd):
    return Denying("http://node", etcd)


@pytest.fixture
def denied(denying):
    """A reader at a member that denies."""
    return Reader(Link([denying]), Layout("kv", "gateway"), Generation())


def test_keys_too_long_for_one_transaction_are_read_by_several(etcd, reader):
    keys = [f"{n:05}" + "ä" * 30_000 for n in range(30)]
    fill(etcd, dict.fromkeys(keys, b"v"))
    assert reader.look_up(keys) == [b"v"] * 30
    assert pages.page(reader, query(keys=keys, with_values=True)).keys[:1] == keys[:1]


def test_reads_of_long_keys_are_not_joined_beyond_the_bytes_of_a_transaction():
    jobs, answered = [], Mailbox()
    reads = Reads(lambda job: jobs.append(job) or Answered(), answered)
    try:
        for number in range(20):
            reads.add([f"{number:05}" + "x" * 60_000], ORIGIN)
        reads.begin()
        while not reads.is_idle():
            select.select([answered.fileno()], [], [], 5)
            for _ in answered.take():
                reads.end()
    finally:
        reads.stop()
        answered.close()
    assert sorted(len(job) for job in jobs) == [4] * 5


def test_a_read_that_is_denied_for_a_moment_is_answered(etcd, denying, denied):
    fill(etcd, {"k": b"v"})
    denying.denials_left = 2
    assert carry_out(denied, 60, [Request(["k"], ORIGIN)]).reads == [(ORIGIN, [b"v"])]


@pytest.mark.parametrize(
    "job", [[Request(["k"], ORIGIN)], PageOf(query(), b"peer"), PageOf(query(keys=["k"]), b"peer")]
)
def test_a_read_that_is_denied_or_not_answered_is_given_up_when_its_time_is_over(denying, denied, job):
    denying.denials_left = 1 << 30
    assert carry_out(denied, 0.05, job) == Answered()
    denying.verdict = (CODE.UNAVAILABLE, "etcdserver: request timed out")
    assert carry_out(denied, 0.05, job) == Answered()


def test_a_read_that_etcd_finds_too_large_is_given_up_at_once(etcd, reader):
    etcd.request_bytes_max = 10
    assert carry_out(reader, 60, [Request(["k"], ORIGIN)]) == Answered()
    assert len(etcd.requests) == 1


def test_many_values_that_no_try_has_time_for_are_looked_up_few_at_a_time(etcd, denying, denied):
    keys = [f"k{n}" for n in range(50)]
    fill(etcd, dict.fromkeys(keys, b"v"))
    denying.operations_max, denying.verdict = 8, (CODE.DEADLINE_EXCEEDED, "Deadline Exceeded")
    requests = [Request([key], ORIGIN) for key in keys]
    assert carry_out(denied, 0.3, requests).reads == [(ORIGIN, [b"v"])] * 50


@pytest.mark.parametrize("fields", [{}, {"keys": ["k"]}])
def test_a_generation_that_went_back_ends_the_process(etcd, reader, fields):
    reader.generation.advance_to(3)
    etcd.put(b"kv/gen", b"2")  # a snapshot was restored
    with pytest.raises(Fenced, match="restored"):
        pages.page(reader, query(**fields))
    with pytest.raises(Fenced, match="restored"):
        reader.look_up(["k"])
    assert len(etcd.requests) == 2


# What a page costs ---------------------------------------------------------------------------------------


def ranges(etcd):
    return [op.request_range for request in etcd.requests for op in request.success]


def test_a_page_of_keys_without_values_reads_no_value_and_each_key_once(etcd, reader):
    fill(etcd, {"big": b"x" * 500_000, "small": b"y"})
    made = pages.page(reader, query(keys=["big", "none", "small"] * 200))
    assert (len(made.keys), made.left) == (400, 0)
    assert [each.keys_only for each in ranges(etcd)] == [True] * 3


def test_a_page_of_keys_reads_no_further_than_it_goes(etcd, reader):
    keys = [f"k{n:03}" for n in range(200)]
    fill(etcd, dict.fromkeys(keys, b"x" * 400_000))
    made = pages.page(reader, query(keys=keys, with_values=True))
    assert (made.keys, made.left) == (keys[:2], 198)
    assert len(ranges(etcd)) == 32  # of 1 MiB each at most


def test_a_page_asks_for_few_values_at_once_as_they_may_be_larger_than_those_before(etcd, reader):
    fill(etcd, {f"k{n:03}": b"" for n in range(200)})
    reader.values_max = 100
    pages.page(reader, query(limit=40, with_values=True))
    pages.page(reader, query(with_values=True))
    limits = [each.limit for each in ranges(etcd)]
    assert limits == [41, 100, 100]
    assert pages._next_limit(10, 1000, [pb.KeyValue(key=b"k")]) == 20


# Settings of gRPC, each tried in a process of its own ------------------------------------------------------

FINDS_AN_ENDPOINT = """
import sys
from logd.etcd import kv_pb2 as pb
from logd.etcd.link import Endpoint, Link
link = Link([Endpoint(sys.argv[1], None)], on_unanswered=lambda: print("no answer", flush=True))
link.txn(pb.TxnRequest())
"""


def with_grpc(settings):
    return {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")} | settings


@pytest.mark.parametrize(
    ("experiments", "is_known"), [(GRPC_SETTINGS["GRPC_EXPERIMENTS"], True), ("-no_such_experiment", False)]
)
def test_the_pinned_grpc_knows_the_experiment_that_is_switched_off(experiments, is_known):
    """It says on stderr which names it does not know."""
    command = [sys.executable, "-c", "import grpc; grpc.insecure_channel('127.0.0.1:1').close()"]
    environment = with_grpc({"GRPC_EXPERIMENTS": experiments})
    used = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert ("Unknown experiment" not in used.stderr) == is_known


def test_an_endpoint_that_has_refused_is_found_soon_after_it_listens():
    port, server = free_port(), grpc.server(ThreadPoolExecutor(1))
    answer = grpc.unary_unary_rpc_method_handler(lambda *_: pb.TxnResponse().SerializeToString())
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("etcdserverpb.KV", {"Txn": answer})])
    command = [sys.executable, "-c", FINDS_AN_ENDPOINT, f"http://127.0.0.1:{port}"]
    with subprocess.Popen(command, cwd=ROOT, env=with_grpc(GRPC_SETTINGS), stdout=subprocess.PIPE) as process:
        try:
            for _ in range(5):
                assert process.stdout.readline() == b"no answer\n"
            assert server.add_insecure_port(f"127.0.0.1:{port}") == port
            server.start()
            further_tries = process.communicate(timeout=60)[0].splitlines()
        finally:
            process.kill()
            server.stop(0).wait()
    assert process.returncode == 0
    assert len(further_tries) < 10  # each after 0.2 s: gRPC connects anew after 0.5 s, by its options


# Generated code ------------------------------------------------------------------------------------------


def test_the_messages_are_what_the_command_of_the_guide_makes_of_their_description(tmp_path):
    command = next(line for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if "grpc_tools.protoc" in line)
    arguments = command.partition(" -m ")[2].split()
    (tmp_path / "logd" / "etcd").mkdir(parents=True)
    shutil.copy(ROOT / "logd/etcd/kv.proto", tmp_path / "logd/etcd/kv.proto")
    subprocess.run([sys.executable, "-m", *arguments], cwd=tmp_path, check=True)
    for name in ("kv_pb2.py", "kv_pb2.pyi"):
        assert (tmp_path / "logd/etcd" / name).read_text() == (ROOT / "logd/etcd" / name).read_text()
