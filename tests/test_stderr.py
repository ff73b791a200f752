"""A log that nobody reads: it stops nothing, what is dropped is counted, and what is written is whole lines."""

import os
import pty
import re
import socket
import subprocess
import sys
import termios

import pytest

from tests.support.harness import ROOT

LINES = 20_000
LOGS = f"""
import logging, os, sys
from logd.shared import logging_setup
uid = int(sys.argv[1])
os.setuid(uid)
logging_setup.set_up("tester", "info", "text")
for number in range({LINES}):
    logging.info("line %d %s", number, "x" * (number % 300))
print("done", flush=True)
input()
logging.info("the last line")
"""


def a_pipe():
    return os.pipe()


def a_socket():
    mine, its = socket.socketpair()
    return mine.detach(), its.detach()


def a_stopped_terminal():
    mine, its = pty.openpty()
    termios.tcflow(its, termios.TCOOFF)
    return mine, its


@pytest.mark.parametrize(
    ("make", "uid"),
    [
        (a_pipe, os.getuid()),
        (a_socket, os.getuid()),
        (a_stopped_terminal, os.getuid()),
        pytest.param(a_pipe, 65534, marks=pytest.mark.skipif(os.getuid() != 0, reason="only root can change users")),
    ],
    ids=["pipe", "socket", "terminal", "pipe of another user"],
)
def test_what_nobody_reads_is_dropped_and_counted_and_all_else_is_whole_lines(make, uid):
    mine, its = make()
    with subprocess.Popen(
        [sys.executable, "-c", LOGS, str(uid)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=its,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "done\n"
            if make is a_stopped_terminal:
                termios.tcflow(its, termios.TCOON)
            os.close(its)
            os.set_blocking(mine, False)
            log = read_what_is_there(mine)
            os.set_blocking(mine, True)
            process.stdin.write("\n")
            process.stdin.close()
            log += read_to_end(mine)
        finally:
            process.kill()
            os.close(mine)
    *lines, report, last = log.decode().replace("\r\n", "\n").splitlines()
    assert last.endswith("INFO the last line")
    dropped = int(re.search(r"WARNING (\d+) lines of the log were dropped", report)[1])
    assert dropped > 0
    assert (dropped == LINES) == (make is a_stopped_terminal)  # a pipe takes some
    numbers = [int(re.search(r"INFO line (\d+) x*$", line)[1]) for line in lines]
    assert numbers == list(range(LINES - dropped))


def read_what_is_there(fd):
    data = b""
    try:
        while piece := os.read(fd, 1 << 16):
            data += piece
    except BlockingIOError:
        pass
    return data


def read_to_end(fd):
    data = b""
    try:
        while piece := os.read(fd, 1 << 16):
            data += piece
    except OSError:  # of a terminal
        pass
    return data


def test_a_reader_that_is_gone_ends_nothing():
    mine, its = os.pipe()
    os.close(mine)
    command = [sys.executable, "-c", LOGS, str(os.getuid())]
    process = subprocess.run(
        command, cwd=ROOT, input="\n", stdout=subprocess.PIPE, stderr=its, text=True, check=False, timeout=30
    )
    os.close(its)
    assert (process.returncode, process.stdout) == (0, "done\n")


def test_the_flags_of_a_stream_that_others_share_stay_as_they_are():
    mine, its = os.pipe()
    subprocess.run(
        [sys.executable, "-c", LOGS, str(os.getuid())], cwd=ROOT, input="\n", text=True, stderr=its, check=True
    )
    assert os.get_blocking(its)
    os.close(mine)
    os.close(its)
