"""The process that the user knows: starts logd and gunicorn, starts them again when they die, and stops them in order.

Owns the order of things and what each signal means; knows no HTTP and never touches data. How a child is started is in
kv/children.py.

It binds the port first, listens once logd has recovered, and passes the socket on, so the port survives the death of
gunicorn. A signal may reach every process of the group at once, so the order of signals is not the order of stopping:
gunicorn stops first, when it has answered the requests in flight; then logd.
"""

import contextlib
import enum
import logging
import os
import resource
import select
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from kv import listener, notify, scoreboard, tls, token_file, upgrade
from kv.children import Child, Gunicorn, Logd
from kv.config import Config, UnusableFile
from kv.errors import CannotServe
from kv.heartbeats import LOOK_SECONDS, Heartbeats
from kv.pauses import Pauses
from kv.signals import SignalQueue
from logd.shared.protocol import Exit

_FILES_RETRY_SECONDS: Final = 1.0
_DESCRIPTORS_MAX: Final = 1 << 20
_DESCRIPTORS_MIN: Final = 4096
_FINAL_EXITS: Final = frozenset({Exit.USAGE, Exit.LOCKED, Exit.DAMAGED, Exit.UNUSABLE})
"""After these, starting logd again would end in the same way."""
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD)

log = logging.getLogger("kv.supervisor")


class _Goal(enum.Enum):
    SERVE = enum.auto()
    UPGRADE = enum.auto()
    """All children stop, then this process runs the code on disk."""
    STOP = enum.auto()
    """All children stop, then this process ends."""


class Supervisor:
    """Runs one server until it is told to stop, or cannot go on."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._goal = _Goal.SERVE
        self._is_listening = False
        self._selector = selectors.DefaultSelector()
        self._signals = SignalQueue(_SIGNALS)
        self._selector.register(self._signals, selectors.EVENT_READ, self._on_signals)
        board = scoreboard.Scoreboard(scoreboard.make(config.workers))
        board.started(scoreboard.Role.SUPERVISOR, os.getpid())
        board.ready(scoreboard.Role.SUPERVISOR)
        self._logd = Logd(config, board)
        self._gunicorn = Gunicorn(config, board)
        self._heartbeats = Heartbeats(board)
        self._look_at = time.monotonic() + LOOK_SECONDS
        self._pauses = Pauses(
            time.monotonic(), period_s=LOOK_SECONDS, timeout_max_s=max(self._gunicorn.stop_s, self._logd.stop_s)
        )
        self._check: subprocess.Popen[bytes] | None = None
        self._listeners: list[socket.socket] = []

    def run(self) -> int:
        """Serve; the exit status. Raises CannotServe, and UnusableFile at the start."""
        kept = upgrade.kept_listeners(os.environ)
        try:
            self._run(kept)
        except (CannotServe, UnusableFile):
            if kept and not self._is_listening:
                log.critical("the upgrade has failed: the new code cannot serve; the server ends")
            raise
        finally:
            self._gunicorn.kill()
            self._logd.kill()
            self._logd.close_socket()
        if self._goal is _Goal.UPGRADE:
            self._upgrade()
        log.info("stopped")
        return 0

    def _run(self, kept: list[socket.socket]) -> None:
        _raise_descriptor_limit()
        _prefer_throughput()
        check_files(self._config)
        tls.warn_if_exposed(self._config)
        self._listeners = kept or listener.bind(self._config.host, self._config.port)
        self._start_logd()
        while not self._has_reached_goal():
            self._turn()

    def _has_reached_goal(self) -> bool:
        if self._goal is _Goal.SERVE or self._gunicorn.process or self._logd.process:
            return False
        return self._goal is _Goal.STOP or not self._gunicorn.has_workers

    def _turn(self) -> None:
        """Wait until something happens or is due, and react."""
        for key, _ in self._selector.select(self._timeout_s()):
            key.data()
        for pid, status in _ended_children():
            self._on_end(pid, status)
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._kill_frozen_workers()
        if self._goal is _Goal.SERVE:
            self._start_due(now)
        else:
            self._stop_next()
        deadlines_now = self._pauses.look(now)
        for child in (self._gunicorn, self._logd):
            child.kill_if_overdue(deadlines_now)

    def _timeout_s(self) -> float:
        """The time until something is due: a look at the workers, if nothing else."""
        times = [self._look_at, self._logd.restart_at]
        if not self._gunicorn.has_workers:  # else the start has to wait for their end, which is an event
            times.append(self._gunicorn.restart_at)
        return max(0.0, min(at for at in times if at is not None) - time.monotonic())

    def _kill_frozen_workers(self) -> None:
        """Gunicorn starts others in their place. While the server stops, the deadline of the stop is enough."""
        for pid in self._heartbeats.look() if self._goal is _Goal.SERVE else ():
            log.error("worker %d is frozen; killing it", pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _await_pipe(self, fd: int, react: Callable[[bytes], None]) -> None:
        """React once, to the first line from a pipe, or to b"" when its other end is closed."""

        def on_readable() -> None:
            data = os.read(fd, select.PIPE_BUF)
            self._selector.unregister(fd)
            os.close(fd)
            react(data)

        self._selector.register(fd, selectors.EVENT_READ, on_readable)

    # Signals ---------------------------------------------------------------------------------------------

    def _on_signals(self) -> None:
        for number in self._signals.receive():
            if number in (signal.SIGTERM, signal.SIGINT) and self._goal is not _Goal.STOP:
                self._begin_stop(number)
            elif number == signal.SIGHUP and self._gunicorn.process and self._goal is _Goal.SERVE:
                self._reload()
            elif number == signal.SIGUSR2:
                self._check_upgrade()

    def _begin_stop(self, number: signal.Signals) -> None:
        log.info("stopping on %s", number.name)
        self._goal = _Goal.STOP
        notify.send("STOPPING=1")
        for each in self._listeners:
            each.close()  # once the workers have closed theirs too, connections are refused
        if self._check:
            self._check.terminate()

    def _reload(self) -> None:
        try:
            _check_files_of_workers(self._config)
        except UnusableFile as error:
            log.error("the workers are not restarted: %s", error)
            return
        log.info("restarting the workers on SIGHUP")
        self._gunicorn.reload()

    # Upgrade ---------------------------------------------------------------------------------------------

    def _check_upgrade(self) -> None:
        """Find out whether the code on disk can be started, while the server serves."""
        if self._goal is not _Goal.SERVE or not self._is_listening or self._check:
            log.warning("SIGUSR2 is ignored while the server starts, stops, or is being upgraded")
            return
        log.info("checking the code on disk on SIGUSR2")
        try:
            self._check = upgrade.start_check()
        except OSError as error:
            log.error("not upgraded: the check cannot be started: %s", error)

    def _on_checked(self, status: int) -> None:
        self._check = None
        if self._goal is not _Goal.SERVE:
            return
        if status:
            log.error("not upgraded: the check ended with status %d, for the reason above; serving goes on", status)
            return
        log.info("upgrading: answering the requests in flight, then starting the code on disk")
        self._goal = _Goal.UPGRADE
        notify.send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}\nSTATUS=upgrading")

    def _upgrade(self) -> None:
        """Become the code on disk, unless a signal to stop has arrived by now. Raises CannotServe."""
        self._signals.block()  # one that arrives from here on is for the new code
        self._on_signals()
        if self._goal is _Goal.UPGRADE:
            upgrade.replace_process(self._listeners)

    # Stopping --------------------------------------------------------------------------------------------

    def _stop_next(self) -> None:
        """Gunicorn first, so that requests in flight are answered; then logd."""
        for child in (self._gunicorn, self._logd):
            child.restart_at = None
        running = [child for child in (self._gunicorn, self._logd) if child.process]
        if running and running[0].kill_at is None:
            running[0].stop()

    # Starting --------------------------------------------------------------------------------------------

    def _start_due(self, now: float) -> None:
        if self._logd.restart_at is not None and now >= self._logd.restart_at:
            self._start_logd()
        restart_at = self._gunicorn.restart_at
        if restart_at is not None and now >= restart_at and not self._gunicorn.has_workers:
            self._restart_gunicorn(now)

    def _start_logd(self) -> None:
        self._await_pipe(self._logd.start(), partial(self._on_recovered, self._logd.process))

    def _on_recovered(self, process: subprocess.Popen[bytes] | None, line: bytes) -> None:
        """This logd has recovered, or, without a line, has died before. It may have a successor, which has not."""
        if not line or process is not self._logd.process:
            return
        self._logd.recovered(line)
        if not self._is_listening and self._goal is _Goal.SERVE:
            self._listen()
            self._start_gunicorn()

    def _listen(self) -> None:
        scheme = "https" if self._config.tls_cert_file else "http"
        urls = " and ".join(f"{scheme}://{address}" for address in listener.listen(self._listeners))
        self._is_listening = True
        log.info("listening on %s, data in %s", urls, self._config.place())
        notify.send(f"READY=1\nSTATUS=listening on {urls}")

    def _restart_gunicorn(self, now: float) -> None:
        """Start it again when it could serve; a certificate that is just being replaced is no reason to give up."""
        try:
            tls.read_certificate(self._config)
        except UnusableFile as error:
            log.error("gunicorn is not started: %s; trying again in %g s", error, _FILES_RETRY_SECONDS)
            self._gunicorn.restart_at = now + _FILES_RETRY_SECONDS
        else:
            self._start_gunicorn()

    def _start_gunicorn(self) -> None:
        alive = self._gunicorn.start([each.fileno() for each in self._listeners], self._logd.address)
        self._await_pipe(alive, self._gunicorn.on_all_ended)

    # Ends of children ------------------------------------------------------------------------------------

    def _on_end(self, pid: int, status: int) -> None:
        for child in (self._logd, self._gunicorn):
            if child.process and child.process.pid == pid:
                child.process.returncode = status
                child.ended()
                self._on_child_end(child, status)
        if self._check and self._check.pid == pid:
            self._check.returncode = status
            self._on_checked(status)

    def _on_child_end(self, child: Child, status: int) -> None:
        if self._goal is not _Goal.SERVE:
            if child is self._logd and status != Exit.STOPPED:
                log.error("logd ended with status %d while stopping", status)
        elif child is self._logd and status in _FINAL_EXITS:
            reason = Exit(status).name.lower()
            # At a start, logd's own message is enough.
            raise CannotServe(f"logd cannot serve ({reason}); see above" if self._is_listening else "", status)
        else:
            child.plan_restart(status)


def check_files(config: Config) -> None:
    """Check that the files which the options name can be used. Raises UnusableFile."""
    _check_files_of_workers(config)
    tls.check_those_for_etcd(config)
    if config.etcd_user_file:
        token_file.read_secret("--etcd-user-file", config.etcd_user_file)


def _check_files_of_workers(config: Config) -> None:
    """The same of those that a reload reads anew."""
    if config.token_file:
        token_file.read_token(config.token_file)
    tls.read_certificate(config)


def _ended_children() -> Iterator[tuple[int, int]]:
    """Pid and status of each child that has ended, and of processes that became ours when their parent ended."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            yield pid, os.waitstatus_to_exitcode(status)


def _prefer_throughput() -> None:
    """Ask the kernel not to preempt a running process whenever another one wakes up: batches become larger."""
    if hasattr(os, "SCHED_BATCH"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _raise_descriptor_limit() -> None:
    """Each connection needs a descriptor, and libzmq aborts the process when it gets none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS_MAX)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    granted = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    log.info("starting; %d file descriptors", granted)
    if granted < _DESCRIPTORS_MIN:
        log.warning("%d file descriptors are few: a worker resets connections that it has none left for", granted)
