"""A probe: the log writer alone, fed batches by senders that hardly cost anything, so that its own limit shows.

Owns the processes: logd, started as the supervisor does it, and `senders`. Knows nothing of HTTP.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import AnyStr, Final, NamedTuple, Self

import psutil

from kv import lifeline
from kv.config import Config
from logd.shared.local_socket import LocalSocket
from logd.shared.protocol import MESSAGE_OVERHEAD_BYTES
from tests.bench.targets import PYTHON, cpu_seconds, kill_group
from tests.support.harness import ROOT

SENDERS: Final = 16
_PROCESSES: Final = 2
_START_SECONDS: Final = 30.0
_ENVIRONMENT: Final = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}


class Rate(NamedTuple):
    """Operations a second, and the processor time that logd takes for one of them."""

    throughput: float
    cpu_us: float


class LogdAlone:
    """A logd, and those who send to it. A context manager; the data are in a directory that is given."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = contextlib.ExitStack()
        self._logd: psutil.Process
        self._senders: list[subprocess.Popen[str]]

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            local_socket = stack.enter_context(contextlib.closing(LocalSocket()))
            self._logd = psutil.Process(stack.enter_context(_logd(self._directory, local_socket.fileno())).pid)
            share = SENDERS // _PROCESSES
            self._senders = [
                stack.enter_context(_sender(local_socket.address, n * share, share)) for n in range(_PROCESSES)
            ]
            self._order("fill")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def write(self, seconds: float) -> Rate:
        """Durable writes."""
        return self._measure(f"write {seconds}")

    def read(self, seconds: float) -> Rate:
        """Reads of what was written."""
        return self._measure(f"read {seconds}")

    def _measure(self, order: str) -> Rate:
        before = cpu_seconds([self._logd])
        done = self._order(order)
        used = cpu_seconds([self._logd])["logd"] - before["logd"]
        throughput = sum(each["operations"] / each["seconds"] for each in done)
        return Rate(throughput, used / sum(each["operations"] for each in done) * 1e6)

    def _order(self, order: str) -> list[dict[str, float]]:
        """Give all senders an order at once; the report of each when it is done."""
        for process in self._senders:
            assert process.stdin
            process.stdin.write(order + "\n")
            process.stdin.flush()
        return [json.loads(_line(process)) for process in self._senders]


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    line = process.stdout.readline()
    assert line, "a sender has failed; its error is above"
    return line


@contextlib.contextmanager
def _logd(directory: Path, socket_fd: int) -> Iterator[subprocess.Popen[bytes]]:
    """A log writer that serves, with the options that the server has by default."""
    config = Config()
    lifeline_fd, supervisor_end = lifeline.make()
    ready, ready_fd = os.pipe()
    options = {
        "--socket-fd": socket_fd,
        "--lifeline-fd": lifeline_fd,
        "--ready-fd": ready_fd,
        "--message-bytes-max": config.value_bytes_max + MESSAGE_OVERHEAD_BYTES,
        "--segment-bytes": config.segment_bytes,
        "--checkpoint-log-bytes": config.checkpoint_log_bytes,
        "--checkpoint-ratio": config.checkpoint_ratio,
        "--log-level": "warning",
    }
    command = [str(PYTHON), "-m", "logd", "serve", str(directory)]
    command += [text for option, value in options.items() for text in (option, str(value))]
    try:
        with _ending(
            subprocess.Popen(
                command, env=_ENVIRONMENT, pass_fds=(socket_fd, lifeline_fd, ready_fd), start_new_session=True
            )
        ) as process:
            os.close(ready_fd)
            ready_fd = -1
            assert select.select([ready], [], [], _START_SECONDS)[0], "logd does not start"
            assert os.read(ready, 1), "logd cannot start; its error is above"
            yield process
    finally:
        for fd in (lifeline_fd, supervisor_end, ready, *([ready_fd] if ready_fd >= 0 else [])):
            os.close(fd)


def _sender(address: str, first: int, count: int) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.bench.senders", address, str(first), str(count)]
    return _ending(
        subprocess.Popen(
            command,
            env=_ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )
    )


@contextlib.contextmanager
def _ending(process: subprocess.Popen[AnyStr]) -> Iterator[subprocess.Popen[AnyStr]]:
    """A process that is ended afterwards, with all of its group."""
    with process:
        try:
            yield process
        finally:
            kill_group(process)
