"""When a checkpoint is due, and the one child process at a time that makes it (logd/local/checkpoint.py).

Knows sizes and one child; opens no file of the log.
"""

import contextlib
import logging
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final, NamedTuple

from logd.local import snapshot
from logd.local.wal import Sealed
from logd.shared import logging_setup

RETRY_SECONDS: Final = 30.0
"""How long to wait after a checkpoint that failed."""

log = logging.getLogger("logd.local.checkpointer")


class Policy(NamedTuple):
    """A checkpoint is due when the sealed log has `log_bytes_min` and `ratio` times the size of the snapshot."""

    log_bytes_min: int
    ratio: float

    def due_bytes(self, snapshot_bytes: int) -> int:
        """How much sealed log, beside a snapshot of this size, makes a checkpoint due."""
        return max(self.log_bytes_min, math.ceil(self.ratio * snapshot_bytes))


class Newest(NamedTuple):
    """The newest snapshot, and how much log is not in it. One value, because two threads use it."""

    snapshot_bytes: int
    log_start_bytes: int
    """Where the log after it begins, as bytes that this process had sealed then; below 0: the log of earlier processes
    that is in no snapshot."""
    at: float = 0.0
    """When it was finished, in seconds since 1970; 0 when there is none."""
    seconds: float = 0.0
    """How long it took this process's child; 0 when it is older."""

    def log_bytes(self, written_bytes: int) -> int:
        """How much log is in no snapshot, when this process has written that much.

        Never less than none: segments are counted with their headers, and what was appended without.
        """
        return max(0, written_bytes - self.log_start_bytes)


class Checkpointer:
    """Starts a checkpoint when one is due, one at a time.

    Used by two threads, of which one calls `make_room` alone. A third waits for the child, and records how it ended
    before it says that there is none.
    """

    def __init__(
        self, directory: Path, policy: Policy, newest: Newest, ballast_bytes: int = 0, *, directory_id: str = ""
    ) -> None:
        self._directory = directory
        self._directory_id = directory_id
        self._policy = policy
        self._ballast_bytes = ballast_bytes
        self.newest = newest
        self.outcomes = {"done": 0, "failed": 0}
        self._starting = threading.Lock()
        self._child: _Child | None = None
        self._not_before = 0.0
        self._is_stopping = False

    @property
    def due_bytes(self) -> int:
        """How much sealed log makes the next one due."""
        return self._policy.due_bytes(self.newest.snapshot_bytes)

    def maybe_start(self, sealed: Sealed) -> None:
        """Start a child when the sealed log is large enough; hurry one that runs when the next is due."""
        child = self._child
        if child:
            if sealed.bytes - child.covers.bytes >= self.due_bytes:
                child.hurry()
        elif self.newest.log_bytes(sealed.bytes) >= self.due_bytes and time.monotonic() >= self._not_before:
            with self._starting:
                if not self._child:
                    self._start(sealed)

    def make_room(self, sealed: Sealed, wait_s: float) -> None:
        """Make a checkpoint at once that keeps only what is needed, after one that runs already, and wait for its end.

        When it has not ended by that time it runs on.
        """
        deadline = time.monotonic() + wait_s
        child = self._child
        if child:
            child.hurry()
            child.done.wait(wait_s)
        with self._starting:
            if self._child or self._is_stopping:
                return
            child = self._start(sealed, "--make-room")
        if child:
            child.done.wait(max(0.0, deadline - time.monotonic()))

    def stop(self) -> bool:
        """End a running checkpoint. True when there was one: it may have left a temporary file."""
        self._is_stopping = True
        child = self._child
        if child:
            child.kill()
        return child is not None

    def _start(self, sealed: Sealed, *flags: str) -> "_Child | None":
        command = [sys.executable, "-m", "logd", "checkpoint", str(self._directory)]
        command += ["--upto", str(sealed.sequence), "--ballast-bytes", str(self._ballast_bytes)]
        command += ["--directory-id", self._directory_id, *flags]
        try:
            child = _Child([*command, *logging_setup.flags()], sealed)
        except OSError as error:
            self._failed(sealed, str(error))
            return None
        self._child = child
        try:
            threading.Thread(target=self._wait, args=(child,), daemon=True).start()
        except RuntimeError as error:  # there is no thread to be had
            self._child = None
            child.kill()
            self._failed(sealed, str(error))
            return None
        return child

    def _wait(self, child: "_Child") -> None:
        began = time.monotonic()
        try:
            status = child.wait()
            if status == 0:
                size = os.path.getsize(self._directory / snapshot.snapshot_name(child.covers.sequence))
                self.newest = Newest(size, child.covers.bytes, time.time(), time.monotonic() - began)
                self.outcomes["done"] += 1
            elif not self._is_stopping:
                self._failed(child.covers, f"status {status}")
        finally:
            self._child = None
            child.done.set()

    def _failed(self, sealed: Sealed, why: str) -> None:
        log.error("checkpoint as of frame %d failed (%s); trying again in %g s", sealed.sequence, why, RETRY_SECONDS)
        self.outcomes["failed"] += 1
        self._not_before = time.monotonic() + RETRY_SECONDS


class _Child:
    """A checkpoint that runs. A byte on its input hurries it; the end of its input says that we are gone."""

    def __init__(self, command: list[str], covers: Sealed) -> None:
        self.covers = covers
        descriptors = logging_setup.descriptors()
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, pass_fds=descriptors)
        self._input_lock = threading.Lock()  # one thread writes to the input, another closes it
        self._is_hurried = False
        self.done = threading.Event()
        """Set when it has ended and all of that is recorded."""

    def hurry(self) -> None:
        """Let it work without rests from now on."""
        if self._is_hurried:
            return
        self._is_hurried = True
        with self._input_lock, contextlib.suppress(BrokenPipeError):
            if self._process.stdin and not self._process.stdin.closed:
                self._process.stdin.write(b"!")

    def wait(self) -> int:
        """The exit status, once it has ended."""
        status = self._process.wait()
        with self._input_lock:
            if self._process.stdin:
                self._process.stdin.close()
        return status

    def kill(self) -> None:
        """End it, and wait until it has."""
        self._process.kill()
        self._process.wait()
