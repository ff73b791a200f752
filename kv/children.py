"""logd and gunicorn as children of the supervisor: how each is started, stopped, and started again after it has died.

Owns their command lines and environment, the pipes between them and the supervisor, and the back-off. Does not know in
which order they run (kv/supervisor.py).
"""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from kv import lifeline
from kv.config import Config, Inherited
from kv.environment import of_children
from kv.errors import CannotServe
from kv.scoreboard import Role, Scoreboard
from logd.shared import logging_setup
from logd.shared.local_socket import LocalSocket
from logd.shared.protocol import MESSAGE_OVERHEAD_BYTES

_ROOT: Final = Path(__file__).resolve().parent.parent
_LOGD_STOP_SECONDS: Final = 5.0
_GUNICORN_STOP_SECONDS: Final = 2.0  # beyond --stop-timeout-s
_FAILURES_MAX: Final = 10
_GATEWAY_BYTES: Final = 16
_BACKOFF_SECONDS: Final = (0.0, 0.1, 0.5, 1.0, 2.0, 4.0, 5.0)  # after the first, second … failure in a row
_STEADY_SECONDS: Final = 30.0  # who has lived that long begins a new row
_OUTSIDE: Final = (-signal.SIGKILL, -signal.SIGTERM)  # for example from an experiment, or for want of memory

log = logging.getLogger("kv.supervisor")


class Child:
    """A role in the process tree, and the process that has it now, if any."""

    def __init__(self, role: Role, config: Config, scoreboard: Scoreboard, stop_s: float) -> None:
        self.name = role.name.lower()
        self.stop_s = stop_s
        """How long the process may take to stop."""
        self.process: subprocess.Popen[bytes] | None = None
        self.is_ready = False
        """Whether the process, or the one that has just ended, came so far that it could do its work."""
        self.restart_at: float | None = None
        self.kill_at: float | None = None
        """Set when the process was told to stop."""
        self._role = role
        self._config = config
        self._scoreboard = scoreboard
        self._lifeline: int | None = None
        self._failures = 0
        self._started_at = 0.0

    def stop(self) -> None:
        """Tell the process to stop, and set the time by which it must have stopped."""
        raise NotImplementedError

    def became_ready(self) -> None:
        """The process does its work from now on."""
        self.is_ready = True
        self._scoreboard.ready(self._role)

    def ended(self) -> None:
        """The process was reaped."""
        self.process = None
        self._scoreboard.ended(self._role)
        self.kill_at = None
        self._cut_lifeline()

    def plan_restart(self, status: int) -> None:
        """Plan the next start after an unexpected end. Raises CannotServe when the process fails too often."""
        if status in _OUTSIDE and self.is_ready:
            self._restart_after(0.0, f"ended with status {status}")
        else:
            self._failed(f"ended with status {status}" + ("" if self.is_ready else " before it was ready"))

    def _failed(self, what: str) -> None:
        """Count it, and plan the next start, the later the more failures are in a row. Raises CannotServe."""
        if time.monotonic() - self._started_at >= _STEADY_SECONDS:
            self._failures = 0
        self._failures += 1
        if self._failures == _FAILURES_MAX:
            raise CannotServe(f"{self.name} failed {_FAILURES_MAX} times in a row, and at last {what}; giving up")
        self._restart_after(_BACKOFF_SECONDS[min(self._failures, len(_BACKOFF_SECONDS)) - 1], what)

    def _restart_after(self, delay_s: float, what: str) -> None:
        self.restart_at = time.monotonic() + delay_s
        log.error("%s %s; starting it again in %g s", self.name, what, delay_s)

    def kill_if_overdue(self, now: float) -> None:
        """Kill the process when it has not stopped in time."""
        if self.process and self.kill_at is not None and now >= self.kill_at:
            log.error("%s does not stop; killing it", self.name)
            self.process.kill()
            self.kill_at = None

    def kill(self) -> None:
        """Kill the process, if there is one, and wait for its end."""
        if self.process:
            self.process.kill()
            self.process.wait()
        self.ended()

    def _make_lifeline(self) -> int:
        """The read end of a new lifeline, for the process that is about to be started."""
        read, self._lifeline = lifeline.make()
        return read

    def _cut_lifeline(self) -> None:
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None

    def _spawn(
        self, command: Sequence[str], environment: Mapping[str, str], ends: Sequence[int], shared: Sequence[int] = ()
    ) -> None:
        """Start the process. It inherits the `shared` descriptors, and the `ends` of pipes, which are closed here.

        Where the system has no process or no memory for it now, the next start is planned.
        """
        self._started_at = time.monotonic()
        self.is_ready = False
        self.restart_at = None
        self.kill_at = None
        try:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                cwd=_ROOT,  # gunicorn would run and import what it finds in the user's
                env={**of_children(os.environ), **environment},
                pass_fds=(*ends, *shared, *logging_setup.descriptors()),
                preexec_fn=prepare,  # noqa: PLW1509 - this process has one thread
            )
        except OSError as error:
            self._cut_lifeline()
            self._failed(f"cannot be started: {error.strerror}")
            return
        finally:
            for end in ends:
                os.close(end)
        self._scoreboard.started(self._role, self.process.pid)


class Logd(Child):
    """The process that owns the data. It stops when its lifeline is cut."""

    def __init__(self, config: Config, scoreboard: Scoreboard) -> None:
        super().__init__(Role.LOGD, config, scoreboard, _LOGD_STOP_SECONDS)
        self._socket = LocalSocket()
        self.address = self._socket.address
        """Where workers connect."""
        self._served = ""
        """The id of the directory that was served; nothing may be served in its place."""
        self._gateway = os.urandom(_GATEWAY_BYTES).hex()
        """Lives as long as the workers do that may send again to a successor of a logd."""

    def start(self) -> int:
        """Start logd; the read end of a pipe, which gets a line once logd has recovered, for `recovered`."""
        lifeline_end = self._make_lifeline()
        ready, ready_end = os.pipe()
        config = self._config
        options: dict[str, object] = {
            "--socket-fd": self._socket.fileno(),
            "--lifeline-fd": lifeline_end,
            "--ready-fd": ready_end,
            "--message-bytes-max": config.value_bytes_max + MESSAGE_OVERHEAD_BYTES,
        }
        if config.engine == "etcd":
            command = ["serve-etcd"]
            options |= self._options_of_etcd()
        else:
            command = ["serve", str(config.working_dir)] + (["--served", self._served] if self._served else [])
            options |= {
                "--data-bytes-max": config.data_bytes_max,
                "--segment-bytes": config.segment_bytes,
                "--checkpoint-log-bytes": config.checkpoint_log_bytes,
                "--checkpoint-ratio": config.checkpoint_ratio,
            }
        command += [text for option, value in options.items() for text in (option, str(value))]
        command += logging_setup.flags()
        self._spawn(["-m", "logd", *command], {}, (lifeline_end, ready_end), (self._socket.fileno(),))
        return ready

    def recovered(self, line: bytes) -> None:
        """React to the line from that pipe."""
        self.became_ready()
        self._served = line.decode().strip()

    def _options_of_etcd(self) -> dict[str, object]:
        config = self._config
        options = {
            "--endpoints": config.etcd_endpoints,
            "--prefix": config.etcd_prefix,
            "--gateway": self._gateway,
            "--reads": config.etcd_reads,
            "--compact-s": config.etcd_compact_s,
            "--request-bytes-max": config.etcd_request_bytes_max,
            "--request-timeout-s": config.request_timeout_s,
            "--ca-file": config.etcd_ca_file,
            "--cert-file": config.etcd_cert_file,
            "--key-file": config.etcd_key_file,
            "--user-file": config.etcd_user_file,
        }
        return {option: value for option, value in options.items() if value is not None}

    def stop(self) -> None:
        self._cut_lifeline()
        self.kill_at = time.monotonic() + self.stop_s

    def close_socket(self) -> None:
        """Close the socket, once logd has ended for good."""
        self._socket.close()


class Gunicorn(Child):
    """The master of the workers. It stops on SIGTERM, when the requests in flight are answered."""

    def __init__(self, config: Config, scoreboard: Scoreboard) -> None:
        super().__init__(Role.GUNICORN, config, scoreboard, config.stop_timeout_s + _GUNICORN_STOP_SECONDS)
        self.has_workers = False
        """Whether a process of the last gunicorn is left; the next one must not serve beside it."""

    def start(self, listen_fds: Sequence[int], logd_address: str) -> int:
        """Start gunicorn; the read end of a pipe, which ends when the master and all its workers have ended."""
        lifeline_end = self._make_lifeline()
        alive, alive_end = os.pipe()
        inherited = Inherited(
            listen_fds=tuple(listen_fds),
            lifeline_fd=lifeline_end,
            logd_address=logd_address,
            scoreboard_fd=self._scoreboard.fileno(),
            warnings_fd=logging_setup.descriptors()[0],
        )
        command = ["-m", "gunicorn", "-c", str(_ROOT / "gunicorn.conf.py"), "kv.app:main()"]
        environment = self._config.to_environment() | inherited.to_environment()
        self._spawn(command, environment, (lifeline_end, alive_end), (*listen_fds, self._scoreboard.fileno()))
        self.has_workers = True
        if self.process:
            self.became_ready()  # who is killed is killed from outside
        return alive

    def on_all_ended(self, _: bytes) -> None:
        """React to the end of that pipe."""
        self.has_workers = False

    def stop(self) -> None:
        if self.process:
            self.process.send_signal(signal.SIGTERM)
        self.kill_at = time.monotonic() + self.stop_s

    def reload(self) -> None:
        """Replace the workers, one after another; the new ones use the token and the certificate as they are now."""
        if self.process:
            self.process.send_signal(signal.SIGHUP)


def prepare() -> None:
    """Run in a child before its program.

    It dies with the supervisor. Signals that are for the supervisor may reach the whole group; the child ignores them,
    also while its program starts. SIGTERM is not among them: it may end a child that has just been started.
    """
    lifeline.die_with_parent()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
