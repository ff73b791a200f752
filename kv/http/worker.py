"""The Gunicorn worker class: hosts the ASGI application on uvloop and kv/http/connection.py.

Owns the worker process: how it starts, serves and stops, that it never outlives its parents, and the sweep that ends
connections whose deadline has passed. Knows no HTTP, no routes and no data.
"""

import asyncio
import contextlib
import gc
import logging
import math
import os
import signal
import sys
import time
from typing import Any, Final

import setproctitle
import uvloop
from gunicorn.arbiter import Arbiter
from gunicorn.workers import base

from kv import lifeline, scoreboard, tls
from kv.config import Config, Inherited
from kv.http.buffer_budget import BufferBudget
from kv.http.connection import Connection
from kv.http.context import Application, WorkerContext
from kv.pauses import Pauses

_SWEEP_SECONDS: Final = 0.5
_FOR_EVER_SECONDS: Final = 1e6
_GC_ALLOCATIONS: Final = 50_000
"""Requests in flight are thousands of young objects and no garbage; the default of 700 examines them all the time."""

log = logging.getLogger("kv.http.worker")


def keep_stops_of_new_workers() -> None:
    """Have a signal to stop end a worker that was just forked. Called once, in the master.

    Until `Worker.init_signals` has run, a worker has the master's handlers, which only queue the signal: the worker
    would serve on, and be killed with its requests when the time to stop is over.
    """
    signals = (signal.SIGTERM, signal.SIGQUIT)

    def take_default() -> None:
        for number in signals:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)

    os.register_at_fork(
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, signals),
        after_in_child=take_default,
        after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, signals),
    )


class _NoHeartbeatFile:
    """In place of gunicorn's: the heartbeat is in the scoreboard, and no directory for temporary files is needed."""

    def __init__(self, _cfg: object) -> None:
        self._fd = os.open(os.devnull, os.O_RDONLY)

    def fileno(self) -> int:
        """A descriptor, which the worker keeps from other programs."""
        return self._fd

    def close(self) -> None:
        """For the workers that are forked later, and for the master when the worker has ended."""
        os.close(self._fd)


base.WorkerTmp = _NoHeartbeatFile


class Worker(base.Worker):  # type: ignore[misc]  # gunicorn comes without types
    """A worker process, hosted by gunicorn.conf.py in the tree of kv/supervisor.py."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self._options = Config.from_environment(os.environ)
        self._tls_context = tls.of_workers()

    def init_process(self) -> None:
        """Tie the life of this process to that of the master, before anything else: the master may be gone already."""
        lifeline.die_with_parent()
        if os.getppid() != self.ppid:
            os._exit(1)
        setproctitle.setproctitle("kv: worker")
        scoreboard.my_slot()  # from here on it is noticed when this process is frozen
        super().init_process()

    def init_signals(self) -> None:
        """Until the loop handles a stop, it ends the process at once. Reload and upgrade are for others."""
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)

    def run(self) -> None:
        """Serve until a signal to stop."""
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            loop.add_signal_handler(number, stopping.set)
        loop.add_reader(Inherited.from_environment(os.environ).lifeline_fd, self._orphaned)
        lifespan = Lifespan(self.wsgi)
        if not await lifespan.startup():
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GC_ALLOCATIONS)
        log.info("started")
        context = WorkerContext(
            options=self._options,
            application=self.wsgi,
            counters=scoreboard.my_slot(),
            budget=BufferBudget(self._options.body_bytes_in_flight_max),
        )
        context.counters.serve()
        sweeper = loop.create_task(self._sweep_forever(context))
        servers = await self._listen(context)
        await stopping.wait()
        await self._stop(context, servers)
        await lifespan.shutdown()
        log.info("stopped")
        sweeper.cancel()
        context.counters.release()

    async def _listen(self, context: WorkerContext) -> list[asyncio.Server]:
        """Accept connections. A TLS handshake has the deadline of headers."""
        tls_options: dict[str, Any] = {}
        if self._tls_context:
            tls_options["ssl"] = self._tls_context
            tls_options["ssl_handshake_timeout"] = self._options.header_timeout_s
            # That time-out ignores progress; `Connection.is_overdue` is what ends a slow client.
            tls_options["ssl_shutdown_timeout"] = _FOR_EVER_SECONDS
        loop = asyncio.get_running_loop()
        return [
            # The bare socket: gunicorn's wrapper would be closed a second time, when its number may be another's.
            await loop.create_server(
                lambda: Connection(context), sock=each.sock, backlog=self.cfg.backlog, **tls_options
            )
            for each in self.sockets
        ]

    async def _stop(self, context: WorkerContext, servers: list[asyncio.Server]) -> None:
        """Accept nothing more, answer what is in flight, and wait for it as long as the options allow.

        The time is counted in steps, so that a pause of this process counts as one of them.
        """
        context.is_stopping = True
        context.all_closed.clear()
        for server in servers:
            server.close()
        for each in self.sockets:
            each.sock.close()
        for connection in list(context.connections):
            connection.shutdown()
        for _ in range(math.ceil(max(1.0, self._options.stop_timeout_s) / _SWEEP_SECONDS)):
            if not context.connections:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SWEEP_SECONDS):
                    await context.all_closed.wait()

    async def _sweep_forever(self, context: WorkerContext) -> None:
        pauses = Pauses(time.monotonic(), period_s=_SWEEP_SECONDS, timeout_max_s=_timeout_max_s(self._options))
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            if os.getppid() != self.ppid:
                os._exit(1)
            now = time.monotonic()
            sweep(context, now, pauses.look(now))

    def _orphaned(self) -> None:
        """The supervisor is gone: end the master, which the kernel does not do on every system, and this process."""
        if os.getppid() == self.ppid:
            os.kill(self.ppid, signal.SIGKILL)
        os._exit(1)


def _timeout_max_s(options: Config) -> float:
    """The longest time that a connection has for anything."""
    return max(options.header_timeout_s, options.body_timeout_s, options.keep_alive_s, options.linger_timeout_s)


def sweep(context: WorkerContext, now: float, deadlines_now: float) -> None:
    """End connections whose deadline has passed, and the slowest reader when others need its memory.

    `deadlines_now` is the time without pauses (kv/pauses.py).
    """
    connections = list(context.connections)
    for connection in connections:
        connection.look(now)
    on_time = []
    for connection in connections:
        if connection.is_overdue(deadlines_now):
            connection.time_out()
        else:
            on_time.append(connection)
    unsent_bytes = sum(each.reader.unsent_bytes for each in on_time)
    in_flight = sum(each.in_flight for each in connections)
    context.counters.show(
        {
            "connections": len(connections),
            "in_flight": in_flight,
            "held_bytes": context.budget.held_bytes,
            "unsent_bytes": unsent_bytes,
            **context.application.gauges(),
        }
    )
    if context.application.reads_wait_for_room() or unsent_bytes > context.budget.bytes_max:
        slowest = max(on_time, key=lambda each: each.reader.slowness, default=None)
        if slowest and slowest.reader.slowness > 1:
            slowest.time_out()


class Lifespan:
    """The application's start and stop, by the ASGI lifespan protocol."""

    def __init__(self, application: Application) -> None:
        self._to_application: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._from_application: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}}
        coroutine = application(scope, self._to_application.get, self._from_application.put)
        self._task = asyncio.get_running_loop().create_task(coroutine)

    async def startup(self) -> bool:
        """Start the application. False when it cannot; it has logged why."""
        return await self._tell("lifespan.startup")

    async def shutdown(self) -> None:
        """Let the application close what it has opened."""
        await self._tell("lifespan.shutdown")

    async def _tell(self, event: str) -> bool:
        await self._to_application.put({"type": event})
        answer = asyncio.ensure_future(self._from_application.get())
        await asyncio.wait([answer, self._task], return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return bool(answer.result()["type"] == f"{event}.complete")
        answer.cancel()
        if not self._task.cancelled() and (error := self._task.exception()):
            log.error("the application failed at its %s", event, exc_info=error)
        return False
