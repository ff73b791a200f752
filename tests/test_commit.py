"""Group commit on real files: what becomes one group, what is seen and answered when, sessions, and a failing disk."""

import errno
import itertools
import os
import queue
import select
import shutil
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from logd.local import checkpoint, recovery
from logd.local.commit import DiskFailed, GroupCommit
from logd.local.disk import Call as DiskCall
from logd.local.disk import Meaning, meaning
from logd.local.frame import HEADER_BYTES
from logd.local.store import SESSIONS_MAX, Store
from logd.local.wal import Wal, segment_name
from logd.shared import protocol
from logd.shared.etag import etag
from logd.shared.protocol import (
    Check,
    Committed,
    Dropped,
    Gap,
    Outcomes,
    Reason,
    Refused,
    Transaction,
    WriteBatch,
)
from tests.support.builders import A, B, C, WatchedDisk, batch, failing, once, operations, read_log
from tests.support.harness import await_true

PATIENCE_SECONDS = 30


def refused(session, *numbers, reason=Reason.NO_SPACE):
    return (session, Refused(session, list(numbers), reason))


def committed(session, *numbers):
    return (session, Committed(session, list(numbers)))


class Engine:
    """One life of a GroupCommit on a directory, with a disk that can be paused, filled and broken."""

    def __init__(self, directory, *, make_wal=Wal, segment_bytes=1 << 20, syncs=True, **options):
        self.directory = directory
        self.disk = WatchedDisk(directory, syncs=syncs)
        recovered = recovery.load(self.disk)
        recovery.make_durable(self.disk, recovered)
        self.wal = make_wal(self.disk, recovered.sequence + 1, segment_bytes)
        self.store = recovered.store
        self.groups_seen = 0
        self.is_quiet = False
        self.commit = GroupCommit(self.disk, self.wal, recovered.store, after_group=self._after_group, **options)
        self._go = threading.Event()

    def _after_group(self):
        self.groups_seen += 1

    def send(self, session, number, *, base=None, **writes):
        """Submit a batch; what is answered at once."""
        made = batch(session, number, base=number if base is None else base, **writes)
        reply = self.commit.submit(protocol.encode(made), made)
        self.commit.commit(is_quiet=self.is_quiet)
        return reply

    def commits(self, session, number, **writes):
        """Submit a batch that is accepted; all replies, until nothing waits for one."""
        assert self.send(session, number, **writes) is None
        return self.settle()

    def open(self, *sessions):
        """Open sessions, each in a group of its own."""
        for session in sessions:
            assert self.send(session, 0) is None
            assert self.settle() == [committed(session, 0)]

    def is_ready(self, seconds=0.0):
        """True when there is something to collect."""
        poll = select.poll()
        poll.register(self.commit, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def collect(self):
        """The replies of the next group to be done."""
        assert self.is_ready(PATIENCE_SECONDS)
        return self.commit.collect()

    def settle(self):
        """All replies, until nothing waits for one."""
        replies = []
        while not self.commit.idle():
            replies += self.collect()
        return replies

    def look_up(self, *keys):
        return [self.store.data.get(key) for key in keys]

    def pause(self, operation="sync"):
        """Stop the sync thread before its next call of this kind; returns a function that waits until it is there."""
        there = threading.Event()

        def before(call):
            if call.operation == operation:
                there.set()
                assert self._go.wait(PATIENCE_SECONDS)
                self.disk.before(call)

        def await_there():
            assert there.wait(PATIENCE_SECONDS)

        self.disk.before = before
        return await_there

    def resume(self, before=lambda _: None):
        """Go on; `before` is asked about the call that was paused, and about all that follow."""
        self.disk.before = before
        self._go.set()

    def stop(self):
        if not self._go.is_set():
            self.resume()
        self.commit.stop()


@pytest.fixture
def start(tmp_path):
    """Starts an engine on the directory of the test; what still runs is stopped."""
    running = []

    def start(**options):
        for old in running:
            old.stop()
        running[:] = [Engine(tmp_path, **options)]
        return running[0]

    yield start
    for last in running:
        last.stop()


@pytest.fixture
def engine(start, request):
    """An engine with sessions A, B and C open. In the main thread it syncs only writes that are alone."""
    engine = start()
    engine.open(A, B, C)
    if getattr(request, "param", "") == "main thread":
        make_quiet(engine)
    return engine


def make_quiet(engine):
    """Nobody but those who write needs the main thread, and syncs were short lately."""
    engine.is_quiet = True
    engine.commit._sync_thread._lately_seconds = 0.0


IN_BOTH_THREADS = pytest.mark.parametrize("engine", ["sync thread", "main thread"], indirect=True)


def groups(engine):
    """What the frames of the log hold: the session and the number of each batch."""
    return [[(each.session, each.number) for each in batches] for batches in read_log(engine.directory).values()]


OPENED = [[(A, 0)], [(B, 0)], [(C, 0)]]

# Groups --------------------------------------------------------------------------------------------------


def test_it_is_readable_while_it_is_kept_awake_and_no_end_of_a_group_is_lost_by_that(start):
    engine = start()
    engine.commit.set_awake(True)
    engine.commit.set_awake(True)
    assert engine.is_ready()
    assert engine.commit.collect() == []
    assert engine.is_ready()
    assert engine.commits(A, 0) == [committed(A, 0)]
    assert engine.send(A, 1) is None
    engine.commit.set_awake(False)
    assert engine.collect() == [committed(A, 1)]
    assert not engine.is_ready()


def test_writes_that_arrive_while_a_sync_runs_become_one_group(engine):
    await_paused = engine.pause()
    assert engine.send(A, 1) is None
    await_paused()
    for session, number in ((B, 1), (A, 2), (C, 1), (A, 3)):
        assert engine.send(session, number) is None
    engine.resume()
    assert engine.collect() == [committed(A, 1)]
    assert engine.collect() == [committed(B, 1), committed(A, 2, 3), committed(C, 1)]
    assert engine.commit.idle()
    assert groups(engine) == [*OPENED, [(A, 1)], [(B, 1), (A, 2), (C, 1), (A, 3)]]


def test_a_group_is_one_append_and_one_sync_and_is_reported_once(engine):
    engine.disk.calls.clear()
    before = engine.groups_seen
    engine.send(A, 1)
    engine.settle()
    assert [call.operation for call in engine.disk.calls] == ["append", "sync"]
    assert engine.groups_seen == before + 1


def test_a_group_is_counted_with_its_batches_and_writes_and_with_what_the_log_grew_by(engine):
    await_paused = engine.pause()
    engine.send(C, 1)
    await_paused()
    engine.send(A, 1, puts={"k": b"a", "a": b"1"}, deletes=["b"])
    engine.send(B, 1, clear=True)
    engine.resume()
    engine.settle()
    counters = engine.commit.counters
    assert (counters.groups, counters.batches) == (3 + 2, 3 + 3)
    assert (counters.group_writes.counts[:3], counters.group_writes.total) == ([4, 0, 1], 4)
    assert (sum(counters.sync_seconds.counts), counters.sync_seconds.total > 0) == (5, True)
    assert counters.appended_bytes == recovery.load(engine.disk).log_bytes - HEADER_BYTES


@pytest.mark.parametrize("operation", ["append", "sync"])
def test_nothing_is_seen_or_answered_before_the_sync_returned(engine, operation):
    engine.send(A, 1, puts={"k": b"old"})
    engine.settle()
    await_paused = engine.pause(operation)
    engine.send(A, 2, puts={"k": b"new", "other": b"x"})
    await_paused()
    assert not engine.is_ready()
    assert engine.commit.collect() == []
    assert not engine.commit.idle()
    assert engine.look_up("k", "other") == [b"old", None]
    engine.resume()
    assert engine.is_ready(PATIENCE_SECONDS)
    assert engine.look_up("k", "other") == [b"old", None]  # applied when it is collected, and answered with it
    assert engine.collect() == [committed(A, 2)]
    assert engine.look_up("k", "other") == [b"new", b"x"]
    assert not engine.is_ready()


def test_batches_are_applied_in_the_order_in_which_they_came(engine):
    await_paused = engine.pause()
    engine.send(C, 1)
    await_paused()
    engine.send(A, 1, puts={"k": b"a", "a": b"1"})
    engine.send(B, 1, clear=True, puts={"k": b"b"})
    engine.send(A, 2, puts={"last": b"a"}, deletes=["nothing"])
    engine.resume()
    engine.settle()
    assert engine.look_up("k", "a", "last") == [b"b", None, b"a"]


def test_a_group_takes_no_more_than_its_bytes(start):
    engine = start(group_bytes_max=2500)
    engine.open(A)
    await_paused = engine.pause()
    engine.send(A, 1)
    await_paused()
    for number in range(2, 7):
        engine.send(A, number, puts={"k": bytes(1000)})
    engine.resume()
    assert engine.settle() == [committed(A, 1), committed(A, 2, 3), committed(A, 4, 5), committed(A, 6)]
    assert groups(engine)[1:] == [[(A, 1)], [(A, 2), (A, 3)], [(A, 4), (A, 5)], [(A, 6)]]


def test_the_record_is_the_message_as_it_was_sent(engine):
    made = batch(A, 1, base=1, puts={"k": b"v"})
    raw = protocol.encode(made).replace(b"\xa1k", b"\xd9\x01k")  # another way to say the same
    assert protocol.decode_request(raw) == made
    engine.commit.submit(raw, made)
    engine.commit.commit()
    engine.settle()
    assert any(raw in path.read_bytes() for path in engine.directory.iterdir())


def test_a_group_in_flight_when_it_stops_is_on_the_disk_and_what_waits_is_not(start, engine):
    await_paused = engine.pause()
    engine.send(A, 1, puts={"k": b"in flight"})
    await_paused()
    engine.send(A, 2, puts={"k": b"waits"})
    after = start()
    assert after.look_up("k") == [b"in flight"]
    assert after.send(A, 1) == Committed(A, [1])
    assert after.send(A, 2) is None


def test_stopping_gives_the_descriptors_back(tmp_path):
    engine = Engine(tmp_path)
    descriptor = engine.commit.fileno()
    engine.stop()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    assert engine.disk.open_files == []


# Sessions ------------------------------------------------------------------------------------------------


def test_only_the_next_number_is_accepted(engine):
    assert engine.send(A, 2, base=1, puts={"k": b"2"}) == Gap(A, 2, 1)
    assert engine.send(A, 1, base=1, puts={"k": b"1"}) is None
    assert engine.send(A, 3, base=1, puts={"k": b"3"}) == Gap(A, 3, 2)  # also while the first is on its way
    assert engine.send(A, 2, base=1, puts={"k": b"2"}) is None
    assert [number for _, reply in engine.settle() for number in reply.numbers] == [1, 2]
    assert engine.look_up("k") == [b"2"]
    assert engine.send(B, 2, base=1) == Gap(B, 2, 1)


def test_a_batch_may_skip_numbers_that_its_base_says_were_answered(engine):
    assert engine.send(A, 5, base=5) is None
    assert engine.settle() == [committed(A, 5)]
    assert engine.send(A, 7, base=6) == Gap(A, 7, 6)


def test_a_repeat_is_answered_as_the_first_was_and_applied_once(start, engine):
    engine.send(A, 1, puts={"k": b"1"})
    engine.send(A, 2, base=1, puts={"k": b"2"})
    engine.settle()
    frames = len(groups(engine))
    for number in (1, 2, 0, 1):
        assert engine.send(A, number, base=1, puts={"k": b"repeated"}) == Committed(A, [number])
    assert engine.commit.idle()
    assert engine.look_up("k") == [b"2"]
    assert len(groups(engine)) == frames
    engine = start()
    assert engine.send(A, 1, base=1, puts={"k": b"repeated"}) == Committed(A, [1])
    assert engine.look_up("k") == [b"2"]


def test_a_repeat_of_a_batch_that_waits_is_answered_once_with_its_group(engine):
    await_paused = engine.pause()
    engine.send(A, 1)
    await_paused()
    engine.send(A, 2, base=1)
    for number in (1, 2, 1, 2):
        assert engine.send(A, number, base=1) is None
    engine.resume()
    assert engine.settle() == [committed(A, 1), committed(A, 2)]
    assert groups(engine) == [*OPENED, [(A, 1)], [(A, 2)]]


def test_an_unknown_session_is_dropped_and_only_batch_0_opens_one(start):
    engine = start()
    assert engine.send(A, 1, puts={"k": b"v"}) == Dropped(A, 1)
    assert engine.send(A, 7, base=7) == Dropped(A, 7)
    assert engine.send(A, 0) is None
    assert engine.settle() == [committed(A, 0)]
    assert engine.send(A, 1, puts={"k": b"v"}) is None
    assert engine.settle() == [committed(A, 1)]


def test_a_session_whose_opening_is_on_its_way_is_opened_once(engine):
    session = b"d" * 16
    await_paused = engine.pause()
    assert engine.send(session, 0) is None
    await_paused()
    assert engine.send(session, 0) is None
    engine.resume()
    assert engine.settle() == [committed(session, 0)]


def other_sessions(count):
    return [b"other" + number.to_bytes(11, "big") for number in range(count)]


def test_a_session_that_made_room_for_others_is_answered_dropped_after_a_restart_too(start):
    engine = start()
    engine.open(A)
    for session in other_sessions(SESSIONS_MAX):
        assert engine.send(session, 0) is None
    engine.settle()
    assert engine.send(A, 1, puts={"k": b"v"}) == Dropped(A, 1)
    assert start().send(A, 1, puts={"k": b"v"}) == Dropped(A, 1)


def test_a_session_that_is_dropped_while_its_batch_waits_is_answered_dropped_and_replay_agrees(start):
    engine = start()
    engine.open(A, B)
    engine.send(B, 1)
    engine.settle()
    await_paused = engine.pause()
    engine.send(B, 2)
    await_paused()
    for session in other_sessions(SESSIONS_MAX - 1):
        assert engine.send(session, 0) is None
    assert engine.send(A, 1, puts={"k": b"v"}) is None
    engine.resume()
    assert (A, Dropped(A, 1)) in engine.settle()
    assert engine.look_up("k") == [None]
    engine = start()
    assert engine.look_up("k") == [None]
    assert engine.send(A, 1) == Dropped(A, 1)
    assert engine.send(B, 3) is None


def test_sessions_that_come_and_go_in_great_number_do_not_disturb_those_that_stay(start):
    engine = start(syncs=False)
    engine.open(A)
    for number, session in enumerate(other_sessions(3 * SESSIONS_MAX)):
        assert engine.send(session, 0) is None
        if number % 500 == 0:
            assert engine.send(A, 1 + number // 500) is None
    engine.settle()
    last = 1 + (3 * SESSIONS_MAX - 1) // 500
    assert engine.send(A, last) == Committed(A, [last])
    assert engine.send(A, last + 1) is None


# A full disk ---------------------------------------------------------------------------------------------


@pytest.fixture
def full(engine):
    """A1 is committed; then the disk is full: A2 was in flight, A3 and B1 waited, and all were refused."""
    engine.send(A, 1, puts={"k": b"before"})
    engine.settle()
    await_paused = engine.pause("append")
    engine.send(A, 2, puts={"k": b"refused"})
    await_paused()
    engine.send(A, 3, base=2, puts={"k": b"refused"})
    engine.send(B, 1, puts={"k": b"refused"})
    assert engine.commit.unavailable_reason() == ""
    engine.disk.room = 10
    engine.resume()
    assert engine.collect() == [refused(A, 2, 3), refused(B, 1)]
    return engine


def test_without_room_the_group_and_all_that_waits_is_refused_and_reads_go_on(start, full):
    assert full.commit.idle()
    assert full.look_up("k") == [b"before"]
    engine = start()
    assert engine.look_up("k") == [b"before"]
    assert groups(engine) == [*OPENED, [(A, 1)]]


def test_a_batch_sent_before_the_refusal_was_known_is_refused_too(full):
    full.disk.room = 10_000
    assert full.send(A, 4, base=2, puts={"k": b"4"}) == Refused(A, [4], Reason.NO_SPACE)
    assert full.send(A, 4, base=3, puts={"k": b"4"}) == Refused(A, [4], Reason.NO_SPACE)
    assert full.send(A, 5, base=4, puts={"k": b"5"}) == Refused(A, [5], Reason.NO_SPACE)
    assert full.send(A, 2, base=2, puts={"k": b"2"}) == Refused(A, [2], Reason.NO_SPACE)
    assert full.look_up("k") == [b"before"]


def test_a_batch_sent_with_the_refusal_known_is_accepted(start, full):
    full.disk.room = 10_000
    assert full.send(A, 4, base=4, puts={"k": b"4"}) is None
    assert full.send(B, 2, base=2) is None
    assert full.send(C, 1) is None
    assert {reply for _, reply in full.settle() for reply in reply.numbers} == {4, 2, 1}
    assert full.look_up("k") == [b"4"]
    assert start().look_up("k") == [b"4"]


def test_a_batch_whose_base_is_not_there_yet_is_a_gap(full):
    full.disk.room = 10_000
    assert full.send(A, 5, base=4) == Gap(A, 5, 4)  # sent without knowing what became of batch 4
    assert full.send(A, 6, base=6) is None


def test_a_restart_forgets_a_refusal_but_never_takes_a_later_batch_first(start, full):
    engine = start()
    assert engine.send(A, 4, base=2) == Gap(A, 4, 2)
    assert engine.send(A, 4, base=4) is None  # its worker knew of the refusals
    assert engine.send(B, 1, base=1) is None  # its worker did not


def test_an_opening_may_be_refused_and_another_session_can_be_opened(engine):
    first, second = b"1" * 16, b"2" * 16
    engine.disk.room = 10
    assert engine.send(first, 0) is None
    assert engine.settle() == [refused(first, 0)]
    assert engine.send(first, 1, base=1) == Dropped(first, 1)
    engine.disk.room = 10_000
    engine.open(second)


def test_it_is_unavailable_until_there_is_room_for_what_was_refused(full):
    assert full.commit.unavailable_reason() == "no space left on device"
    full.disk.room = 30
    assert full.commit.unavailable_reason() == "no space left on device"
    full.disk.room = 10_000
    assert full.commit.unavailable_reason() == ""
    full.send(C, 1)
    full.settle()
    full.disk.room = 0
    assert full.commit.unavailable_reason() == ""  # nothing was refused since


def test_it_stays_unavailable_when_the_directory_is_gone_after_a_refusal(full):
    shutil.rmtree(full.directory)
    assert full.commit.unavailable_reason() == "no space left on device"


def test_a_disk_that_stays_full_refuses_again_and_again_and_then_goes_on(start, full):
    for number in range(4, 8):
        assert full.send(A, number) is None
        assert full.settle() == [refused(A, number)]
    full.disk.room = 10_000
    full.send(A, 8, puts={"k": b"8"})
    assert full.settle() == [committed(A, 8)]
    assert start().look_up("k") == [b"8"]


def test_without_room_for_the_next_segment_writes_are_refused_and_then_go_on(start):
    engine = start(segment_bytes=100)
    engine.open(A)
    engine.send(A, 1, puts={"k": bytes(100)})
    engine.settle()
    engine.disk.room = 20
    for number in (2, 3):
        engine.send(A, number)
        assert engine.settle() == [refused(A, number)]
    engine.disk.room = 10_000
    engine.send(A, 4, puts={"k": b"4"})
    assert engine.settle() == [committed(A, 4)]
    assert start().look_up("k") == [b"4"]


# A limit on the data -------------------------------------------------------------------------------------


def not_made(session, number, *keys):
    """Committed, but for the values of these keys, which would have taken the data beyond its limit."""
    return (session, Committed(session, [number], {number: Outcomes(list(keys), {})}))


@pytest.fixture
def limited(start):
    """A limit of 100 bytes, of which `a` and `b` take 40 each."""
    engine = start(data_bytes_max=100)
    engine.open(A, B)
    assert engine.commits(A, 1, puts={"a": bytes(39), "b": bytes(39)}) == [committed(A, 1)]
    return engine


def test_a_value_that_fits_to_the_byte_is_stored_and_one_byte_more_is_not(limited):
    assert limited.commits(A, 2, puts={"c": bytes(20)}) == [not_made(A, 2, "c")]
    assert limited.look_up("c") == [None]
    assert limited.commits(A, 3, puts={"c": bytes(19)}) == [committed(A, 3)]
    assert limited.look_up("c") == [bytes(19)]


def test_replay_decides_as_it_was_decided_whatever_the_limit_is_now(start, limited):
    limited.commits(A, 2, puts={"c": bytes(20), "d": b"d"})
    for options in ({}, {"data_bytes_max": 1}, {"data_bytes_max": 1000}):
        engine = start(**options)
        assert engine.look_up("a", "b", "c", "d") == [bytes(39), bytes(39), None, b"d"]
        assert engine.send(A, 2, puts={"c": bytes(20), "d": b"d"}) == not_made(A, 2, "c")[1]


def test_beside_values_that_do_not_fit_the_others_are_stored_and_deletes_are_made(limited):
    puts = {"large": bytes(60), "c": bytes(9), "a": bytes(10), "d": bytes(38), "e": bytes(9)}
    assert limited.commits(A, 2, puts=puts, deletes=["b"]) == [not_made(A, 2, "large", "e")]
    assert limited.look_up("large", "c", "a", "d", "e", "b") == [None, bytes(9), bytes(10), bytes(38), None, None]


def test_with_no_room_left_what_does_not_grow_is_accepted(limited):
    limited.commits(A, 2, puts={"c": bytes(19)})
    for number, writes in enumerate(
        ({"puts": {"a": b"x" * 39}}, {"puts": {"b": b"x"}}, {"deletes": ["c", "nothing"]}, {"clear": True}, {}), start=3
    ):
        assert limited.commits(A, number, **writes) == [committed(A, number)]
    limited.open(C)


@pytest.mark.parametrize("writes", [{"deletes": ["a"]}, {"clear": True}, {"puts": {"a": b"x"}}])
def test_room_that_was_made_can_be_filled_by_what_comes_after_it(limited, writes):
    await_paused = limited.pause()
    limited.send(A, 2, **writes)
    await_paused()
    limited.send(B, 1, puts={"c": bytes(40)})
    limited.resume()
    assert limited.settle() == [committed(A, 2), committed(B, 1)]
    assert limited.look_up("c") == [bytes(40)]


def test_what_came_before_counts_although_it_was_not_applied_when_this_came(limited):
    await_paused = limited.pause()
    limited.send(A, 2, puts={"c": bytes(9)})
    await_paused()
    limited.send(B, 1, puts={"d": bytes(9)})
    limited.send(A, 3, base=2, puts={"e": b"x"})
    limited.resume()
    assert limited.settle() == [committed(A, 2), committed(B, 1), not_made(A, 3, "e")]


def test_what_a_full_disk_refused_counts_no_more(limited):
    limited.disk.room = 10
    assert limited.commits(A, 2, puts={"c": bytes(19)}) == [refused(A, 2)]
    limited.disk.room = 10_000
    assert limited.commits(A, 3, puts={"c": bytes(19)}) == [committed(A, 3)]


def test_a_limit_below_what_is_stored_refuses_growth_alone(start, limited):
    engine = start(data_bytes_max=50)
    assert engine.look_up("a") == [bytes(39)]
    assert engine.commits(A, 2, puts={"a": bytes(40), "b": bytes(38)}) == [not_made(A, 2, "a")]
    assert engine.look_up("a", "b") == [bytes(39), bytes(38)]
    assert engine.commits(A, 3, deletes=["b"]) == [committed(A, 3)]
    assert engine.commits(A, 4, puts={"a": bytes(49)}) == [committed(A, 4)]


def test_the_least_limit_takes_no_value_at_all(start):
    engine = start(data_bytes_max=1)
    engine.open(A)
    assert engine.commits(A, 1, puts={"a": b"x"}) == [not_made(A, 1, "a")]
    assert engine.commits(A, 2, clear=True, deletes=["a"]) == [committed(A, 2)]


def test_at_the_limit_a_transaction_is_made_whole_or_not_at_all_by_what_it_grows_in_all(limited):
    fits = Transaction([], {"c": bytes(20), "a": bytes(38)}, [])
    moves = Transaction([], {"c": bytes(58)}, ["a"])
    grows = Transaction([], {"a": b"x", "b": bytes(39)}, [])
    assert limited.commits(A, 2, transactions=[fits, moves]) == [committed(A, 2)]
    assert limited.look_up("a", "b", "c") == [None, bytes(39), bytes(58)]
    replies = limited.commits(A, 3, transactions=[grows])
    assert replies == [(A, Committed(A, [3], {3: Outcomes([], {0: []})}))]
    assert limited.look_up("a", "c") == [None, bytes(58)]


# Transactions --------------------------------------------------------------------------------------------


def set_if(key, before, after):
    """Replace a value by another, if it is as expected; None for no value."""
    check = Check(key, None, negated=True) if before is None else Check(key, [etag(before)], negated=False)
    return Transaction([check], {key: after}, [])


def test_transactions_of_one_group_see_what_is_before_them_in_the_log_and_each_has_its_outcome(start):
    engine = start()
    engine.open(A, B)
    await_paused = engine.pause()
    engine.send(A, 1, puts={"k": b"0"})
    await_paused()
    engine.send(A, 2, base=1, transactions=[set_if("k", b"0", b"1"), set_if("k", b"0", b"2")])
    engine.send(B, 1, puts={"other": b"x"}, transactions=[set_if("k", b"1", b"3"), set_if("k", None, b"4")])
    engine.resume()
    failed = {2: Outcomes([], {1: [(0, etag(b"1"))]})}, {1: Outcomes([], {1: [(0, etag(b"3"))]})}
    assert engine.settle() == [committed(A, 1), (A, Committed(A, [2], failed[0])), (B, Committed(B, [1], failed[1]))]
    assert engine.look_up("k", "other") == [b"3", b"x"]


def test_an_outcome_is_not_known_before_its_sync_and_never_when_that_fails(start):
    engine = start()
    engine.open(A)
    engine.commits(A, 1, puts={"k": b"0"})
    await_paused = engine.pause()
    engine.send(A, 2, transactions=[set_if("k", None, b"1")])
    await_paused()
    assert not engine.is_ready()
    engine.resume(failing("sync"))
    with pytest.raises(DiskFailed):
        engine.collect()


@pytest.mark.parametrize("seals", [False, True])
def test_a_repeat_after_a_restart_gets_the_outcome_that_was_decided_also_from_a_snapshot(start, seals):
    engine = start()
    engine.open(A, B)
    engine.commits(A, 1, transactions=[set_if("k", None, b"1")])
    lost = engine.commits(A, 2, base=1, transactions=[set_if("k", None, b"2")])
    engine.commits(B, 1, puts={"k": b"changed since"})
    for _ in range(2):
        sequence = engine.wal.last_sequence
        engine = start()
        if seals:
            checkpoint.make(engine.disk, sequence)
        assert engine.send(A, 1, transactions=[set_if("k", None, b"1")]) == Committed(A, [1])
        assert [(A, engine.send(A, 2, base=1, transactions=[set_if("k", None, b"2")]))] == lost
    assert lost == [(A, Committed(A, [2], {2: Outcomes([], {0: [(0, etag(b"1"))]})}))]
    assert engine.look_up("k") == [b"changed since"]


# Writes that are alone -----------------------------------------------------------------------------------


def syncs_here(engine):
    """Notes of each sync whether the thread of the test makes it."""
    here, main = [], threading.current_thread()

    def before(call):
        if call.operation == "sync":
            here.append(threading.current_thread() is main)

    engine.disk.before = before
    return here


FEW, MORE = ({f"k{number}": b"v" for number in range(count)} for count in (4, 5))


def test_a_few_writes_that_are_alone_are_durable_at_once_and_answered_as_any_others(engine):
    make_quiet(engine)
    here = syncs_here(engine)
    assert engine.send(A, 1, puts=FEW) is None
    assert here == [True]
    assert engine.is_ready()
    assert engine.look_up("k0") == [None]  # applied when it is collected, and answered with it
    assert groups(engine) == [*OPENED, [(A, 1)]]
    assert engine.collect() == [committed(A, 1)]
    assert engine.look_up("k0") == [b"v"]
    assert not engine.is_ready()
    assert engine.commit.counters.groups == 3 + 1


def test_what_is_not_alone_or_more_than_a_few_writes_is_synced_by_the_sync_thread(engine):
    make_quiet(engine)
    here = syncs_here(engine)
    engine.is_quiet = False
    engine.commits(A, 1, puts=FEW)
    engine.is_quiet = True
    engine.commits(A, 2, puts=MORE)
    assert here == [False, False]


def test_after_a_slow_sync_the_main_thread_syncs_again_only_when_many_were_short(start):
    engine = start(syncs=False)
    engine.open(A)
    make_quiet(engine)
    here = syncs_here(engine)
    engine.commit._sync_thread._lately_seconds = 1.0
    for number in range(1, 10_000):
        engine.commits(A, number)
        if here[-1]:
            break
    assert here[-1]
    assert len(here) > 60


def test_a_segment_is_begun_by_the_sync_thread(start):
    engine = start(segment_bytes=100)
    engine.open(A)
    make_quiet(engine)
    here = syncs_here(engine)
    engine.commits(A, 1, puts={"k": b"v" * 100})
    assert here == [True]
    here.clear()
    engine.commits(A, 2)
    assert len(here) > 1
    assert not any(here)


# A sync that reports no room -----------------------------------------------------------------------------

NO_ROOM = pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG], ids=errno.errorcode.get)


@IN_BOTH_THREADS
@NO_ROOM
def test_a_sync_without_room_refuses_the_group_once_the_log_was_written_anew_without_it(start, engine, error):
    engine.send(A, 1, puts={"k": b"before"})
    engine.settle()
    engine.disk.before = once(failing("sync", error))
    engine.disk.calls.clear()
    assert engine.send(A, 2, puts={"k": b"refused"}) is None
    assert engine.settle() == [refused(A, 2)]
    name = f"{segment_name(1)}.tmp"
    rewritten = [f"create {name}", f"append {name}", f"sync {name}", f"rename {name} {segment_name(1)}"]
    assert operations(engine.disk.calls)[1:] == [*rewritten, "sync_directory"]
    assert groups(engine) == [*OPENED, [(A, 1)]]
    assert engine.commit.unavailable_reason() == ""
    assert engine.send(A, 3, base=3, puts={"k": b"after"}) is None
    assert engine.settle() == [committed(A, 3)]
    assert start().look_up("k") == [b"after"]


@IN_BOTH_THREADS
@NO_ROOM
@pytest.mark.parametrize("operation", ["create", "append", "sync", "rename", "sync_directory"])
def test_nothing_is_answered_while_the_log_cannot_be_written_anew_and_reads_go_on(engine, error, operation):
    engine.send(A, 1, puts={"k": b"before"})
    engine.settle()
    fail_first, fail_again = once(failing("sync", error)), failing(operation, error)

    def before(call):
        if engine.commit.unavailable_reason():
            fail_again(call)
        else:
            fail_first(call)

    engine.disk.before = before
    assert engine.send(A, 2, puts={"k": b"refused"}) is None
    await_true(lambda: engine.commit.unavailable_reason() == "no space left on device")
    assert engine.send(B, 1, puts={"k": b"waits"}) is None
    assert not engine.is_ready()
    assert engine.look_up("k") == [b"before"]
    assert engine.commit.idle()  # a server that is to stop does not wait for room
    engine.disk.before = lambda _: None
    assert engine.collect() == [refused(A, 2), refused(B, 1)]
    assert groups(engine) == [*OPENED, [(A, 1)]]


@IN_BOTH_THREADS
def test_it_can_be_stopped_while_the_log_cannot_be_written_anew(start, engine):
    engine.resume(failing("sync", errno.ENOSPC))
    engine.send(A, 1, puts={"k": b"in doubt"})
    await_true(lambda: engine.commit.unavailable_reason() != "")
    after = start()
    known = after.look_up("k") == [b"in doubt"]
    assert after.send(A, 1) == (Committed(A, [1]) if known else None)


@IN_BOTH_THREADS
def test_a_write_that_cannot_be_cut_off_for_lack_of_room_is_in_doubt_too(engine):
    engine.disk.before = once(failing("truncate", errno.ENOSPC))
    engine.disk.room = 10
    engine.send(A, 1)
    await_true(lambda: engine.commit.unavailable_reason() != "")
    engine.disk.room = 10_000
    assert engine.collect() == [refused(A, 1)]
    assert groups(engine) == OPENED


@pytest.mark.parametrize("error", [errno.EFBIG, errno.ENOMEM, errno.EMFILE, errno.ENFILE, MemoryError()], ids=repr)
def test_a_write_that_the_system_refuses_is_refused_for_what_is_wanting_and_the_next_goes_on(engine, error):
    engine.disk.before = once(failing("append", error))
    engine.send(A, 1)
    assert engine.settle() == [refused(A, 1, reason=Reason.NO_SPACE if error == errno.EFBIG else Reason.SCARCE)]
    assert engine.commit.unavailable_reason() == ""
    engine.send(A, 2, base=2)
    assert engine.settle() == [committed(A, 2)]


@pytest.mark.parametrize("is_quiet", [False, True], ids=["in the thread", "alone"])
def test_a_sync_that_is_short_of_memory_says_nothing_of_the_group_and_ends_this_logd(engine, is_quiet):
    engine.commits(A, 1)
    engine.is_quiet = is_quiet
    engine.disk.before = once(failing("sync", MemoryError()))
    engine.send(A, 2, base=2)
    with pytest.raises(DiskFailed):
        engine.settle()


def test_every_error_of_every_call_has_a_meaning():
    known = {
        (call, number): Meaning.REFUSED if call is DiskCall.WRITE else Meaning.IN_DOUBT
        for call in DiskCall
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
    }
    for call, number in itertools.product(DiskCall, errno.errorcode):
        assert meaning(call, OSError(number, "")) is known.get((call, number), Meaning.FAILED)
    assert meaning(DiskCall.WRITE, OSError("without a number")) is Meaning.FAILED


# A full disk that can be helped --------------------------------------------------------------------------


class Room:
    """Makes room as it is told to, and writes down what was asked of it."""

    def __init__(self, checkpoint, ballast):
        self.disk = None
        self.asked = []
        self._checkpoint, self._ballast = checkpoint, ballast

    def checkpoint(self):
        self.asked.append("checkpoint")
        self.disk.room += self._checkpoint
        return self._checkpoint > 0

    def release_ballast(self):
        self.asked.append("ballast")
        self.disk.room += self._ballast
        return self._ballast > 0


@pytest.mark.parametrize(
    "case",
    [
        (5000, 0, {"puts": {"k": b"v"}}, True, ["checkpoint"]),
        (5000, 0, {"deletes": ["k"]}, True, ["checkpoint"]),
        (5, 5000, {"puts": {"k": b"v"}}, False, ["checkpoint"]),
        (0, 5000, {"puts": {"k": b"v"}}, False, ["checkpoint"]),
        (0, 5000, {"deletes": ["k"]}, True, ["checkpoint", "ballast"]),
        (5, 5000, {"clear": True}, True, ["checkpoint", "ballast"]),
        (0, 0, {"deletes": ["k"]}, False, ["checkpoint", "ballast"]),
    ],
)
def test_before_a_write_is_refused_a_checkpoint_makes_room_and_the_ballast_is_for_what_frees(start, case):
    checkpoint, ballast, writes, is_written, asked = case
    room = Room(checkpoint, ballast)
    engine = start(room=room)
    engine.open(A)
    room.disk = engine.disk
    engine.disk.room = 10
    engine.send(A, 1, **writes)
    assert engine.settle() == [committed(A, 1) if is_written else refused(A, 1)]
    assert room.asked == asked


# A disk that fails ---------------------------------------------------------------------------------------

FAILURES = {
    "a failed sync": failing("sync"),
    "a failed write": failing("append"),
    "an unexpected exception": failing("sync", RuntimeError("a mistake")),
    "an unexpected exception in a write": failing("append", ZeroDivisionError("a mistake")),
}


@pytest.mark.parametrize("failure", [pytest.param(failure, id=name) for name, failure in FAILURES.items()])
def test_after_a_failure_nothing_of_the_group_is_seen_or_answered(engine, failure):
    await_paused = engine.pause("append")
    engine.send(A, 1, puts={"k": b"lost"})
    await_paused()
    engine.send(B, 1, puts={"k": b"waits"})
    engine.resume(failure)
    with pytest.raises(DiskFailed) as caught:
        engine.collect()
    assert str(caught.value) == str(caught.value.__cause__)
    assert engine.look_up("k") == [None]
    assert not engine.is_ready()  # what waited was not begun
    assert groups(engine)[3:] in ([], [[(A, 1)]])


@IN_BOTH_THREADS
def test_when_a_torn_write_cannot_be_cut_off_it_is_a_failure(engine):
    engine.disk.before = failing("truncate")
    engine.disk.room = 10
    engine.send(A, 1)
    with pytest.raises(DiskFailed, match="Input/output error"):
        engine.collect()


@IN_BOTH_THREADS
def test_after_a_failure_the_next_life_answers_a_repeat_by_what_it_finds(start, engine):
    engine.disk.before = failing("sync")
    engine.send(A, 1, puts={"k": b"v"})
    with pytest.raises(DiskFailed):
        engine.collect()
    engine = start()
    known = engine.look_up("k") == [b"v"]
    assert engine.send(A, 1, puts={"k": b"v"}) == (Committed(A, [1]) if known else None)
    engine.settle()
    assert engine.look_up("k") == [b"v"]


# Anything, in any order ----------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """How an append ends: with all written; refused for lack of space; or cut short, and the process with it."""

    room: float
    error: int = 0


WRITTEN, FULL, TORN = Outcome(float("inf")), Outcome(10, errno.ENOSPC), Outcome(10, errno.EIO)


class Worker:
    """What a worker knows of its session. Encodes a batch once, and remembers it until it is answered."""

    def __init__(self, number):
        self.name = number
        self.lives = 0
        self.begin()

    def begin(self):
        self.lives += 1
        self.session = b"%d/%06d" % (self.name, self.lives) + bytes(8)
        self.next = 0
        self.is_open = False
        self.unanswered: dict[int, WriteBatch] = {}

    def make(self, **writes):
        base = min(self.unanswered, default=self.next)
        made = batch(self.session, self.next, base=base, **(writes if self.next else {}))
        self.unanswered[self.next] = made
        self.next += 1
        return made


KEYS = ["x", "y", "z"]


class Sessions(RuleBasedStateMachine):
    """Workers that send, repeat, lose messages and answers; a disk that fills; a process that dies at any moment.

    The model: a list of batches that are applied, once each and in order. Acknowledged batches are in it, refused ones
    are not, and what is looked up is what one gets by applying it from the beginning.
    """

    def __init__(self):
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.workers = [Worker(number) for number in range(3)]
        self.token = 0
        self.applied = []
        self.in_flight = []
        self.waiting = []
        self.acknowledged = set()
        self.refused = set()
        self.start()

    def start(self):
        self.outcomes = queue.SimpleQueue()
        machine = self

        class HeldWal(Wal):
            def append(self, batches):
                self._disk.room, self._disk.full = machine.outcomes.get(timeout=PATIENCE_SECONDS)
                return super().append(batches)

        self.engine = Engine(Path(self.directory.name), make_wal=HeldWal, segment_bytes=300, syncs=False)

    def stop(self, outcome=WRITTEN):
        self.outcomes.put(outcome)
        self.engine.stop()

    def teardown(self):
        self.stop()
        self.directory.cleanup()

    # What workers do

    @rule(at=st.integers(0, 2), key=st.sampled_from(KEYS), clear=st.booleans(), arrives=st.booleans())
    def send(self, at, key, clear, arrives):
        worker = self.workers[at]
        if not worker.is_open and worker.unanswered:
            return
        self.token += 1
        made = worker.make(clear=clear, puts={key: b"%d" % self.token}, deletes=[KEYS[self.token % 3] + "'"])
        if arrives:
            self.deliver(worker, made, True)

    @rule(at=st.integers(0, 2), which=st.integers(0, 5), hears=st.booleans())
    def repeat(self, at, which, hears):
        worker = self.workers[at]
        if made := list(worker.unanswered.values())[which : which + 1]:
            self.deliver(worker, made[0], hears)

    @rule(at=st.integers(0, 2))
    def repeat_all(self, at):
        for made in list(self.workers[at].unanswered.values()):
            if made.number in self.workers[at].unanswered:
                self.deliver(self.workers[at], made, True)

    def deliver(self, worker, made, hears):
        reply = self.engine.commit.submit(protocol.encode(made), made)
        self.engine.commit.commit()
        known = made in self.in_flight or made in self.waiting
        if reply is None:
            assert made not in self.applied
            if not known:
                (self.waiting if self.in_flight else self.in_flight).append(made)
            return
        assert not known
        assert isinstance(reply, Committed) == (made in self.applied)
        if hears:
            self.hear(worker, reply)

    def hear(self, worker, reply):
        if isinstance(reply, Committed):
            for number in reply.numbers:
                if made := worker.unanswered.pop(number, None):
                    self.acknowledged.add((made.session, number))
            worker.is_open = True
        elif isinstance(reply, Refused):
            for number in reply.numbers:
                self.give_up(worker, number)
            if 0 in reply.numbers:
                worker.begin()
        else:
            assert isinstance(reply, Gap)
            assert reply.number in worker.unanswered
            if reply.expected not in worker.unanswered:
                self.give_up(worker, reply.number)

    def give_up(self, worker, number):
        if worker.unanswered.pop(number, None):
            self.refused.add((worker.session, number))

    # What becomes of groups

    @precondition(lambda self: self.in_flight)
    @rule(hears=st.booleans(), is_full=st.sampled_from([False, False, True]))
    def finish(self, hears, is_full):
        assert not self.engine.commit.idle()
        self.outcomes.put(FULL if is_full else WRITTEN)
        replies = self.engine.collect()
        done, self.in_flight, self.waiting = self.in_flight, self.waiting, []
        if is_full:
            done, self.in_flight = done + self.in_flight, []
        else:
            self.applied += done
        kind = Refused if is_full else Committed
        assert all(isinstance(reply, kind) and reply.session == session for session, reply in replies)
        answered = [(session, number) for session, reply in replies for number in reply.numbers]
        assert len(answered) == len(set(answered))
        assert set(answered) == {(made.session, made.number) for made in done}
        if hears:
            for session, reply in replies:
                self.hear(next(worker for worker in self.workers if worker.session == session), reply)

    @rule(outcome=st.sampled_from([WRITTEN, FULL, TORN]))
    def restart(self, outcome):
        self.stop(outcome)
        if outcome is WRITTEN:
            self.applied += self.in_flight
        self.in_flight, self.waiting = [], []
        self.start()

    # What holds at all times

    @invariant()
    def what_is_seen_is_what_was_applied(self):
        model = Store()
        for made in self.applied:
            assert model.apply(made)
        keys = [*KEYS, *(key + "'" for key in KEYS)]
        assert self.engine.look_up(*keys) == [model.data.get(key) for key in keys]

    @invariant()
    def each_is_applied_once_and_in_order_and_as_it_was_answered(self):
        applied = [(made.session, made.number) for made in self.applied]
        assert len(applied) == len(set(applied))
        assert self.acknowledged <= set(applied)
        assert not self.refused & set(applied)
        for worker in self.workers:
            numbers = [number for session, number in applied if session == worker.session]
            assert numbers == sorted(numbers)


TestSessions = Sessions.TestCase
TestSessions.settings = settings(
    max_examples=80,
    stateful_step_count=40,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow],
)
