"""The process that the user knows: starts, watches, restarts and stops the others, in order.

Owns the process tree, the listening socket and the signals; knows no HTTP and never touches data.

The supervisor binds the port before anything else and listens once logd has recovered; it hands the socket on, so the
port survives the death of gunicorn. Signals may reach every process of the group at once, so their order is not the
order of stopping: gunicorn drains first, then logd is told by closing its lifeline.
"""

import contextlib
import errno
import logging
import os
import resource
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from kv import lifeline, notify, scoreboard, tls
from kv.config import Config, Inherited
from logd.shared.protocol import MESSAGE_OVERHEAD_BYTES, Exit

_ROOT: Final = Path(__file__).resolve().parent.parent
_BACKLOG: Final = 65535  # clamped to the kernel's somaxconn
_PORT_PATIENCE_SECONDS: Final = 2.0  # a predecessor whose supervisor was killed needs a moment to end
_LOGD_STOP_SECONDS: Final = 5.0
_FAULTS_MAX: Final = 5
_FAULTS_WINDOW_SECONDS: Final = 30.0
_BACKOFF_SECONDS: Final = (0.0, 0.1, 0.5, 1.0)  # after the first, second … fault in that time
_FILES_SECONDS: Final = 1.0  # until files that cannot be used are tried again
_DESCRIPTORS_MAX: Final = 1 << 20
_DESCRIPTORS_MIN: Final = 4096
_GIVE_UP: Final = frozenset({Exit.USAGE, Exit.LOCKED, Exit.DAMAGED, Exit.UNUSABLE})
_HOSTILE_VARIABLES: Final = ("GUNICORN_CMD_ARGS", "WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS", "PORT", "NOTIFY_SOCKET")

log = logging.getLogger("kv.supervisor")


class CannotStart(Exception):
    """The server cannot run here as it was told to; the message, if any, is for the user."""

    def __init__(self, message: str = "", status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class Child:
    """A role in the tree, and the process that has it now, if any."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.process: subprocess.Popen[bytes] | None = None
        self.restart_at: float | None = None
        self.kill_at: float | None = None
        self._lifeline: int | None = None
        self._faults: deque[float] = deque(maxlen=_FAULTS_MAX)

    def start(self, command: Sequence[str], environment: Mapping[str, str], inherit: Sequence[int], held: int) -> None:
        """Start the process. `held` is the write end of its lifeline, which this object closes."""
        self.process = subprocess.Popen(
            [sys.executable, *command],
            cwd=_ROOT,  # gunicorn would run and import what it finds in the user's
            env=environment,
            pass_fds=inherit,
            preexec_fn=lifeline.die_with_parent,  # noqa: PLW1509 - this process has one thread
        )
        self._lifeline = held
        self.restart_at = None
        self.kill_at = None

    def cut_lifeline(self) -> None:
        """Tell the process to end."""
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None

    def died(self, status: int) -> None:
        """Take note of an end that nobody asked for, and plan the next start.

        Raises CannotStart when there is no use.
        """
        now = time.monotonic()
        self.process = None
        self.kill_at = None
        self.cut_lifeline()
        delay = 0.0
        if status not in (-signal.SIGKILL, -signal.SIGTERM):  # those come from outside: somebody's experiment
            self._faults.append(now)
            recent = [at for at in self._faults if now - at < _FAULTS_WINDOW_SECONDS]
            if len(recent) == _FAULTS_MAX:
                raise CannotStart(f"{self.name} failed {_FAULTS_MAX} times within {now - recent[0]:.0f} s; giving up")
            delay = _BACKOFF_SECONDS[len(recent) - 1]
        self.restart_at = now + delay
        log.error("%s ended with status %d; starting it again in %g s", self.name, status, delay)

    def kill(self) -> None:
        """End the process at once, and wait until it has."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None
        self.cut_lifeline()


class Supervisor:
    """Runs one server until it is told to stop, or cannot go on."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._logd = Child("logd")
        self._gunicorn = Child("gunicorn")
        self._selector = selectors.DefaultSelector()
        self._stopping = False
        self._serving = False
        self._board_fd = scoreboard.make(config.workers)
        self._board = scoreboard.Board(self._board_fd)
        self._board.started(scoreboard.Role.SUPERVISOR)
        self._tree: int | None = None  # readable, at its end, once no process of the last gunicorn is left
        self._listener: socket.socket
        self._runtime: Path

    def run(self) -> int:
        """Serve; the exit status. Raises CannotStart."""
        self._catch_signals()
        _raise_descriptor_limit()
        _prefer_throughput()
        try:
            tls.check(self._config)
        except tls.CannotUse as error:
            raise CannotStart(str(error), Exit.USAGE) from error
        tls.warn(self._config)
        self._listener = _bind(self._config.host, self._config.port)
        self._runtime = Path(tempfile.mkdtemp(prefix="kv-"))  # of its own: its mode is 0700, and DIR may be too long
        try:
            self._start_logd()
            while not self._is_over():
                self._turn()
        finally:
            self._gunicorn.kill()
            self._logd.kill()
            shutil.rmtree(self._runtime, ignore_errors=True)
        log.info("stopped")
        return 0

    def _is_over(self) -> bool:
        return self._stopping and not self._gunicorn.process and not self._logd.process

    def _turn(self) -> None:
        """Wait for something to happen, then do what is due."""
        for key, _ in self._selector.select(self._timeout()):
            key.data()
        self._reap()
        now = time.monotonic()
        if self._stopping:
            self._stop_next()
        else:
            self._start_due(now)
        for child in (self._gunicorn, self._logd):
            if child.process and child.kill_at is not None and now >= child.kill_at:
                log.error("%s does not stop; killing it", child.name)
                child.process.kill()
                child.kill_at = None

    def _timeout(self) -> float | None:
        """Seconds until something is due; None when only an event can make it so."""
        times = [self._logd.restart_at, self._logd.kill_at, self._gunicorn.kill_at]
        if self._tree is None:  # else its end is what we wait for
            times.append(self._gunicorn.restart_at)
        due = [at for at in times if at is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    # Signals ---------------------------------------------------------------------------------------------

    def _catch_signals(self) -> None:
        """Only queue them: the handlers do nothing, their numbers arrive on a socket."""
        self._wakeup, written = socket.socketpair()
        self._wakeup.setblocking(False)
        written.setblocking(False)
        self._wakeup_write = written
        signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda _number, _frame: None)
        self._selector.register(self._wakeup, selectors.EVENT_READ, self._on_signals)

    def _on_signals(self) -> None:
        for number in self._wakeup.recv(4096):
            if number in (signal.SIGTERM, signal.SIGINT) and not self._stopping:
                log.info("stopping on %s", signal.Signals(number).name)
                self._stopping = True
                notify.tell("STOPPING=1")
                self._listener.close()  # once the workers have closed theirs too, nobody can connect any more
            elif number == signal.SIGHUP and self._gunicorn.process and not self._stopping:
                self._reload(self._gunicorn.process)

    def _reload(self, gunicorn: subprocess.Popen[bytes]) -> None:
        try:
            tls.check(self._config)
        except tls.CannotUse as error:
            log.error("the workers are not restarted: %s", error)
            return
        log.info("restarting the workers on SIGHUP")
        gunicorn.send_signal(signal.SIGHUP)

    def _reap(self) -> None:
        """Collect ended children, and whatever became ours when its parent ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for child in (self._logd, self._gunicorn):
                if child.process and child.process.pid == pid:
                    child.process.returncode = os.waitstatus_to_exitcode(status)
                    self._on_end(child, child.process.returncode)

    def _on_end(self, child: Child, status: int) -> None:
        if self._stopping:
            child.process = None
            child.cut_lifeline()
            if child is self._logd and status != Exit.STOPPED:
                log.error("logd ended with status %d while stopping", status)
            return
        if child is self._logd and status in _GIVE_UP:
            child.process = None
            why = f"logd cannot serve ({Exit(status).name.lower()}); it says why above" if self._serving else ""
            raise CannotStart(why, status)  # at a start, what logd said is enough
        child.died(status)

    # Stopping --------------------------------------------------------------------------------------------

    def _stop_next(self) -> None:
        """Gunicorn first, so that requests in flight are answered; then logd."""
        now = time.monotonic()
        for child in (self._gunicorn, self._logd):
            child.restart_at = None
        if self._gunicorn.process:
            if self._gunicorn.kill_at is None:
                self._gunicorn.process.send_signal(signal.SIGTERM)
                self._gunicorn.kill_at = now + self._config.stop_timeout_s + 2
        elif self._logd.process and self._logd.kill_at is None:
            self._logd.cut_lifeline()
            self._logd.kill_at = now + _LOGD_STOP_SECONDS

    # Starting --------------------------------------------------------------------------------------------

    def _start_due(self, now: float) -> None:
        if self._logd.restart_at is not None and now >= self._logd.restart_at:
            self._start_logd()
        if self._gunicorn.restart_at is not None and now >= self._gunicorn.restart_at and self._tree is None:
            self._restart_gunicorn(now)

    def _start_logd(self) -> None:
        config = self._config
        read, held = lifeline.make()
        ready, said = os.pipe()
        os.set_inheritable(said, True)
        options = {
            "--socket": self._logd_address(),
            "--lifeline-fd": read,
            "--ready-fd": said,
            "--message-bytes-max": config.value_bytes_max + MESSAGE_OVERHEAD_BYTES,
            "--data-bytes-max": config.data_bytes_max,
            "--segment-bytes": config.segment_bytes,
            "--checkpoint-log-bytes": config.checkpoint_log_bytes,
            "--checkpoint-ratio": config.checkpoint_ratio,
            "--log-level": config.log_level,
            "--log-format": config.log_format,
        }
        command = ["-m", "logd", "serve", str(config.working_dir)]
        command += [text for option, value in options.items() for text in (option, str(value))]
        command += ["--must-exist"] if self._serving else []  # what was served must not begin anew, empty
        self._logd.start(command, _environment(), (read, said), held)
        self._board.started(scoreboard.Role.LOGD)
        os.close(read)
        os.close(said)
        self._selector.register(ready, selectors.EVENT_READ, lambda: self._on_ready(ready))

    def _on_ready(self, ready: int) -> None:
        """logd has recovered, or died without."""
        is_ready = os.read(ready, 1) != b""
        self._selector.unregister(ready)
        os.close(ready)
        if is_ready and not self._serving and not self._stopping:
            self._serving = True
            self._listen()
            self._start_gunicorn()

    def _listen(self) -> None:
        try:
            self._listener.listen(_BACKLOG)
        except OSError as error:  # somebody who had bound it too, without listening, was faster
            raise CannotStart(_cannot_bind(self._config.host, self._config.port, error)) from error
        host, port = self._listener.getsockname()[:2]
        url = f"{'https' if self._config.tls_cert_file else 'http'}://{host}:{port}"
        log.info("listening on %s, data in %s", url, self._config.working_dir)
        notify.tell(f"READY=1\nSTATUS=listening on {url}")

    def _restart_gunicorn(self, now: float) -> None:
        """Start it again, when it could serve: a certificate that is being replaced is no reason to give up."""
        try:
            tls.tls_context(self._config)
        except tls.CannotUse as error:
            log.error("gunicorn is not started: %s; trying again in %g s", error, _FILES_SECONDS)
            self._gunicorn.restart_at = now + _FILES_SECONDS
        else:
            self._start_gunicorn()

    def _start_gunicorn(self) -> None:
        read, held = lifeline.make()
        self._tree, tree_end = os.pipe()
        os.set_inheritable(tree_end, True)
        inherited = Inherited(
            listen_fd=self._listener.fileno(),
            lifeline_fd=read,
            logd_address=self._logd_address(),
            board_fd=self._board_fd,
        )
        environment = _environment() | self._config.to_environment() | inherited.to_environment()
        command = ["-m", "gunicorn", "-c", str(_ROOT / "gunicorn.conf.py"), "kv.app:main()"]
        inherit = (read, tree_end, self._listener.fileno(), self._board_fd)
        self._gunicorn.start(command, environment, inherit, held)
        self._board.started(scoreboard.Role.GUNICORN)
        os.close(read)
        os.close(tree_end)
        self._selector.register(self._tree, selectors.EVENT_READ, self._on_tree_end)

    def _on_tree_end(self) -> None:
        """No worker is left of the last gunicorn, so the next one may serve."""
        assert self._tree is not None
        self._selector.unregister(self._tree)
        os.close(self._tree)
        self._tree = None

    def _logd_address(self) -> str:
        return f"ipc://{self._runtime}/logd.sock"


def _environment() -> dict[str, str]:
    """The environment without what would change how gunicorn runs behind our back."""
    kept = {name: value for name, value in os.environ.items() if name not in _HOSTILE_VARIABLES}
    return {**kept, "PYTHONPATH": str(_ROOT), "PYTHONSAFEPATH": "1"}


def _bind(host: str, port: int) -> socket.socket:
    """Reserve the port without listening yet. Raises CannotStart."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise CannotStart(f"--host {host} is not an address of this machine: {error.strerror}") from error
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.set_inheritable(True)
    deadline = time.monotonic() + _PORT_PATIENCE_SECONDS
    while True:
        try:
            listener.bind(address)
            return listener
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() >= deadline:
                listener.close()
                raise CannotStart(_cannot_bind(host, port, error)) from error
            time.sleep(0.05)


def _cannot_bind(host: str, port: int, error: OSError) -> str:
    what = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
    return f"port {port} on {host} {what}"


def _prefer_throughput() -> None:
    """Have the kernel not interrupt whoever runs for each of our wake-ups: batches grow, and so does what is done."""
    if hasattr(os, "SCHED_BATCH"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _raise_descriptor_limit() -> None:
    """A connection costs a descriptor, and libzmq aborts the process when it gets none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS_MAX)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    granted = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    log.info("starting; %d file descriptors", granted)
    if granted < _DESCRIPTORS_MIN:
        log.warning("%d file descriptors are few: a worker resets the connections that it has none left for", granted)
