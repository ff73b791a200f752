"""The memory in which all workers count: slots are taken, released and taken over, and no count is lost."""

import contextlib
import os
import subprocess
import sys

import pytest

from kv import scoreboard
from kv.scoreboard import BOUNDS_SECONDS, GAUGES, OTHER, Role, Scoreboard
from tests.support.harness import ROOT

STARTS = """
import sys
from kv.scoreboard import GAUGES, Scoreboard
slot = Scoreboard(int(sys.argv[1])).take_slot()
"""
DIES = f"""{STARTS}
slot.serve()
slot.answered("PUT", 200, 0.3)
slot.show(dict.fromkeys((gauge.name for gauge in GAUGES), 7))
"""
STOPS = DIES + "slot.release()\n"
NAMES = [gauge.name for gauge in GAUGES]


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


def test_requests_are_counted_by_method_and_status_and_unknown_ones_as_other():
    board = Scoreboard()
    slot = board.take_slot()
    for method, status in (("GET", 200), ("GET", 200), ("GET", 404), ("BREW", 418), ("BREW", 405), ("PUT", 299)):
        slot.answered(method, status, 0.0)
    slot.refused(OTHER, 400)
    slot.refused("PUT", 408)
    assert answered(board.totals()) == {
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
    board = Scoreboard()
    board.take_slot().answered("GET", 200, seconds)
    requests = board.totals().requests["GET", 200]
    assert [n for n, count in enumerate(requests.buckets) if count] == [bucket]
    assert (requests.answered, requests.seconds) == (1, seconds)


def test_a_refused_request_has_no_duration():
    board = Scoreboard()
    board.take_slot().refused("PUT", 408)
    requests = board.totals().requests["PUT", 408]
    assert (requests.answered, sum(requests.buckets), requests.seconds) == (1, 0, 0.0)


def test_every_start_after_the_first_is_a_restart(fd):
    board = Scoreboard(fd)
    assert (board.restarts(Role.LOGD), board.started_at(Role.LOGD)) == (0, 0.0)
    for starts in range(3):
        board.started(Role.LOGD, pid=7)
        assert Scoreboard(fd).restarts(Role.LOGD) == starts
    assert Scoreboard(fd).started_at(Role.LOGD) > 0
    assert Scoreboard(fd).restarts(Role.GUNICORN) == 0


def told(board, role):
    return next(each for each in board.processes() if each.role == role)


def test_a_process_is_told_from_its_start_to_its_end_and_so_is_the_next_one(fd):
    board, reader = Scoreboard(fd), Scoreboard(fd)
    assert told(reader, "logd") == scoreboard.Process("logd", None, 0, None, None, None, 0)
    board.started(Role.LOGD, os.getpid())
    started = told(reader, "logd")
    assert (started.pid, started.ready_at, started.ended_at) == (os.getpid(), None, None)
    board.ready(Role.LOGD)
    assert told(reader, "logd").ready_at >= started.started_at
    board.ended(Role.LOGD)
    ended = told(reader, "logd")
    assert (ended.pid, ended.ready_at, ended.resident_bytes) == (None, None, 0)
    board.started(Role.LOGD, os.getpid())
    again = told(reader, "logd")
    assert (again.pid, again.restarts, again.ready_at) == (os.getpid(), 1, None)
    assert started.started_at <= again.ended_at <= again.started_at


def test_a_worker_is_told_while_it_lives(fd):
    run(DIES, fd)
    assert "worker" not in [each.role for each in Scoreboard(fd).processes()]
    board = Scoreboard(fd)
    slot = board.take_slot()
    assert (told(board, "worker").pid, told(board, "worker").ready_at) == (os.getpid(), None)
    slot.serve()
    worker = told(board, "worker")
    assert worker.started_at <= worker.ready_at
    assert (worker.restarts, worker.ended_at) == (1, None)
    assert worker.resident_bytes > 0


# Slots ---------------------------------------------------------------------------------------------------


def test_all_workers_are_seen_together_from_each_of_them(fd):
    one, other = Scoreboard(fd), Scoreboard(fd)
    for slot in (one.take_slot(), other.take_slot()):
        slot.answered("GET", 200, 0.1)
        slot.show({name: number for number, name in enumerate(NAMES, 1)})
    for totals in (one.totals(), other.totals(), Scoreboard(fd).totals()):
        assert answered(totals) == {("GET", 200): 2}
        assert totals.workers == 2
        assert totals.gauges == {name: 2 * number for number, name in enumerate(NAMES, 1)}
        assert totals.resident_bytes > 0
        assert totals.cpu_seconds > 0


@pytest.mark.parametrize("end", [DIES, STOPS], ids=["dies", "stops"])
def test_counters_outlive_a_worker_and_gauges_do_not(fd, end):
    run(end, fd)
    totals = Scoreboard(fd).totals()
    assert answered(totals) == {("PUT", 200): 1}
    assert totals.cpu_seconds > 0
    assert (totals.workers, totals.resident_bytes) == (0, 0)
    assert totals.gauges == dict.fromkeys(NAMES, 0)


def test_the_successor_of_a_dead_worker_goes_on_from_its_counts_and_is_a_restart(fd):
    run(DIES, fd)
    before = Scoreboard(fd).totals()
    successor = Scoreboard(fd).take_slot()
    after = Scoreboard(fd).totals()
    assert (before.worker_restarts, after.worker_restarts) == (0, 1)
    assert after.cpu_seconds > before.cpu_seconds
    assert (after.workers, after.gauges) == (1, dict.fromkeys(NAMES, 0))
    successor.answered("PUT", 200, 0.1)
    assert answered(Scoreboard(fd).totals()) == {("PUT", 200): 2}


def test_the_successor_of_a_worker_that_stopped_is_no_restart(fd):
    for _ in range(3):
        run(STOPS, fd)
    totals = Scoreboard(fd).totals()
    assert (answered(totals), totals.worker_restarts) == ({("PUT", 200): 3}, 0)


def test_the_successor_of_a_worker_that_ended_while_it_started_is_no_restart(fd):
    run(DIES, fd)
    for _ in range(3):
        run(STARTS, fd)
    Scoreboard(fd).take_slot()
    assert Scoreboard(fd).totals().worker_restarts == 1


def test_the_slot_of_a_dead_worker_is_taken_before_one_that_was_released(fd):
    run(STOPS, fd)
    holder = Scoreboard(fd).take_slot()
    run(DIES, fd)
    holder.release()
    Scoreboard(fd).take_slot()
    assert Scoreboard(fd).totals().worker_restarts == 1


def test_a_worker_without_a_slot_serves_and_is_not_counted(fd):
    board = Scoreboard(fd)
    slots = [board.take_slot() for _ in board._slots]
    board.take_slot().answered("GET", 200, 0.1)
    totals = board.totals()
    assert (answered(totals), totals.workers) == ({}, len(slots))


def test_there_are_slots_for_a_reload_during_a_reload():
    with contextlib.closing(open(scoreboard.make(workers=16), "rb")) as file:
        assert len(Scoreboard(file.fileno())._slots) >= 4 * 16


def test_the_scoreboard_of_other_code_is_left_alone(fd, monkeypatch):
    mine = Scoreboard(fd).take_slot()
    monkeypatch.setattr(scoreboard, "_LAYOUT", scoreboard._LAYOUT + 1)
    other = Scoreboard(fd)
    other.take_slot().answered("GET", 200, 0.1)
    assert answered(other.totals()) == {("GET", 200): 1}
    monkeypatch.undo()
    mine.answered("GET", 404, 0.1)
    assert answered(Scoreboard(fd).totals()) == {("GET", 404): 1}
