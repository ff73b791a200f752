"""One lane's groups against a cluster that does its worst: each is applied exactly once, or certainly not at all."""

import random
import threading

import pytest

pytest.importorskip("grpc", reason="the packages of requirements-etcd.txt are not installed")

from logd.etcd import group, records, transactions, writer
from logd.etcd.generation import Generation
from logd.etcd.group import count_that_fit
from logd.etcd.layout import Layout
from logd.etcd.records import SESSIONS_MAX, Table
from logd.etcd.verdict import Verdict
from logd.etcd.writer import Fenced, Refusal, Writer
from logd.intake import Accepted
from logd.shared import protocol
from logd.shared.etag import etag
from logd.shared.protocol import Check, Committed, Dropped, Outcomes, Reason, Transaction, WriteBatch
from tests.support.fake_etcd import FakeEtcd, Fault

A, B = b"A" * 16, b"B" * 16
ABSENT = Check("k", None, negated=True)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(writer, "_RETRY_SECONDS", 0.0)
    monkeypatch.setattr("logd.etcd.link._PAUSE_SECONDS", (0.0,))
    monkeypatch.setattr("logd.etcd.link._BUSY_SECONDS", 0.0)


def accepted(session, number, puts=(), deletes=(), transactions=(), *, base=None, clear=False):
    puts = {key: value.encode() for key, value in dict(puts).items()}
    base = number if base is None else base
    batch = WriteBatch(session, number, base, clear, puts, list(deletes), list(transactions))
    return Accepted(protocol.encode(batch), batch)


class Lane:
    """A writer that has taken its lane over, with its table."""

    def __init__(self, etcd, *, owner=b"owner", gateway="gateway", generation=None):
        self.etcd = etcd
        self.layout = Layout("kv", gateway)
        self.generation = generation or Generation()
        self.writer = Writer(etcd.link(), self.layout, self.generation, 0, owner, threading.Lock())
        self.table = self.writer.take_over()

    def write(self, *batches):
        """The replies to a group; a refusal."""
        end = self.writer.write(batches, self.table)
        if isinstance(end, Refusal):
            return end
        self.table = end.table
        return dict(end.replies)

    def data(self):
        prefix = self.layout.data(self.generation.value)
        return {
            key[len(prefix) :].decode(): each.value.decode()
            for key, each in self.etcd.values.items()
            if key.startswith(prefix)
        }

    def version(self, key):
        return self.etcd.versions(self.layout.data(self.generation.value) + key.encode())


@pytest.fixture
def etcd():
    return FakeEtcd()


@pytest.fixture
def lane(etcd):
    made = Lane(etcd)
    made.write(accepted(A, 0), accepted(B, 0))
    return made


# One group -----------------------------------------------------------------------------------------------


def test_the_batches_of_a_group_are_folded_into_one_transaction(etcd, lane):
    sent = len(etcd.requests)
    replies = lane.write(
        accepted(A, 1, {"x": "1", "y": "1", "z": "1"}), accepted(B, 1, {"x": "2"}, ["y"]), accepted(A, 2, {"z": "3"})
    )
    assert lane.data() == {"x": "2", "z": "3"}
    assert replies == {A: Committed(A, [1, 2]), B: Committed(B, [1])}
    assert len(etcd.requests) == sent + 1


def test_a_clear_makes_the_next_generation_and_what_follows_it_is_in_it(etcd, lane):
    lane.write(accepted(A, 1, {"x": "1"}))
    lane.write(accepted(A, 2, {"y": "1"}), accepted(B, 1, {"z": "1"}, clear=True), accepted(A, 3, {"x": "2"}))
    assert (lane.generation.value, lane.data()) == (1, {"z": "1", "x": "2"})


def test_a_group_of_thousands_of_writes_is_one_transaction(etcd, lane):
    sent = len(etcd.requests)
    values = {f"key{number}": "v" for number in range(group.WRITES_MAX)}
    lane.write(accepted(A, 1, values))
    assert (lane.data(), len(etcd.requests)) == (values, sent + 1)


def test_a_group_with_as_many_checks_and_writes_as_there_may_be_is_one_transaction(etcd, lane):
    checks = [Check(f"absent{number}", None, negated=True) for number in range(group.CHECKED_KEYS_MAX)]
    values = {f"key{number}": b"v" for number in range(group.WRITES_MAX)}
    lane.write(accepted(A, 1, transactions=[Transaction(checks, values, [])]))
    assert len(lane.data()) == group.WRITES_MAX


def test_groups_are_cut_by_bytes_by_writes_and_by_checked_keys_and_never_empty():
    large = [accepted(A, number, {"k": "v" * 1000}) for number in range(5)]
    many = [accepted(A, number, {f"{number}.{n}": "" for n in range(1000)}) for number in range(5)]
    checked = [
        accepted(
            A,
            number,
            transactions=[Transaction([Check(f"{number}.{n}", None, negated=True) for n in range(20)], {}, [])],
        )
        for number in range(5)
    ]
    assert count_that_fit(large, 3500) == 3
    assert count_that_fit(large, 1) == 1
    assert count_that_fit(many, 1 << 30) == 3
    assert count_that_fit(checked, 1 << 30) == 2
    long = Check("k" * 1000, None, negated=True)
    repeated = [accepted(A, number, transactions=[Transaction([long], {}, [])]) for number in range(5)]
    assert count_that_fit(repeated, 5000) == 2  # a checked key goes out twice


# Transactions --------------------------------------------------------------------------------------------


def put_if(check, value, key="k"):
    return Transaction([check], {key: value.encode()}, [])


def test_checks_are_decided_by_what_etcd_has_and_by_the_batches_before(etcd, lane):
    lane.write(accepted(A, 1, {"k": "1"}))
    tag = etag(b"1")
    replies = lane.write(
        accepted(A, 2, transactions=[put_if(ABSENT, "no"), put_if(Check("k", [tag], negated=False), "2")]),
        accepted(B, 1, transactions=[put_if(Check("k", [tag], negated=False), "no")]),
    )
    assert lane.data() == {"k": "2"}
    assert replies[A] == Committed(A, [2], {2: Outcomes([], {0: [(0, tag)]})})
    assert replies[B] == Committed(B, [1], {1: Outcomes([], {0: [(0, etag(b"2"))]})})


def test_a_key_that_changes_between_its_check_and_the_transaction_is_checked_again(etcd, lane, monkeypatch):
    others = iter(["other", None])
    send = FakeEtcd.send

    def changing(self, request):
        if request.compare and (value := next(others, None)):
            self.put(lane.layout.data(0) + b"k", value.encode())
        return send(self, request)

    monkeypatch.setattr(FakeEtcd, "send", changing)
    replies = lane.write(accepted(A, 1, {"x": "1"}, transactions=[put_if(ABSENT, "ours")]))
    assert replies[A].outcomes == {1: Outcomes([], {0: [(0, etag(b"other"))]})}
    assert lane.data() == {"k": "other", "x": "1"}


def test_a_late_try_of_an_earlier_attempt_is_found_out_though_its_conditions_hold_again(etcd, lane, monkeypatch):
    """k is absent, then there, then absent: the first attempt may still be applied when the second one is sent."""
    key = lane.layout.data(0) + b"k"
    send = FakeEtcd.send
    etcd.faults.append(Fault.LATE)

    def changing(self, request):
        if request.compare and self.late and key not in self.values:
            self.put(key, b"other")  # so this try does not meet its condition
        elif request.compare and self.late:
            self.delete(key)
            assert self.deliver() == [True]
        return send(self, request)

    monkeypatch.setattr(FakeEtcd, "send", changing)
    replies = lane.write(accepted(A, 1, transactions=[put_if(ABSENT, "ours")]))
    assert replies == {A: Committed(A, [1])}  # what was applied, not what the second attempt would have come to
    assert lane.data() == {"k": "ours"}


def test_an_outcome_is_kept_until_its_worker_has_it_also_for_a_successor(etcd, lane):
    lane.write(accepted(A, 1, {"k": "1"}))
    failed = Outcomes([], {0: [(0, etag(b"1"))]})
    lane.write(accepted(A, 2, transactions=[put_if(ABSENT, "no")]))
    successor = Lane(etcd, owner=b"successor")
    assert successor.table.outcomes_of(A, 2) == {2: failed}
    successor.write(accepted(A, 3, base=2))
    assert successor.table.outcomes_of(A, 2) == {2: failed}
    successor.write(accepted(A, 4, base=4))
    assert successor.table.outcomes == {}


# Tries ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "faults",
    [
        [Fault.ANSWER_LOST],
        [Fault.LOST],
        [Fault.LOST, Fault.ANSWER_LOST],
        [Fault.ANSWER_LOST, Fault.ANSWER_LOST, Fault.LOST],
        [Fault.BUSY],
        [Fault.NO_SPACE_APPLIED],
        [Fault.LATE],
        [Fault.LOST, Fault.NO_SPACE],
        [Fault.LOST, Fault.DENIED],
    ],
    ids=lambda faults: "+".join(each.name.lower() for each in faults),
)
def test_whatever_happens_to_its_tries_a_group_is_applied_once(etcd, lane, faults):
    etcd.faults.extend(faults)
    assert lane.write(accepted(A, 1, {"k": "1"})) == {A: Committed(A, [1])}
    assert lane.write(accepted(A, 2, {"k": "2"})) == {A: Committed(A, [2])}
    assert not any(etcd.deliver())
    assert (lane.data(), list(lane.version("k").values())) == ({"k": "2"}, [2])


def test_a_try_that_is_late_and_one_that_is_in_time_apply_a_group_once(etcd, lane):
    etcd.faults.append(Fault.LATE)
    assert lane.write(accepted(A, 1, {"k": "1"})) == {A: Committed(A, [1])}
    assert etcd.deliver() == [False]
    assert list(lane.version("k").values()) == [1]


@pytest.mark.parametrize(("fault", "reason"), [(Fault.NO_SPACE, Reason.NO_SPACE), (Fault.DENIED, Reason.UNREACHABLE)])
def test_what_is_certainly_not_applied_is_refused_and_the_next_group_is_applied(etcd, lane, fault, reason):
    etcd.faults.append(fault)
    assert lane.write(accepted(A, 1, {"k": "1"})).reason is reason
    assert lane.write(accepted(A, 2, {"k": "2"}, base=2)) == {A: Committed(A, [2])}
    assert (lane.data(), list(lane.version("k").values())) == ({"k": "2"}, [1])


def test_a_group_that_is_too_large_is_refused(etcd, lane):
    checks = [Check(f"key{number}", None, negated=True) for number in range(200)]
    refused = lane.write(accepted(A, 1, transactions=[Transaction(checks, {}, [])]))
    assert isinstance(refused, Refusal)


@pytest.mark.parametrize(
    "faults",
    [[], [Fault.LOST], [Fault.ANSWER_LOST], [Fault.LATE], [Fault.NO_SPACE_APPLIED], [Fault.NO_SPACE]],
    ids=lambda faults: "+".join(each.name.lower() for each in faults) or "none",
)
def test_a_group_that_is_too_large_after_a_try_without_an_answer_is_ruled_out_before_it_is_refused(etcd, lane, faults):
    """`faults` meet the record that is written without it."""
    etcd.faults.extend([Fault.LATE, Fault.TOO_LARGE, *faults])
    assert lane.write(accepted(A, 1, {"k": "1"})).is_too_large
    assert not any(etcd.deliver())
    assert lane.write(accepted(A, 2, {"k": "2"}, base=2)) == {A: Committed(A, [2])}
    assert (lane.data(), list(lane.version("k").values())) == ({"k": "2"}, [1])


def test_a_group_that_is_too_large_but_was_applied_before_is_not_refused(etcd, lane):
    etcd.faults.extend([Fault.ANSWER_LOST, Fault.TOO_LARGE])
    assert lane.write(accepted(A, 1, {"k": "1"})) == {A: Committed(A, [1])}
    assert lane.data() == {"k": "1"}


def test_after_a_clear_by_another_server_a_group_goes_into_the_new_generation(etcd, lane):
    other = Lane(etcd, gateway="other", owner=b"other")
    other.write(accepted(B, 0), accepted(B, 1, clear=True))
    assert lane.write(accepted(A, 1, {"k": "1"})) == {A: Committed(A, [1])}
    assert (lane.generation.value, lane.data()) == (1, {"k": "1"})


# Take-over -----------------------------------------------------------------------------------------------


def test_what_a_predecessor_sent_and_is_late_is_never_applied(etcd, lane):
    etcd.faults.append(Fault.LATE)
    etcd.faults.append(Fault.DENIED)
    lane.writer.link.pause = lambda _: (_ for _ in ()).throw(KeyboardInterrupt)  # it is killed while it tries
    with pytest.raises(KeyboardInterrupt):
        lane.write(accepted(A, 1, {"k": "1"}))
    successor = Lane(etcd, owner=b"successor")
    assert etcd.deliver() == [False]
    assert successor.table.sessions == {A: 0, B: 0}
    assert successor.write(accepted(A, 1, {"k": "1"})) == {A: Committed(A, [1])}
    assert list(successor.version("k").values()) == [1]


def test_what_a_predecessor_has_applied_is_known(etcd, lane):
    lane.write(accepted(A, 1, {"k": "1"}))
    assert Lane(etcd, owner=b"successor").table.sessions == {B: 0, A: 1}


@pytest.mark.parametrize("fault", [Fault.LOST, Fault.ANSWER_LOST, Fault.NO_SPACE, Fault.NO_SPACE_APPLIED])
def test_a_take_over_goes_on_until_the_record_is_ours(etcd, lane, fault):
    etcd.faults.append(fault)
    successor = Lane(etcd, owner=b"successor")
    assert successor.write(accepted(A, 1, {"k": "1"})) == {A: Committed(A, [1])}


def test_who_has_lost_its_lane_answers_nothing(etcd, lane):
    Lane(etcd, owner=b"successor")
    with pytest.raises(Fenced):
        lane.write(accepted(A, 1, {"k": "1"}))
    assert lane.data() == {}


def test_who_finds_no_record_answers_nothing(etcd, lane):
    etcd.delete(lane.layout.record(0))
    with pytest.raises(Fenced):
        lane.write(accepted(A, 1, {"k": "1"}))


# The table -----------------------------------------------------------------------------------------------


def test_a_batch_of_a_session_that_is_not_known_is_dropped_and_writes_nothing(etcd, lane):
    stranger = b"S" * 16
    replies = lane.write(accepted(stranger, 4, {"k": "1"}), accepted(A, 1, {"x": "1"}))
    assert replies == {stranger: Dropped(stranger, 4), A: Committed(A, [1])}
    assert lane.data() == {"x": "1"}


def test_a_batch_that_comes_twice_writes_once(etcd, lane):
    lane.write(accepted(A, 1, {"k": "1"}))
    lane.write(accepted(B, 1, {"k": "2"}))
    assert lane.write(accepted(A, 1, {"k": "1"})) == {A: Committed(A, [1])}
    assert lane.data() == {"k": "2"}


def test_the_session_that_wrote_least_recently_is_dropped():
    table = Table()
    for number in range(SESSIONS_MAX + 1):
        table.admit(accepted(b"%016d" % number, 0).batch)
    assert len(table.sessions) == SESSIONS_MAX
    assert b"%016d" % 0 not in table.sessions


def test_a_record_survives_its_encoding():
    table = Table({A: 3, B: 7}, {B: {7: Outcomes([], {1: [(0, None), (2, etag(b"v"))]})}})
    record = records.decode(table.encoded(b"owner", 12))
    assert (record.owner, record.number) == (b"owner", 12)
    assert Table.of(record).sessions == table.sessions
    assert Table.of(record).outcomes == table.outcomes


# At random -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_random_faults_predecessors_and_clears_never_lose_or_double_a_batch(seed):
    """Two servers; each write of a key has a number of its own, and etcd's version counts how often it was made."""
    random_ = random.Random(seed)
    etcd = FakeEtcd()
    lanes = {name: Lane(etcd, gateway=name, owner=name.encode()) for name in ("one", "two")}
    numbers = dict.fromkeys(lanes, 0)
    written = {}
    for each in lanes.values():
        each.write(accepted(A, 0))
    for step in range(60):
        name = random_.choice(sorted(lanes))
        lane = lanes[name]
        etcd.faults.extend(
            random_.choices([Fault.LOST, Fault.ANSWER_LOST, Fault.LATE, Fault.BUSY], k=random_.randrange(4))
        )
        if random_.random() < 0.1:
            etcd.faults.clear()
            lanes[name] = lane = Lane(etcd, gateway=name, owner=b"%d" % step, generation=lane.generation)
        numbers[name] += 1
        clear = random_.random() < 0.1
        key = f"{name}.{step}"
        assert lane.write(accepted(A, numbers[name], {key: "v"}, clear=clear)) == {A: Committed(A, [numbers[name]])}
        written = {key: 1} if clear else written | {key: 1}
        if random_.random() < 0.3:
            assert not any(etcd.deliver())
    assert not any(etcd.deliver())
    generation = max(each.generation.value for each in lanes.values())
    prefix = Layout("kv", "any").data(generation)
    assert {key[len(prefix) :].decode(): version for key, version in etcd.versions(prefix).items()} == written


def test_a_standing_has_the_record_the_generation_and_the_keys(etcd, lane):
    lane.write(accepted(A, 1, {"k": "1"}))
    request = transactions.look(lane.layout, 0, 0, ["k", "none"], through_log=True)
    found = transactions.standing(etcd.apply(request), ["k", "none"])
    assert (found.revision, found.generation) == (lane.writer.revision, 0)
    assert [found.present[key].tag for key in ("k", "none")] == [etag(b"1"), None]
    assert Verdict.NO_SPACE not in found
