"""Checkpoints: when to fold the log into a new snapshot, and the steps in their safe order.

The log writer only decides; a short-lived child process of low priority does the work from the files alone (newest
snapshot + sealed segments), so the commit path neither stops nor forks. It takes its time (logd/local/throttle.py)
until the next checkpoint is due as well. A child that dies leaves a temporary file at most.

Kept after a checkpoint: the new snapshot, the one before it, and every segment since that one, so that a snapshot that
rots can be replaced. Hence the bound on the disk: two snapshots, plus twice the log that may gather before a
checkpoint is due, plus what is written while one runs: hardly more than is due, unless it cannot keep up at full
speed."""

import argparse
import contextlib
import itertools
import logging
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final, NamedTuple

import setproctitle

from logd.local import ballast, recovery, snapshot, throttle, wal
from logd.local.disk import Disk, LocalDisk, is_no_space
from logd.shared import logging_setup
from logd.shared.protocol import Exit

RETRY_SECONDS: Final = 30.0
"""How long to leave it after a checkpoint that failed."""

log = logging.getLogger("logd.local.checkpoint")


class Policy(NamedTuple):
    """A checkpoint is due when the sealed log has `log_bytes_min` and `ratio` times the size of the snapshot."""

    log_bytes_min: int
    ratio: float

    def is_due(self, log_bytes: int, snapshot_bytes: int) -> bool:
        """True when the log since the snapshot is worth folding."""
        return log_bytes >= self.due_bytes(snapshot_bytes)

    def due_bytes(self, snapshot_bytes: int) -> int:
        """How much log beside such a snapshot is worth folding."""
        return max(self.log_bytes_min, math.ceil(self.ratio * snapshot_bytes))


def fold(disk: Disk, upto: int) -> None:
    """Write the snapshot as of a sequence that ends a sealed segment, then remove what nothing needs any more.

    Raises recovery.Damaged or OSError; then nothing is lost, and at most a bad snapshot is set aside.
    """
    began = time.monotonic()
    state = recovery.load(disk, upto)
    recovery.set_aside_bad_snapshots(disk, state)
    size = snapshot.write(disk, state.store, upto)
    remove_covered(disk)
    log.info(
        "checkpoint as of frame %d: %d keys, %d bytes, from %s and %d segments, in %.2f s",
        upto,
        len(state.store.data),
        size,
        state.snapshot or "nothing",
        len(state.segments),
        time.monotonic() - began,
    )


def remove_covered(disk: Disk) -> None:
    """Remove snapshots older than the last two, and the segments that only those would need.

    The snapshots must be durable. Segments go oldest first, so that a crash in between leaves no gap.
    """
    names = disk.names()
    kept = snapshot.list_snapshots(names)[-2:]
    if len(kept) < 2:
        return
    segments = wal.list_segments(names)
    for old in snapshot.list_snapshots(names)[:-2]:
        disk.remove(old.name)
    for segment, successor in itertools.pairwise(segments):
        if successor.first <= kept[0].sequence + 1:
            disk.remove(segment.name)
    disk.sync_directory()


class Checkpointer:
    """Starts a checkpoint when one is due, one at a time. Used by one thread.

    Another one waits for the child, and notes how it ended before it says that there is none.
    """

    def __init__(
        self,
        directory: Path,
        policy: Policy,
        log_bytes: int,
        snapshot_bytes: int,
        reserve_bytes: int = 0,
        *,
        last_at: float = 0.0,
    ) -> None:
        self._directory = directory
        self._reserve_bytes = reserve_bytes
        self._policy = policy
        self.snapshot_bytes = snapshot_bytes
        self.outcomes = {"done": 0, "failed": 0}
        self.last_seconds = 0.0
        self.last_at = last_at
        self._before_bytes = log_bytes  # sealed before this process, and not in a snapshot
        self._covered_bytes = 0  # of what this process sealed, how much a snapshot holds
        self._child: subprocess.Popen[bytes] | None = None
        self._child_lock = threading.Lock()  # whoever writes to its input, or closes that
        self._child_covers = wal.Sealed(0, 0)
        self._child_hurries = False
        self._not_before = 0.0
        self._stopping = False

    @property
    def due_bytes(self) -> int:
        """How much sealed log makes the next one due."""
        return self._policy.due_bytes(self.snapshot_bytes)

    def log_bytes(self, written_bytes: int) -> int:
        """How much log is in no snapshot, when this process has written that much.

        Never less than none: what is covered is known with the headers of segments, what was appended without.
        """
        return max(0, self._before_bytes + written_bytes - self._covered_bytes)

    def maybe_start(self, sealed: wal.Sealed) -> None:
        """Start a child when the sealed log is large enough; hurry one that runs when the next is due."""
        if self._child is not None:
            if not self._child_hurries and self._is_due(sealed.bytes - self._child_covers.bytes):
                self._hurry()
        elif self._is_due(self.log_bytes(sealed.bytes)) and time.monotonic() >= self._not_before:
            self._start(sealed)

    def _is_due(self, log_bytes: int) -> bool:
        return self._policy.is_due(log_bytes, self.snapshot_bytes)

    def _start(self, sealed: wal.Sealed) -> None:
        command = [sys.executable, "-m", "logd", "checkpoint", str(self._directory)]
        command += ["--upto", str(sealed.sequence), "--reserve-bytes", str(self._reserve_bytes), *logging_setup.flags()]
        try:
            # Its input tells the child to hurry, and, when it ends, that we are gone.
            child = subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0)
        except OSError as error:
            self._failed(sealed, str(error))
            return
        self._child, self._child_covers, self._child_hurries = child, sealed, False
        threading.Thread(target=self._wait, args=(child, sealed), daemon=True).start()

    def _hurry(self) -> None:
        with self._child_lock:
            if self._child and self._child.stdin:
                with contextlib.suppress(BrokenPipeError):
                    self._child.stdin.write(b"!")
        self._child_hurries = True

    def _wait(self, child: subprocess.Popen[bytes], sealed: wal.Sealed) -> None:
        began = time.monotonic()
        status = child.wait()
        try:
            if status == 0:
                self._before_bytes, self._covered_bytes = 0, sealed.bytes
                self.outcomes["done"] += 1
                self.last_seconds, self.last_at = time.monotonic() - began, time.time()
                self.snapshot_bytes = os.path.getsize(self._directory / snapshot.snapshot_name(sealed.sequence))
            elif not self._stopping:
                self._failed(sealed, f"status {status}")
        finally:
            with self._child_lock:
                self._child = None
                if child.stdin:
                    child.stdin.close()

    def _failed(self, sealed: wal.Sealed, why: str) -> None:
        log.error("checkpoint as of frame %d failed (%s); trying again in %g s", sealed.sequence, why, RETRY_SECONDS)
        self.outcomes["failed"] += 1
        self._not_before = time.monotonic() + RETRY_SECONDS

    def stop(self) -> bool:
        """End a running checkpoint. True when there was one: what it did so far is litter."""
        self._stopping = True
        child = self._child
        if child:
            child.kill()
            child.wait()
        return child is not None


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The command line, which a serving logd writes."""
    parser.add_argument("directory", metavar="DIR", type=Path)
    parser.add_argument("--upto", required=True, type=int, metavar="SEQUENCE")
    parser.add_argument("--reserve-bytes", type=int, default=0)


def run(arguments: argparse.Namespace) -> int:
    """Make one checkpoint; the exit status. Signals to the process group are ignored as the parent does."""
    setproctitle.setproctitle(f"kv: checkpoint {arguments.directory}")
    os.nice(19)
    threading.Thread(target=_obey_parent, daemon=True).start()
    disk = LocalDisk(arguments.directory)
    try:
        with throttle.unhurried():
            _fold_with_reserve(disk, arguments.upto)
    except OSError as error:
        log.error("%s: %s", error.filename or arguments.directory, error.strerror)
        return Exit.CRASHED
    finally:
        ballast.ensure(disk, arguments.reserve_bytes)
    return Exit.STOPPED


def _fold_with_reserve(disk: LocalDisk, upto: int) -> None:
    try:
        fold(disk, upto)
    except OSError as error:
        if not is_no_space(error) or not ballast.release(disk):
            raise
        fold(disk, upto)


def _obey_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):  # it ends when the log writer has closed its end, or died
        throttle.hurry()
        log.info("the next checkpoint is due: no more rests")
    os._exit(Exit.CRASHED)
