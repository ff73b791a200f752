"""The event loop of logd: receive, hand on, reply.

Knows the socket, the messages, and an engine by its protocol (logd/engine.py). Knows nothing of files.

In one turn all messages that came are read from the socket, all reads among them are answered, what the engine has
finished is sent, and the writes that came are committed together.
"""

import logging
import os
import select
from collections.abc import Iterator

import zmq

from logd.engine import Engine, Found, Origin
from logd.shared import protocol
from logd.shared.protocol import (
    Committed,
    Hello,
    Large,
    PageRequest,
    ReadBatch,
    ReadLarge,
    Reply,
    StatsRequest,
    Status,
    StatusRequest,
    Values,
    WriteBatch,
)

log = logging.getLogger("logd.server")

# Plain numbers, for the calls of the library that are in C. After a pause, code that is not in the processor's caches
# costs several times what it costs in a loop: each message runs as little as possible, and raises no exception (Again).
_EVENTS, _RCVMORE = int(zmq.EVENTS), int(zmq.RCVMORE)
_READABLE = (int(zmq.POLLIN), int(zmq.POLLIN | zmq.POLLOUT))
_NOBLOCK, _SNDMORE = int(zmq.NOBLOCK), int(zmq.SNDMORE)
_QUIET_TURNS = 16  # after so many without a read, a write may be synced while nothing else is done
_MESSAGES_PER_TURN_MAX = 1000  # so that the replies of a group never wait for the end of a flood of messages


def open_socket(context: zmq.Context[zmq.Socket[bytes]], listener_fd: int, message_bytes_max: int) -> zmq.Socket[bytes]:
    """The ROUTER that workers connect to, on a listening socket that is there already (logd/shared/local_socket.py).

    Other users are refused: their connection is closed before a byte of it is read.
    """
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.SNDHWM, 0)  # at a high-water mark messages vanish; the bound is in the workers
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.MAXMSGSIZE, message_bytes_max)
    socket.setsockopt(zmq.LINGER, 1000)
    socket.setsockopt(zmq.IPC_FILTER_UID, os.geteuid())
    socket.setsockopt(zmq.USE_FD, listener_fd)
    socket.bind("ipc://logd")  # a name is wanted, and not used
    return socket


class Server:
    """Serves until the lifeline closes, which is how the supervisor says stop, and how its death is noticed."""

    def __init__(self, socket: zmq.Socket[bytes], engine: Engine, lifeline_fd: int) -> None:
        self._socket = socket
        self._engine = engine
        self._lifeline_fd = lifeline_fd
        self._peers: dict[bytes, bytes] = {}
        """Session to the connection that it last wrote from."""
        self._turns_without_reads = 0

    def run(self) -> None:
        """Serve, then answer what was accepted. Raises what `Engine.collect` raises."""
        poll, engine_fd, socket_fd = select.poll(), self._engine.fileno(), self._socket.FD
        for fd in (socket_fd, engine_fd, self._lifeline_fd):
            poll.register(fd, select.POLLIN)
        stopping = False
        while not (stopping and self._engine.idle()):
            # The socket's descriptor is readable once for many messages, and a send may use that up: before this waits
            # it has to ask the socket itself.
            ready = [fd for fd, _ in poll.poll(0 if not stopping and self._has_messages() else None)]
            if not stopping:
                self._receive()
            if engine_fd in ready:
                self._collect()
            self._engine.commit(is_quiet=self._turns_without_reads >= _QUIET_TURNS)
            self._turns_without_reads += 1
            if self._lifeline_fd in ready:
                stopping = True
                poll.unregister(self._lifeline_fd)
                poll.unregister(socket_fd)  # by now the workers are gone, or about to be

    def _has_messages(self) -> bool:
        return self._socket.getsockopt(_EVENTS) in _READABLE

    def _receive(self) -> None:
        for _ in range(_MESSAGES_PER_TURN_MAX):
            if not self._has_messages():
                return
            peer, raw = self._socket.recv(), self._socket.recv()
            if self._socket.getsockopt(_RCVMORE):
                self._discard_parts()
            elif raw:
                self._handle(peer, raw)
            else:  # sent by ZMQ_PROBE_ROUTER when a connection is made
                self._send(peer, Hello(os.getpid(), protocol.PROTOCOL_VERSION))

    def _discard_parts(self) -> None:
        while self._socket.getsockopt(_RCVMORE):
            self._socket.recv()
        log.error("a message of several parts is not from a worker: it was ignored")

    def _handle(self, peer: bytes, raw: bytes) -> None:
        try:
            request = protocol.decode_request(raw)
        except protocol.DECODE_ERRORS as error:
            log.error("a message of %d bytes cannot be decoded: %s", len(raw), error)
            return
        if isinstance(request, WriteBatch):
            self._submit(peer, raw, request)
        elif isinstance(request, ReadBatch):
            self._read(request.keys, (peer, request.number, protocol.LARGE_VALUE_BYTES))
        elif isinstance(request, ReadLarge):
            self._read([request.key], (peer, request.number, request.bytes_max))
        elif isinstance(request, PageRequest):
            if page := self._engine.page(request, peer):
                self._send(peer, page)
        elif isinstance(request, StatusRequest):
            self._send(peer, Status(request.number, self._engine.unavailable_reason()))
        elif isinstance(request, StatsRequest):
            self._send(peer, self._engine.stats(request.number))

    def _submit(self, peer: bytes, raw: bytes, batch: WriteBatch) -> None:
        if reply := self._engine.submit(raw, batch):
            self._send(peer, reply)
        else:
            self._peers[batch.session] = peer

    def _read(self, keys: list[str], origin: Origin) -> None:
        self._turns_without_reads = 0
        found = self._engine.read(keys, origin)
        if found is not None:
            self._send_values(origin, found)

    def _collect(self) -> None:
        collected = self._engine.collect()
        for session, reply in collected.replies:
            if peer := self._peers.get(session):
                self._send(peer, reply)
            if not isinstance(reply, Committed):  # no write of this session is pending, and its worker may be gone
                self._peers.pop(session, None)
        for origin, found in collected.reads:
            self._send_values(origin, found)
        for peer, page in collected.pages:
            self._send(peer, page)

    def _send_values(self, origin: Origin, found: Found) -> None:
        peer, number, value_bytes_max = origin
        if sum(map(len, filter(None, found))) <= value_bytes_max:  # so each of them is, as nearly always
            self._send(peer, Values(number, 0, found))
            return
        for reply in _parts(number, found, value_bytes_max):
            self._send(peer, reply)

    def _send(self, peer: bytes, reply: Reply) -> None:
        try:
            self._socket.send(peer, _NOBLOCK | _SNDMORE)
            self._socket.send(protocol.encode(reply), _NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            # The worker is gone, or has another connection, on which it sends the request again.


def _parts(number: int, found: Found, value_bytes_max: int) -> Iterator[Values | Large]:
    """The answers to a read: parts of about the soft maximum, and the sizes of values that are too large."""
    first, size = 0, 0
    for index, value in enumerate(found):
        length = len(value) if value else 0
        if length > value_bytes_max:
            if first < index:
                yield Values(number, first, found[first:index])
            yield Large(number, index, length)
            first, size = index + 1, 0
        elif (size := size + length) >= protocol.BATCH_BYTES_SOFT_MAX:
            yield Values(number, first, found[first : index + 1])
            first, size = index + 1, 0
    if first < len(found):
        yield Values(number, first, found[first:])
