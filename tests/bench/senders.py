"""A process that plays several workers at once, for logd alone: `python -m tests.bench.senders ADDRESS FIRST COUNT`.

Owns the messages, which are encoded before anything is measured, and the sockets. Its orders are lines on stdin:
`fill`, `write SECONDS`, `read SECONDS`; it prints a line of JSON when it has carried out one. It checks replies as far
as that is cheap, and ends with an error when one is wrong.

A sender has a window: while logd works at one of its batches, the next has already been sent, as by a worker whose
clients wait for both.
"""

import itertools
import json
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

import zmq

from logd.shared import protocol
from logd.shared.protocol import Committed, Hello, ReadBatch, Values, WriteBatch

BATCH: Final = 64
VALUE_BYTES: Final = 100
WINDOW: Final = 2
KEYS_EACH: Final = 10 * BATCH

_PATIENCE_MS: Final = 30_000
_NUMBER_AT: Final = 1 + 1 + 2 + protocol.SESSION_ID_BYTES  # after the array, the tag, and the session with its length
_NUMBERS: Final = struct.Struct(">BIBI")
_UINT32: Final = 0xCE


class BatchTemplate:
    """A batch that is encoded but for its number and its base, which are put in as integers of a fixed size."""

    def __init__(self, session: bytes, puts: dict[str, bytes]) -> None:
        encoded = protocol.encode(WriteBatch(session, 0, 0, False, puts, []))
        self._head = encoded[:_NUMBER_AT]
        self._tail = encoded[_NUMBER_AT + 2 :]

    def numbered(self, number: int, base: int) -> bytes:
        """The message."""
        return self._head + _NUMBERS.pack(_UINT32, number, _UINT32, base) + self._tail


class Sender:
    """One connection and one session, as a worker has them."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, name: str) -> None:
        self._session = os.urandom(protocol.SESSION_ID_BYTES)
        self._keys = [f"{name}-{number}" for number in range(KEYS_EACH)]
        chunks = [self._keys[first : first + BATCH] for first in range(0, KEYS_EACH, BATCH)]
        value = bytes(b"v" * VALUE_BYTES)
        self.templates = [BatchTemplate(self._session, dict.fromkeys(chunk, value)) for chunk in chunks]
        self._reads = itertools.cycle([protocol.encode(ReadBatch(n, chunk)) for n, chunk in enumerate(chunks)])
        self._batches = itertools.cycle(self.templates)
        self._sent = self._committed = 0
        self.socket = _connect(context, address)

    def open(self) -> None:
        """Begin the session. Returns once logd has it on the disk."""
        assert isinstance(self._receive(), Hello)
        self.socket.send(BatchTemplate(self._session, {}).numbered(0, 0))
        assert self._receive() == Committed(self._session, [0])

    def write(self) -> None:
        """Send the next batch."""
        self._sent += 1
        self.socket.send(next(self._batches).numbered(self._sent, self._committed + 1))

    def receive_commit(self) -> int:
        """Receive a reply to writes; how many more batches are durable now."""
        reply = self._receive()
        assert isinstance(reply, Committed), reply
        assert reply.numbers[0] == self._committed + 1, reply
        self._committed += len(reply.numbers)
        return len(reply.numbers)

    def read(self) -> None:
        """Send the next read."""
        self.socket.send(next(self._reads))

    def receive_values(self) -> int:
        """Receive the reply to one read. It is too short when a key is missing."""
        assert len(self.socket.recv()) > BATCH * VALUE_BYTES
        return 1

    def check_values(self) -> None:
        """Read once, and check the whole reply."""
        self.read()
        reply = self._receive()
        assert isinstance(reply, Values), reply
        assert reply.values == [b"v" * VALUE_BYTES] * BATCH, reply

    def _receive(self) -> protocol.Reply:
        assert self.socket.poll(_PATIENCE_MS), "logd does not answer"
        reply: protocol.Reply = protocol.decode_reply(self.socket.recv())
        return reply


def _connect(context: zmq.Context[zmq.Socket[bytes]], address: str) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.DEALER)
    for option in (zmq.SNDHWM, zmq.RCVHWM, zmq.LINGER):
        socket.setsockopt(option, 0)
    socket.setsockopt(zmq.IMMEDIATE, 1)
    socket.setsockopt(zmq.PROBE_ROUTER, 1)
    socket.connect(address)
    return socket


class Senders:
    """Several senders in one thread: each sends again when it has a reply."""

    def __init__(self, senders: list[Sender]) -> None:
        self._by_socket = {sender.socket: sender for sender in senders}
        self._poller = zmq.Poller()
        for sender in senders:
            self._poller.register(sender.socket, zmq.POLLIN)
            sender.open()

    def fill(self) -> int:
        """Write every key once; how many."""
        batches = 0
        for sender in self._by_socket.values():
            for _ in sender.templates:
                sender.write()
                batches += sender.receive_commit()
            sender.check_values()
        return batches * BATCH

    def write(self, seconds: float) -> dict[str, float]:
        """Write for that long."""
        return self._exchange(Sender.write, Sender.receive_commit, seconds)

    def read(self, seconds: float) -> dict[str, float]:
        """Read for that long."""
        return self._exchange(Sender.read, Sender.receive_values, seconds)

    def _exchange(
        self, send: Callable[[Sender], None], receive: Callable[[Sender], int], seconds: float
    ) -> dict[str, float]:
        began = time.monotonic()
        for sender in self._by_socket.values():
            for _ in range(WINDOW):
                send(sender)
        answered = 0
        for sender in self._answered_until(began + seconds):
            count = receive(sender)
            answered += count
            for _ in range(count):
                send(sender)
        elapsed = time.monotonic() - began
        self._receive_rest(receive)
        return {"operations": answered * BATCH, "seconds": elapsed}

    def _answered_until(self, deadline: float) -> Iterator[Sender]:
        """Senders that have an answer, as often as they have one."""
        while time.monotonic() < deadline:
            ready = self._poller.poll(_PATIENCE_MS)
            assert ready, "logd does not answer"
            yield from (self._by_socket[socket] for socket, _ in ready)

    def _receive_rest(self, receive: Callable[[Sender], int]) -> None:
        """Receive what is in flight when the time is over; it is not counted."""
        for sender in self._by_socket.values():
            left = WINDOW
            while left:
                assert sender.socket.poll(_PATIENCE_MS), "logd does not answer"
                left -= receive(sender)


def main(address: str, first: int, count: int) -> None:
    """Carry out the orders on stdin, until it ends."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    senders = Senders([Sender(context, address, f"sender{first + n}") for n in range(count)])
    for line in sys.stdin:
        order, *seconds = line.split()
        print(json.dumps(getattr(senders, order)(*map(float, seconds))), flush=True)
    context.destroy(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
