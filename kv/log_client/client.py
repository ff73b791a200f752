"""The worker's connection to logd: the socket, how it is made again, and when its parts send.

Owns the socket and the event loop's side of it. What is sent and what a reply means is decided by the parts
(kv/log_client/part.py): the client calls all of them when they may send, when they have to send again and when
deadlines may have passed, and hands each message to the part that declares it. Used by one event loop.

While there is no connection, requests wait in their parts. logd greets every new connection with a `Hello`; what was
sent and not answered is then sent again before anything new. When the `Hello` is of another version of the protocol,
nothing is sent, and requests fail at once, until a logd of this version is there.
"""

import asyncio
import logging
import math
from typing import Final

import zmq

from kv.config import UNLIMITED, BatchLimits
from kv.log_client.large_values import Budget, Found
from kv.log_client.pages import HeldPage, Pages
from kv.log_client.part import Part
from kv.log_client.reads import Reads
from kv.log_client.status import StatusRequests
from kv.log_client.writes import Writes
from kv.pauses import Pauses
from logd.shared import protocol
from logd.shared.protocol import PROTOCOL_VERSION, Hello, PageQuery, Stats, Transaction

_EVENTS: Final = int(zmq.EVENTS)
_READABLE: Final = (int(zmq.POLLIN), int(zmq.POLLIN | zmq.POLLOUT))
_SWEEP_SECONDS: Final = 0.1
_RECONNECT_MS: Final = 10

log = logging.getLogger("kv.log_client.client")


class _Gathering:
    """How long requests are gathered before they are sent.

    A message wakes four threads, and they use processor time that the clients' next requests need. So while each turn
    of the event loop brings more requests, they are gathered into one message, within these limits.
    """

    TURNS_MAX: Final = 4
    REQUESTS_ENOUGH: Final = 32

    def __init__(self) -> None:
        self._turns = self._requests = 0

    def count_turn(self, requests: int) -> bool:
        """Note how many requests wait after one more turn. False when they are to be sent now."""
        before, self._requests = self._requests, requests
        self._turns += 1
        if before < requests < self.REQUESTS_ENOUGH and self._turns < self.TURNS_MAX:
            return True
        self._turns = self._requests = 0
        return False


class Client:
    """Requests to one logd. Everything but making one needs a running event loop, always the same."""

    loop: asyncio.AbstractEventLoop
    _context: zmq.Context[zmq.Socket[bytes]]
    _socket: zmq.Socket[bytes]
    _sweeper: asyncio.Task[None]

    def __init__(
        self,
        address: str,
        *,
        request_timeout_s: float,
        queue_bytes_max: int,
        large_bytes_max: int,
        has_data_limit: bool = False,
        batch_limits: BatchLimits = UNLIMITED,
    ) -> None:
        self._address = address
        self._request_timeout_s = request_timeout_s
        self.is_connected = False
        self._refusal = ""
        """Why all requests fail at once; empty when they do not."""
        self._is_flush_due = False
        self._gathering = _Gathering()
        self._budget = Budget(large_bytes_max, self.flush_soon)
        self._reads = Reads(self, request_timeout_s, self._budget)
        self._pages = Pages(self, request_timeout_s, self._budget)
        self._writes = Writes(
            self, request_timeout_s, queue_bytes_max, has_data_limit=has_data_limit, limits=batch_limits
        )
        self._status = StatusRequests(self, request_timeout_s)
        self._parts: tuple[Part, ...] = (self._reads, self._writes, self._pages, self._status)
        self._replies = {
            Hello: self._on_hello,
            **{kind: on for part in self._parts for kind, on in part.replies.items()},
        }

    def open(self) -> None:
        """Begin to connect, and go on trying for as long as there is no logd."""
        self.loop = asyncio.get_running_loop()
        self._context = zmq.Context()  # not before: its I/O thread does not survive a fork
        self._socket = self._connect()
        self.loop.add_reader(self._socket.FD, self._receive)
        self._sweeper = self.loop.create_task(self._sweep_forever())
        self._receive()

    def close(self) -> None:
        """Close the socket. Requests that wait fail, as do all that are made later."""
        self._refuse("the worker is stopping")
        self._sweeper.cancel()
        self.loop.remove_reader(self._socket.FD)
        self._socket.close(linger=0)
        self._context.term()

    def _connect(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.SNDHWM, 0)  # at a high-water mark messages vanish; our bound is queue_bytes_max
        socket.setsockopt(zmq.RCVHWM, 0)
        # Nothing is queued for a logd that is not there, and nothing that an earlier connection brought is read after
        # the Hello of a new one: a late refusal would look like the answer to what was sent again since.
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.PROBE_ROUTER, 1)  # every new connection announces itself; logd answers with Hello
        socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        socket.setsockopt(zmq.HANDSHAKE_IVL, 0)  # no limit: the next logd answers when it has recovered
        socket.setsockopt(zmq.MAXMSGSIZE, protocol.MESSAGE_BYTES_CEILING)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(self._address)
        return socket

    # Requests --------------------------------------------------------------------------------------------
    # Those that are made often return futures and are no coroutines: one less to make and to resume for each.

    def get(self, key: str) -> asyncio.Future[Found]:
        """The value of a key. Raises Unavailable."""
        return self._reads.get(key)

    def put(self, key: str, value: bytes) -> asyncio.Future[None]:
        """Store a value durably. Raises RequestFailed."""
        return self._writes.write(key, value)

    def delete(self, key: str) -> asyncio.Future[None]:
        """Remove a key, durably, whether it is there or not. Raises RequestFailed."""
        return self._writes.write(key, None)

    def clear(self) -> asyncio.Future[None]:
        """Remove every key, durably. Raises RequestFailed."""
        return self._writes.write(None, None)

    def execute(self, transaction: Transaction) -> asyncio.Future[None]:
        """Make all writes of a transaction, or none, durably. Raises RequestFailed; PreconditionFailed is one."""
        return self._writes.execute(transaction)

    def page(self, query: PageQuery) -> asyncio.Future[HeldPage]:
        """The first page of what a query is about. Raises Unavailable."""
        return self._pages.page(query)

    async def unavailable_reason(self) -> str:
        """Why reads or writes are not possible; empty when they are. Raises Unavailable when logd does not answer."""
        return await self._status.unavailable_reason()

    async def stats(self) -> Stats:
        """How logd is. Raises Unavailable when it does not answer."""
        return await self._status.stats()

    # What the worker watches -----------------------------------------------------------------------------

    def gauges(self) -> dict[str, float]:
        """How many requests wait, and how many bytes they and large values take now, by the name of the gauge."""
        return {name: value for part in self._parts for name, value in part.gauges().items()}

    def reads_wait_for_room(self) -> bool:
        """True when reads of large values, or of pages, wait until others are released."""
        return self._budget.is_short() or self._pages.wait_for_room()

    # Sending ---------------------------------------------------------------------------------------------

    def flush_soon(self) -> None:
        """Have all parts flushed, in one of the next turns of the event loop."""
        if not self._is_flush_due:
            self._is_flush_due = True
            self.loop.call_soon(self._flush)

    def send(self, message: bytes) -> None:
        """Hand a message to the socket. Without a connection it is lost, and `is_connected` is False from then on."""
        try:
            self._socket.send(message, zmq.NOBLOCK)
        except zmq.Again:
            self.is_connected = False

    def _flush(self) -> None:
        if self._gathering.count_turn(len(self._reads.queue) + len(self._writes.queue)):
            self.loop.call_soon(self._flush)
            return
        self._is_flush_due = False
        if self._refusal:
            self._expire(math.inf, self._refusal)
            return
        for part in self._parts:
            part.flush()
        self._receive()  # the descriptor is edge-triggered, and a send may have consumed the edge

    def _refuse(self, reason: str) -> None:
        """Fail all requests at once, with this reason, from now on."""
        self.is_connected = False
        self._refusal = reason
        self._expire(math.inf, reason)

    # Receiving -------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        """Handle all messages that have arrived."""
        # Polling costs less than the exception of a recv that finds nothing.
        while self._socket.getsockopt(_EVENTS) in _READABLE:
            message = self._socket.recv()
            try:
                reply = protocol.decode_reply(message)
            except protocol.DECODE_ERRORS:
                log.exception("logd sent %d bytes that are no message", len(message))
                continue
            if not self._refusal or isinstance(reply, Hello):  # the only message that all versions understand
                self._replies[type(reply)](reply)

    def _on_hello(self, hello: Hello) -> None:
        if hello.version != PROTOCOL_VERSION:
            versions = f"the log writer speaks version {hello.version} of the protocol, this worker {PROTOCOL_VERSION}"
            reason = f"{versions}; both have to be started from the same code"
            log.error("%s", reason)
            self._refuse(reason)
            return
        self.is_connected = True
        self._refusal = ""
        for part in self._parts:
            part.resend()
        self.flush_soon()

    # Deadlines -------------------------------------------------------------------------------------------

    async def _sweep_forever(self) -> None:
        pauses = Pauses(self.loop.time(), period_s=_SWEEP_SECONDS, timeout_max_s=self._request_timeout_s)
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            self._receive()
            self._expire(pauses.look(self.loop.time()))

    def _expire(self, now: float, reason: str = "") -> None:
        for part in self._parts:
            part.expire(now, reason)
