"""The engine's own threads, lanes and keeper, beside a cluster in memory: what they do when it is silent or refuses."""

import threading

import pytest

pytest.importorskip("grpc", reason="the packages of requirements-etcd.txt are not installed")

from logd.etcd.lane import Lane
from logd.etcd.mailbox import Mailbox
from logd.etcd.records import Table
from logd.shared import protocol
from logd.shared.protocol import Reason, Refused, WriteBatch
from tests.support.fake_etcd import FakeEtcd
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


def test_all_sessions_that_wait_behind_a_silent_group_are_refused(silent_lane):
    submit(silent_lane, A)
    silent_lane.begin()
    submit(silent_lane, B)
    await_true(silent_lane.is_stalled)
    assert submit(silent_lane, C) is None
    assert silent_lane.refuse_if_stalled() == [
        (session, Refused(session, [0], Reason.UNREACHABLE)) for session in (B, C)
    ]
