"""One client's connection: a queue of exchanges, answered in order, and when it closes, and how.

Owns the transport: what is read and when, what is written, deadlines, and the close. Knows what a request is; knows no
routes, no data, and not the process that it runs in (kv/http/worker.py).

A connection goes through four phases, always in this order:

    SERVING    requests are read and answered
    ENDING     no more requests are read; those that were are answered, then a refusal if there is one
    LINGERING  everything is answered and the write side is closed; what still arrives is discarded
    CLOSED     the transport is closed, or about to be
"""

import asyncio
import enum
import logging
from time import monotonic  # the loop's clock counts milliseconds
from typing import Final

from kv.http.context import Application, WorkerContext
from kv.http.exchange import BODY_BUFFER_BYTES, PIECE_BYTES_MIN, Exchange, encode_refusal
from kv.http.lingering import Discard, ReaderProgress
from kv.http.request_parser import MAX_AT_ONCE_BYTES, FinalRefusal, RequestHead, RequestParser
from kv.scoreboard import OTHER

_STOP_GRACE_SECONDS: Final = 0.25
"""When stopping, a connection without a request is kept open for so long: a request may be on its way."""
_STOP_GOODBYE_SECONDS: Final = 1.0
"""When stopping, a client that has its last answer may take so long, without progress, to close."""

log = logging.getLogger("kv.http.connection")


class Phase(enum.Enum):
    """How far a connection is; see above."""

    SERVING = enum.auto()
    ENDING = enum.auto()
    LINGERING = enum.auto()
    CLOSED = enum.auto()


class Connection(asyncio.Protocol):
    """One client. A sweep asks each connection from time to time whether it is overdue: no timer per request."""

    loop: asyncio.AbstractEventLoop
    scheme: str
    application: Application
    _transport: asyncio.Transport

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self.application = context.application
        self._parser = RequestParser(self, context.options.header_bytes_max)
        self._phase = Phase.SERVING
        self._queue: list[Exchange] = []
        """Requests without an answer: the first is with the application, the last may still be arriving."""
        self._arriving: Exchange | None = None
        """The request whose body is arriving. It may have its answer already: then the rest is discarded."""
        self._refusal: FinalRefusal | None = None
        """The last answer, after those of the queue."""
        self._rest = b""
        """Bytes that are parsed once at most one request waits for its answer. Nothing is read until then."""
        self._discard: Discard | None = None
        self._active_at = self._head_since = monotonic()
        self._written_bytes = 0
        self._is_holding = False  # bytes of the budget
        self._is_read_paused = False
        self._is_half_closed = False  # by the client: no more requests will come
        self.is_write_paused = False  # the client should read before more is written
        self._writable: asyncio.Future[None] | None = None  # what `drain` waits for
        self.reader = ReaderProgress()

    # What the transport calls ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin: nothing was received yet."""
        self._transport = transport
        self.loop = asyncio.get_running_loop()
        self.scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        if self.scheme == "https":
            transport.set_write_buffer_limits(high=1, low=0)  # of what TLS cannot hand on; see Exchange.send
        self._context.connections.add(self)
        if self._context.is_stopping:  # it was accepted just before
            self.shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the application know, when a request waits for an answer."""
        self._context.on_closed(self)
        self._phase = Phase.CLOSED
        self._drop_queue()
        self.resume_writing()
        self._parser.close()

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived, and begin with the next request."""
        now = monotonic()
        if self._phase is Phase.SERVING:
            self._active_at = now
            if self._rest:
                self._rest += data  # reading is paused, but TLS had decrypted more
            elif not self._take_known(data):
                self._parse(data)
                self._start_next()
        elif self._discard:
            self._take_discarded(len(data), now)
        elif self._phase is Phase.ENDING:  # no request may follow, so what has arrived is not kept
            self._pause_reading()

    def eof_received(self) -> bool:
        """The client has closed its side for writing: answer what it sent, but never serve half a request."""
        self._is_half_closed = True
        is_whole = self._queue and not self._queue[-1].more_body and self._phase is not Phase.LINGERING
        if not is_whole or self.scheme == "https":  # TLS has no half-closed connections
            return False
        if not self._rest:
            self._end_with_last()
        return True

    def pause_writing(self) -> None:
        """The client reads more slowly than it is answered."""
        self.is_write_paused = True

    def resume_writing(self) -> None:
        """More of an answer can be written, or the connection is lost."""
        self.is_write_paused = False
        if self._writable:
            self._writable.set_result(None)
            self._writable = None

    # From bytes to exchanges -----------------------------------------------------------------------------

    def _take_known(self, data: bytes) -> bool:
        """Start a request that arrived whole and alone, with known fields, as most do. False when it did not."""
        if self._queue or len(data) > MAX_AT_ONCE_BYTES or self._context.is_stopping:
            return False
        request = self._parser.known_request(data)
        if request is None:
            return False
        exchange = Exchange(self, request[0], self._active_at, whole_body=request[1])
        self._queue.append(exchange)
        exchange.start()
        return True

    def _parse(self, data: bytes) -> None:
        """Parse until one request waits for the answer to another, and keep the rest."""
        refusal = None
        if len(data) <= MAX_AT_ONCE_BYTES:
            refusal = self._feed(data)
        else:
            rest = memoryview(data)
            while rest and len(self._queue) <= 1 and self._phase is Phase.SERVING and not refusal:
                piece, rest = rest[:MAX_AT_ONCE_BYTES], rest[MAX_AT_ONCE_BYTES:]
                refusal = self._feed(piece)
            self._rest = bytes(rest)
        if refusal and self._phase is Phase.SERVING:
            self.refuse(refusal)
        elif self._parser.is_in_message or len(self._queue) > 1 or self._rest or self._phase is not Phase.SERVING:
            self._apply_limits()

    def _feed(self, piece: bytes | memoryview) -> FinalRefusal | None:
        was_in_head = self._parser.is_in_head
        refusal = self._parser.feed(piece)
        if self._parser.is_in_head and not was_in_head:
            self._head_since = self._active_at
        return refusal

    def _apply_limits(self) -> None:
        """Pause reading and update the budget; not needed after a request that arrived whole and alone, as most do."""
        if self._phase is not Phase.SERVING:
            self._rest = b""
        elif self._has_enough():
            self._pause_reading()
        self._update_budget()

    def on_head(self, head: RequestHead) -> None:
        """Queue a request; it is started once everything that has arrived is parsed."""
        if self._phase is Phase.SERVING:
            self._arriving = exchange = Exchange(self, head, self._active_at)
            if self._context.is_stopping:
                exchange.keep_alive = False
            self._queue.append(exchange)

    def on_body(self, piece: bytes) -> None:
        """A piece of the body of the request that is arriving."""
        if self._arriving and self._arriving.response_complete:
            self._take_discarded(max(len(piece), PIECE_BYTES_MIN), self._active_at)
        elif self._arriving:
            self._arriving.feed(piece)

    def on_end(self) -> None:
        """The request that was arriving is complete."""
        exchange, self._arriving = self._arriving, None
        if exchange:
            self._discard = None
            exchange.end(self._active_at)
            if not exchange.keep_alive:
                self._phase = Phase.ENDING

    def _start_next(self) -> None:
        if self._queue and not self._queue[0].is_started:
            self._queue[0].start()

    # What exchanges ask for ------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Wait until the client has read, or is gone."""
        if self.is_write_paused:
            self._writable = self._writable or self.loop.create_future()
            await self._writable

    def write(self, data: bytes | memoryview) -> None:
        """Send a part of an answer."""
        self._written_bytes += len(data)
        self._transport.write(data)

    def on_wait_for_body(self, exchange: Exchange) -> None:
        """The application wants more of the body than has arrived."""
        if exchange.awaits_continue() and not exchange.response_started:
            exchange.head.expects_continue = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if exchange.more_body and not self._has_enough():
            self._resume_reading()

    def on_no_answer(self, exchange: Exchange) -> None:
        """The application has failed to answer a request."""
        if exchange.response_started:
            self._finish()
        else:
            self.refuse(FinalRefusal(500, "internal server error", exchange.head.method), instead_of=exchange)

    def on_answered(self, exchange: Exchange) -> None:
        """The first request of the queue has its answer: go on with the next, or end."""
        del self._queue[0]
        if self._is_holding:
            self._update_budget()
        self._active_at = monotonic()
        self._context.counters.answered(exchange.head.method, exchange.status, self._active_at - exchange.arrived_at)
        if not exchange.keep_alive:
            self._finish()
            return
        if exchange.more_body:
            self._discard = Discard(self._active_at)
        if self._parser.is_in_head:
            self._head_since = self._active_at  # a client that waits, or was not read from, is not late
        if self._queue or self._rest or self._refusal or self._is_read_paused or self._phase is not Phase.SERVING:
            self.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        """Go on after an answer: with what has arrived, and when that is answered, with what has not."""
        if self._rest and len(self._queue) <= 1 and self._phase is Phase.SERVING:
            rest, self._rest = self._rest, b""
            self._parse(rest)
            if self._is_half_closed and not self._rest:
                self._end_with_last()
        if not self._queue and self._phase in (Phase.SERVING, Phase.ENDING):
            if self._refusal:
                self._answer_refusal()
            elif self._phase is Phase.ENDING:
                self._finish()
        self._update_budget()
        if not self._has_enough() and self._phase is Phase.SERVING:
            self._resume_reading()
        self._start_next()

    def _end_with_last(self) -> None:
        """No request follows those that have arrived."""
        if self._phase is Phase.SERVING:
            self._phase = Phase.ENDING
            if self._queue and self._queue[-1].more_body:
                self._queue.pop().disconnect()
            if self._queue:
                self._queue[-1].keep_alive = False

    # Refusals --------------------------------------------------------------------------------------------

    def refuse(self, refusal: FinalRefusal, *, instead_of: Exchange | None = None) -> None:
        """Read nothing any more, and end with this answer, in its turn.

        It takes the place of the answer to a request that is still arriving, or that `instead_of` names. A request that
        has its answer, or the beginning of it, gets no other.
        """
        self._phase = Phase.ENDING
        self._rest = b""
        self._parser.close()
        refused, self._arriving = instead_of or self._arriving, None
        if refused and refused.response_started:
            self._finish()
            return
        if refused:
            while self._queue and self._queue[-1] is not refused:
                self._queue.pop().disconnect()
            self._queue.pop()
            refused.disconnect()
            refusal = refusal._replace(method=refused.head.method)
        self._refusal = refusal
        self._update_budget()
        if not self._queue:
            self._answer_refusal()

    def _answer_refusal(self) -> None:
        refusal, self._refusal = self._refusal, None
        if refusal and not self._transport.is_closing():
            self._context.counters.refused(refusal.method or OTHER, refusal.status)
            self.write(encode_refusal(refusal))
        self._finish()

    # The end ---------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Everything is answered that will be: close the write side, and discard what still arrives.

        TLS cannot be closed on one side. There the connection is closed at once only when nothing more is on its way.
        """
        is_more_expected = self._parser.is_in_message or self._parser.raw_bytes > 0 or self._is_read_paused
        self._phase = Phase.LINGERING
        self._parser.close()
        self._drop_queue()
        if self._transport.is_closing():
            return
        if self._is_half_closed or (self.scheme == "https" and not is_more_expected):
            self._transport.close()
            return
        if self.scheme == "http":
            self._transport.write_eof()
        self._discard = Discard(monotonic())
        self._resume_reading()

    def _take_discarded(self, size: int, now: float) -> None:
        if self._discard:
            self._discard.take(size, now)
            if self._discard.bytes > self._context.options.linger_bytes_max:
                self._phase = Phase.CLOSED
                self._transport.abort()

    def _drop_queue(self) -> None:
        """No further answer will be read: let the application know, when it works on one."""
        self._rest = b""
        self._arriving = None
        for exchange in self._queue:
            exchange.disconnect()
        self._queue.clear()
        self._update_budget()

    # Flow control and limits -----------------------------------------------------------------------------

    def _has_enough(self) -> bool:
        """True when more has arrived than can be processed now: the client has to wait."""
        if self._rest or len(self._queue) > 1 or self._phase is Phase.ENDING:
            return True
        return bool(self._queue) and self._queue[0].unread_bytes > BODY_BUFFER_BYTES

    def _pause_reading(self) -> None:
        if not self._is_read_paused and not self._transport.is_closing():
            self._is_read_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._is_read_paused and not self._transport.is_closing():
            self._is_read_paused = False
            self._transport.resume_reading()

    @property
    def in_flight(self) -> int:
        """How many requests have no answer yet."""
        return len(self._queue)

    def _update_budget(self) -> None:
        """Update how much the budget counts for this client."""
        size = self.evictable_bytes()
        if self._queue and not self._queue[0].more_body:
            size += self._queue[0].held_bytes
        self._is_holding = size > 0
        self._context.budget.hold(self, size)

    def evictable_bytes(self) -> int:
        """Bytes of requests that are not complete, or wait for the answer to another."""
        size = len(self._rest) + self._parser.unfinished_head_bytes if self._phase is Phase.SERVING else 0
        for number, exchange in enumerate(self._queue):
            if number:
                size += exchange.waiting_bytes()
            elif exchange.more_body and not exchange.response_started:
                size += exchange.held_bytes
        return size

    def evict(self) -> None:
        """Refuse the request that is not complete, and drop those that wait."""
        while len(self._queue) > 1:
            self._queue[-1].disconnect()
            if self._queue.pop() is self._arriving:
                self._arriving = None
        self.refuse(FinalRefusal(503, "too many bytes in flight; the request was not served"))

    # Deadlines -------------------------------------------------------------------------------------------

    def look(self, now: float) -> None:
        """Note the client's progress. To be called regularly, before `is_overdue`."""
        self.reader.look(now, self._transport, self._written_bytes)
        if self.reader.is_reading():
            self._active_at = now  # it has not been idle since

    def is_overdue(self, now: float) -> bool:
        """True when a deadline has passed: to send, to read, to close, or to begin another request."""
        options, is_stopping = self._context.options, self._context.is_stopping
        if self.reader.is_reading():
            is_all_sent = is_stopping and not self.reader.unsent_bytes
            return self.reader.stalled_s(now) > (_STOP_GOODBYE_SECONDS if is_all_sent else options.body_timeout_s)
        if self._discard:
            idle_s = _STOP_GOODBYE_SECONDS if is_stopping else options.linger_idle_s
            return self._discard.is_overdue(now, options.linger_timeout_s, idle_s)
        if self._queue:
            is_awaited = self._queue[-1].more_body and not self._is_read_paused
            return is_awaited and now - self._active_at > options.body_timeout_s
        if self._parser.is_in_head:
            return now - self._head_since > options.header_timeout_s
        return now - self._active_at > options.keep_alive_s

    def time_out(self) -> None:
        """End the connection. A client that has begun a request and not finished it gets 408."""
        if self._phase is Phase.SERVING and not self.reader.is_reading() and not self._discard:
            if self._queue or self._parser.is_in_head:
                self.refuse(FinalRefusal(408, "request timeout"))
            else:
                self._close()
        else:
            self._transport.abort()

    def shutdown(self) -> None:
        """Answer what is in flight, then close. A request that is on its way gets a moment to arrive."""
        if self._queue:
            self._queue[-1].keep_alive = False
        else:
            self.loop.call_later(_STOP_GRACE_SECONDS, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if self._phase is Phase.SERVING and not self._queue:
            self._close()

    def _close(self) -> None:
        """Close an idle connection: nothing of its client is known to be on its way."""
        self._phase = Phase.CLOSED
        self._transport.close()
        if self.scheme == "https":
            self._transport.abort()  # the end was sent; many clients do not read it while they are idle
