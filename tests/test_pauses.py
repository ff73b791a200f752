"""Pauses of the whole process or group, and single workers that are frozen: what is told apart, and how."""

import contextlib
import signal
import subprocess
import sys

import pytest

from kv import scoreboard
from kv.heartbeats import Heartbeats
from kv.pauses import Pauses
from kv.scoreboard import Scoreboard
from tests.support.harness import ROOT, await_true

# Deadlines -----------------------------------------------------------------------------------------------


@pytest.fixture
def pauses():
    return Pauses(100.0, period_s=1.0, timeout_max_s=10.0)


def test_without_a_pause_it_is_as_late_as_the_clock_says(pauses):
    for clock in (101.0, 102.0, 103.5, 105.0):
        assert pauses.look(clock) == clock


def test_a_look_that_is_much_too_late_is_the_end_of_a_pause_that_does_not_count(pauses):
    assert pauses.look(141.0) == 101.0
    assert pauses.look(142.0) == 102.0


def test_several_pauses_add_up(pauses):
    pauses.look(141.0)
    assert pauses.look(182.0) == 102.0


def test_looks_that_are_more_frequent_than_promised_change_nothing(pauses):
    assert [pauses.look(100.0 + n / 10) for n in range(5)] == [100.0, 100.1, 100.2, 100.3, 100.4]


def test_when_all_deadlines_are_newer_than_the_pause_it_is_as_late_as_the_clock_says(pauses):
    assert pauses.look(141.0) == 101.0
    for clock in range(142, 151):
        assert pauses.look(clock) == clock - 40
    assert pauses.look(151.0) == 151.0


# Heartbeats ----------------------------------------------------------------------------------------------

BEATS = """
import sys, time
from kv.scoreboard import Scoreboard
slot = Scoreboard(int(sys.argv[1])).take_slot()
while True:
    slot.show({})
    time.sleep(0.001)
"""


@pytest.fixture
def board():
    return Scoreboard(scoreboard.make(workers=2))


@pytest.fixture
def workers(board):
    """Two processes that beat."""
    command = [sys.executable, "-c", BEATS, str(board.fileno())]
    with contextlib.ExitStack() as stack:
        started = []
        for _ in range(2):
            process = stack.enter_context(subprocess.Popen(command, cwd=ROOT, pass_fds=(board.fileno(),)))
            stack.callback(process.kill)
            started.append(process)
        await_true(lambda: len(board.beats()) == 2, what="two workers that beat")
        yield started


def look(board, heartbeats, pid):
    """One look, after everybody but this process has had a turn."""
    before = board.beats()
    await_true(lambda: all(count > before[each] for each, count in board.beats().items() if each != pid), what="beats")
    return heartbeats.look()


def test_a_frozen_worker_is_found_and_the_others_are_not(board, workers):
    heartbeats, frozen = Heartbeats(board), workers[0].pid
    workers[0].send_signal(signal.SIGSTOP)
    found = [look(board, heartbeats, frozen) for _ in range(40)]
    assert [each for each in found if each] == [[frozen]]


def test_no_worker_is_frozen_because_the_looks_are_far_apart(board, workers):
    """As they are for a supervisor that was paused too."""
    heartbeats = Heartbeats(board)
    for worker in workers:
        worker.send_signal(signal.SIGSTOP)
    for _ in range(10):  # the supervisor goes on a little earlier than the workers
        assert heartbeats.look() == []
    for worker in workers:
        worker.send_signal(signal.SIGCONT)
    assert [each for each in (look(board, heartbeats, None) for _ in range(40)) if each] == []


def test_a_worker_that_has_ended_is_not_frozen(board, workers):
    heartbeats = Heartbeats(board)
    heartbeats.look()
    for worker in workers:
        worker.kill()
        worker.wait()
    assert [heartbeats.look() for _ in range(40)] == [[]] * 40
