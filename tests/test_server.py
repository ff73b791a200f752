"""The event loop with an engine whose answers come later, as those of an engine on other machines do."""

import collections
import contextlib
import os
import threading

import pytest
import zmq

from logd.engine import Collected, cut_page
from logd.server import Server, open_socket
from logd.shared import protocol
from logd.shared.local_socket import LocalSocket
from logd.shared.protocol import (
    LARGE_VALUE_BYTES,
    Committed,
    Hello,
    Large,
    LargeEntry,
    Page,
    PageQuery,
    PageRequest,
    ReadBatch,
    ReadLarge,
    Status,
    Values,
)
from tests.support.builders import A, batch, stats

PATIENCE_MS = 30_000
LARGE = b"v" * (LARGE_VALUE_BYTES + 1)


class LateEngine:
    """Satisfies `logd.engine.Engine`. Keeps everything until `finish`."""

    def __init__(self):
        self.data = {}
        self.writes = []
        self.reads = []
        self.pages = []
        self.received = threading.Semaphore(0)
        self._finished = collections.deque()
        self._wake_read, self._wake_write = os.pipe()

    def finish(self):
        """Let all that was received be collected, the latest first. Called by the test."""
        replies = [(each.session, Committed(each.session, [each.number])) for each in self.writes]
        reads = [(origin, [self.data.get(key) for key in keys]) for keys, origin in reversed(self.reads)]
        pages = [(peer, cut_page(request, sorted(self.data.items()))) for request, peer in self.pages]
        self._finished.append(Collected(replies, reads, pages))  # before what follows, so that it is idle at no time
        self.writes, self.reads, self.pages = [], [], []
        os.write(self._wake_write, b"!")

    def fileno(self):
        return self._wake_read

    def submit(self, raw, batch):
        assert protocol.decode_request(raw) == batch
        self.writes.append(batch)
        self.received.release()

    def read(self, keys, origin):
        self.reads.append((keys, origin))
        self.received.release()

    def page(self, request, peer):
        self.pages.append((request, peer))
        self.received.release()

    def commit(self, *, is_quiet=False):
        pass

    def collect(self):
        os.read(self._wake_read, 1)
        return self._finished.popleft()

    def idle(self):
        return not (self.writes or self.reads or self.pages or self._finished)

    def unavailable_reason(self):
        return "far away"

    def stats(self, number):
        return stats(number)

    def stop(self):
        os.close(self._wake_read)
        os.close(self._wake_write)


@pytest.fixture
def engine():
    engine = LateEngine()
    yield engine
    engine.stop()


@pytest.fixture
def context():
    with zmq.Context() as context:
        yield context


@pytest.fixture
def local_socket():
    with contextlib.closing(LocalSocket()) as local_socket:
        yield local_socket


@pytest.fixture
def server(engine, context, local_socket):
    """A server in a thread; calling it ends the lifeline and waits for the end of the server."""
    read, write = os.pipe()
    socket = open_socket(context, os.dup(local_socket.fileno()), 1 << 20)
    thread = threading.Thread(target=Server(socket, engine, read).run)
    thread.start()

    lifeline = contextlib.ExitStack()
    lifeline.callback(os.close, write)

    def stop():
        lifeline.close()
        thread.join()

    yield stop
    stop()
    socket.close()
    os.close(read)


class Peer:
    def __init__(self, context, address):
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.setsockopt(zmq.PROBE_ROUTER, 1)
        self.socket.connect(address)
        assert isinstance(self.receive(), Hello)

    def send(self, message):
        self.socket.send(protocol.encode(message))

    def receive(self):
        assert self.socket.poll(PATIENCE_MS)
        return protocol.decode_reply(self.socket.recv())


@pytest.fixture
def peers(server, context, local_socket):
    peers = [Peer(context, local_socket.address) for _ in range(2)]
    yield peers
    for peer in peers:
        peer.socket.close()


def test_a_read_that_the_engine_answers_later_is_answered_to_whoever_sent_it(engine, peers):
    engine.data = {"a": b"1", "b": b"2"}
    peers[0].send(ReadBatch(1, ["a", "none"]))
    peers[1].send(ReadBatch(1, ["b"]))
    for _ in peers:
        assert engine.received.acquire(timeout=PATIENCE_MS / 1000)
    engine.finish()
    assert peers[0].receive() == Values(1, 0, [b"1", None])
    assert peers[1].receive() == Values(1, 0, [b"2"])


def test_all_else_goes_on_while_a_read_is_under_way(engine, peers):
    peers[0].send(ReadBatch(1, ["a"]))
    assert engine.received.acquire(timeout=PATIENCE_MS / 1000)
    peers[0].send(protocol.StatusRequest(2))
    assert peers[0].receive() == Status(2, "far away")
    peers[0].send(protocol.StatsRequest(3))
    assert peers[0].receive() == stats(3)
    engine.finish()
    assert peers[0].receive() == Values(1, 0, [None])


def test_the_bound_on_large_values_holds_for_a_read_that_is_answered_later(engine, peers):
    engine.data = {"large": LARGE, "small": b"s"}
    peers[0].send(ReadBatch(1, ["small", "large"]))
    peers[1].send(ReadLarge(2, "large", len(LARGE)))
    for _ in peers:
        assert engine.received.acquire(timeout=PATIENCE_MS / 1000)
    engine.finish()
    assert peers[0].receive() == Values(1, 0, [b"s"])
    assert peers[0].receive() == Large(1, 1, len(LARGE))
    assert peers[1].receive() == Values(2, 0, [LARGE])


def test_a_value_that_grew_beyond_the_room_for_it_is_answered_by_its_size(engine, peers):
    engine.data = {"k": b"12345"}
    peers[0].send(ReadLarge(1, "k", 4))
    assert engine.received.acquire(timeout=PATIENCE_MS / 1000)
    engine.finish()
    assert peers[0].receive() == Large(1, 0, 5)


def test_a_page_that_the_engine_has_later_is_sent_to_whoever_asked_for_it(engine, peers):
    engine.data = {"a": b"1", "b": b"22"}
    query = PageQuery(limit=1, with_values=True)
    peers[0].send(PageRequest(1, query, 2))
    peers[1].send(PageRequest(1, query, 1))
    for _ in peers:
        assert engine.received.acquire(timeout=PATIENCE_MS / 1000)
    peers[0].send(protocol.StatusRequest(2))
    assert peers[0].receive() == Status(2, "far away")
    engine.finish()
    assert peers[0].receive() == Page(1, ["a"], [b"1"], 1)
    assert peers[1].receive() == LargeEntry(1, 2)


def test_what_was_received_is_answered_before_it_stops(engine, peers, server):
    peers[0].send(ReadBatch(1, ["a"]))
    peers[1].send(batch(A, 0))
    for _ in peers:
        assert engine.received.acquire(timeout=PATIENCE_MS / 1000)
    stopping = threading.Thread(target=server)
    stopping.start()
    engine.finish()
    stopping.join()
    assert peers[0].receive() == Values(1, 0, [None])
    assert peers[1].receive() == Committed(A, [0])


def test_more_messages_than_are_received_in_one_turn_are_answered_to_the_last(peers):
    for number in range(3_000):
        peers[0].send(protocol.StatusRequest(number))
    for number in range(3_000):
        assert peers[0].receive() == Status(number, "far away")
