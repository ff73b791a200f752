"""The Gunicorn worker class: uvicorn's, with its holes closed.

Owns a process's connections: their deadlines and limits, how they end when the worker stops, and that the worker never
outlives its parents. Knows no routes and no data.

What UvicornWorker leaves open, and where it is closed here:

1. it outlives a killed master, and waits for ever when stopping (Kludex/uvicorn#781): `Worker._watch`, `_orphaned`;
2. no deadline for headers, body, or a client that does not read (Kludex/uvicorn#157): `Connection.is_overdue`;
3. no limit on an unfinished header block: `Connection.data_received`;
4. under uvloop it closes the listening descriptor twice, when the number may already be libzmq's: `Worker._serve`;
5. when stopping it closes connections whose first request has not been parsed yet: `Connection.shutdown`.
"""

import asyncio
import logging
import os
import signal
import sys
from types import FrameType
from typing import Any, Final
from urllib.parse import quote

import httptools
import setproctitle
from gunicorn.arbiter import Arbiter
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import Server
from uvicorn_worker import UvicornWorker

from kv import lifeline
from kv.config import Config, Inherited

_SWEEP_SECONDS: Final = 0.5
_STOP_GRACE_SECONDS: Final = 0.25
_ASCII: Final = "".join(map(chr, range(128)))

log = logging.getLogger("kv.worker")


class _BadRequest(Exception):
    """The request is refused before the application sees it; `Connection._refusal` says with what."""


class Connection(HttpToolsProtocol):
    """One client. A sweep asks each connection from time to time whether it is overdue: no timer per request."""

    limits: Config

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin with nothing received."""
        super().connection_made(transport)
        self._unparsed_bytes = 0  # since the last piece of a request was complete
        self._unparsed_since = 0.0
        self._last_active = self.loop.time()
        self._unsent_bytes = 0  # at the last sweep
        self._unsent_since = 0.0
        self._refusal = (400, "bad request")
        self._in_message = False
        self._is_refused = False
        self._stopping = False

    def data_received(self, data: bytes) -> None:
        """Parse, within the limit on what is neither body nor a complete header block."""
        if self._is_refused:
            return
        self._last_active = self.loop.time()
        if not self._unparsed_bytes:
            self._unparsed_since = self._last_active
        if not (self._in_message or data.isascii()):
            data = _escape_request_line(data)
        self._unparsed_bytes += len(data)
        self._parse(data)
        if self._unparsed_bytes > self.limits.header_bytes_max:
            self._refuse(431, "request header fields too large")

    def _parse(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                data = self._head_without_upgrade() + data[offer.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
            except httptools.HttpParserError:
                self._refuse(*self._refusal)
                return

    def _head_without_upgrade(self) -> bytes:
        """The head that was just parsed, to be parsed again: with an offer to upgrade, it is taken to have no body."""
        fields = [b"%b: %b\r\n" % field for field in self.headers if field[0] != b"upgrade"]
        version = self.parser.get_http_version().encode()
        return b"%b %b HTTP/%b\r\n%b\r\n" % (self.parser.get_method(), self.url, version, b"".join(fields))

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._in_message = True
        super().on_message_begin()

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
        """Start the request."""
        if self._unparsed_bytes > self.limits.header_bytes_max and self._header_bytes() > self.limits.header_bytes_max:
            self._refusal = (431, "request header fields too large")
            raise _BadRequest
        if self.parser.get_http_version() not in ("1.1", "1.0") or self.parser.get_method() == b"CONNECT":
            raise _BadRequest
        if self.parser.should_upgrade():  # an offer that is not taken: `_parse` goes on without it
            return
        self._unparsed_bytes = 0
        super().on_headers_complete()
        if self._stopping:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has arrived."""
        if self.parser.should_upgrade():
            return
        self._in_message = False
        self._unparsed_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on with the next request. As in uvicorn, but without a timer for the idle connection."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self._last_active = self.loop.time()
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)

    def _refuse(self, status: int, text: str) -> None:
        """Answer what cannot be served, in its turn, and close."""
        self._is_refused = True
        if self.transport.is_closing():
            return
        if (
            not self._is_idle() and not self.cycle.more_body
        ):  # what is bad came after a request that waits for its answer
            self.cycle.keep_alive = False
            return
        if self._is_idle() or not self.cycle.response_started:
            body = text.encode() + b"\n"
            head = b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(
                body
            )
            self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()

    def _header_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _is_idle(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def is_overdue(self, now: float) -> bool:
        """True when the client has had its time: to send a header or a body, to read, or to say anything at all."""
        unsent_bytes = self.transport.get_write_buffer_size()
        if unsent_bytes:
            if unsent_bytes != self._unsent_bytes:
                self._unsent_bytes, self._unsent_since = unsent_bytes, now
            return now - self._unsent_since > self.limits.body_timeout_s
        self._unsent_bytes = 0
        if not self._is_idle():
            return self.cycle.more_body and now - self._last_active > self.limits.body_timeout_s
        if self._unparsed_bytes:
            return now - self._unparsed_since > self.limits.header_timeout_s
        return now - self._last_active > self.limits.keep_alive_s

    def time_out(self) -> None:
        """Close. A request that has begun and is not answered yet is told why."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        elif self._is_idle() and not self._unparsed_bytes:
            self.transport.close()
        else:
            self._refuse(408, "request timeout")

    def shutdown(self) -> None:
        """Answer what is in flight, then close. A request that is on its way gets a moment to arrive."""
        self._stopping = True
        if self._is_idle():
            self.loop.call_later(_STOP_GRACE_SECONDS, self._close_if_idle)
        else:
            self.cycle.keep_alive = False

    def _close_if_idle(self) -> None:
        if self._is_idle() and not self.transport.is_closing():
            self.transport.close()


def _escape_request_line(data: bytes) -> bytes:
    """Take raw bytes that a URL may not have as if the client had percent-encoded them; the key is then refused."""
    line, end, rest = data.partition(b"\n")
    return quote(line, safe=_ASCII).encode() + end + rest


class GracefulServer(Server):
    """A server that every signal to stop means the same to, however often it comes."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop once what is in flight is answered."""
        self.should_exit = True


class Worker(UvicornWorker):  # type: ignore[misc]  # it comes without types
    """A worker process. Hosted by gunicorn.conf.py, in the tree of kv/supervisor.py."""

    CONFIG_KWARGS: dict[str, Any] = {  # noqa: RUF012 - as in the class above
        "loop": "uvloop",
        "http": Connection,
        "ws": "none",
        "lifespan": "on",
        "access_log": False,
        "proxy_headers": False,
        "server_header": False,
        "date_header": False,
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        options = Config.from_environment(os.environ)
        Connection.limits = options
        self.config.timeout_graceful_shutdown = max(1, round(options.stop_timeout_s))
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # its warnings are per request

    def init_process(self) -> None:
        """Belong to the master before anything else: it may be gone already."""
        lifeline.die_with_parent()
        if os.getppid() != self.ppid:
            os._exit(1)
        setproctitle.setproctitle("kv: worker")
        super().init_process()

    def init_signals(self) -> None:
        """A hang-up is for the supervisor and the master; it may reach the whole group."""
        super().init_signals()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    async def _serve(self) -> None:
        self.config.app = self.wsgi
        server = GracefulServer(config=self.config)
        self._install_sigquit_handler()
        loop = asyncio.get_running_loop()
        loop.add_reader(Inherited.from_environment(os.environ).lifeline_fd, self._orphaned)
        watch = loop.create_task(self._watch(server))
        log.info("started")
        await server.serve(sockets=[wrapped.sock for wrapped in self.sockets])
        log.info("stopped")
        watch.cancel()
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

    async def _watch(self, server: Server) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            if os.getppid() != self.ppid:
                os._exit(1)
            now = loop.time()
            for connection in list(server.server_state.connections):
                if isinstance(connection, Connection) and connection.is_overdue(now):
                    connection.time_out()

    def _orphaned(self) -> None:
        """The supervisor is gone. The master has nobody else to tell it, where the kernel does not."""
        if os.getppid() == self.ppid:
            os.kill(self.ppid, signal.SIGKILL)
        os._exit(1)
