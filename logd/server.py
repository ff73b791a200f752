"""The event loop of logd: receive, hand on, reply.

Knows the socket and the messages; sees storage as one object that takes batches, looks keys up and hands back replies.
Knows nothing of files.

Messages are drained until there are none before anything else is done; one turn answers all reads that came, collects
at most one finished group, and lets all writes that came be the next one.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import zmq

from logd.local.counters import Counts
from logd.shared import protocol
from logd.shared.protocol import (
    Committed,
    Hello,
    Large,
    ReadBatch,
    ReadLarge,
    Reply,
    Stats,
    StatsRequest,
    Status,
    StatusRequest,
    Values,
    WriteBatch,
)

log = logging.getLogger("logd.server")

# As numbers, and with the calls of the library that are in C: what runs for a message after a pause, when nothing of it
# is in the processor's caches, costs several times what it does in a loop. So does an exception (Again).
_EVENTS, _RCVMORE = int(zmq.EVENTS), int(zmq.RCVMORE)
_READABLE = (int(zmq.POLLIN), int(zmq.POLLIN | zmq.POLLOUT))
_NOBLOCK, _SNDMORE = int(zmq.NOBLOCK), int(zmq.SNDMORE)
_DRAIN_MESSAGES_MAX = 1000  # so that replies of a finished group do not wait for ever behind a flood


class Storage(Protocol):
    """What the server needs of storage."""

    counts: Counts

    def fileno(self) -> int:
        """A descriptor that is readable when `collect` has something to do."""

    def lookup(self, keys: Sequence[str]) -> list[bytes | None]:
        """Values of keys, None for those that are not there."""

    def unavailable_reason(self) -> str:
        """Why writes cannot be taken; empty when they can."""

    def submit(self, raw: bytes, batch: WriteBatch) -> Reply | None:
        """Take a batch, or answer it at once."""

    def commit(self) -> None:
        """Begin to make durable what was taken, unless that is under way for what was taken before."""

    def collect(self) -> list[tuple[bytes, Reply]]:
        """Replies that became due, each with its session."""

    def idle(self) -> bool:
        """True when nothing waits for an answer."""


def open_socket(context: zmq.Context[zmq.Socket[bytes]], address: str, message_bytes_max: int) -> zmq.Socket[bytes]:
    """The ROUTER that workers connect to.

    Bind only with the directory locked and recovered: bind unlinks what is there.
    """
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.SNDHWM, 0)  # at a high-water mark messages vanish; the bound is in the workers
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.MAXMSGSIZE, message_bytes_max)
    socket.setsockopt(zmq.LINGER, 1000)
    socket.bind(address)
    return socket


class Server:
    """Serves until the lifeline closes, which is how the supervisor says stop, and how its death is noticed."""

    def __init__(
        self, socket: zmq.Socket[bytes], storage: Storage, lifeline_fd: int, stats: Callable[[int], Stats]
    ) -> None:
        self._socket = socket
        self._storage = storage
        self._lifeline_fd = lifeline_fd
        self._stats = stats
        self._peers: dict[bytes, bytes] = {}
        """Session to the connection that it last wrote from."""

    def run(self) -> None:
        """Serve, then answer what was taken in. Raises what `Storage.collect` raises."""
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._storage.fileno(), zmq.POLLIN)
        poller.register(self._lifeline_fd, zmq.POLLIN)
        stopping = False
        while not (stopping and self._storage.idle()):
            ready = dict(poller.poll())
            if self._socket in ready and not stopping:
                self._receive()
            if self._storage.fileno() in ready:
                self._collect()
            self._storage.commit()
            if self._lifeline_fd in ready:
                stopping = True
                poller.unregister(self._lifeline_fd)
                poller.unregister(self._socket)  # by now the workers are gone, or about to be

    def _receive(self) -> None:
        for _ in range(_DRAIN_MESSAGES_MAX):
            if self._socket.getsockopt(_EVENTS) not in _READABLE:
                return
            peer, raw = self._socket.recv(), self._socket.recv()
            if self._socket.getsockopt(_RCVMORE):
                self._drop_parts()
            elif raw:
                self._handle(peer, raw)
            else:  # sent by ZMQ_PROBE_ROUTER when a connection is made
                self._send(peer, Hello(os.getpid(), protocol.PROTOCOL_VERSION))

    def _drop_parts(self) -> None:
        while self._socket.getsockopt(_RCVMORE):
            self._socket.recv()
        log.error("a message of several parts is none of a worker")

    def _handle(self, peer: bytes, raw: bytes) -> None:
        try:
            request = protocol.decode_request(raw)
        except protocol.DECODE_ERRORS as error:
            log.error("a message of %d bytes cannot be decoded: %s", len(raw), error)
            return
        if isinstance(request, WriteBatch):
            if reply := self._storage.submit(raw, request):
                self._storage.counts.answer(reply)
                self._send(peer, reply)
            else:
                self._peers[request.session] = peer
        elif isinstance(request, ReadBatch):
            self._answer_reads(peer, request)
        elif isinstance(request, StatusRequest):
            self._send(peer, Status(request.number, self._storage.unavailable_reason()))
        elif isinstance(request, StatsRequest):
            self._send(peer, self._stats(request.number))
        elif isinstance(request, ReadLarge):
            for reply in _parts(request.number, self._storage.lookup([request.key]), request.bytes_max):
                self._send(peer, reply)

    def _answer_reads(self, peer: bytes, request: ReadBatch) -> None:
        values = self._storage.lookup(request.keys)
        if sum(map(len, filter(None, values))) <= protocol.LARGE_VALUE_BYTES:  # so each is small, as nearly always
            self._send(peer, Values(request.number, 0, values))
            return
        for reply in _parts(request.number, values, protocol.LARGE_VALUE_BYTES):
            self._send(peer, reply)

    def _collect(self) -> None:
        for session, reply in self._storage.collect():
            if peer := self._peers.get(session):
                self._send(peer, reply)
            if not isinstance(reply, Committed):  # nothing of this session waits any more, and it may never come back
                self._peers.pop(session, None)
                self._storage.counts.answer(reply)

    def _send(self, peer: bytes, reply: Reply) -> None:
        try:
            self._socket.send(peer, _NOBLOCK | _SNDMORE)
            self._socket.send(protocol.encode(reply), _NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            # The worker is gone, or on another connection, where it asks again.


def _parts(number: int, values: list[bytes | None], value_bytes_max: int) -> Iterator[Values | Large]:
    """The answers to a question: parts of about the soft maximum, and the sizes of values that are too large."""
    first, size = 0, 0
    for index, value in enumerate(values):
        length = len(value) if value else 0
        if length > value_bytes_max:
            if first < index:
                yield Values(number, first, values[first:index])
            yield Large(number, index, length)
            first, size = index + 1, 0
        elif (size := size + length) >= protocol.BATCH_BYTES_SOFT_MAX:
            yield Values(number, first, values[first : index + 1])
            first, size = index + 1, 0
    if first < len(values):
        yield Values(number, first, values[first:])
