"""What the supervisor makes of what it hears from logd, without processes."""

import os
import socket

import pytest

from kv import supervisor as supervisors
from kv.config import Config
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
