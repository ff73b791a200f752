"""New code on disk: a reload (SIGHUP) and the death of a worker do not load it; an upgrade (SIGUSR2) starts it.

Each server here runs from a copy of the project, whose files are changed while it runs. /metrics tells which version
of the code a worker runs.
"""

import asyncio
import contextlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

import kv
from logd.shared.protocol import Exit
from tests.support.clients import IDLE_S, Connection, SlowPut, idle_connection, read_to_end, run_async
from tests.support.harness import ROOT, Server, await_true
from tests.support.load import Load

NEW_VERSION = "999.0"
BROKEN = "raise SystemExit('broken code was run')\n"
CHECK = """
import sys
from kv.__main__ import _check
from kv.config import Config
_check(Config(engine="etcd", value_bytes_max=1))
print(*sys.modules)
"""
PROGRAMS = {"kv.healthcheck", "kv.setup_venv", "kv.venv_python"}
SET_UP = """
import pathlib, sys
wanted = pathlib.Path(sys.argv[2]).read_text()
if "cannot be installed" in wanted:
    sys.exit(1)
(pathlib.Path(sys.argv[1]) / ".requirements.txt").write_text(wanted)
print("requirements were set up", file=sys.stderr)
"""


class Copy(Server):
    """A server that runs from a copy of the project, with the packages of the original."""

    def __init__(self, directory, *flags, **options):
        super().__init__(directory / "data", *flags, **options)
        self.project = directory / "the project"
        for name in ("kv", "logd"):
            shutil.copytree(ROOT / name, self.project / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("run.sh", "requirements.txt", "gunicorn.conf.py"):
            shutil.copy(ROOT / name, self.project / name)
        (self.project / ".venv").mkdir()
        for name in ("bin", "lib"):
            (self.project / ".venv" / name).symlink_to(ROOT / ".venv" / name)
        for name in ("pyvenv.cfg", ".requirements.txt"):
            shutil.copy(ROOT / ".venv" / name, self.project / ".venv" / name)

    def command(self):
        return [str(self.project / "run.sh"), *super().command()[1:]]

    def change_code(self):
        """Put another version of the code on disk."""
        path = self.project / "kv" / "__init__.py"
        path.write_text(path.read_text().replace(kv.__version__, NEW_VERSION))

    def break_code(self, *names):
        """Make these files fail when they are run; all of them by default."""
        for path in [self.project / name for name in names] or [*self.project.rglob("*.py")]:
            path.write_text(BROKEN)

    def version(self):
        """The version of the code of the worker that answers."""
        text = self.call("GET", "/metrics").body.decode()
        return re.search(r'kv_build_info{version="(.*?)"} 1', text)[1]

    def count(self, line):
        return self.log.count(line)

    def begin_upgrade(self):
        """Send SIGUSR2, and wait until the server stops the old code."""
        before = self.count("upgrading:")
        self.process.send_signal(signal.SIGUSR2)
        await_true(lambda: self.count("upgrading:") > before, 30, "the begin of the upgrade")

    def upgrade(self):
        """Send SIGUSR2, and wait until the code on disk serves."""
        listening = self.count("listening on")
        self.begin_upgrade()
        await_true(lambda: self.count("listening on") > listening, 30, "the end of the upgrade")
        self.await_ready()


@pytest.fixture
def server(tmp_path):
    with Copy(tmp_path, "--workers=2") as server:
        yield server


def await_other_workers(server, old):
    """Wait until none of the old workers is left, and two others serve."""

    def are_there():
        now = set(server.role("worker"))
        return len(now) == 2 and not now & set(old)

    await_true(are_there, 30, "other workers")


# What does not load it -----------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [Copy.change_code, Copy.break_code], ids=["changed", "broken"])
def test_workers_run_the_code_of_the_start_after_a_reload_and_after_a_death(server, change):
    await_true(lambda: len(server.role("worker")) == 2, 30, "two workers")
    change(server)
    for _ in range(2):
        old = server.role("worker")
        server.process.send_signal(signal.SIGHUP)
        await_other_workers(server, old)
        old = server.role("worker")
        for worker in old:
            worker.kill()
        await_other_workers(server, old)
        assert {server.version() for _ in range(10)} == {kv.__version__}
    assert "broken code was run" not in server.log
    assert server.stop() == 0


def test_a_reload_of_the_whole_group_is_one_too(server):
    await_true(lambda: server.count("INFO started") == 2, 30, "two workers")
    logd, gunicorn = server.only("logd"), server.only("gunicorn")
    old = server.role("worker")
    server.signal_group(signal.SIGHUP)
    await_other_workers(server, old)
    assert (server.only("logd"), server.only("gunicorn")) == (logd, gunicorn)
    server.put("key", b"value")
    assert server.stop() == 0


# What starts it ------------------------------------------------------------------------------------------


def test_an_upgrade_runs_the_code_on_disk_in_the_process_that_the_user_knows(server):
    server.put("key", b"value")
    others = {process.pid for process in server.members()} - {server.process.pid}
    server.change_code()
    server.upgrade()
    assert {server.version() for _ in range(10)} == {NEW_VERSION}
    assert server.get("key") == b"value"
    assert server.only("supervisor").pid == server.process.pid
    assert not others & {process.pid for process in server.members()}
    assert server.stop() == 0
    assert server.left_behind() == []


def test_an_upgrade_leaves_nothing_open_that_the_next_one_would_add_to(server):
    descriptors = []
    for _ in range(3):
        server.upgrade()
        descriptors.append(psutil.Process(server.process.pid).num_fds())
    assert len(set(descriptors)) == 1


def test_busy_clients_do_not_notice_an_upgrade(server):
    with Load(server.port, clients=16) as load:
        for _ in range(3):
            server.upgrade()
            load.await_progress()
    assert [each for each in load.failures if each.answered == 0 or each.idle_s < IDLE_S] == []
    print(f"longest silence: {load.longest_silence_s:.3f} s")
    load.verify()


def test_no_new_connection_is_refused_or_reset_during_upgrades(server):
    """Each request is on a connection of its own, so that many are being made at each moment of an upgrade."""
    server.put("key", b"value")
    stopping = False
    answers = []

    async def ask():
        while not stopping:
            connection = Connection(server.port)
            began = time.monotonic()
            answer = await connection.call("GET", "/kv/key")  # raises when it is refused or reset
            answers.append((answer.status, time.monotonic() - began))
            connection.close()

    async def run():
        nonlocal stopping
        async with asyncio.TaskGroup() as clients:
            for _ in range(16):
                clients.create_task(ask())
            for _ in range(3):
                await asyncio.to_thread(server.upgrade)
            stopping = True

    run_async(run())
    assert {status for status, _ in answers} == {200}
    print(f"{len(answers)} connections; the longest waited {max(seconds for _, seconds in answers):.3f} s")


def test_a_request_in_flight_is_answered_by_the_old_code_and_one_that_comes_later_waits_for_the_new(server):
    value = b"in flight" * 1000
    server.change_code()
    with SlowPut(server.port, "slow", value) as put, idle_connection(server.port) as idle:
        server.begin_upgrade()
        assert read_to_end(idle) == b""
        with socket.create_connection(("127.0.0.1", server.port), 30) as later:
            later.sendall(b"GET /kv/slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert put.finish().startswith(b"HTTP/1.1 200 ")
            assert read_to_end(later).endswith(value)
    assert server.version() == NEW_VERSION


def test_an_upgrade_started_without_run_sh_runs_python_again(tmp_path):
    class Direct(Copy):
        def command(self):
            return [str(self.project / ".venv" / "bin" / "python"), "-m", "kv", *super().command()[1:]]

        def spawn(self):
            self._cwd = self.project
            super().spawn()

    with Direct(tmp_path, "--workers=2") as server:
        server.change_code()
        server.upgrade()
        assert server.version() == NEW_VERSION
        assert server.stop() == 0


def test_an_upgrade_follows_the_link_by_which_the_server_was_started(tmp_path):
    class Linked(Copy):
        def command(self):
            return [str(self.project.parent / "current" / "run.sh"), *super().command()[1:]]

    server = Linked(tmp_path, "--workers=2")
    current = tmp_path / "current"
    current.symlink_to(server.project)
    with server:
        release = tmp_path / "release"
        server.project.rename(release)
        shutil.copytree(release, server.project, symlinks=True)
        server.project = release
        server.change_code()
        current.unlink()
        current.symlink_to(release)
        server.upgrade()
        assert server.version() == NEW_VERSION


# What prevents it ----------------------------------------------------------------------------------------


def assert_refused_and_serving_goes_on(server, reason):
    """SIGUSR2 has no effect but a line that says why."""
    before = {process.pid for process in server.members()}
    refusals = server.count("not upgraded:")
    server.process.send_signal(signal.SIGUSR2)
    await_true(lambda: server.count("not upgraded:") > refusals, 30, "the refusal")
    assert reason in server.log
    assert {process.pid for process in server.members()} == before
    server.put("key", b"value")
    assert server.version() == kv.__version__


@pytest.mark.parametrize(
    "name", ["run.sh", "gunicorn.conf.py", "kv/config.py", "kv/http/worker.py", "kv/app.py", "logd/server.py"]
)
def test_code_that_cannot_be_loaded_is_not_started(server, name):
    await_true(lambda: len(server.role("worker")) == 2, 30, "two workers")
    whole = (server.project / name).read_text()
    server.break_code(name)
    if name == "gunicorn.conf.py":
        (server.project / name).write_text("this is no Python\n")
    assert_refused_and_serving_goes_on(server, "not upgraded: the check ended with status")
    (server.project / name).write_text(whole)
    server.upgrade()


def test_the_check_loads_every_module_that_is_no_program_of_its_own():
    done = subprocess.run([sys.executable, "-c", CHECK], cwd=ROOT, check=True, capture_output=True, text=True)
    paths = [path for directory in ("kv", "logd") for path in (ROOT / directory).rglob("*.py")]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths if path.stem != "__init__"}
    assert names - set(done.stdout.split()) == PROGRAMS


def test_an_option_that_the_new_code_refuses_prevents_an_upgrade(server):
    await_true(lambda: len(server.role("worker")) == 2, 30, "two workers")
    path = server.project / "kv" / "config.py"
    path.write_text(path.read_text().replace("workers: int", "threads: int"))
    assert_refused_and_serving_goes_on(server, "--workers")


def test_a_token_file_that_cannot_be_used_any_more_prevents_an_upgrade(tmp_path):
    token_file = tmp_path / "token"
    token_file.write_text("secret\n")
    token_file.chmod(0o600)
    with Copy(tmp_path, f"--token-file={token_file}", "--workers=1") as server:
        token_file.chmod(0o644)
        server.process.send_signal(signal.SIGUSR2)
        await_true(lambda: "not upgraded: the check ended with status 2" in server.log, 30, "the refusal")
        assert f"--token-file {token_file} can be read or written by every user" in server.log
        assert server.call("GET", "/health").status == 200


def test_changed_requirements_are_set_up_before_anything_is_stopped(server):
    await_true(lambda: len(server.role("worker")) == 2, 30, "two workers")
    (server.project / "kv" / "setup_venv.py").write_text(SET_UP)
    (server.project / "requirements.txt").write_text("# cannot be installed\n")
    assert_refused_and_serving_goes_on(server, "not upgraded: the check ended with status 1")
    (server.project / "requirements.txt").write_text("# other\n")
    server.upgrade()
    set_up, stopped = server.log.index("requirements were set up"), server.log.index("upgrading:")
    assert set_up < stopped
    assert server.count("requirements were set up") == 1


# What happens meanwhile ----------------------------------------------------------------------------------


def test_more_signals_of_the_same_kind_to_the_whole_group_are_one_upgrade(server):
    server.signal_group(signal.SIGUSR2)
    await_true(lambda: "checking the code" in server.log, what="the check")
    server.signal_group(signal.SIGUSR2)
    await_true(lambda: "SIGUSR2 is ignored" in server.log, what="the end of the second signal")
    await_true(lambda: server.count("listening on") == 2, 30, "the end of the upgrade")
    server.await_ready()
    assert server.count("upgrading:") == 1
    assert len([each for each in server.members() if each.pid != server.process.pid]) >= 3
    assert server.stop() == 0
    assert "ended with status" not in server.log
    assert server.left_behind() == []


@pytest.mark.parametrize("role", ["logd", "gunicorn", "worker"])
def test_a_child_that_is_killed_while_it_is_being_stopped_does_not_stop_the_upgrade(server, role):
    server.put("key", b"value")
    with SlowPut(server.port, "slow", b"value"), idle_connection(server.port) as idle:
        server.begin_upgrade()
        assert read_to_end(idle) == b""  # the slow request keeps gunicorn from ending
        server.role(role)[0].kill()
        if role == "logd":
            await_true(lambda: "logd ended with status -9 while stopping" in server.log, 30, "its end")
    await_true(lambda: server.count("listening on") == 2, 30, "the end of the upgrade")
    server.await_ready()
    assert server.get("key") == b"value"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("to_group", [False, True], ids=["top", "group"])
def test_a_stop_while_a_request_delays_the_upgrade_is_a_stop(server, number, to_group):
    with SlowPut(server.port, "slow", b"value") as put:
        with idle_connection(server.port) as idle:
            server.begin_upgrade()
            assert read_to_end(idle) == b""
        (server.signal_group if to_group else server.process.send_signal)(number)
        await_true(lambda: f"stopping on {number.name}" in server.log, what="the stop")
        assert put.finish().startswith(b"HTTP/1.1 200 ")
        assert server.wait() == 0
    assert server.left_behind() == []
    assert server.count("starting;") == 1


@pytest.mark.parametrize(
    "line", ["checking the code", "upgrading:", "logd[%d] INFO stopped", "starting;", "recovered", "listening"]
)
def test_a_stop_at_any_step_of_an_upgrade_ends_the_server_in_order(server, line):
    line = line.replace("%d", str(server.only("logd").pid))
    before = server.count(line)
    server.process.send_signal(signal.SIGUSR2)
    deadline = time.monotonic() + 30
    while server.count(line) == before:  # without a pause between the looks: the next step may be a millisecond away
        assert time.monotonic() < deadline
    server.process.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    assert server.left_behind() == []
    assert "Traceback" not in server.log


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2, signal.SIGTERM])
def test_no_signal_is_lost_or_deadly_while_the_process_replaces_itself(server, number):
    """Between the end of the old code and the handlers of the new one, a signal is kept by the kernel."""
    main = server.project / "kv" / "__main__.py"
    main.write_text("import time\nimport sys\n'--check-config' in sys.argv or time.sleep(1)\n" + main.read_text())
    top = psutil.Process(server.process.pid)
    server.begin_upgrade()
    await_true(lambda: "kv: supervisor" not in " ".join(top.cmdline()), 30, "the moment between")
    server.process.send_signal(number)
    if number == signal.SIGTERM:
        assert server.wait() == 0
        assert server.left_behind() == []
    else:
        await_true(lambda: server.count("listening on") == 2, 30, "the end of the upgrade")
        server.await_ready()
        assert server.stop() == 0


def test_new_code_that_cannot_serve_ends_with_its_status_and_a_line_that_says_so(server):
    server.put("key", b"value")
    (segment,) = server.segments()
    data = bytearray(segment.read_bytes())
    data[60] ^= 1  # in the first frame
    segment.write_bytes(data)
    server.put("other", b"value")
    server.process.send_signal(signal.SIGUSR2)
    assert server.wait(30) == Exit.DAMAGED
    assert server.count("the upgrade has failed: the new code cannot serve") == 1
    assert "[DAMAGED_FRAME]" in server.log
    assert server.left_behind() == []


def test_the_supervisor_may_be_killed_during_an_upgrade(server):
    server.put("key", b"value")
    for _ in range(3):
        server.process.send_signal(signal.SIGUSR2)
        await_true(lambda: "upgrading:" in server.log, 30, "the upgrade")
        server.process.kill()
        server.wait()
        await_true(lambda: not server.members(), 10, "the end of all others")
        with contextlib.suppress(FileNotFoundError):
            server.log_path.unlink()
        server.start()
        assert server.get("key") == b"value"
