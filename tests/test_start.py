"""Starting: the directory, the command line, the surroundings, torn and damaged logs, and the lines that are logged."""

import contextlib
import dataclasses
import os
import re
import socket
import stat
import subprocess
import sys
import time

import pytest

from kv.config import Config
from tests.support.clients import exchange, idle_connection
from tests.support.harness import ROOT, Server, await_true, free_port, run_to_end

HOSTILE_MODULE = "raise SystemExit('a file of the current directory was run')\n"
LINE = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ (?P<role>[a-z.]+)\[(?P<pid>\d+)\] (?P<level>[A-Z]+) (?P<text>.+)"
)

WORKER_STARTED = re.compile(r"kv\.http\.worker\[\d+\] INFO started")


def modes(directory):
    return {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}


def used_bytes(segment):
    """The size of the frames of a segment; only zeros follow them."""
    return len(segment.read_bytes().rstrip(b"\0"))


@contextlib.contextmanager
def crashed_server(tmp_path):
    """A server that was killed after three writes, each a frame of its only segment.

    Also the segment, and the size of its frames before the last write.
    """
    with Server(tmp_path / "data", "--workers=1") as server:
        server.put("first", b"1")
        server.put("second", b"2")
        (segment,) = server.segments()
        before_bytes = used_bytes(segment)
        server.put("third", b"3" * 100)
        server.crash()
        yield server, segment, before_bytes


def await_workers(server, count):
    """Wait until so many workers have started to serve."""
    await_true(lambda: len(WORKER_STARTED.findall(server.log)) == count, 30, f"the start of {count} workers")


def assert_refused(said, *reasons):
    """Exactly one line has all of these reasons, and there is no traceback."""
    assert len([line for line in said if all(reason in line for reason in reasons)]) == 1, said
    assert [line for line in said if "Traceback" in line or line.startswith("  ")] == []


# The directory -------------------------------------------------------------------------------------------


def test_a_missing_directory_is_created_for_this_user_alone(tmp_path):
    directory = tmp_path / "parent" / "data"
    with Server(directory) as server:
        server.put("key", b"value")
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE(directory.parent.stat().st_mode) == 0o700
        assert modes(directory) == {0o600}
        assert server.stop() == 0
        assert modes(directory) == {0o600}


def test_a_relative_directory_is_relative_to_the_current_directory(tmp_path):
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    with Server(elsewhere / "some" / "data", cwd=elsewhere, spelled="some/data") as server:
        server.put("key", b"value")
        assert server.segments()
        server.crash()
        server.start()
        assert server.get("key") == b"value"


def test_a_directory_may_have_a_very_long_path(tmp_path):
    directory = tmp_path.joinpath("ü" * 100, *(["long" * 60] * 3))
    with Server(directory) as server:
        assert len(str(directory)) > 800
        server.put("key", b"value")
        server.crash()
        server.start()
        assert server.get("key") == b"value"


@pytest.mark.parametrize("below", ["", "below"])
def test_a_directory_that_is_a_file_is_refused(tmp_path, below):
    (tmp_path / "file").write_text("mine")
    path = tmp_path / "file" / below
    status, said = run_to_end(f"--port={free_port()}", f"--working-dir={path}")
    assert status > 0
    assert_refused(said, str(path), "cannot be used")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_directory_that_cannot_be_written_is_refused(tmp_path):
    if os.geteuid() == 0:
        if sys.platform != "linux":
            pytest.skip("root may write everywhere here")
        path = "/proc/data"
    else:
        (tmp_path / "closed").mkdir(mode=0o500)
        path = str(tmp_path / "closed")
    status, said = run_to_end(f"--port={free_port()}", f"--working-dir={path}")
    assert status > 0
    assert_refused(said, path, "cannot be used")


def test_a_directory_in_use_is_refused_and_the_server_that_uses_it_goes_on(tmp_path):
    with Server(tmp_path / "data") as server, idle_connection(server.port) as connection:
        server.put("key", b"value")
        status, said = run_to_end(f"--port={free_port()}", f"--working-dir={server.directory}")
        assert status > 0
        assert_refused(said, str(server.directory), "in use by a living server")
        assert server.get("key") == b"value"
        server.put("key", b"after")
        connection.sendall(b"GET /kv/key HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert connection.makefile("rb").read().endswith(b"\r\n\r\nafter")
        assert server.stop() == 0
        assert server.left_behind() == []


# The command line ----------------------------------------------------------------------------------------


def test_a_flag_and_its_value_may_be_one_argument_or_two(tmp_path):
    class Spaced(Server):
        def command(self):
            return [part for argument in super().command() for part in argument.split("=", 1)]

    with Spaced(tmp_path / "data", "--workers=1") as server:
        assert not [part for part in server.command() if "=" in part]
        server.put("key", b"value")
        assert server.segments()
        assert len(server.role("worker")) == 1


def test_a_flag_wins_over_the_environment(tmp_path):
    with Server(
        tmp_path / "data", "--workers=1", environment={"KV_WORKERS": "3", "KV_VALUE_BYTES_MAX": "10"}
    ) as server:
        assert len(server.role("worker")) == 1
        assert server.call("PUT", "/kv/key", b"x" * 10).status == 200
        assert server.call("PUT", "/kv/key", b"x" * 11).status == 413


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--nonsense"], "--nonsense"),
        (["--work=1"], "--work"),
        (["argument"], "argument"),
        (["--port=http"], "--port"),
        (["--port=65536"], "--port"),
        (["--workers=0"], "--workers"),
        (["--log-level=loud"], "--log-level"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_bad_command_line_is_refused_with_one_line(tmp_path, arguments, named):
    status, said = run_to_end(f"--working-dir={tmp_path / 'data'}", *arguments)
    assert status > 0
    assert_refused(said, named)
    assert len(said) == 1
    assert not (tmp_path / "data").exists()


def test_help_names_every_option_with_its_variable_and_default():
    said = subprocess.run([ROOT / "run.sh", "--help"], capture_output=True, check=True, text=True, timeout=30).stdout
    for field in dataclasses.fields(Config):
        flag = "--" + field.name.replace("_", "-")
        assert re.search(rf"^  {flag} .*\[KV_{field.name.upper()}; default .+\]", said, re.DOTALL | re.MULTILINE), flag


def test_a_port_in_use_is_refused(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        status, said = run_to_end(f"--port={port}", f"--working-dir={tmp_path / 'data'}")
    assert status > 0
    assert_refused(said, str(port), "in use")


# Surroundings --------------------------------------------------------------------------------------------


def test_files_of_the_current_directory_and_variables_of_other_programs_have_no_effect(tmp_path):
    for name in ("gunicorn.conf.py", "kv.py", "logd.py", "falcon.py", "zmq.py", "sitecustomize.py"):
        (tmp_path / name).write_text(HOSTILE_MODULE)
    hostile = {
        "GUNICORN_CMD_ARGS": "--workers=5 --bind=127.0.0.1:1 --reload",
        "WEB_CONCURRENCY": "5",
        "PORT": "1",
        "FORWARDED_ALLOW_IPS": "*",
        "PYTHONPATH": str(tmp_path),
        "UVICORN_PORT": "1",
    }
    with Server(tmp_path / "data", "--workers=2", cwd=tmp_path, environment=hostile) as server:
        server.put("key", b"value")
        assert server.get("key") == b"value"
        await_workers(server, 2)
        assert server.stop() == 0
        assert len(WORKER_STARTED.findall(server.log)) == 2
        assert HOSTILE_MODULE.split("'")[1] not in server.log


def test_the_next_start_removes_the_temporary_files_of_a_killed_server(tmp_path):
    with Server(tmp_path / "data") as server:
        server.put("key", b"value")
        server.crash()
        temporary = server.directory / "wal-00000000000000009999.log.tmp"
        temporary.write_bytes(b"what was being written")
        server.start()
        assert not temporary.exists()
        assert server.get("key") == b"value"
        assert server.stop() == 0
        assert server.left_behind() == []


# Torn and damaged logs -----------------------------------------------------------------------------------


def test_a_torn_tail_is_dropped_with_one_line_that_gives_its_size(tmp_path):
    with crashed_server(tmp_path) as (server, segment, before_bytes):
        os.truncate(segment, used_bytes(segment) - 5)
        torn_bytes = segment.stat().st_size - before_bytes
        server.start()
        assert (server.get("first"), server.get("second"), server.get("third")) == (b"1", b"2", None)
        lines = [line for line in server.log.splitlines() if re.search(r"\bdropped \d+ bytes\b", line)]
        assert len(lines) == 1
        assert "[TORN_TAIL]" in lines[0]
        assert segment.name in lines[0]
        assert f"dropped {torn_bytes} bytes" in lines[0]


def test_a_damaged_log_is_refused_with_file_and_offset_and_not_changed(tmp_path):
    with crashed_server(tmp_path) as (server, segment, _):
        data = bytearray(segment.read_bytes())
        data[60] ^= 1  # in the first frame; the header of the file has 32 bytes
        segment.write_bytes(data)
        before = {path.name: path.read_bytes() for path in server.directory.glob("*-*")}
        status, said = run_to_end(f"--port={server.port}", f"--working-dir={server.directory}")
        assert status > 0
        assert_refused(said, "[DAMAGED_FRAME]", segment.name, "offset 32")
        assert {path.name: path.read_bytes() for path in server.directory.glob("*-*")} == before


# The log lines -------------------------------------------------------------------------------------------


def test_start_recovery_and_stop_log_one_line_each_with_role_and_pid_and_requests_log_none(tmp_path):
    with Server(tmp_path / "data", "--workers=2") as server:
        await_workers(server, 2)
        pids = {"kv.supervisor": {server.process.pid}, "logd": {server.only("logd").pid}}
        pids["kv.http.worker"] = {process.pid for process in server.role("worker")}
        said_before = server.log
        for n in range(50):
            server.put(f"key{n}", b"value")
            assert server.get(f"key{n}") == b"value"
        for method, path in [("GET", "/kv/none"), ("PUT", "/kv/"), ("POST", "/kv/k"), ("GET", "/%00"), ("PUT", "/x")]:
            assert server.call(method, path, b"x").status >= 400
        assert exchange(server.port, b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 ")
        exchange(server.port, b"PUT /kv/cut HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nx", half_close=True)
        assert server.log == said_before
        assert server.stop() == 0
        lines = [LINE.fullmatch(line) for line in server.log.splitlines()]
        assert None not in lines, server.log
        assert {line["level"] for line in lines} == {"INFO"}
        for role, expected in pids.items():
            assert {int(line["pid"]) for line in lines if line["role"] == role} == expected

        def count(role, beginning):
            return len([line for line in lines if line["role"] == role and line["text"].startswith(beginning)])

        assert count("kv.supervisor", "starting") == 1
        assert count("kv.supervisor", f"listening on http://127.0.0.1:{server.port}") == 1
        assert count("kv.supervisor", "stopping on SIGTERM") == 1
        assert count("kv.supervisor", "stopped") == 1
        assert count("logd", "recovered") == 1
        assert count("logd", "stopped") == 1
        assert count("kv.http.worker", "started") == count("kv.http.worker", "stopped") == 2


@pytest.mark.skipif(
    subprocess.run(["env", "--block-signal=TERM", "true"], capture_output=True, check=False).returncode != 0,
    reason="env cannot block signals here, so that one before Python has begun ends the process by itself",
)
@pytest.mark.parametrize("after_s", [0.01, 0.03, 0.06, 0.1, 0.2, 0.4])
def test_sigterm_in_the_first_moments_ends_the_server_with_0(tmp_path, after_s):
    with Server(tmp_path / "data") as server:
        assert server.stop() == 0
        server.spawn()
        time.sleep(after_s)
        server.process.terminate()
        assert server.wait() == 0
        assert server.left_behind() == []
