"""The Gunicorn worker class: uvicorn's, with its holes closed.

Owns the worker process: how it serves and stops, that it never outlives its parents, and the sweep that ends
connections that have had their time (what is due on one of them is for kv/http/connection.py). Knows no routes and no
data.

What UvicornWorker leaves open in the process, and where it is closed here:

* it outlives a killed master, and waits for ever when stopping (Kludex/uvicorn#781): `Worker._watch`, `_orphaned`;
* a TLS client has a minute to begin, and half a one to end, however it gets on: `GracefulServer.startup`;
* a worker whose certificate cannot be read ends, and its successor, without end: `Worker._tls_context`;
* under uvloop it closes the listening descriptor twice, when the number may already be libzmq's: `Worker._serve`.
"""

import asyncio
import gc
import logging
import os
import signal
import socket
import ssl
import sys
import time
from types import FrameType
from typing import Any, Final

import setproctitle
from gunicorn.arbiter import Arbiter
from uvicorn.config import STARTUP_FAILURE
from uvicorn.server import Server
from uvicorn_worker import UvicornWorker

from kv import lifeline, scoreboard, tls
from kv.config import Config, Inherited
from kv.http.connection import Connection

_SWEEP_SECONDS: Final = 0.5
_FOR_EVER_SECONDS: Final = 1e6
_GC_ALLOCATIONS: Final = 50_000
"""Requests in flight are thousands of young objects and no garbage: the default of 700 looks at them all the time."""

log = logging.getLogger("kv.http.worker")


class GracefulServer(Server):
    """A server that every signal to stop means the same to, however often it comes."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop once what is in flight is answered."""
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As in the class above, and with TLS a client has no longer than any other to begin, and to end."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        limits = Connection.limits
        tls: dict[str, Any] = {}
        if self.config.ssl:
            tls["ssl"] = self.config.ssl
            tls["ssl_handshake_timeout"] = limits.header_timeout_s
            tls["ssl_shutdown_timeout"] = _FOR_EVER_SECONDS  # it asks for no progress; `Connection.is_overdue` does
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(self._connection, sock=each, backlog=self.config.backlog, **tls)
            for each in sockets or []
        ]
        self.started = True

    def _connection(self) -> Connection:
        return Connection(self.config, self.server_state, self.lifespan.state)


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
    _tls_context: ssl.SSLContext | None = None
    """Read by the master, when it has read this code, for all workers until the next reload: one that is started again
    needs no file that may be gone by then, or be another."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        options = Config.from_environment(os.environ)
        Connection.limits = options
        Worker._tls_context = context = Worker._tls_context or tls.tls_context(options)
        if context:
            self.config.ssl_context_factory = lambda *_: context
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
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GC_ALLOCATIONS)
        log.info("started")
        # Not before: a worker that is told to stop while it starts is no restart.
        Connection.counts = scoreboard.my_slot()
        await server.serve(sockets=[wrapped.sock for wrapped in self.sockets])
        log.info("stopped")
        watch.cancel()
        Connection.counts.give_back()
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

    async def _watch(self, server: Server) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            if os.getppid() != self.ppid:
                os._exit(1)
            connections = [each for each in server.server_state.connections if isinstance(each, Connection)]
            is_watched = hasattr(self.wsgi, "gauges")
            _sweep(connections, reads_wait=is_watched and self.wsgi.reads_wait_for_room())
            if is_watched:
                gauges = self.wsgi.gauges()
                Connection.counts.queued(int(gauges["queued_writes"]), int(gauges["queued_bytes"]))
                Connection.counts.large(int(gauges["large_bytes"]), int(gauges["large_reads_waiting"]))

    def _orphaned(self) -> None:
        """The supervisor is gone. The master has nobody else to tell it, where the kernel does not."""
        if os.getppid() == self.ppid:
            os.kill(self.ppid, signal.SIGKILL)
        os._exit(1)


def _sweep(connections: list[Connection], *, reads_wait: bool) -> None:
    """End those that have had their time, and the slowest reader when others need its memory."""
    now = time.monotonic()
    on_time = []
    for connection in connections:
        if connection.is_overdue(now):
            connection.time_out()
        else:
            on_time.append(connection)
    unsent_bytes = sum(each.unsent_bytes for each in on_time)
    Connection.counts.measure(len(connections), sum(each.in_flight for each in connections), unsent_bytes)
    if reads_wait or unsent_bytes > Connection.limits.body_bytes_in_flight_max:
        slowest = max(on_time, key=lambda each: each.slowness, default=None)
        if slowest and slowest.slowness > 1:
            slowest.time_out()
