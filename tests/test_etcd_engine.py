"""The engine's own threads, lanes and keeper, beside a cluster in memory: what they do when it is silent or refuses."""

import contextlib
import threading
import time

import msgspec
import pytest

pytest.importorskip("grpc", reason="the packages of requirements-etcd.txt are not installed")

import grpc

from logd.etcd import kv_pb2 as pb
from logd.etcd import records
from logd.etcd.engine import EtcdEngine, Settings
from logd.etcd.generation import Generation
from logd.etcd.keeper import Keeper
from logd.etcd.lane import Lane
from logd.etcd.layout import Layout
from logd.etcd.link import Link, Rejected
from logd.etcd.mailbox import Mailbox
from logd.etcd.reads import Reader
from logd.etcd.records import Table
from logd.shared import protocol
from logd.shared.protocol import Committed, Dropped, Reason, Refused, WriteBatch
from tests.support.fake_etcd import FakeEndpoint, FakeError, FakeEtcd
from tests.support.harness import await_true

A, B, C = (bytes([letter]) * 16 for letter in b"ABC")


class SilentWriter:
    """A writer whose groups have no answer before the link is closed."""

    def __init__(self):
        self.lane = 0
        self.link = FakeEtcd().link()
        self.is_over = threading.Event()

    def take_over(self):
        return Table()

    def write(self, group, table):
        self.is_over.wait()
        self.link.close()
        self.link.pause(1)


@pytest.fixture
def silent_lane():
    may_begin = threading.Event()
    may_begin.set()
    writer, ended = SilentWriter(), Mailbox()
    lane = Lane(writer, ended, group_bytes_max=1 << 20, stall_s=0.05, may_begin=may_begin)
    lane.taken_over(Table())
    yield lane
    writer.is_over.set()
    lane.stop()
    ended.close()


def submit(lane, session):
    batch = WriteBatch(session, 0, 0, False, {}, [])
    return lane.submit(protocol.encode(batch), batch)


# A lane -------------------------------------------------------------------------------------------------


def test_all_sessions_that_wait_behind_a_silent_group_are_refused(silent_lane):
    submit(silent_lane, A)
    silent_lane.begin()
    submit(silent_lane, B)
    await_true(silent_lane.is_stalled)
    assert submit(silent_lane, C) is None
    assert silent_lane.refuse_if_stalled() == [
        (session, Refused(session, [0], Reason.UNREACHABLE)) for session in (B, C)
    ]


class Picky(FakeEtcd):
    """Finds transactions that put more keys than `puts_max` too large. 1 is the record."""

    puts_max = 3

    def send(self, request):
        if len(request.success) > self.puts_max:
            raise FakeError(grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: request is too large")
        return super().send(request)


@contextlib.contextmanager
def engine_on(etcd):
    settings = Settings(
        endpoints=["http://node"],
        prefix="kv",
        gateway="gateway",
        reads="auto",
        compact_s=0,
        request_bytes_max=1 << 20,
        request_timeout_s=10,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("logd.etcd.engine.Endpoint", lambda url, _: FakeEndpoint(url, etcd))
        engine = EtcdEngine(settings)
    try:
        yield engine
    finally:
        engine.stop()


@pytest.fixture
def picky_engine():
    with engine_on(Picky()) as engine:
        await_true(lambda: engine.collect() and engine.is_ready())
        yield engine


def write(engine, session, number, keys=""):
    batch = WriteBatch(session, number, number, False, dict.fromkeys(keys, b"v"), [])
    assert engine.submit(protocol.encode(batch), batch) is None


def replies(engine):
    found = []
    engine.commit()
    await_true(lambda: found.extend(engine.collect().replies) or engine.idle())
    return dict(found)


def test_a_group_that_is_too_large_is_sent_in_parts_and_only_a_batch_that_is_by_itself_is_refused(picky_engine):
    for session in (A, B, C):
        write(picky_engine, session, 0)
    replies(picky_engine)
    for session, keys in ((A, "ab"), (B, "cdef"), (C, "g")):
        write(picky_engine, session, 1, keys)
    write(picky_engine, B, 2, "h")  # may not be applied when what comes before it is not
    write(picky_engine, C, 2, "i")
    found = replies(picky_engine)
    assert found[A] == Committed(A, [1])
    assert found[B] == Refused(B, [1, 2], Reason.UNREACHABLE)
    assert found[C].numbers[-1] == 2
    assert picky_engine.unavailable_reason() == ""
    write(picky_engine, B, 3, "j")
    assert replies(picky_engine) == {B: Committed(B, [3])}


class Full(FakeEtcd):
    """Has no space while `is_full` is set."""

    is_full = True

    def send(self, request):
        if self.is_full and any(each.HasField("request_put") for each in request.success):
            raise FakeError(grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
        return super().send(request)


def test_a_start_without_space_refuses_new_sessions_and_holds_what_a_predecessor_may_have_sent():
    etcd = Full()
    with engine_on(etcd) as engine:
        write(engine, A, 0)
        write(engine, B, 1, "k")
        found = []
        await_true(lambda: found.extend(engine.collect().replies) or found)
        assert found == [(A, Refused(A, [0], Reason.NO_SPACE))]
        assert engine.unavailable_reason() == "no space left in etcd"
        etcd.is_full = False
        await_true(lambda: found.extend(engine.collect().replies) or engine.is_ready())
        assert found[1:] == [(B, Dropped(B, 1))]
        assert engine.unavailable_reason() == ""
        write(engine, C, 0)
        assert replies(engine) == {C: Committed(C, [0])}


# The keeper ----------------------------------------------------------------------------------------------


class Kept:
    """A keeper that has found a cluster usable."""

    def __init__(self, etcd, generation=0):
        self.link = etcd.link()
        self.generation = Generation()
        self.generation.advance_to(generation)
        layout = Layout("kv", "gateway")
        self.failures = []
        self.turns = 0
        self.keeper = Keeper(
            self.link,
            layout,
            self.generation,
            Reader(self.link, layout, self.generation),
            reads="auto",
            compact_s=0,
            request_bytes_max=1 << 20,
            on_failed=self.failures.append,
            on_turn=self.turn,
        )

    def turn(self):
        self.turns += 1


class Denying(FakeEtcd):
    """Answers every transaction with an error, while `denies` is set."""

    denies = False

    def send(self, request):
        if self.denies:
            raise FakeError(grpc.StatusCode.PERMISSION_DENIED, "etcdserver: permission denied")
        return super().send(request)


@contextlib.contextmanager
def kept(etcd, generation=0):
    made = Kept(etcd, generation)
    try:
        yield made
    finally:
        made.link.close()
        made.keeper.stop()


@pytest.fixture(autouse=True)
def short_periods(monkeypatch):
    for name in ("_PROBE_SECONDS", "_MEMBERS_SECONDS", "_RECORDS_SECONDS", "_SWEEP_SECONDS", "_SWEEP_PAUSE_SECONDS"):
        monkeypatch.setattr(f"logd.etcd.keeper.{name}", 0.02)


def test_a_sweep_removes_the_data_of_earlier_generations_and_nothing_of_a_stranger(monkeypatch):
    monkeypatch.setattr("logd.etcd.keeper._SWEPT_KEYS", 3)
    etcd = FakeEtcd()
    etcd.put(b"kv/gen", b"10")
    theirs = [b"kv/d/d/0/k", b"kv/d/0", b"kv/d/00/k", b"kv/d/1k/k", b"kv/d/9.k", b"kv/d/9:", b"kv/d/s/x/0"]
    ours = [b"kv/d/10/k", b"kv/d/10/9/k"]
    for key in [*theirs, *ours]:
        etcd.put(key, b"v")
    for number in range(5):
        for generation in (0, 1, 9, 100):
            etcd.put(b"kv/d/%d/%d" % (generation, number), b"v")
    with kept(etcd, 10):
        await_true(lambda: b"kv/d/9/4" not in etcd.values)
    assert set(etcd.values) == {b"kv/gen", *theirs, *ours}


DAY = 24 * 3600.0


def put_record(etcd, name, written_at):
    etcd.put(b"kv/s/" + name, msgspec.msgpack.encode(records.Record(b"owner", 1, {}, written_at, {})))


def test_a_record_that_nobody_has_written_for_a_week_is_removed_and_one_that_is_younger_is_not(caplog):
    caplog.set_level("INFO", logger="logd.etcd.keeper")
    etcd = FakeEtcd()
    put_record(etcd, b"old/0", time.time() - 7.1 * DAY)
    put_record(etcd, b"young/0", time.time() - 6.9 * DAY)
    with kept(etcd) as made:
        await_true(lambda: b"kv/s/old/0" not in etcd.values)
        await_true(lambda: made.turns > 5)
    assert set(etcd.values) == {b"kv/s/young/0"}
    assert [line for line in caplog.messages if "removed" in line] == [
        "removed the record kv/s/old/0 of a server that is gone"
    ]


class Returning(FakeEtcd):
    """The server whose record is about to be removed writes it just before."""

    removals = 0

    def send(self, request):
        if any(each.request_delete_range.key == b"kv/s/old/0" for each in request.success):
            self.removals += 1
            put_record(self, b"old/0", time.time())
        return super().send(request)


def test_a_record_that_is_written_while_it_is_about_to_be_removed_stays(caplog):
    caplog.set_level("INFO", logger="logd.etcd.keeper")
    etcd = Returning()
    put_record(etcd, b"old/0", 0.0)
    with kept(etcd) as made:
        await_true(lambda: etcd.removals and made.turns > 5)
    assert (etcd.removals, set(etcd.values)) == (1, {b"kv/s/old/0"})
    assert "removed" not in caplog.text


def test_what_is_no_record_among_the_records_is_reported_once_and_left_alone(caplog):
    etcd = FakeEtcd()
    not_utf8 = b"\x95\xc4\x01o\x01\x80\xcb" + bytes(8) + b"\x81\xc4\x01s\x81\x01\x92\x91\xa1\xff\x80"
    etcd.put(b"kv/s/a", not_utf8)
    etcd.put(b"kv/s/b", b"hello")
    put_record(etcd, b"c", 0.0)
    with kept(etcd) as made:
        await_true(lambda: b"kv/s/c" not in etcd.values)
        await_true(lambda: made.turns > 5)
    assert set(etcd.values) == {b"kv/s/a", b"kv/s/b"}
    assert made.failures == []
    assert sum("holds no record" in line for line in caplog.messages) == 2


class Versioned(FakeEndpoint):
    """Says that it is of this version."""

    version = "3.5.30"

    def call(self, method, message, seconds, metadata):
        if method == "status":
            return pb.StatusResponse(version=self.version)
        return super().call(method, message, seconds, metadata)


def test_a_member_that_a_start_would_refuse_ends_no_server_and_is_reported_each_time_it_comes(caplog):
    etcd = FakeEtcd()
    member = Versioned("http://node", etcd)
    etcd.link = lambda: Link([member])
    with kept(etcd) as made:
        assert made.keeper.is_checked.wait(10)
        for times in (1, 2):
            member.version = "3.5.0"
            await_true(lambda: caplog.text.count("the next start will be refused") == times)  # noqa: B023
            member.version = "3.5.30"
            until = made.turns + 5
            await_true(lambda: made.turns > until)  # noqa: B023
    assert made.failures == []
    assert caplog.text.count("the next start will be refused") == 2


@pytest.mark.parametrize("others_ask", [False, True], ids=["idle", "others_ask"])
def test_a_cluster_that_denies_everything_is_in_trouble_until_it_answers_again(others_ask):
    etcd = Denying()
    with kept(etcd) as made:
        assert made.keeper.is_checked.wait(10)
        etcd.denies = True
        await_true(lambda: made.keeper.trouble)
        until = made.turns + 5
        while made.turns < until:
            assert made.keeper.trouble
            if others_ask:
                with pytest.raises(Rejected):
                    made.link.txn(pb.TxnRequest())
        etcd.denies = False
        await_true(lambda: not made.keeper.trouble)
