"""What the supervisor makes of what it hears from logd, and of the ends of its children, without processes."""

import errno
import os
import signal
import socket
import time

import pytest

from kv import children, scoreboard
from kv import supervisor as supervisors
from kv.children import Child, Gunicorn
from kv.config import Config
from kv.errors import CannotServe
from kv.scoreboard import Role, Scoreboard
from kv.supervisor import Supervisor


class Logd:
    """Processes that have recovered when the test says so. `ends` are their ends of the pipes, oldest first."""

    restart_at = None
    stop_s = 1.0
    is_ready = False

    def __init__(self, *_):
        self.process = None
        self.ends = []

    def start(self):
        self.process = object()
        read, end = os.pipe()
        self.ends.append(end)
        return read

    def recovered(self, line):
        self.is_ready = True


@pytest.fixture
def supervisor(tmp_path, monkeypatch):
    receiver, sender = socket.socketpair()
    monkeypatch.setattr(supervisors, "SignalQueue", lambda _: receiver)
    monkeypatch.setattr(supervisors, "Logd", Logd)
    supervisor = Supervisor(Config(working_dir=tmp_path, workers=1))
    monkeypatch.setattr(supervisor, "_start_gunicorn", lambda: None)
    yield supervisor
    for end in supervisor._logd.ends:
        os.close(end)
    react(supervisor)  # which closes the other ends
    supervisor._selector.close()
    receiver.close()
    sender.close()


def react(supervisor):
    for key, _ in supervisor._selector.select(0):
        key.data()


def test_a_process_that_cannot_be_started_is_not_ready(tmp_path, monkeypatch):
    def no_process(*_, **__):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    fd = scoreboard.make(workers=1)
    board = Scoreboard(fd)
    gunicorn = Gunicorn(Config(working_dir=tmp_path, workers=1), board)
    monkeypatch.setattr(children.subprocess, "Popen", no_process)
    monkeypatch.setattr(children.logging_setup, "descriptors", lambda: (0,))
    try:
        os.close(gunicorn.start([], "address"))
        assert gunicorn.restart_at is not None
        assert not gunicorn.is_ready
        assert next(each for each in board.processes() if each.role == "gunicorn").ready_at is None
    finally:
        os.close(fd)


def test_it_listens_once_logd_has_recovered(supervisor):
    supervisor._start_logd()
    react(supervisor)
    assert not supervisor._is_listening
    os.write(supervisor._logd.ends[0], b"\n")
    react(supervisor)
    assert supervisor._is_listening
    assert supervisor._logd.is_ready


def test_what_a_dead_logd_has_recovered_is_not_credited_to_its_successor(supervisor):
    """It was killed right after it had written that it is ready, and its end was seen first."""
    supervisor._start_logd()
    os.write(supervisor._logd.ends[0], b"\n")
    supervisor._start_logd()
    react(supervisor)
    assert not supervisor._is_listening
    assert not supervisor._logd.is_ready
    os.write(supervisor._logd.ends[1], b"\n")
    react(supervisor)
    assert supervisor._is_listening
    assert supervisor._logd.is_ready


def test_a_reload_is_not_kept_back_by_a_file_that_it_does_not_read(supervisor, tmp_path, monkeypatch):
    reloads = []
    monkeypatch.setattr(
        supervisor, "_config", Config(engine="etcd", value_bytes_max=1, etcd_user_file=tmp_path / "none")
    )
    monkeypatch.setattr(supervisor._gunicorn, "reload", lambda: reloads.append("reload"))
    supervisor._reload()
    assert reloads == ["reload"]


# When a child is started again ---------------------------------------------------------------------------


@pytest.fixture
def child():
    """One that is ready, and was started just now."""
    child = Child(Role.LOGD, Config(workers=1), Scoreboard(), stop_s=1.0)
    child.is_ready = True
    child._started_at = time.monotonic()
    return child


def delay_s(child, status):
    """How long after this end the child is started again, to a tenth of a second."""
    child.plan_restart(status)
    return round(child.restart_at - time.monotonic(), 1)


def test_a_child_that_fails_is_started_ever_more_rarely_and_given_up_after_ten_failures_in_a_row(child):
    delays = [delay_s(child, status) for status in [-signal.SIGABRT, 1, 13] * 3]
    assert delays == [0, 0.1, 0.5, 1, 2, 4, 5, 5, 5]
    with pytest.raises(CannotServe, match="logd failed 10 times in a row, and at last ended with status -6; giving up"):
        child.plan_restart(-signal.SIGABRT)


def test_a_child_that_has_lived_for_half_a_minute_begins_a_new_row(child):
    assert [delay_s(child, 1) for _ in range(3)] == [0, 0.1, 0.5]
    child._started_at -= 30
    assert delay_s(child, 1) == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_ready_child_that_is_killed_from_outside_has_not_failed(child, number):
    assert [delay_s(child, -number) for _ in range(20)] == [0] * 20
    child.is_ready = False  # then it may be for want of memory
    assert [delay_s(child, -number) for _ in range(3)] == [0, 0.1, 0.5]
