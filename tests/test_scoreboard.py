"""The memory in which all workers count: slots are taken, left and given back, and what was counted stays."""

import contextlib
import os
import subprocess
import sys

import pytest

from kv import scoreboard
from kv.scoreboard import BOUNDS_SECONDS, OTHER, Board, Role
from tests.support.harness import ROOT

DIES = """
import sys
from kv.scoreboard import Board
slot = Board(int(sys.argv[1])).take_slot()
slot.answered("PUT", 200, 0.3)
slot.measure(connections=7, in_flight=5, unsent_bytes=11)
slot.queued(writes=3, size=1000)
slot.large(size=70000, waiting=1)
"""
STOPS = DIES + "slot.give_back()\n"


@pytest.fixture
def fd():
    made = scoreboard.make(workers=1)
    yield made
    os.close(made)


def run(code, fd):
    """A worker that lives for a moment."""
    subprocess.run([sys.executable, "-c", code, str(fd)], cwd=ROOT, pass_fds=(fd,), check=True)


def answered(totals):
    return {key: each.answered for key, each in totals.requests.items() if each.answered}


# Counting ------------------------------------------------------------------------------------------------


def test_requests_are_counted_by_method_and_status_and_the_rest_is_other():
    counted = Board()
    slot = counted.take_slot()
    for method, status in (("GET", 200), ("GET", 200), ("GET", 404), ("BREW", 418), ("BREW", 405), ("PUT", 299)):
        slot.answered(method, status, 0.0)
    slot.refused(OTHER, 400)
    slot.refused("PUT", 408)
    assert answered(counted.totals()) == {
        ("GET", 200): 2,
        ("GET", 404): 1,
        (OTHER, OTHER): 1,
        (OTHER, 405): 1,
        ("PUT", OTHER): 1,
        (OTHER, 400): 1,
        ("PUT", 408): 1,
    }


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(0.0, 0), *((bound, n) for n, bound in enumerate(BOUNDS_SECONDS)), (0.2, 10), (10.1, 16), (1e9, 16)],
)
def test_a_request_is_in_the_bucket_of_the_first_bound_that_it_does_not_exceed(seconds, bucket):
    counted = Board()
    counted.take_slot().answered("GET", 200, seconds)
    requests = counted.totals().requests["GET", 200]
    assert [n for n, count in enumerate(requests.buckets) if count] == [bucket]
    assert (requests.answered, requests.seconds) == (1, seconds)


def test_what_was_refused_has_no_duration():
    counted = Board()
    counted.take_slot().refused("PUT", 408)
    requests = counted.totals().requests["PUT", 408]
    assert (requests.answered, sum(requests.buckets), requests.seconds) == (1, 0, 0.0)


def test_a_restart_is_each_start_but_the_first(fd):
    counted = Board(fd)
    assert (counted.restarts(Role.LOGD), counted.started_at(Role.LOGD)) == (0, 0.0)
    for starts in range(3):
        counted.started(Role.LOGD)
        assert Board(fd).restarts(Role.LOGD) == starts
    assert Board(fd).started_at(Role.LOGD) > 0
    assert Board(fd).restarts(Role.GUNICORN) == 0


# Slots ---------------------------------------------------------------------------------------------------


def test_all_workers_are_seen_together_from_each_of_them(fd):
    one, other = Board(fd), Board(fd)
    for slot in (one.take_slot(), other.take_slot()):
        slot.answered("GET", 200, 0.1)
        slot.measure(connections=2, in_flight=1, unsent_bytes=5)
        slot.queued(writes=4, size=100)
        slot.large(size=70, waiting=3)
    for totals in (one.totals(), other.totals(), Board(fd).totals()):
        assert answered(totals) == {("GET", 200): 2}
        assert (totals.workers, totals.connections, totals.in_flight) == (2, 4, 2)
        assert (totals.queued_writes, totals.queued_bytes, totals.unsent_bytes) == (8, 200, 10)
        assert (totals.large_bytes, totals.large_reads_waiting) == (140, 6)
        assert totals.resident_bytes > 0
        assert totals.cpu_seconds > 0


@pytest.mark.parametrize("end", [DIES, STOPS], ids=["dies", "stops"])
def test_what_a_worker_has_counted_outlives_it_and_what_it_had_in_hand_does_not(fd, end):
    run(end, fd)
    totals = Board(fd).totals()
    assert answered(totals) == {("PUT", 200): 1}
    assert totals.cpu_seconds > 0
    assert (totals.workers, totals.connections, totals.in_flight, totals.queued_writes) == (0, 0, 0, 0)
    assert (totals.queued_bytes, totals.unsent_bytes, totals.resident_bytes) == (0, 0, 0)
    assert (totals.large_bytes, totals.large_reads_waiting) == (0, 0)


def test_the_successor_of_a_dead_worker_goes_on_from_there_and_counts_as_a_restart(fd):
    run(DIES, fd)
    before = Board(fd).totals()
    successor = Board(fd).take_slot()
    after = Board(fd).totals()
    assert (before.worker_restarts, after.worker_restarts) == (0, 1)
    assert after.cpu_seconds > before.cpu_seconds
    assert (after.workers, after.connections, after.queued_writes) == (1, 0, 0)
    successor.answered("PUT", 200, 0.1)
    assert answered(Board(fd).totals()) == {("PUT", 200): 2}


def test_a_worker_that_has_stopped_is_followed_without_a_restart(fd):
    for _ in range(3):
        run(STOPS, fd)
    totals = Board(fd).totals()
    assert (answered(totals), totals.worker_restarts) == ({("PUT", 200): 3}, 0)


def test_what_the_dead_have_left_is_taken_before_what_was_given_back(fd):
    run(STOPS, fd)
    holder = Board(fd).take_slot()
    run(DIES, fd)
    holder.give_back()
    Board(fd).take_slot()
    assert Board(fd).totals().worker_restarts == 1


def test_with_no_slot_left_a_worker_serves_and_is_not_seen(fd):
    counted = Board(fd)
    slots = [counted.take_slot() for _ in counted._slots]
    counted.take_slot().answered("GET", 200, 0.1)
    totals = counted.totals()
    assert (answered(totals), totals.workers) == ({}, len(slots))


def test_there_is_room_for_a_reload_while_the_last_one_is_still_under_way():
    with contextlib.closing(open(scoreboard.make(workers=16), "rb")) as file:
        assert len(Board(file.fileno())._slots) >= 4 * 16


def test_a_board_of_other_code_is_left_alone(fd, monkeypatch):
    mine = Board(fd).take_slot()
    monkeypatch.setattr(scoreboard, "_SLOT_WORDS", scoreboard._SLOT_WORDS + 1)
    other = Board(fd)
    other.take_slot().answered("GET", 200, 0.1)
    assert answered(other.totals()) == {("GET", 200): 1}
    monkeypatch.undo()
    mine.answered("GET", 404, 0.1)
    assert answered(Board(fd).totals()) == {("GET", 404): 1}
