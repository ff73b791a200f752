"""One client's connection: from bytes to requests the application can answer, and back, within limits and deadlines.

Owns what is between the transport and the ASGI application. Knows HTTP; knows no routes, no data, and not the process
that it is in (kv/http/worker.py). uvicorn's protocol class is what it stands on; it replaces the part that runs for
every request, because that part decides how fast the server is, and closes what that class leaves open:

* no deadline for headers, body, or a client that does not read (Kludex/uvicorn#157): `Connection.is_overdue`;
* no limit on an unfinished header block: `Connection._parse`;
* no limit on what all clients together have sent and have no answer to: `Connection.held_bytes`;
* no end to the body of a request that has its answer already: `Connection._drop`;
* when stopping it closes connections whose first request has not been parsed yet: `Connection.shutdown`;
* and of uvloop: its TLS takes any amount to send at once, and hides it: `Exchange._send_in_pieces`.
"""

import asyncio
import contextlib
import fcntl
import functools
import logging
import re
import struct
import termios
from collections import deque
from collections.abc import Callable, Coroutine
from time import monotonic  # the clock of the loop counts milliseconds
from typing import Any, Final
from urllib.parse import quote, unquote

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from kv.config import Config
from kv.scoreboard import OTHER, Slot

_STOP_GRACE_SECONDS: Final = 0.25
_GOODBYE_SECONDS: Final = 1.0
"""How long a stop waits, without progress, for the end of a TLS client that has its last answer."""
_SLOW_BYTES_A_SECOND: Final = 64 * 1024
_SLOW_SECONDS: Final = 5.0
"""Who takes less of an answer, over so long, is cut off when others need the memory."""
_PARSE_BYTES: Final = 16 * 1024
"""What is parsed at once: as many requests as are in it take memory and time before the first of them is answered."""
_TLS_BYTES: Final = 64 * 1024
"""What is sent at once over TLS, and so about what may wait below it unseen; the kernel's buffers are larger."""
_PIECE_BYTES: Final = 64
"""What a piece of a body takes besides its bytes: many tiny ones count for what they cost."""
_REQUEST_BYTES: Final = 1024
"""What a request takes that waits behind another of its connection, besides its headers and its body."""
_HEADER_BYTES: Final = 160
"""What a header takes, besides long names and values."""
_INT: Final = struct.Struct("i")
_UNKNOWN_METHOD: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+(?= /\S* HTTP/1\.[01]\r\n)")
_ASCII: Final = "".join(map(chr, range(128)))
_ASGI: Final = {"version": "3.0", "spec_version": "2.3"}

log = logging.getLogger("kv.http.connection")

Application = Callable[[dict[str, Any], Any, Any], Coroutine[Any, Any, None]]


class _BadRequest(Exception):
    """The request is refused before the application sees it; `Connection._refusal` says with what."""


class Exchange:
    """One request and its answer. Its `receive` and `send` are what the ASGI application is called with.

    The application runs without a task of its own: `step` runs it until it awaits a future, and again when that is
    done. That saves a turn of the event loop for each request; `asyncio.current_task` and what is built on it
    (`asyncio.timeout`) are not for handlers.
    """

    __slots__ = (
        "_announced",
        "_connection",
        "_coroutine",
        "_head",
        "_parts",
        "_parts_bytes",
        "_waiter",
        "arrived_at",
        "disconnected",
        "expects_continue",
        "held_bytes",
        "is_started",
        "keep_alive",
        "more_body",
        "response_complete",
        "response_started",
        "scope",
        "status",
    )

    def __init__(
        self,
        connection: "Connection",
        scope: dict[str, Any],
        arrived_at: float,
        *,
        keep_alive: bool,
        expects_continue: bool,
    ) -> None:
        self.scope = scope
        self.keep_alive = keep_alive
        self.expects_continue = expects_continue
        self.more_body = True
        self.arrived_at = arrived_at
        self.held_bytes = 0
        """What of it counts in `Connection.held_bytes`: nothing when it came in one piece and alone."""
        self.status = 0
        self.is_started = False
        self.disconnected = False
        self.response_started = False
        self.response_complete = False
        self._connection = connection
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self._announced = False  # the application knows that the body is complete
        self._waiter: asyncio.Future[None] | None = None

    def start(self, application: Application) -> None:
        """Run the application until it has to wait."""
        self.is_started = True
        self._coroutine = self._run(application)
        self.step()

    def step(self, _: object = None) -> None:
        """Go on with the application."""
        try:
            awaited = self._coroutine.send(None)
        except StopIteration:
            return
        if awaited is None:  # asyncio.sleep(0)
            self._connection.loop.call_soon(self.step)
        else:
            awaited._asyncio_future_blocking = False  # what a task does to say that it has seen to it
            awaited.add_done_callback(self.step)

    async def _run(self, application: Application) -> None:
        try:
            await application(self.scope, self.receive, self.send)
        except Exception:
            log.exception("%s failed", self.scope["method"])
        if not (self.response_complete or self.disconnected):
            self._connection.abandon(self)

    # What arrives ----------------------------------------------------------------------------------------

    def feed(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._parts.append(body)
        self._parts_bytes += len(body)
        if self._parts_bytes > HIGH_WATER_LIMIT:
            self._connection.flow.pause_reading()
        self.wake()

    def disconnect(self) -> None:
        """No answer can be sent any more, and what there is of the body is not needed."""
        self.disconnected = True
        self._parts = []
        self.wake()

    def wake(self) -> None:
        """Something has changed that `receive` may wait for."""
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self) -> dict[str, Any]:
        """The next piece of the body, or the news that the client has gone or has its answer."""
        if self.expects_continue:
            self.expects_continue = False
            self._connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not (self._parts or self.disconnected or self.response_complete):
            if not (self.more_body or self._announced):
                break
            if self.more_body:  # else what comes next is another request
                self._connection.flow.resume_reading()
            self._waiter = self._connection.loop.create_future()
            await self._waiter
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts, self._parts_bytes = [], 0
        self._announced = not self.more_body
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    # What is answered ------------------------------------------------------------------------------------

    async def send(self, event: dict[str, Any]) -> None:
        """Take the head of the answer, then its body; what is there together is written together."""
        if self._connection.flow.write_paused and not self.disconnected:
            await self._connection.flow.drain()
        if self.disconnected:
            return
        if not self.response_started:
            self.response_started = True
            self.expects_continue = False
            self.status = event["status"]
            self._head = self._encode_head(self.status, event["headers"])
            return
        body = b"" if self.scope["method"] == "HEAD" else event.get("body", b"")
        if len(body) > _TLS_BYTES and self._connection.scheme == "https":
            await self._send_in_pieces(body)
            if self.disconnected:
                return
        else:
            self._connection.write(self._head + body)
        self._head = b""
        if not event.get("more_body", False):
            self.response_complete = True
            self.wake()
            self._connection.on_response_complete()

    async def _send_in_pieces(self, body: bytes) -> None:
        """Give TLS no more than can be sent, and be done when nearly all is; the sweep sees to the rest."""
        connection, flow = self._connection, self._connection.flow
        connection.write(self._head)
        view = memoryview(body)
        for start in range(0, len(body), _TLS_BYTES):
            connection.write(view[start : start + _TLS_BYTES])
            if flow.write_paused:
                await flow.drain()
            if self.disconnected:
                return

    def _encode_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
        """The head as bytes. Without a length, the end of the connection is the end of the body."""
        fields = dict(headers)
        if fields.get(b"connection") == b"close" or b"content-length" not in fields:
            self.keep_alive = False
        if not self.keep_alive:
            fields[b"connection"] = b"close"
        return _encode_fields(status, tuple(fields.items()))


@functools.lru_cache(maxsize=512)
def _encode_fields(status: int, fields: tuple[tuple[bytes, bytes], ...]) -> bytes:
    lines = [b"%b: %b\r\n" % field for field in fields]
    return b"".join([STATUS_LINE[status], *lines, b"\r\n"])


class Connection(HttpToolsProtocol):
    """One client. A sweep asks each connection from time to time whether it is overdue: no timer per request."""

    limits: Config
    counts: Slot
    held_bytes = 0
    """Over all connections of the process: what requests without an answer take that are pipelined, or did not arrive
    at once.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin with nothing received."""
        super().connection_made(transport)
        if self.scheme == "https":
            transport.set_write_buffer_limits(high=1, low=0)  # of what TLS cannot hand on; see `_send_in_pieces`
        self._queue: deque[Exchange] = deque()
        """Requests without an answer: the first is with the application, the last may still be arriving."""
        self._arriving: Exchange | None = None
        """Whose body comes next. It may have its answer already: then the rest is dropped."""
        self._unparsed_bytes = 0  # since the last piece of a request was complete
        self._unparsed_since = 0.0
        self._rest = b""
        """Has arrived, and is parsed when at most one request waits for its answer. Nothing is read until then."""
        self._beginning_bytes = 0
        """What counts in `held_bytes` of that, and of headers that are not complete."""
        self._dropped: Exchange | None = None  # whose body is dropped, and how much of it was, since when
        self._dropped_bytes = 0
        self._dropped_since = 0.0
        self._last_active = monotonic()
        self.written_bytes = 0
        """Of answers, until now."""
        self.unsent_bytes = 0
        """Of these, what the kernel had not taken at the last sweep."""
        self.slowness = 0.0
        """How many times longer than the slowest that is welcome the client took to read, over the last seconds."""
        self._progress_at = 0.0  # 0 when there is nothing to read
        self._taken_bytes = 0  # by the client, at the last sweep
        self._window_since = 0.0
        self._window_taken_bytes = 0
        self._refusal = (400, "bad request")
        self._in_message = False
        self._is_over = False  # nothing is taken any more
        self._stopping = False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application, where a request waits for an answer."""
        self.connections.discard(self)
        self._hang_up()
        self.flow.resume_writing()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer a client that has nothing more to say, if that was all said; half a request is never served."""
        if not self._queue or self._queue[-1].more_body or self.scheme == "https":  # TLS has no half-closed connections
            return False
        self._queue[-1].keep_alive = False
        return True

    # From bytes to requests ------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived, and begin with the next request."""
        if self._is_over:
            return
        self._last_active = monotonic()
        if self._in_message:
            self._let_go_of_beginning()  # what there is of it by now is counted below
        elif not data.isascii():
            data = _escape_request_line(data)
        if len(data) > _PARSE_BYTES:
            self._parse_pieces(data)
        else:
            self._parse(data)
            if self._in_message:
                self._hold(len(data) + _PIECE_BYTES)
        self._start_next()

    def _parse_pieces(self, data: bytes) -> None:
        """Parse until a request waits behind another, and keep the rest."""
        rest = memoryview(data)
        while rest and len(self._queue) <= 1 and not self._is_over:
            piece, rest = rest[:_PARSE_BYTES], rest[_PARSE_BYTES:]
            self._parse(piece)
        self._rest = b"" if self._is_over else bytes(rest)
        self._hold(len(data) - len(rest) + _PIECE_BYTES)

    def _parse(self, data: bytes | memoryview) -> None:
        """Parse, within the limit on what is neither body nor a complete header block."""
        if not self._unparsed_bytes:
            self._unparsed_since = self._last_active
        self._unparsed_bytes += len(data)
        self._feed(data)
        if self._unparsed_bytes > self.limits.header_bytes_max:
            self._refuse(431, "request header fields too large")

    def _feed(self, data: bytes | memoryview) -> None:
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                data = self._head_without_upgrade() + data[offer.args[0] :]
            except httptools.HttpParserError as error:
                data = (
                    self._with_known_method(data) if isinstance(error, httptools.HttpParserInvalidMethodError) else b""
                )
                if not data:
                    self._refuse(*self._refusal)
                    return
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does

    def _with_known_method(self, data: bytes | memoryview) -> bytes:
        """A request of its own in one piece, with a method that the application can refuse; empty for anything else."""
        method = _UNKNOWN_METHOD.match(data)
        return b"TRACE" + data[method.end() :] if method and self._unparsed_bytes == len(data) else b""

    def _head_without_upgrade(self) -> bytes:
        """The head that was just parsed, to be parsed again: with an offer to upgrade, it is taken to have no body."""
        fields = [b"%b: %b\r\n" % field for field in self.headers if field[0] != b"upgrade"]
        version = self.parser.get_http_version().encode()
        return b"%b %b HTTP/%b\r\n%b\r\n" % (self.parser.get_method(), self.url, version, b"".join(fields))

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._in_message = True
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_url(self, url: bytes) -> None:
        """Take a number sign, which a URL in a request may not have, as part of the path; the key is then refused."""
        self.url += url.replace(b"#", b"%23")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Refuse a coding that the parser would leave in the body, undecoded, and a body announced too large."""
        name = name.lower()
        if name == b"transfer-encoding" and (value.lower() != b"chunked" or self.parser.get_http_version() == "1.0"):
            self._refusal = (400, "transfer-encoding not supported")
            raise _BadRequest
        if name == b"content-length" and int(value) > self.limits.value_bytes_max:  # before a 100 Continue invites it
            self._refusal = (413, "value too large")
            raise _BadRequest
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Queue the request; it is started when what has arrived is parsed."""
        parser = self.parser
        if self._unparsed_bytes > self.limits.header_bytes_max and self._header_bytes() > self.limits.header_bytes_max:
            self._refusal = (431, "request header fields too large")
            raise _BadRequest
        method, version = parser.get_method(), parser.get_http_version()
        if version not in ("1.1", "1.0") or method == b"CONNECT":
            raise _BadRequest
        if parser.should_upgrade():  # an offer that is not taken: `_parse` goes on without it
            return
        self._unparsed_bytes = 0
        held_bytes = 0
        if self._queue:  # pipelined: not too many at once
            self.flow.pause_reading()
            held_bytes = _REQUEST_BYTES + _HEADER_BYTES * len(self.headers)
            if Connection.held_bytes + held_bytes > self.limits.body_bytes_in_flight_max:
                raise _BadRequest
            Connection.held_bytes += held_bytes
        self._arriving = Exchange(
            self,
            self._scope(method.decode(), version),
            self._last_active,
            keep_alive=version == "1.1" and parser.should_keep_alive() and not self._stopping,
            expects_continue=self.expect_100_continue,
        )
        self._arriving.held_bytes = held_bytes
        self._queue.append(self._arriving)

    def _scope(self, method: str, version: str) -> dict[str, Any]:
        path, query = _split_url(self.url)
        return {
            "type": "http",
            "asgi": _ASGI,
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": "",
            "method": method,
            "path": unquote(path.decode()) if b"%" in path else path.decode(),
            "raw_path": path,
            "query_string": query,
            "headers": self.headers,
        }

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._unparsed_bytes = 0
        if self._arriving and self._arriving.response_complete:
            self._drop(self._arriving, body)
        elif self._arriving:
            self._arriving.feed(body)

    def on_message_complete(self) -> None:
        """The request has arrived."""
        if self.parser.should_upgrade():
            return
        self._in_message = False
        self._unparsed_bytes = 0
        if self._arriving:
            self._arriving.more_body = False
            self._arriving.arrived_at = self._last_active
            self._arriving.wake()

    # From answers to bytes -------------------------------------------------------------------------------

    def _start_next(self) -> None:
        """Hand the next request to the application, unless it has one."""
        if self._queue and not self._queue[0].is_started:
            self._queue[0].start(self.app)

    def write(self, data: bytes | memoryview) -> None:
        """Send a part of an answer."""
        self.written_bytes += len(data)
        self.transport.write(data)

    def on_response_complete(self) -> None:
        """The first request of the queue has its answer: go on with the next."""
        answered = self._queue.popleft()
        self._let_go(answered)
        self.server_state.total_requests += 1
        self._last_active = monotonic()
        self.counts.answered(answered.scope["method"], answered.status, self._last_active - answered.arrived_at)
        if not answered.keep_alive:
            self._close()
        elif self._queue:
            self.loop.call_soon(self._go_on)
        elif self.flow.read_paused:
            self._go_on()

    def _go_on(self) -> None:
        """Go on behind an answer: with what has arrived, and when that is answered with what has not.

        Not before: what is pipelined would come in faster than it is answered.
        """
        if self._rest and len(self._queue) <= 1:
            self._parse_pieces(self._rest)
        if not self._queue:
            self._unparsed_since = monotonic()  # who is not read from cannot be late
            self.flow.resume_reading()
        self._start_next()

    def abandon(self, exchange: Exchange) -> None:
        """The application has failed to answer a request."""
        if exchange.response_started:
            self._close()
        else:
            self._answer_and_close(500, "internal server error")

    def _refuse(self, status: int, text: str) -> None:
        """Answer what cannot be served, in its turn, and close."""
        self._is_over = True
        self._let_go_of_beginning()
        if self._queue and self._queue[-1].more_body and len(self._queue) > 1:
            never_complete = self._queue.pop()
            self._let_go(never_complete)
            never_complete.disconnect()
        if self._queue and not self._queue[-1].more_body:  # what is bad came after a request that waits for its answer
            self._queue[-1].keep_alive = False
        elif self._is_dropping() or (self._queue and self._queue[0].response_started):
            self._close()  # it has its answer, or the beginning of it
        else:
            self._answer_and_close(status, text)

    def _answer_and_close(self, status: int, text: str) -> None:
        if not self.transport.is_closing():
            body = text.encode() + b"\n"
            self.counts.refused(self._queue[0].scope["method"] if self._queue else OTHER, status)
            head = b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n" % len(body)
            more = b"retry-after: 1\r\n\r\n" if status == 503 else b"\r\n"
            self.write(STATUS_LINE[status] + head + more + body)
        self._close()

    def _close(self) -> None:
        """Take nothing any more, and end the connection when what was written is sent."""
        self.transport.close()
        self._hang_up()

    def _hang_up(self) -> None:
        """Nobody will hear another answer: tell the application, where it is at work on one."""
        self._is_over = True
        self._let_go_of_beginning()
        for exchange in self._queue:
            self._let_go(exchange)
            exchange.disconnect()
        self._queue.clear()

    # Limits ----------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """How many requests have no answer yet."""
        return len(self._queue)

    def _unfinished(self) -> Exchange | None:
        """The request whose body is arriving, while it can still be refused."""
        last = self._queue[-1] if self._queue else None
        return last if last and last.more_body and not (last.response_started or self._is_over) else None

    def _hold(self, size: int) -> None:
        """Count a piece of what has not arrived whole. Beyond the limit the largest goes: small ones are not in danger.

        One that is alone is left to the limits on a value and on headers.
        """
        if self._is_over:
            return
        unfinished = self._unfinished()
        if unfinished:
            unfinished.held_bytes += size
            Connection.held_bytes += size
        self._hold_beginning()
        own_bytes = self._unfinished_bytes()
        if own_bytes and Connection.held_bytes > max(self.limits.body_bytes_in_flight_max, own_bytes):
            connections = [each for each in self.connections if isinstance(each, Connection)]
            max(connections, key=Connection._unfinished_bytes)._give_up()

    def _hold_beginning(self) -> None:
        """Count what has arrived and is no request yet."""
        size = len(self._rest)
        if self._in_message and not (self._arriving and self._arriving.more_body):  # in the middle of its headers
            if not self._unparsed_bytes:  # they came behind a whole request, and nobody knows how many bytes of them
                self._unparsed_bytes = 1
                self._unparsed_since = self._last_active
            size += self._unparsed_bytes + _HEADER_BYTES * len(self.headers)
        Connection.held_bytes += size - self._beginning_bytes
        self._beginning_bytes = size

    def _let_go_of_beginning(self) -> None:
        """It is dropped, or counted anew."""
        Connection.held_bytes -= self._beginning_bytes
        self._beginning_bytes = 0
        self._rest = b""

    def _unfinished_bytes(self) -> int:
        unfinished = self._unfinished()
        return (unfinished.held_bytes if unfinished else 0) + self._beginning_bytes

    def _give_up(self) -> None:
        """Refuse what is arriving, and drop what there is of it."""
        self._refuse(503, "too many bytes in flight; the request was not served")

    def _let_go(self, exchange: Exchange) -> None:
        """What a request has sent is not held any more, or by somebody who counts it."""
        if exchange.held_bytes:
            Connection.held_bytes -= exchange.held_bytes
            exchange.held_bytes = 0

    def _is_dropping(self) -> bool:
        """Whether the rest of a body is on its way that nobody needs: its request has its answer."""
        return self._arriving is not None and self._arriving.more_body and self._arriving.response_complete

    def _drop(self, exchange: Exchange, body: bytes) -> None:
        """Wait for the end of such a body, but not longer than any may be."""
        self._note_dropping(exchange)
        self._dropped_bytes += len(body) + _PIECE_BYTES
        if self._dropped_bytes > self.limits.value_bytes_max:
            self._close()
            raise _BadRequest

    def _note_dropping(self, exchange: Exchange) -> None:
        if self._dropped is not exchange:
            self._dropped, self._dropped_bytes, self._dropped_since = exchange, 0, self._last_active

    def _header_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def is_overdue(self, now: float) -> bool:
        """True when the client has had its time: to send a header or a body, to read, or to say anything at all."""
        self.unsent_bytes = self.transport.get_write_buffer_size()
        if self.unsent_bytes or self.transport.is_closing():  # TLS hides what is not sent, and waits for the client
            self._last_active = now  # it has not been idle since
            self._note_reading(now)
            is_goodbye = self._stopping and not self.unsent_bytes
            return now - self._progress_at > (_GOODBYE_SECONDS if is_goodbye else self.limits.body_timeout_s)
        self._progress_at = self.slowness = 0.0
        if self._queue:
            is_awaited = self._queue[-1].more_body and not self.flow.read_paused
            return is_awaited and now - self._last_active > self.limits.body_timeout_s
        return self._is_late(now)

    def _note_reading(self, now: float) -> None:
        """See how far the client has come with its answers, and how quickly."""
        taken_bytes = self.written_bytes - self._untaken()
        if not self._progress_at:
            self._window_since, self._window_taken_bytes = now, taken_bytes
        if not self._progress_at or taken_bytes != self._taken_bytes:
            self._progress_at, self._taken_bytes = now, taken_bytes
        seconds = now - self._window_since
        if seconds >= _SLOW_SECONDS:
            self.slowness = _SLOW_BYTES_A_SECOND * seconds / max(1, taken_bytes - self._window_taken_bytes)
            self._window_since, self._window_taken_bytes = now, taken_bytes

    def _untaken(self) -> int:
        """What the client has not acknowledged; where the system does not tell, what the kernel has not taken."""
        of_kernel = 0
        with contextlib.suppress(OSError, ValueError):  # it does not tell, or the connection is closed
            fd: int = self.transport.get_extra_info("socket").fileno()
            (of_kernel,) = _INT.unpack(fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(_INT.size)))
        return of_kernel + self.transport.get_write_buffer_size()

    def _is_late(self, now: float) -> bool:
        """Whether a client that has all its answers is overdue."""
        if self._arriving and self._is_dropping():
            self._note_dropping(self._arriving)
            return now - self._dropped_since > self.limits.body_timeout_s
        if self._unparsed_bytes:
            return now - self._unparsed_since > self.limits.header_timeout_s
        return now - self._last_active > self.limits.keep_alive_s

    def time_out(self) -> None:
        """Close. A request that has begun and is not answered yet is told why."""
        if self.transport.is_closing() or self.transport.get_write_buffer_size():
            self.transport.abort()
        elif self._queue or self._unparsed_bytes:
            self._refuse(408, "request timeout")
        else:
            self._close()

    def shutdown(self) -> None:
        """Answer what is in flight, then close. A request that is on its way gets a moment to arrive."""
        self._stopping = True
        if self._queue:
            self._queue[-1].keep_alive = False
        else:
            self.loop.call_later(_STOP_GRACE_SECONDS, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if not (self._queue or self.transport.is_closing()):
            self._close()
            if self.scheme == "https":
                self.transport.abort()  # it was told; many clients do not look while they are idle


def _split_url(url: bytes) -> tuple[bytes, bytes]:
    """Path and query, each as it was sent. Raises httptools.HttpParserInvalidURLError."""
    if url.startswith(b"/") and not url.startswith(b"//"):
        path, _, query = url.partition(b"?")
        return path, query
    parsed = httptools.parse_url(url)
    return parsed.path or b"/", parsed.query or b""


def _escape_request_line(data: bytes) -> bytes:
    """Take raw bytes that a URL may not have as if the client had percent-encoded them; the key is then refused."""
    line, end, rest = data.partition(b"\n")
    return quote(line, safe=_ASCII).encode() + end + rest
