"""The targets that are measured: the server, the hello-world, the peers that are found here, and those that are named.

Owns their command lines and processes. A target is a context manager: inside it serves on 127.0.0.1, with its data in a
directory that it was given, and holds every key of the cases that it was made for; afterwards no process of it is left.
Knows neither rounds nor figures.
"""

import base64
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.parse
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self

import psutil

from tests.bench import generators
from tests.bench.cases import HELLO, SERVER, WITH_NAMED_PEERS, Case, Sample
from tests.support.harness import ROOT, Server, await_true, free_port, in_groups

PYTHON: Final = ROOT / ".venv/bin/python"
"""What the server runs on. The environment of the bench, which the hello-world runs on, is made by the same Python."""

_START_SECONDS: Final = 30.0
_CHECKPOINT_SECONDS: Final = 60.0


class Target:
    """What is common to all: a run of its load generator, with what that costs its processes."""

    name: str
    note = ""
    """What a reader has to know to compare it; may be empty."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:  # nothing is left of a start that fails
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _start(self, stack: contextlib.ExitStack) -> None:
        raise NotImplementedError

    def _load(self, case: Case, seconds: int) -> Sample:
        raise NotImplementedError

    def _members(self) -> Iterable[psutil.Process]:
        return ()

    def measure(self, case: Case, seconds: int) -> Sample:
        """Put a load on it for that long. Raises generators.LoadFailed."""
        before = cpu_seconds(self._members())
        sample = self._load(case, seconds)
        members = list(self._members())
        after = cpu_seconds(members)
        used = {role: seconds - before.get(role, 0.0) for role, seconds in after.items()}
        used = {role: seconds for role, seconds in used.items() if seconds > 0}  # not where a process has ended
        return replace(sample, cpu_seconds={**sample.cpu_seconds, **used}, rss_bytes=dict(_rss_bytes(members)))

    def settle(self) -> None:
        """Wait for work that it does in the background, so that the next target does not pay for it."""


# Ours ----------------------------------------------------------------------------------------------------


class KvServer(Target):
    """The server of this project."""

    name = SERVER

    def __init__(self, directory: Path, cases: Sequence[Case], flags: Sequence[str]) -> None:
        super().__init__()
        self._cases = cases
        self._server = Server(directory, *flags)

    def _start(self, stack: contextlib.ExitStack) -> None:
        command = [str(PYTHON), "-m", "logd", "import", str(self._server.directory), "-"]
        lines = "".join(json.dumps({"key": key, "value": value}) + "\n" for key, value in entries(self._cases))
        done = subprocess.run(command, cwd=ROOT, input=lines, text=True, check=False, capture_output=True)
        assert done.returncode == 0, done.stderr
        stack.enter_context(self._server)

    def _load(self, case: Case, seconds: int) -> Sample:
        url = f"http://127.0.0.1:{self._server.port}"
        return generators.wrk(url, generators.SCRIPTS[case.operation], case, seconds)

    def _members(self) -> Iterable[psutil.Process]:
        return self._server.members()

    def settle(self) -> None:
        await_true(lambda: not self._server.role("checkpoint"), _CHECKPOINT_SECONDS, "the end of a checkpoint")


def entries(cases: Iterable[Case]) -> Iterator[tuple[str, str]]:
    """Every key that these cases use, and its value."""
    for prefix, keys, value_bytes in sorted({(case.key_prefix, case.keys, case.value_bytes) for case in cases}):
        for number in range(1, keys + 1):
            yield f"{prefix}{number}", "v" * value_bytes


# Others that are started here ----------------------------------------------------------------------------


class _Process(Target):
    """A program in a process group of its own."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory
        self._port = free_port()
        self._process: subprocess.Popen[bytes]

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _is_ready(self) -> bool:
        raise NotImplementedError

    def _fill(self) -> None:
        """Store every key of its cases."""

    def _start(self, stack: contextlib.ExitStack) -> None:
        self._directory.mkdir(parents=True)
        log_path = self._directory / "log"
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self._command(),
                cwd=self._directory,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        stack.callback(kill_group, self._process)
        await_true(
            lambda: self._process.poll() is not None or self._answers(), _START_SECONDS, f"a start of {self.name}"
        )
        printed = log_path.read_text(errors="replace")[-2_000:]
        assert self._process.poll() is None, f"{self.name} ended with {self._process.returncode}:\n{printed}"
        self._fill()

    def _answers(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self._is_ready()
        return False

    def _members(self) -> Iterable[psutil.Process]:
        return in_groups([self._process.pid])


class HelloWorld(_Process):
    """tests/bench/hello.py, on as many workers as the server has."""

    name = HELLO
    note = "reads no body, has no data"

    def __init__(self, directory: Path, workers: int) -> None:
        super().__init__(directory)
        self._workers = workers

    def _command(self) -> list[str]:
        flags = ["-c", "python:tests.bench.hello", f"--bind=127.0.0.1:{self._port}", f"--workers={self._workers}"]
        return [sys.executable, "-m", "gunicorn", *flags, "tests.bench.hello:app"]

    def _is_ready(self) -> bool:
        return _request(f"http://127.0.0.1:{self._port}", "GET", "/kv/x") == 200

    def _load(self, case: Case, seconds: int) -> Sample:
        return generators.wrk(f"http://127.0.0.1:{self._port}", generators.SCRIPTS[case.operation], case, seconds)


class Etcd(_Process):
    """etcd as it comes, over its JSON gateway."""

    name = "etcd"
    note = "over its JSON gateway, one node, syncs each write"

    def __init__(self, directory: Path, cases: Sequence[Case]) -> None:
        super().__init__(directory)
        self._cases = cases
        self._url = f"http://127.0.0.1:{self._port}"

    def _command(self) -> list[str]:
        peer_url = f"http://127.0.0.1:{free_port()}"
        command = ["etcd", "--data-dir=data", "--logger=zap", "--log-level=error"]
        command += [f"--listen-client-urls={self._url}", f"--advertise-client-urls={self._url}"]
        command += [f"--listen-peer-urls={peer_url}", f"--initial-advertise-peer-urls={peer_url}"]
        return [*command, f"--initial-cluster=default={peer_url}", f"--quota-backend-bytes={8 << 30}"]

    def _is_ready(self) -> bool:
        return _request(self._url, "GET", "/health") == 200

    def _fill(self) -> None:
        fill_etcd(self._url, self._cases)

    def _load(self, case: Case, seconds: int) -> Sample:
        return generators.wrk(self._url, generators.ETCD_SCRIPT, case, seconds)


def fill_etcd(url: str, cases: Sequence[Case]) -> None:
    """Store every key of these cases in etcd."""
    for key, value in entries(cases):
        status = _request(url, "POST", "/v3/kv/put", json.dumps({"key": _base64(key), "value": _base64(value)}))
        assert status == 200, f"etcd answered {status}"


class Redis(_Process):
    """redis with a log that it syncs before it answers. It speaks no HTTP, so redis-benchmark drives it."""

    name = "redis"
    note = "not HTTP: its own protocol and redis-benchmark; appendfsync always"

    def __init__(self, directory: Path, cases: Sequence[Case]) -> None:
        super().__init__(directory)
        self._cases = cases
        self._benchmark = generators.RedisBenchmark(self._port)

    def _command(self) -> list[str]:
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(self._port), "--dir", str(self._directory)]
        command += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        return [*command, "--auto-aof-rewrite-percentage", "0"]  # else it rewrites its log while its neighbours run

    def _is_ready(self) -> bool:
        with socket.create_connection(("127.0.0.1", self._port), 1.0) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(100) == b"+PONG\r\n"

    def _fill(self) -> None:
        for case in {(case.keys, case.value_bytes): case for case in self._cases}.values():
            self._benchmark.fill(case)

    def _load(self, case: Case, seconds: int) -> Sample:
        return self._benchmark.run(case, seconds)


# Others that run already ---------------------------------------------------------------------------------


class Peer(Target):
    """Any server with the same paths as ours. Its processes are not known, so neither is what it costs them."""

    note = f"given by --peer; measured in {' and '.join(section.value for section in WITH_NAMED_PEERS)}"

    def __init__(self, name: str, url: str, cases: Sequence[Case]) -> None:
        super().__init__()
        self.name = name
        self._url = url
        self._cases = cases

    def _start(self, stack: contextlib.ExitStack) -> None:
        for key, value in entries(self._cases):
            status = _request(self._url, "PUT", f"/kv/{key}", value)
            assert status == 200, f"{self.name} answered {status} to a PUT"

    def _load(self, case: Case, seconds: int) -> Sample:
        return generators.wrk(self._url, generators.SCRIPTS[case.operation], case, seconds)


def trouble_with(peers: Iterable[tuple[str, str]]) -> str:
    """One line on the first of these names and URLs that takes no PUT; empty when all do."""
    for name, url in peers:
        try:
            status = _request(url, "PUT", "/kv/bench", "v")
        except (OSError, http.client.HTTPException) as error:
            return f"--peer {name}: {url} does not answer: {error}"
        if status != 200:
            return f"--peer {name}: {url} answers {status} to a PUT of /kv/bench"
    return ""


def found_peers() -> list[str]:
    """The peers that this machine can start."""
    needed = {Etcd.name: ("etcd",), Redis.name: ("redis-server", "redis-benchmark")}
    return [name for name, programs in needed.items() if all(map(shutil.which, programs))]


def peer_versions() -> dict[str, str]:
    """The first line of what `--version` prints, for each peer that is here."""
    commands = {Etcd.name: ["etcd", "--version"], Redis.name: ["redis-server", "--version"]}
    return {name: _first_line(commands[name]) for name in found_peers()}


def _first_line(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]


# Requests that are not measured --------------------------------------------------------------------------


def _request(url: str, method: str, path: str, body: str | None = None) -> int:
    """The status of one request on a connection of its own."""
    with contextlib.closing(http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=10.0)) as connection:
        connection.request(method, path, body)
        response = connection.getresponse()
        response.read()
        return response.status


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


# Processes -----------------------------------------------------------------------------------------------


def kill_group(leader: subprocess.Popen[Any]) -> None:
    """End a process and all of its group, and wait until they have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)
    leader.wait()
    await_true(lambda: not list(in_groups([leader.pid])), what="the end of every process of a group")


def cpu_seconds(processes: Iterable[psutil.Process]) -> dict[str, float]:
    """Processor time so far, by role. That of the children of logd, when they have ended, is of checkpoints."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for process in processes:
        with contextlib.suppress(psutil.Error):
            role, times = _role(process), process.cpu_times()
            seconds[role] += times.user + times.system
            of_children = getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
            seconds["checkpoint" if role == "logd" else role] += of_children
    return seconds


def _rss_bytes(processes: Iterable[psutil.Process]) -> Mapping[str, int]:
    rss: Counter[str] = Counter()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            rss[_role(process)] += process.memory_info().rss
    return rss


def _role(process: psutil.Process) -> str:
    """The role in the title of a process: `kv: worker`, or `gunicorn: master […]`; otherwise its name."""
    title = " ".join(process.cmdline())
    program, colon, rest = title.partition(": ")
    if not colon or program not in ("kv", "gunicorn"):
        return process.name()
    role = rest.split()[0]
    return "gunicorn" if role == "master" else role
