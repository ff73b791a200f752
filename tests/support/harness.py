"""Starts the real server as the public harness does: `./run.sh` in a process group of its own, signals to the group.

Everything that is started here is ended here, also when a test fails: `Server` is a context manager that leaves no
process of its groups behind, and no file but those in its directory and its log. Knows the processes of the server by
their role; clients are in `clients`, and the load that it has to endure is in `load`.
"""

import contextlib
import http.client
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

import psutil

from tests.support.clients import Answer, call

ROOT: Final = Path(__file__).resolve().parents[2]
START_SECONDS: Final = 30.0


def is_gone(process: psutil.Process) -> bool:
    """True when a process has ended, whether it was reaped or not."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def await_true(condition: Callable[[], object], seconds: float = 10.0, what: str = "the condition") -> None:
    """Wait until a condition holds; poll it often. The deadline is to be far beyond what is expected.

    Raises AssertionError at the deadline.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds} s"
        time.sleep(0.005)


@contextlib.contextmanager
def running_tool(command: Sequence[str | Path], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A command as a user runs it. It must leave no process, and no temporary file but logs of servers."""
    with tempfile.TemporaryDirectory(prefix="kvt-") as temporary:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment | {"TMPDIR": temporary, "SPT_NOENV": "1"},  # process titles leave the environment readable
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()
            left = _processes_given("TMPDIR", temporary)
            for each in left:
                each.kill()
        assert left == []
        assert [path.name for path in Path(temporary).iterdir() if path.suffix != ".stderr"] == []


def _processes_given(name: str, value: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(name, "").startswith(value) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def free_port() -> int:
    """A port of this machine that is not in use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def need_descriptors(count: int) -> None:
    """Let this process open that many files. Raises SkipTest where the machine does not allow it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        raise unittest.SkipTest(f"a process may open {hard} files here, and {count} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))


@contextlib.contextmanager
def mounted(path: Path, size: str) -> Iterator[Path]:
    """A file system in memory, of a size such as `8m`, at this path. Raises SkipTest where none can be mounted."""
    if sys.platform != "linux":
        raise unittest.SkipTest("file systems are mounted here on Linux only")
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        raise unittest.SkipTest(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def make_certificate(directory: Path, name: str = "server") -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key."""
    cert, key = directory / f"{name}.pem", directory / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


# The server ----------------------------------------------------------------------------------------------


class Server:
    """A server on a port of its own. `start` may be called again after it ended.

    `spelled` is how the directory is given on the command line, where it is not its absolute path.
    """

    def __init__(
        self,
        directory: Path,
        *flags: str,
        environment: dict[str, str] | None = None,
        cwd: Path | None = None,
        spelled: str | None = None,
    ) -> None:
        self.directory = directory
        self.flags = flags
        self.environment = environment or {}
        self.port = free_port()
        existing = next(path for path in directory.parents if path.is_dir())
        self.log_path = existing / f"{directory.name[:100]}.stderr"
        self.process: subprocess.Popen[bytes] | None = None
        self._cwd = cwd
        self._spelled = spelled or str(directory)
        self._groups: list[int] = []
        self.temporary: Path | None = None
        """The directory for temporary files of this server alone."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if error and error[0]:
            print(f"--- {self.log_path.name} of the failed test:\n{self.log[-20_000:]}---")
        try:
            self.kill_group()
        finally:
            if self.temporary:
                shutil.rmtree(self.temporary, ignore_errors=True)
                self.temporary = None

    @property
    def log(self) -> str:
        """What all processes have written to stderr so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def command(self) -> list[str]:
        """What a user would type."""
        return [str(ROOT / "run.sh"), f"--port={self.port}", f"--working-dir={self._spelled}", *self.flags]

    def spawn(self) -> None:
        """Start, and do not wait for anything."""
        self.temporary = self.temporary or Path(tempfile.mkdtemp(prefix="kvt-"))
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                env=os.environ | {"TMPDIR": str(self.temporary)} | self.environment,
                cwd=self._cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._groups.append(self.process.pid)

    @contextlib.contextmanager
    def spawned(self) -> Iterator[Self]:
        """`spawn`, for a server that cannot become ready, or not as `await_ready` finds it; it is ended afterwards."""
        with contextlib.ExitStack() as stack:
            stack.push(self)
            self.spawn()
            yield self

    def start(self) -> None:
        """Start, and wait until the server accepts reads and writes."""
        self.spawn()
        self.await_ready()

    def await_ready(self, seconds: float = START_SECONDS) -> None:
        """Wait until /health answers 200."""
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

    def call(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        timeout: float = 30.0,
    ) -> Answer:
        """One request on a connection of its own."""
        return call(self.port, method, target, body, headers, timeout=timeout)

    def get(self, key: str) -> bytes | None:
        """The value of a key; None when there is none."""
        answer = self.call("GET", f"/kv/{key}")
        assert answer.status in (200, 404), answer
        return answer.body if answer.status == 200 else None

    def put(self, key: str, value: bytes) -> None:
        """Store a value."""
        answer = self.call("PUT", f"/kv/{key}", value)
        assert answer.status == 200, answer

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
        """SIGKILL to the whole group, and to any earlier one, and wait until nothing of them is left."""
        if self.process is None:
            return
        for group in self._groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        self.process.wait(10)
        await_true(lambda: not self.members(), what="the end of every process after SIGKILL")
        self._groups = []

    def crash(self) -> None:
        """SIGKILL to the whole group, as the public harness does it: waits for the top process alone."""
        self.signal_group(signal.SIGKILL)
        self.wait()

    def members(self) -> list[psutil.Process]:
        """The living processes of the group, and of earlier ones that were not killed."""
        return list(in_groups(self._groups))

    def role(self, name: str) -> list[psutil.Process]:
        """The processes that have a role: supervisor, logd, gunicorn, worker or checkpoint."""
        return [process for process in self.members() if _has_role(process, name)]

    def only(self, name: str) -> psutil.Process:
        """The one process that has a role, once there is one."""
        found: list[psutil.Process] = []

        def is_there() -> bool:
            found[:] = self.role(name)
            return len(found) == 1

        await_true(is_there, what=f"one process with the role {name}")
        return found[0]

    def logd_address(self) -> str:
        """Where logd listens, as ipc://@NAME."""
        (name,) = {
            each.laddr for each in self.only("logd").net_connections("unix") if str(each.laddr).startswith("@kv-")
        }
        return f"ipc://{name}"

    def segments(self) -> list[Path]:
        """The files of the log, oldest first."""
        return sorted(self.directory.glob("wal-*.log"))

    def left_behind(self) -> list[object]:
        """What a server must not leave when it has stopped: processes, and temporary files anywhere."""
        assert self.temporary is not None
        return [*self.members(), *self.temporary.iterdir(), *self.directory.glob("*.tmp")]


def run_to_end(*arguments: str, cwd: Path | None = None) -> tuple[int, list[str]]:
    """Run `./run.sh` where it cannot serve: its exit status, and the lines that it writes to stderr.

    Returns when every process of it has ended; fails when one does not, or when it leaves a temporary file.
    """
    with tempfile.TemporaryDirectory(prefix="kvt-") as temporary:
        process = subprocess.Popen(
            [ROOT / "run.sh", *arguments],
            env=os.environ | {"TMPDIR": temporary},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            _, errors = process.communicate(timeout=START_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        assert os.listdir(temporary) == []
    return process.returncode, errors.decode().splitlines()


def in_groups(leaders: Sequence[int]) -> Iterator[psutil.Process]:
    """The living processes of these process groups."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) in leaders and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def _has_role(process: psutil.Process, role: str) -> bool:
    with contextlib.suppress(psutil.Error):
        title = " ".join(process.cmdline())
        return title.startswith(f"kv: {role}") or (role == "gunicorn" and title.startswith("gunicorn: master"))
    return False
