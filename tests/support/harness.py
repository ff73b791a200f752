"""Starts the real server as the public harness does: `./run.sh` in a process group of its own, signals to the group.

Everything that is started here is ended here, also when a test fails: `Server` is a context manager that leaves no
process of its groups behind, and no file but those in its directory and its log.

Clients come in three kinds: `call` for one request, `send_all` for many that are known beforehand, and `Load` for those
that go on while something is done to the server and know afterwards what it must have kept.
"""

import asyncio
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
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Self

import psutil
import pytest
import uvloop

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 30.0
ANSWER_SECONDS = 60.0
IDLE_S = 0.2
"""A worker that stops may close a connection that has been idle for longer, just when a request is sent on it."""


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


@contextlib.contextmanager
def running_tool(command: Sequence[str | Path], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A command as a user gives it. Nothing of it may be left: no process, no temporary file but logs of servers."""
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
    """A port of this machine that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def need_descriptors(count: int) -> None:
    """Let this process open that many files, or skip the test where the machine does not allow it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"a process may open {hard} files here, and {count} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))


def make_certificate(directory, name="server"):
    """A self-signed certificate for 127.0.0.1 and its key."""
    cert, key = directory / f"{name}.pem", directory / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


# Single requests -----------------------------------------------------------------------------------------


def call(port: int, method: str, path: str, body: bytes | None = None, *, timeout: float = 30.0) -> Answer:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return Answer(response.status, response.read(), {k.lower(): v for k, v in response.getheaders()})
    finally:
        connection.close()


def exchange(port: int, data: bytes, *, half_close: bool = False) -> bytes:
    """Send bytes on a connection of their own; all that comes back until the server closes it.

    With `half_close` the server is told that nothing more will be sent.
    """
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(data)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        return read_to_end(connection)


def read_to_end(connection: socket.socket) -> bytes:
    """All that comes until the other side closes, in whatever way."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            received += data
    return received


class SlowPut:
    """A PUT that the server has begun to handle, and whose body waits for its second half."""

    def __init__(self, port: int, key: str, value: bytes) -> None:
        self._rest = value[len(value) // 2 :]
        head = f"PUT /kv/{key} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(value)}\r\nExpect: 100-continue\r\n\r\n"
        self.socket = socket.create_connection(("127.0.0.1", port), 30)
        self.socket.sendall(head.encode())
        assert self.socket.recv(100).startswith(b"HTTP/1.1 100 "), "the handler does not wait for the body"
        self.socket.sendall(value[: len(value) // 2])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def finish(self) -> bytes:
        """Send the rest, slowly; what is answered until the server closes the connection, as it does when it stops."""
        size = len(self._rest) // 5 + 1
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for start in range(0, len(self._rest), size):
                self.socket.sendall(self._rest[start : start + size])
                time.sleep(0.06)
        return read_to_end(self.socket)


@contextlib.contextmanager
def idle_connection(port: int) -> Iterator[socket.socket]:
    """A keep-alive connection that has had one answer and is quiet now."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30.0)) as connection:
        connection.request("GET", "/health")
        assert connection.getresponse().read() == b"ok"
        assert connection.sock
        yield connection.sock


# Many requests -------------------------------------------------------------------------------------------


def run_async(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on a fast event loop, in whatever thread this is."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


class Connection:
    """A keep-alive connection of an asyncio client. A call opens it when it is not open."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.local_port = 0
        self.answered = 0
        """How many requests were answered since it was opened."""

    @property
    def is_open(self) -> bool:
        """False before the first request, and once it has ended."""
        return self._streams is not None

    async def open(self) -> None:
        """Connect."""
        self.answered = 0
        self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        self.local_port = self._streams[1].get_extra_info("sockname")[1]

    def close(self) -> None:
        """Let go of it, at once."""
        if self._streams:
            self._streams[1].transport.abort()
            self._streams = None

    async def call(self, method: str, path: str, body: bytes | None = None) -> Answer:
        """One request. Raises OSError or EOFError, and is closed then."""
        if not self._streams:
            await self.open()
        assert self._streams
        reader, writer = self._streams
        length = "" if body is None else f"Content-Length: {len(body)}\r\n"
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{length}\r\n".encode() + (body or b""))
                status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
                headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
                answer = Answer(
                    int(status.split()[1]), await reader.readexactly(int(headers["content-length"])), headers
                )
        except BaseException:
            self.close()
            raise
        self.answered += 1
        if headers.get("connection") == "close":
            self.close()
        return answer


Request = tuple[str, str, bytes | None]


def send_all(
    port: int, requests: Sequence[Request], connections: int = 32, answers: dict[int, Answer] | None = None
) -> dict[int, Answer]:
    """Send each request once, over connections that are all open before anything is sent.

    Returns, and fills while it runs, the answers by index. A connection that ends leaves the rest of its share out.
    """
    answers = {} if answers is None else answers
    clients = [Connection(port) for _ in range(min(connections, len(requests)))]

    async def send(client: Connection, share: Iterable[int]) -> None:
        with contextlib.suppress(OSError, EOFError):
            for index in share:
                answers[index] = await client.call(*requests[index])

    async def run() -> None:
        try:
            await asyncio.gather(*(client.open() for client in clients))
            shares = (range(first, len(requests), len(clients)) for first in range(len(clients)))
            await asyncio.gather(*(send(*each) for each in zip(clients, shares, strict=True)))
        finally:
            for client in clients:
                client.close()

    run_async(run())
    return answers


def read_all(port: int, keys: Sequence[str]) -> dict[str, bytes | None]:
    """What is stored under these keys; None where there is nothing."""
    answers = send_all(port, [("GET", f"/kv/{key}", None) for key in keys])
    assert len(answers) == len(keys), "a read was not answered"
    assert {answer.status for answer in answers.values()} <= {200, 404}
    return {key: answers[n].body if answers[n].status == 200 else None for n, key in enumerate(keys)}


class Failure(NamedTuple):
    """A request of a `Load` that was not carried out."""

    client: int
    request: str
    kind: str
    """The status, or the name of the exception; NOT_SENT when no connection could be made."""
    answered: int
    """How many requests the same connection had answered before."""
    idle_s: float
    """How long before the request the connection had been idle."""


NOT_SENT = "no connection"
_NOT_SENT_ANSWER = Answer(0, b"", {})


class _Client:
    """Writes increasing values to keys of its own, deletes some, and reads each back.

    It is the only writer of its keys, so it knows after each answer what a read may find: what was acknowledged last,
    or a write of unknown outcome (no answer, or 504), which may be applied at any later time. A 503 or 507 promises
    that the write was not and will not be applied.
    """

    def __init__(self, number: int, load: "Load", value_bytes: int, keys: int) -> None:
        self._load = load
        self._number = number
        self._value_bytes = value_bytes
        self._unknown: dict[str, set[bytes | None]] = {f"load{number}-{n}": set() for n in range(keys)}
        self.possible: dict[str, set[bytes | None]] = {key: {None} for key in self._unknown}
        self.acknowledged = 0
        self.connection = Connection(load.port)
        self._answered_at = 0.0

    async def run(self) -> None:
        keys = list(self._unknown)
        attempt = 0
        while not self._load.stopping:
            attempt += 1
            key = keys[attempt % len(keys)]
            value = None if attempt % 7 == 0 else b"%d:" % attempt + b"x" * self._value_bytes
            await self._write(key, value)
            await self._read(key)
        self.connection.close()

    async def _write(self, key: str, value: bytes | None) -> None:
        answer = await self._call("DELETE" if value is None else "PUT", key, value)
        if answer is None or answer.status == 504:
            self._unknown[key].add(value)
            self.possible[key] |= {value}
        elif answer.status == 200:
            self.possible[key] = {value} | self._unknown[key]
            self.acknowledged += 1
            self._load.acknowledged()
        elif answer.status not in (_NOT_SENT_ANSWER.status, 503, 507):
            self._load.wrong.append(f"{key}: {answer}")

    async def _read(self, key: str) -> None:
        answer = await self._call("GET", key, None)
        if answer is None or answer.status in (_NOT_SENT_ANSWER.status, 503):
            return
        value = answer.body if answer.status == 200 else None
        if answer.status not in (200, 404) or value not in self.possible[key]:
            self._load.wrong.append(f"{key}: {answer}, and not one of {self.possible[key]}")

    async def _call(self, method: str, key: str, body: bytes | None) -> Answer | None:
        """The answer; None when nobody can say what became of the request."""
        answer: Answer | None = _NOT_SENT_ANSWER
        kind = NOT_SENT
        idle_s = time.monotonic() - self._answered_at
        with contextlib.suppress(OSError):
            if not self.connection.is_open:
                await self.connection.open()
            try:
                answer = await self.connection.call(method, f"/kv/{key}", body)
                kind = str(answer.status)
            except (OSError, EOFError) as error:
                answer, kind = None, type(error).__name__
        self._answered_at = time.monotonic()
        if kind not in ("200", "404"):
            request = f"{method} {key}"
            self._load.failures.append(Failure(self._number, request, kind, self.connection.answered, idle_s))
            await asyncio.sleep(0.01)  # so that a server that is down does not make this a busy loop
        return answer


class Load:
    """Clients on keep-alive connections that write and verify until told to stop. A context manager.

    `wrong` lists answers that no server may give. `failures` lists requests that were not carried out; whether one may
    happen is for the test to say.
    """

    def __init__(self, port: int, clients: int = 12, *, value_bytes: int = 0, keys: int = 10) -> None:
        self.port = port
        self.stopping = False
        self.wrong: list[str] = []
        self.failures: list[Failure] = []
        self.longest_silence_s = 0.0
        self._acknowledged_at = 0.0
        self._clients = [_Client(number, self, value_bytes, keys) for number in range(clients)]
        self._pool = ThreadPoolExecutor(1)
        self._running: Future[None]

    def __enter__(self) -> Self:
        self._running = self._pool.submit(lambda: run_async(self._run()))
        try:
            self.await_progress()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping = True
        self._pool.shutdown()
        self._running.result()

    async def _run(self) -> None:
        await asyncio.gather(*(client.run() for client in self._clients))

    def acknowledged(self) -> None:
        """Take note of an acknowledged write of any client."""
        now = time.monotonic()
        if self._acknowledged_at:
            self.longest_silence_s = max(self.longest_silence_s, now - self._acknowledged_at)
        self._acknowledged_at = now

    @property
    def writes(self) -> int:
        """How many writes were acknowledged so far."""
        return sum(client.acknowledged for client in self._clients)

    def local_ports(self) -> dict[int, int]:
        """The port at this end of each open connection, and the client that has it."""
        return {each.connection.local_port: n for n, each in enumerate(self._clients) if each.connection.is_open}

    def await_progress(self, writes: int = 5, clients: Iterable[int] | None = None) -> None:
        """Wait until each client, or each of those named, got further writes acknowledged."""
        chosen = [self._clients[n] for n in (range(len(self._clients)) if clients is None else clients)]
        goals = [(client, client.acknowledged + writes) for client in chosen]

        def is_reached() -> bool:
            return self._running.done() or all(client.acknowledged >= goal for client, goal in goals)

        await_true(is_reached, ANSWER_SECONDS, "progress of every client")
        assert not self._running.done(), "the clients have ended"

    def verify(self) -> None:
        """Check that every key has a value that it may have, and that no read has found anything else before."""
        assert not self.wrong
        assert self.writes
        possible = {key: values for client in self._clients for key, values in client.possible.items()}
        found = read_all(self.port, list(possible))
        assert {key: value for key, value in found.items() if value not in possible[key]} == {}


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
        """Where this server makes its temporary files, and nobody else."""

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
        # The path of a socket is limited to about 100 bytes, so this cannot be below a directory of the test.
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
        return list(_in_groups(self._groups))

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

    def socket_directory(self) -> Path:
        """Where the socket of logd is, as the lock file says."""
        return Path((self.directory / "LOCK").read_text().removeprefix("ipc://")).parent

    def segments(self) -> list[Path]:
        """The files of the log, oldest first."""
        return sorted(self.directory.glob("wal-*.log"))

    def left_behind(self) -> list[object]:
        """What a server must not leave when it has stopped: processes, temporary files, its socket directory."""
        assert self.temporary is not None
        return [*self.members(), *self.temporary.iterdir(), *self.directory.glob("*.tmp")]


def run_to_end(*arguments: str, cwd: Path | None = None) -> tuple[int, list[str]]:
    """Run `./run.sh` where it cannot serve: its exit status, and what it says on stderr, line by line.

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
            _, said = process.communicate(timeout=START_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        assert os.listdir(temporary) == []
    return process.returncode, said.decode().splitlines()


def _in_groups(leaders: Sequence[int]) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) in leaders and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def _has_role(process: psutil.Process, role: str) -> bool:
    with contextlib.suppress(psutil.Error):
        title = " ".join(process.cmdline())
        return title.startswith(f"kv: {role}") or (role == "gunicorn" and title.startswith("gunicorn: master"))
    return False
