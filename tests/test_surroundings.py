"""The server where people run it: odd directories and variables, copies, pauses, a log that nobody reads."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection
from pathlib import Path

import pytest

from logd.shared.protocol import Exit
from tests.support import shim
from tests.support.clients import SlowPut, read_to_end
from tests.support.harness import ROOT, Server, await_true, free_port, run_to_end
from tests.support.shim import Clock

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="only root on Linux can mount")


# The socket between the workers and the log writer -------------------------------------------------------


def test_while_it_serves_and_after_a_sigkill_nothing_is_outside_of_its_directory(tmp_path):
    with Server(tmp_path / "data") as server:
        server.put("key", b"value")
        assert list(server.temporary.iterdir()) == []
        server.crash()
        assert list(server.temporary.iterdir()) == []


def test_a_server_on_a_copy_of_a_live_directory_disturbs_nobody(tmp_path):
    with Server(tmp_path / "data", "--workers=1") as original:
        original.put("key", b"value")
        shutil.copytree(original.directory, tmp_path / "copy")
        with Server(tmp_path / "copy", "--workers=1") as copy:
            assert copy.get("key") == b"value"
            copy.put("key", b"of the copy")
            for role in ("logd", "worker"):
                original.only(role).kill()
                original.put("key", role.encode())
            assert copy.get("key") == b"of the copy"
        assert original.get("key") == b"worker"


@pytest.mark.parametrize("temporary", ["x" * 200, ".", "t\udcfc", "missing"])
def test_any_directory_for_temporary_files_will_do(tmp_path, temporary):
    if temporary != "missing":
        (tmp_path / temporary).mkdir(exist_ok=True)
    place = temporary if temporary == "." else str(tmp_path / temporary)
    with Server(tmp_path / "data", "--workers=1", cwd=tmp_path, environment={"TMPDIR": place}) as server:
        server.put("key", b"value")


class InNamespace(Server):
    """A server that sees other mounts than the rest: `mounts` is a shell script that makes them."""

    mounts = ""

    def command(self):
        script = f'{self.mounts}\nexec "$@"'
        return ["unshare", "--mount", "--propagation=private", "sh", "-ec", script, "sh", *super().command()]


@pytest.fixture
def may_mount():
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not allow a mount namespace")


@AS_ROOT
def test_no_directory_but_its_own_need_be_writable(may_mount):
    with tempfile.TemporaryDirectory(prefix="kvt-") as top:
        server = InNamespace(Path(top) / "own" / "data", "--workers=2")
        server.mounts = f"""
            mkdir -p {top}/own
            mount -t tmpfs none {top}/own
            for each in $(findmnt -rno TARGET | sort -u); do
                case $each in {top}/own | /proc* | /sys*) ;; *) mount -o remount,bind,ro "$each" ;; esac
            done
            ! touch /tmp/writable 2>&- && ! touch /dev/shm/writable 2>&-
        """
        with server:
            server.put("key", b"value")
            server.only("logd").kill()
            server.put("key", b"value")
            for worker in server.role("worker"):
                worker.kill()
            await_true(lambda: len(server.role("worker")) == 2, what="new workers")
            server.put("key", b"value")
            assert server.stop() == 0


# Pauses --------------------------------------------------------------------------------------------------

SHORT = ("--keep-alive-s=4", "--header-timeout-s=4", "--body-timeout-s=4", "--request-timeout-s=6", "--workers=1")


def pause_group(server, seconds):
    server.signal_group(signal.SIGSTOP)
    time.sleep(seconds)  # what is awaited is that nothing happens
    server.signal_group(signal.SIGCONT)


def test_a_pause_of_the_whole_group_costs_no_worker_no_connection_and_no_request(tmp_path):
    with Server(tmp_path / "data", *SHORT) as server, contextlib.ExitStack() as stack:
        await_true(lambda: server.log.count("worker[") == 1, what="a worker that serves")
        workers = sorted(each.pid for each in server.role("worker"))
        waiting = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 30))
        server.only("logd").suspend()
        waiting.sendall(b"PUT /kv/waits HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 1\r\n\r\nv")
        await_true(lambda: b"\nkv_http_queued_writes 1.0\n" in server.call("GET", "/metrics").body, what="a write")
        idle = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 30))
        in_head = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 30))
        in_head.sendall(b"GET /live HTTP/1.1\r\n")
        forgotten = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 30))
        forgotten.sendall(b"GET /live HTTP/1.1\r\nHost: h\r\n\r\n")
        assert forgotten.recv(1000).endswith(b"ok")
        put = stack.enter_context(SlowPut(server.port, "slow", b"value", "close"))
        pause_group(server, 6)
        resumed_at = time.monotonic()
        assert read_to_end(waiting).startswith(b"HTTP/1.1 200 ")
        in_head.sendall(b"Host: h\r\nConnection: close\r\n\r\n")
        assert read_to_end(in_head).startswith(b"HTTP/1.1 200 ")
        idle.sendall(b"GET /live HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        assert read_to_end(idle).startswith(b"HTTP/1.1 200 ")
        assert put.finish().startswith(b"HTTP/1.1 200 ")
        assert sorted(each.pid for each in server.role("worker")) == workers
        assert "ERROR" not in server.log
        assert forgotten.recv(1) == b""  # it has as long as without a pause, and no longer
        assert 2 < time.monotonic() - resumed_at < 10


def test_a_request_in_flight_is_answered_although_the_group_is_paused_while_it_stops(tmp_path):
    with Server(tmp_path / "data", "--stop-timeout-s=2", "--workers=1") as server:
        with SlowPut(server.port, "slow", b"value") as put:
            server.signal_group(signal.SIGTERM)
            await_true(lambda: "stopping on" in server.log, what="the line that says that it stops")
            pause_group(server, 5)
            assert put.finish().startswith(b"HTTP/1.1 200 ")
        assert server.wait() == 0
        assert "killing it" not in server.log


def test_a_jump_of_the_wall_clock_costs_no_worker_and_no_connection(tmp_path):
    clock = Clock(shim.build(tmp_path), tmp_path / "jumped")
    with Server(tmp_path / "data", "--workers=1", environment=clock.environment) as server:
        await_true(lambda: server.log.count("worker[") == 1, what="a worker that serves")
        workers = server.role("worker")
        with contextlib.closing(HTTPConnection("127.0.0.1", server.port)) as idle:

            def skew_s():
                idle.request("PUT", "/kv/k", b"v")
                answer = idle.getresponse()
                answer.read()
                assert answer.status == 200
                return parsedate_to_datetime(answer.headers["Date"]).timestamp() - time.time()

            clock.path.touch()
            await_true(lambda: skew_s() > 3000, what="the clock to have jumped")
            time.sleep(2.5)  # the processes look at each other once a second; what is awaited is that nothing happens
            clock.path.unlink()
            await_true(lambda: skew_s() < 3000, what="the clock to have jumped back")
            time.sleep(2.5)
            assert skew_s() < 3000
        assert server.role("worker") == workers
        assert "ERROR" not in server.log


def test_a_frozen_worker_is_replaced(tmp_path):
    with Server(tmp_path / "data", "--workers=2") as server:
        await_true(lambda: len(server.role("worker")) == 2, what="two workers")
        frozen, other = server.role("worker")
        frozen.suspend()
        await_true(lambda: len(set(server.role("worker")) - {frozen}) == 2, 60, "another worker in its place")
        assert other in server.role("worker")
        assert f"worker {frozen.pid} is frozen; killing it" in server.log


# The standard streams and the environment ----------------------------------------------------------------


class Closed(Server):
    """A server that is started with these descriptors closed."""

    descriptors = (0, 1, 2)

    def command(self):
        closed = " ".join(f"{fd}>&-" for fd in self.descriptors)
        return ["sh", "-c", f'exec "$@" {closed}', "sh", *super().command()]


class ClosedWithoutShell(Closed):
    def command(self):
        _, *arguments = super().command()
        place = arguments.index(str(ROOT / "run.sh"))
        return ["sh", *arguments[:place], str(ROOT / ".venv/bin/python"), "-m", "kv", *arguments[place + 1 :]]


@pytest.mark.skipif(sys.platform != "linux", reason="it takes /proc to see what a descriptor is")
@pytest.mark.parametrize("descriptors", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("kind", [Closed, ClosedWithoutShell])
def test_descriptors_that_are_closed_at_the_start_are_given_to_no_file(tmp_path, kind, descriptors):
    server = kind(tmp_path / "data", "--workers=1", environment={"PYTHONPATH": str(ROOT)})
    server.descriptors = descriptors
    with server:
        server.put("key", b"value")
        roles = ["supervisor", "logd", "gunicorn", "worker"]
        opened = {
            str(Path(f"/proc/{server.only(role).pid}/fd/{fd}").readlink()) for role in roles for fd in descriptors
        }
        assert opened == {"/dev/null"}


VARIABLES = {
    "GUNICORN_PID": "1",
    "GUNICORN_FD": "3",
    "GUNICORN_CMD_ARGS": "--workers=5",
    "LISTEN_FDS": "1",
    "KV_UPGRADE_LISTEN_FDS": "7:7",
    "KV_INHERITED_LISTEN_FDS": "7",
    "PYTHONHOME": "/nowhere",
    "PYTHONOPTIMIZE": "2",
    "PYTHONWARNINGS": "error",
    "PYTHONDEVMODE": "1",
    "PYTHONINSPECT": "1",
    "PYTHONUTF8": "0",
    "PIP_TARGET": "/nowhere",
    "LC_ALL": "C",
    "LANG": "tlh",
}


def test_variables_of_other_programs_change_nothing(tmp_path):
    directory = tmp_path / "dätä"
    with Server(directory, "--workers=1", environment=VARIABLES) as server:
        server.put("key", b"value")
        for role in ("logd", "worker"):
            server.only(role).kill()
            assert server.get("key") == b"value"
        assert len(server.role("worker")) == 1
        assert f"data in {directory}" in server.log
        server.process.send_signal(signal.SIGUSR2)
        await_true(lambda: server.log.count("listening on http") == 2, 30, "the end of the upgrade")
        assert server.get("key") == b"value"
        assert server.stop() == 0
        assert {line.split()[3] for line in server.log.splitlines()} <= {"INFO", "ERROR", "WARNING"}


def test_an_umask_that_allows_nothing_or_everything_changes_nothing(tmp_path):
    class Masked(Server):
        def command(self):
            return ["sh", "-c", f'umask {self.umask}; exec "$@"', "sh", *super().command()]

    for umask in ("000", "777"):
        server = Masked(tmp_path / umask / "data", "--workers=1")
        server.umask = umask
        with server:
            server.put("key", b"value")
            server.only("logd").kill()
            assert server.get("key") == b"value"
            assert {path.stat().st_mode & 0o777 for path in server.directory.iterdir()} == {0o600}


# A log that nobody reads ---------------------------------------------------------------------------------


class IntoPipe(Server):
    """A server whose stdout and stderr are a pipe."""

    def command(self):
        return ["sh", "-c", f'exec "$@" >{self.pipe} 2>&1', "sh", *super().command()]


@pytest.fixture
def pipe(tmp_path):
    """The path of a pipe, and its reading end."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    yield path, fd
    os.close(fd)


def fill(fd):
    for size in (4096, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(fd, b"x" * size)


def drain(fd):
    data = b""
    with contextlib.suppress(BlockingIOError):
        while True:
            data += os.read(fd, 1 << 16)
    return data


def test_a_server_whose_log_nobody_reads_heals_and_stops(tmp_path, pipe):
    server = IntoPipe(tmp_path / "data", "--workers=2")
    server.pipe, fd = pipe
    with server:
        await_true(lambda: len(server.role("worker")) == 2, what="two workers")
        fill(fd)
        server.only("logd").kill()
        server.put("key", b"value")
        workers = server.role("worker")
        server.only("gunicorn").kill()
        await_true(lambda: not set(workers) & set(server.role("worker")), what="the end of its workers")
        await_true(lambda: len(server.role("worker")) == 2, 30, "two workers")
        server.put("key", b"value")
        drain(fd)
        server.only("logd").kill()
        server.put("key", b"value")
        said = drain(fd).decode()
        assert "lines of the log were dropped" in said
        assert "logd ended with status -9" in said
        fill(fd)
        assert server.stop() == 0


# Addresses -----------------------------------------------------------------------------------------------


class Named(InNamespace):
    """A server on a machine where the name `several` has several addresses."""

    addresses = ("127.0.0.1", "127.0.0.2", "::1")
    hosts: Path

    @property
    def mounts(self):
        self.hosts.write_text("".join(f"{address} several\n" for address in self.addresses))
        return f"mount --bind {self.hosts} /etc/hosts"


@pytest.fixture
def need_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")


def get_live(host, port):
    with socket.create_connection((host, port), 30) as client:
        client.sendall(b"GET /live HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        return read_to_end(client)


@AS_ROOT
def test_a_name_of_several_addresses_is_served_on_each_of_them_also_after_an_upgrade(tmp_path, may_mount, need_ipv6):
    server = Named(tmp_path / "data", "--host=several", "--workers=1")
    server.hosts = tmp_path / "hosts"
    with server:
        for count in (1, 2):
            for host in Named.addresses:
                assert get_live(host, server.port).startswith(b"HTTP/1.1 200 ")
            line = [line for line in server.log.splitlines() if "listening on http" in line][count - 1]
            for host in ("127.0.0.1", "127.0.0.2", "[::1]"):
                assert f"http://{host}:{server.port}" in line
            if count == 1:
                server.process.send_signal(signal.SIGUSR2)
                await_true(lambda: server.log.count("listening on http") == 2, 30, "the end of the upgrade")
        assert server.stop() == 0


@AS_ROOT
def test_a_port_that_is_in_use_on_one_address_of_a_name_is_refused(tmp_path, may_mount):
    server = Named(tmp_path / "data", "--host=several")
    server.hosts = tmp_path / "hosts"
    with socket.create_server(("127.0.0.2", server.port)), server.spawned():
        assert server.wait() == 1
    assert server.log.splitlines()[-1].endswith(f"port {server.port} on several is in use")


@AS_ROOT
def test_an_address_that_this_machine_does_not_have_is_no_reason_not_to_use_the_others(tmp_path, may_mount):
    server = Named(tmp_path / "data", "--host=several", "--workers=1")
    server.addresses = ("2001:db8::1", "127.0.0.1")
    server.hosts = tmp_path / "hosts"
    with server:
        server.put("key", b"value")


def test_an_address_of_ipv6_is_named_as_in_a_url(tmp_path, need_ipv6):
    server = Server(tmp_path / "data", "--host=::1", "--workers=1")
    with server.spawned():
        await_true(lambda: "listening on" in server.log, 30, "the line that says where it listens")
        assert f"listening on http://[::1]:{server.port}, " in server.log


# Names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["two\nlines", "latin \udcfc", "\x1b[31mred", "tab\there"])
def test_a_directory_of_any_name_is_served_and_named_on_one_line(tmp_path, name):
    directory = tmp_path / name / "data"
    directory.parent.mkdir()
    shown = name.replace("\n", r"\n").replace("\udcfc", r"\xfc").replace("\x1b", r"\x1b").replace("\t", r"\t")
    server = Server(directory, "--workers=1", "--segment-bytes=1KiB", "--checkpoint-log-bytes=1KiB")
    server.log_path = tmp_path / "log"
    with server:
        for number in range(5):
            server.put(f"key{number}", b"x" * 1000)
        await_true(lambda: "checkpoint as of frame" in server.log, what="a checkpoint")
        title = Path(f"/proc/{server.only('logd').pid}/cmdline").read_bytes().rstrip(b"\0")
        assert title == f"kv: logd {tmp_path}/{shown}/data".encode()
        status, said = run_to_end(f"--port={free_port()}", f"--working-dir={directory}")
        assert status == Exit.LOCKED
        assert len([line for line in said if "in use by a living server" in line and shown in line]) == 1
        status, said = run_to_end(f"--working-dir={directory}", "--check-config")
        assert (status, said) == (0, [])
        server.only("logd").kill()
        assert server.get("key0") == b"x" * 1000
        assert server.stop() == 0
        assert {line[:4] for line in server.log.splitlines()} == {time.strftime("%Y")}
