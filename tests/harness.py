"""Starts the real server as the public harness does: `./run.sh` in a process group of its own, signals to the group.

Everything that is started here is ended here, also when a test fails: `Server` is a context manager that leaves no
process of its group behind.
"""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Self

import psutil

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 30.0


class Answer(NamedTuple):
    status: int
    body: bytes
    headers: dict[str, str]


def await_true(condition: Callable[[], object], seconds: float = 10.0, what: str = "the condition") -> None:
    """Wait until a condition holds, looking often. Fails after a deadline that is far beyond what is expected."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds} s"
        time.sleep(0.005)


def free_port() -> int:
    """A port of this machine that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def call(port: int, method: str, path: str, body: bytes | None = None, *, timeout: float = 30.0) -> Answer:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return Answer(response.status, response.read(), {k.lower(): v for k, v in response.getheaders()})
    finally:
        connection.close()


class Server:
    """A server on a port of its own. `start` may be called again after it ended."""

    def __init__(self, directory: Path, *flags: str, environment: dict[str, str] | None = None) -> None:
        self.directory = directory
        self.flags = flags
        self.environment = environment or {}
        self.port = free_port()
        self.log_path = directory.with_name(directory.name + ".stderr")
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_group()

    @property
    def log(self) -> str:
        """What all processes have written to stderr so far."""
        return self.log_path.read_text(errors="replace")

    def spawn(self) -> None:
        """Start, and do not wait for anything."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [ROOT / "run.sh", f"--port={self.port}", f"--working-dir={self.directory}", *self.flags],
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start(self) -> None:
        """Start, and wait until the server takes reads and writes."""
        self.spawn()
        self.await_ready()

    def await_ready(self, seconds: float = START_SECONDS) -> None:
        """Wait until /health says ok."""
        await_true(self._is_ready_or_dead, seconds, "readiness")
        assert self.process is not None
        assert self.process.poll() is None, f"the server ended with {self.process.returncode}:\n{self.log}"

    def _is_ready_or_dead(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            return True
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.call("GET", "/health", timeout=1.0).status == 200
        return False

    def call(self, method: str, path: str, body: bytes | None = None, *, timeout: float = 30.0) -> Answer:
        """One request on a connection of its own."""
        return call(self.port, method, path, body, timeout=timeout)

    def signal_group(self, number: int) -> None:
        """Send a signal to every process of the group."""
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def wait(self, seconds: float = 20.0) -> int:
        """Wait for the top process to end; its exit status."""
        assert self.process is not None
        return self.process.wait(seconds)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop in order; the exit status."""
        self.signal_group(number)
        return self.wait()

    def kill_group(self) -> None:
        """SIGKILL to the whole group, and wait until none of it is left."""
        if self.process is None:
            return
        members = self.members()
        with contextlib.suppress(ProcessLookupError):
            self.signal_group(signal.SIGKILL)
        self.process.wait(10)
        _, alive = psutil.wait_procs(members, timeout=10)
        assert not alive, f"still alive after SIGKILL: {alive}"

    def members(self) -> list[psutil.Process]:
        """The living processes of the group."""
        assert self.process is not None
        return list(_group(self.process.pid))

    def role(self, name: str) -> list[psutil.Process]:
        """The processes that have a role: supervisor, logd, gunicorn, worker or checkpoint."""
        return [process for process in self.members() if _has_role(process, name)]


def _group(leader: int) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def _has_role(process: psutil.Process, role: str) -> bool:
    with contextlib.suppress(psutil.Error):
        title = " ".join(process.cmdline())
        return title.startswith(f"kv: {role}") or (role == "gunicorn" and title.startswith("gunicorn: master"))
    return False
