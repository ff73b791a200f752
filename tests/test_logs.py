"""What the processes log: lines for people, or JSON for machines, and nothing else in between."""

import datetime
import json
import logging
import signal
import subprocess
import sys

import pytest

from logd.shared import logging_setup
from logd.shared.protocol import Exit
from tests.support.harness import ROOT, Server, await_true, free_port, run_to_end

FIELDS = ["time", "level", "logger", "role", "pid", "message"]


@pytest.fixture(params=logging_setup.FORMATS)
def form(request):
    return request.param


def run(script, form="json"):
    """What a process says on stderr that has set up its logging and then does this."""
    set_up = "import logging, threading\nfrom logd.shared import logging_setup\n"
    set_up += f"logging_setup.set_up('tester', 'info', {form!r})\n"
    process = subprocess.run(
        [sys.executable, "-c", set_up + script], cwd=ROOT, check=False, capture_output=True, text=True, timeout=30
    )
    return process.stderr.splitlines()


# JSON lines ----------------------------------------------------------------------------------------------


def test_a_line_says_when_how_severe_who_and_what():
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    (line,) = map(json.loads, run("logging.getLogger('some.logger').warning('%d of %s', 3, 'all')"))
    assert list(line) == FIELDS
    assert line["time"].endswith("Z")
    assert before <= datetime.datetime.fromisoformat(line["time"]) <= datetime.datetime.now(datetime.UTC)
    said = {name: line[name] for name in ("level", "logger", "role", "message")}
    assert said == {"level": "warning", "logger": "some.logger", "role": "tester", "message": "3 of all"}


@pytest.mark.parametrize("message", ["two\nlines", '"quoted" \\ {}', "Zürich 🎉\0", "\udcff of a path"])
def test_whatever_the_message_is_a_line_is_one_line(message):
    record = logging.makeLogRecord({"msg": message})
    (line,) = logging_setup.JsonLines().format(record).splitlines()
    assert json.loads(line)["message"] == message


def test_an_exception_is_part_of_the_line():
    (line,) = map(json.loads, run("try: 1/0\nexcept ZeroDivisionError: logging.exception('odd')"))
    assert list(line) == [*FIELDS, "exception"]
    assert line["message"] == "odd"
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert line["exception"].endswith("\nZeroDivisionError: division by zero")


@pytest.mark.parametrize("script", ["1/0", "t = threading.Thread(target=lambda: 1/0)\nt.start()\nt.join()"])
def test_a_defect_that_nobody_caught_is_logged(script, form):
    said = run(script, form)
    if form == "json":
        (line,) = map(json.loads, said)
        assert (line["level"], line["role"]) == ("critical", "tester")
        assert line["exception"].endswith("\nZeroDivisionError: division by zero")
    else:
        assert said[0].endswith("CRITICAL ended by a defect: ZeroDivisionError('division by zero')")
        assert said[-1] == "ZeroDivisionError: division by zero"


def test_a_child_logs_as_its_parent_does(form):
    (said,) = run("logging.error(' '.join(logging_setup.flags()))", form)
    assert f"--log-level info --log-format {form}" in said


# The whole server ----------------------------------------------------------------------------------------


def test_in_json_mode_every_line_of_a_server_that_is_killed_and_stopped_is_json(tmp_path):
    flags = ("--log-format=json", "--workers=2", "--segment-bytes=2KiB", "--checkpoint-log-bytes=2KiB")
    with Server(tmp_path / "data", *flags) as server:

        def count_said(role, message):
            lines = map(json.loads, server.log.rpartition("\n")[0].splitlines())
            return len([line for line in lines if line["role"] == role and message in line["message"]])

        def await_said(role, message, count=1):
            await_true(lambda: count_said(role, message) >= count, 30, f"{message!r} from {role}")

        await_said("worker", "started", 2)
        worker = server.role("worker")[0].pid
        logd, gunicorn = server.only("logd").pid, server.only("gunicorn").pid
        for n in range(5):
            server.put(f"key{n}", b"x" * 1000)
        await_said("checkpoint", "checkpoint as of frame")
        server.role("worker")[0].kill()
        await_said("gunicorn", "was sent SIGKILL")
        await_said("worker", "started", 3)
        server.only("logd").kill()
        await_said("logd", "recovered", 2)
        server.process.send_signal(signal.SIGHUP)
        await_said("worker", "started", 5)
        server.only("gunicorn").kill()
        await_said("worker", "started", 7)
        assert server.stop() == 0

        lines = [json.loads(line) for line in server.log.splitlines()]
        assert {line["role"] for line in lines} == {"supervisor", "logd", "checkpoint", "gunicorn", "worker"}
        roles = {(line["pid"], line["role"]) for line in lines}
        assert len(roles) == len({line["pid"] for line in lines}), "a process has one role"
        assert {(server.process.pid, "supervisor"), (logd, "logd"), (gunicorn, "gunicorn"), (worker, "worker")} <= roles


def test_a_start_that_is_refused_says_so_in_json(tmp_path):
    (tmp_path / "data").write_text("a file")
    status, said = run_to_end(f"--port={free_port()}", f"--working-dir={tmp_path / 'data'}", "--log-format=json")
    assert status == Exit.UNUSABLE
    (line,) = (line for line in map(json.loads, said) if line["level"] == "critical")
    assert (line["role"], str(tmp_path / "data") in line["message"]) == ("logd", True)
