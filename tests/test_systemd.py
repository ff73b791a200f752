"""Under systemd: the messages to the service manager, and the unit."""

import configparser
import contextlib
import ctypes
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import pytest

from kv import notify
from kv.config import Config
from logd.shared.protocol import Exit
from tests.support.harness import ROOT, Server, await_true

UNIT = ROOT / "deploy" / "kv.service"
SUPERVISOR_STOP_SECONDS = 2 + 5  # for gunicorn beyond the time-out, and for logd after it
EXPOSURE_MAX = 15  # tenths, as rated by systemd-analyze security; below 2.0 is OK


class Manager:
    """The datagram socket of systemd for a service of Type=notify."""

    def __init__(self, name):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(name.replace("@", "\0", 1))
        self._socket.settimeout(30)
        self.environment = {"NOTIFY_SOCKET": name}

    def receive(self):
        return self._socket.recv(4096).decode()

    def is_quiet(self):
        return not select.select([self._socket], [], [], 0)[0]

    def close(self):
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request):
    if request.param == "abstract" and sys.platform != "linux":
        pytest.skip("abstract sockets are of Linux")
    with tempfile.TemporaryDirectory(prefix="kvt-") as directory:
        name = f"@{directory}" if request.param == "abstract" else f"{directory}/notify"
        with contextlib.closing(Manager(name)) as manager:
            yield manager


# Messages to the manager ----------------------------------------------------------------------------------


def test_the_manager_is_told_when_the_port_is_open_and_when_the_server_stops(tmp_path, manager):
    with Server(tmp_path / "data", environment=manager.environment) as server:
        assert manager.receive() == f"READY=1\nSTATUS=listening on http://127.0.0.1:{server.port}"
        server.put("key", b"value")
        assert manager.is_quiet()
        assert server.stop() == 0
        assert manager.receive() == "STOPPING=1"
        assert manager.is_quiet()


def test_the_manager_is_told_of_an_upgrade_by_the_process_that_it_knows(tmp_path, manager):
    with Server(tmp_path / "data", "--workers=1", environment=manager.environment) as server:
        ready = manager.receive()
        server.process.send_signal(signal.SIGUSR2)
        reloading = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=(\d+)\nSTATUS=upgrading", manager.receive())
        assert abs(int(reloading[1]) - time.monotonic_ns() // 1000) < 60_000_000
        assert manager.receive() == ready
        assert server.process.poll() is None
        assert server.stop() == 0
        assert manager.receive() == "STOPPING=1"
        assert manager.is_quiet()


def test_gunicorn_tells_the_manager_nothing(tmp_path, manager):
    with Server(tmp_path / "data", "--workers=1", environment=manager.environment) as server:
        manager.receive()
        for starts in (1, 2):
            await_true(lambda starts=starts: server.log.count("INFO started") == starts, 30, "the worker")
            assert manager.is_quiet()
            server.only("gunicorn").kill()


def test_a_start_that_is_refused_is_never_reported_as_ready(tmp_path, manager):
    (tmp_path / "data").write_text("a file")
    server = Server(tmp_path / "data", environment=manager.environment)
    with server.spawned():
        assert server.wait() == Exit.UNUSABLE
        assert manager.is_quiet()


def test_without_a_manager_nothing_is_sent(monkeypatch, caplog):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify.send("READY=1")
    assert caplog.text == ""


def test_a_manager_that_cannot_be_reached_is_a_warning(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    notify.send("READY=1\nSTATUS=fine")
    assert re.findall("cannot send (.*?) to", caplog.text) == ["READY=1"]


# The unit ------------------------------------------------------------------------------------------------


@pytest.fixture
def unit():
    """The settings of the service; the last one of a name."""
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str
    parser.read_string(UNIT.read_text())
    return parser["Service"]


@pytest.fixture
def analyze(tmp_path):
    """Runs systemd-analyze on the unit, as if the project were installed where the unit expects it."""
    program = shutil.which("systemd-analyze")
    if not program:
        pytest.skip("systemd-analyze is not installed here")
    here = tmp_path / "kv.service"
    here.write_text(UNIT.read_text().replace("/opt/kv", str(ROOT)))

    def run(*arguments):
        return subprocess.run(
            [program, *arguments, here],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )

    return run


def test_systemd_understands_the_unit(analyze):
    done = analyze("verify")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_systemd_rates_the_exposure_of_the_service_as_low(analyze):
    done = analyze("security", "--offline=yes", f"--threshold={EXPOSURE_MAX}")
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze judges running services only")
    assert done.returncode == 0, done.stdout


def test_the_unit_restarts_the_service_unless_it_would_end_in_the_same_way(unit):
    never = {Exit.USAGE, Exit.LOCKED, Exit.DAMAGED, Exit.UNUSABLE}
    assert {int(status) for status in unit["RestartPreventExitStatus"].split()} == never
    assert unit["Restart"] == "on-failure"


def test_the_unit_waits_longer_for_a_stop_than_the_server_takes(unit):
    assert int(unit["TimeoutStopSec"]) > Config().stop_timeout_s + SUPERVISOR_STOP_SECONDS
    assert unit["KillMode"] == "mixed"


def test_the_server_runs_where_no_memory_can_be_made_executable(tmp_path, unit):
    """As MemoryDenyWriteExecute has it; PR_SET_MDWE of Linux 6.3 is the same without systemd."""
    assert unit["MemoryDenyWriteExecute"] == "yes"
    if sys.platform != "linux" or ctypes.CDLL(None).prctl(66, 0, 0, 0, 0) < 0:
        pytest.skip("this kernel does not have PR_SET_MDWE")
    deny = "import ctypes, os, sys\nctypes.CDLL(None).prctl(65, 1, 0, 0, 0)\nos.execv(sys.argv[1], sys.argv[1:])"

    class Denied(Server):
        def command(self):
            return [sys.executable, "-c", deny, *super().command()]

    with Denied(tmp_path / "data", "--segment-bytes=2KiB", "--checkpoint-log-bytes=2KiB") as server:
        for n in range(5):
            server.put(f"key{n}", b"x" * 1000)
        await_true(lambda: "checkpoint as of frame" in server.log, what="a checkpoint")
        assert server.stop() == 0
