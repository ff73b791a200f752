"""Checkpoints: when one is due, what one writes and removes, and the child that does it.

A child is held at a known point by a segment that is a named pipe: it waits there until somebody writes.
"""

import errno
import io
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import ClassVar

import psutil
import pytest

from logd.local import checkpoint, recovery, snapshot, wal
from logd.local.checkpointer import RETRY_SECONDS, Checkpointer, Newest, Policy
from logd.local.disk import LocalDisk
from logd.local.engine import LocalEngine
from logd.local.recovery import Damaged, Finding, Recovered
from logd.local.store import Store
from logd.local.wal import Sealed
from logd.shared.protocol import Exit
from tests.support.builders import (
    Crash,
    PipedSegment,
    WatchedDisk,
    contents,
    crash_at,
    failing,
    file_name,
    file_names,
    flipped,
    lay_out,
    operations,
    same,
    state,
)
from tests.support.harness import ROOT, await_true, is_gone


def break_file(directory, token):
    """Changes a bit in the first frame of a file."""
    path = directory / file_name(token)
    path.write_bytes(flipped(path.read_bytes(), 8 * 40))


# The policy ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "log_bytes", "snapshot_bytes", "due"),
    [
        (Policy(100, 1.0), 99, 0, False),
        (Policy(100, 1.0), 100, 0, True),
        (Policy(100, 1.0), 100, 100, True),
        (Policy(100, 1.0), 100, 101, False),
        (Policy(100, 0.5), 100, 200, True),
        (Policy(100, 0.5), 149, 300, False),
        (Policy(100, 2.0), 199, 100, False),
        (Policy(100, 2.0), 200, 100, True),
        (Policy(100, 0.0), 100, 10**12, True),
    ],
)
def test_a_checkpoint_is_due_when_the_log_is_large_and_large_beside_the_snapshot(
    policy, log_bytes, snapshot_bytes, due
):
    assert (log_bytes >= policy.due_bytes(snapshot_bytes)) is due


# Made ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "upto", "left"),
    [
        ("1-3 4-4", 3, "1-3 4-4 @3"),
        ("1-3 4-5 6-8", 5, "1-3 4-5 6-8 @5"),
        ("1-3 4-5 6-8 @3", 5, "4-5 6-8 @3 @5"),
        ("4-5 6-6 7-7 8-8 @3", 7, "4-5 6-6 7-7 8-8 @3 @7"),
        ("1-3 4-5 6-7 8-7 @3 @5", 7, "6-7 8-7 @5 @7"),
    ],
)
def test_a_checkpoint_is_what_replay_gives_and_recovery_goes_on_from_it(tmp_path, layout, upto, left):
    disk = lay_out(tmp_path, layout)
    before = recovery.load(disk)
    checkpoint.make(disk, upto)
    assert set(disk.names()) == file_names(left)
    assert same(snapshot.read(disk, file_name(f"@{upto}"))[0], state(upto))
    after = recovery.load(disk)
    assert (after.finding, after.snapshot, after.sequence) == (Finding.CLEAN, file_name(f"@{upto}"), before.sequence)
    assert same(after.store, before.store)


def test_after_a_checkpoint_the_snapshot_before_it_can_stand_in(tmp_path):
    disk = lay_out(tmp_path, "1-3 4-5 6-7 8-9 @3 @5")
    checkpoint.make(disk, 7)
    break_file(tmp_path, "@7")
    recovered = recovery.load(disk)
    assert (recovered.finding, recovered.snapshot) == (Finding.OLDER_SNAPSHOT, file_name("@5"))
    assert same(recovered.store, state(9))


def test_a_checkpoint_sets_a_bad_snapshot_aside_so_that_two_good_ones_are_kept(tmp_path):
    disk = lay_out(tmp_path, "1-3 4-5 6-7 8-8 @3 @5")
    break_file(tmp_path, "@5")
    checkpoint.make(disk, 7)
    assert set(disk.names()) == file_names("4-5 6-7 8-8 @3 @7") | {file_name("@5") + ".damaged"}
    break_file(tmp_path, "@7")
    assert same(recovery.load(disk).store, state(8))


def test_a_checkpoint_may_replace_a_bad_snapshot_of_the_same_frame(tmp_path):
    disk = lay_out(tmp_path, "1-3 4-5 6-6 @3 @5")
    break_file(tmp_path, "@5")
    checkpoint.make(disk, 5)
    assert same(snapshot.read(disk, file_name("@5"))[0], state(5))
    assert recovery.load(disk).snapshot == file_name("@5")


def test_a_checkpoint_that_died_after_it_published_can_be_done_again(tmp_path):
    """Killed between the rename and its end: for its parent it has failed, and is tried again as of the same frame."""
    disk = lay_out(tmp_path, "1-3 4-5 6-7 8-8 @3 @5 @7")
    checkpoint.make(disk, 7)
    assert set(disk.names()) == file_names("6-7 8-8 @5 @7")
    assert same(recovery.load(disk).store, state(8))


@pytest.mark.parametrize(
    ("layout", "broken"), [("1-3 4-5 6-6", "1-3"), ("4-5 6-6 @3", "@3")], ids=["segment", "snapshot"]
)
def test_a_checkpoint_of_damaged_files_changes_nothing(tmp_path, layout, broken):
    lay_out(tmp_path, layout)
    break_file(tmp_path, broken)
    before = contents(tmp_path)
    disk = WatchedDisk(tmp_path)
    with pytest.raises(Damaged):
        checkpoint.make(disk, 5)
    assert contents(tmp_path) == before
    assert disk.calls == []


def test_a_checkpoint_without_room_leaves_the_files_as_they_were(tmp_path):
    lay_out(tmp_path, "1-3 4-5 6-6 @3")
    before = contents(tmp_path)
    disk = WatchedDisk(tmp_path)
    disk.room = 100
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is looked at
        checkpoint.make(disk, 5)
    assert caught.value.errno == errno.ENOSPC
    assert contents(tmp_path) == before


def test_a_checkpoint_removes_files_only_after_the_snapshot_is_durable_and_the_oldest_first(tmp_path):
    lay_out(tmp_path, "1-3 4-5 6-6 7-7 8-8 @3 @5")
    disk = WatchedDisk(tmp_path)
    checkpoint.make(disk, 7)
    calls = operations(disk.calls)
    published = calls.index(f"rename {file_name('@7')}.tmp {file_name('@7')}")
    removals = [index for index, call in enumerate(calls) if call.startswith("remove")]
    assert "sync_directory" in calls[published : removals[0]]
    assert [calls[index] for index in removals] == [f"remove {file_name(token)}" for token in ("@3", "1-3", "4-5")]
    assert calls[-1] == "sync_directory"


@pytest.mark.parametrize("broken", [[], ["@5"]], ids=["all whole", "the newest snapshot bad"])
def test_a_checkpoint_may_be_cut_short_at_any_call(tmp_path, broken):
    for count in itertools.count():
        directory = tmp_path / str(count)
        lay_out(directory, "1-3 4-5 6-7 8-8 @3 @5")
        for token in broken:
            break_file(directory, token)
        disk = WatchedDisk(directory, crash_at(count))
        finished = True
        try:
            checkpoint.make(disk, 7)
        except Crash:
            finished = False
        recovered = recovery.load(disk := LocalDisk(directory))
        assert same(recovered.store, state(8))
        recovery.make_durable(disk, recovered)
        assert not [name for name in disk.names() if name.endswith(".tmp")]
        assert recovery.load(disk).finding is Finding.CLEAN
        if finished:
            assert count > 10
            break


# What is removed -----------------------------------------------------------------------------------------


class Names:
    """A disk of names alone."""

    def __init__(self, segments, snapshots):
        self.left = [*map(wal.segment_name, segments), *map(snapshot.snapshot_name, snapshots), "LOCK"]
        self.removed = []

    def names(self):
        return self.left[::-1]

    def remove(self, name):
        self.left.remove(name)
        self.removed.append(name)

    def sync_directory(self):
        self.removed.append("sync")


def subsets(items):
    return itertools.chain.from_iterable(itertools.combinations(items, count) for count in range(len(items) + 1))


def test_of_any_files_the_last_two_snapshots_and_the_log_since_the_older_are_kept():
    """Every choice of where segments begin and where snapshots are, among eight frames."""
    checked = 0
    for segments in subsets(range(1, 9)):
        for snapshots in subsets(range(1, 8)):
            disk = Names(segments, snapshots)
            checkpoint.remove_covered(disk)
            kept = snapshots[-2:]
            needed = [
                first
                for first, following in itertools.zip_longest(segments, segments[1:])
                if len(kept) < 2 or following is None or following - 1 > kept[0]
            ]
            assert sorted(disk.left) == sorted(Names(needed, kept).left)
            if len(kept) == 2:
                gone = [name for name in disk.removed[:-1] if name.startswith("wal")]
                assert disk.removed[-1] == "sync"
                assert gone == sorted(gone)
            checked += 1
    assert checked == 2**8 * 2**7


NOTHING = Newest(snapshot_bytes=0, log_start_bytes=0)

# The child -----------------------------------------------------------------------------------------------


class Children(subprocess.Popen):
    """Every process that was started, to look at and to end."""

    started: ClassVar = []

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.started.append(self)


@pytest.fixture
def children(monkeypatch):
    """The checkpoints that were started so far. Those still running at the end are ended."""
    monkeypatch.setattr(Children, "started", [])
    monkeypatch.setattr("logd.local.checkpointer.subprocess.Popen", Children)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield Children.started
    for child in Children.started:
        with child:
            child.kill()


@pytest.fixture
def settled():
    """Waits until the threads that look after children are done, so that all they note is noted."""
    before = set(threading.enumerate())
    return lambda: await_true(lambda: set(threading.enumerate()) <= before, 30, "the end of the checkpoint")


@pytest.fixture
def held(tmp_path):
    """Segments of frames 1 to 3, 4 and 5, and 6; reading the second one waits."""
    held = PipedSegment(tmp_path, "1-3 4-5 6-6", "4-5")
    yield held
    held.close()


def errors(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]


def test_a_checkpoint_starts_when_it_is_due_and_the_accounting_begins_anew(tmp_path, children, settled, caplog):
    disk = lay_out(tmp_path, "1-3 4-5 6-6")
    checkpointer = Checkpointer(tmp_path, Policy(1000, 0.0), Newest(snapshot_bytes=0, log_start_bytes=-400))
    checkpointer.maybe_start(Sealed(599, 5))
    assert children == []
    checkpointer.maybe_start(Sealed(600, 5))
    assert len(children) == 1
    settled()
    assert set(disk.names()) == file_names("1-3 4-5 6-6 @5")

    checkpointer.maybe_start(Sealed(600, 5))
    checkpointer.maybe_start(Sealed(1599, 6))
    assert len(children) == 1
    lay_out(tmp_path, "7-7")
    checkpointer.maybe_start(Sealed(1600, 6))
    assert len(children) == 2
    settled()
    assert set(disk.names()) == file_names("6-6 7-7 @5 @6")
    assert [child.returncode for child in children] == [Exit.STOPPED, Exit.STOPPED]
    assert errors(caplog) == []
    assert checkpointer.outcomes == {"done": 2, "failed": 0}
    assert checkpointer.newest.at >= (tmp_path / file_name("@6")).stat().st_mtime
    assert checkpointer.newest.log_bytes(1700) == 100


def test_the_size_of_the_new_snapshot_counts_for_the_next(tmp_path, children, settled):
    disk = lay_out(tmp_path, "1-3 4-5 6-6")
    checkpointer = Checkpointer(tmp_path, Policy(1, 2.0), Newest(snapshot_bytes=1000, log_start_bytes=0))
    checkpointer.maybe_start(Sealed(1999, 5))
    assert children == []
    checkpointer.maybe_start(Sealed(2000, 5))
    settled()
    due = 2000 + 2 * disk.size(file_name("@5"))
    checkpointer.maybe_start(Sealed(due - 1, 5))
    assert len(children) == 1
    checkpointer.maybe_start(Sealed(due, 5))
    assert len(children) == 2
    settled()


def test_only_one_checkpoint_runs_at_a_time(held, children, settled):
    checkpointer = Checkpointer(held.directory, Policy(1, 0.0), NOTHING)
    checkpointer.maybe_start(Sealed(100, 5))
    held.await_reader()
    for sequence in range(5, 8):
        checkpointer.maybe_start(Sealed(10_000, sequence))
    assert len(children) == 1
    held.release()
    settled()
    checkpointer.maybe_start(Sealed(10_000, 5))
    assert len(children) == 2
    settled()


def test_a_checkpoint_is_hurried_once_when_the_next_is_due(held, children, settled):
    checkpointer = Checkpointer(held.directory, Policy(100, 0.0), NOTHING)
    checkpointer.maybe_start(Sealed(150, 5))
    held.await_reader()
    with children[0].stdin:
        written = children[0].stdin = io.BytesIO()
        checkpointer.maybe_start(Sealed(249, 5))
        assert written.getvalue() == b""
        checkpointer.maybe_start(Sealed(250, 5))
        checkpointer.maybe_start(Sealed(350, 5))
        assert written.getvalue() == b"!"
    settled()


def test_a_checkpoint_that_is_hurried_logs_that_and_goes_on(held):
    command = [sys.executable, "-m", "logd", "checkpoint", str(held.directory), "--upto", "5"]
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, env=os.environ | {"PYTHONPATH": str(ROOT)}) as child:
        try:
            held.await_reader()
            child.stdin.write(b"!")
            child.stdin.flush()
            assert b"no more rests" in child.stderr.readline()
            held.release()
            assert child.wait(30) == Exit.STOPPED
        finally:
            child.kill()
    assert file_names("@5") <= set(os.listdir(held.directory))


THROTTLED = """
import signal, time
from logd.local import throttle

def work(seconds):
    began, end = time.monotonic(), time.process_time() + seconds
    while time.process_time() < end:
        pass
    return (time.monotonic() - began) / seconds

with throttle.throttled():
    assert work(0.1) > 0.8 * (1 + throttle.REST_RATIO)
    throttle.hurry()
    work(0.01)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
with throttle.throttled():
    pass
signal.raise_signal(signal.SIGALRM)
"""


def test_a_throttled_process_rests_nine_times_as_long_as_it_works_until_it_hurries():
    subprocess.run([sys.executable, "-c", THROTTLED], check=True, cwd=ROOT, timeout=60)


def test_a_checkpoint_that_is_killed_is_one_log_line_and_is_left_alone_for_a_while(
    held, children, settled, caplog, monkeypatch
):
    checkpointer = Checkpointer(held.directory, Policy(1, 0.0), NOTHING)
    names = set(os.listdir(held.directory))
    checkpointer.maybe_start(Sealed(100, 5))
    held.await_reader()
    children[0].send_signal(signal.SIGKILL)
    settled()
    assert len(errors(caplog)) == 1
    assert "frame 5 failed (status -9)" in errors(caplog)[0]
    assert set(os.listdir(held.directory)) == names

    checkpointer.maybe_start(Sealed(200, 5))
    assert len(children) == 1
    later = time.monotonic() + RETRY_SECONDS
    monkeypatch.setattr("logd.local.checkpointer.time", SimpleNamespace(monotonic=lambda: later))
    checkpointer.maybe_start(Sealed(200, 5))
    assert len(children) == 2
    checkpointer.stop()
    settled()


def test_a_checkpoint_that_fails_is_one_log_line_and_changes_nothing(held, children, settled, caplog):
    checkpointer = Checkpointer(held.directory, Policy(1, 0.0), NOTHING)
    checkpointer.maybe_start(Sealed(100, 5))
    held.await_reader()
    (held.directory / (file_name("@5") + ".tmp")).mkdir()  # so that it cannot write its snapshot
    held.release()
    settled()
    assert len(errors(caplog)) == 1
    assert f"frame 5 failed (status {Exit.CRASHED:d})" in errors(caplog)[0]
    assert (checkpointer.outcomes, checkpointer.newest.at) == ({"done": 0, "failed": 1}, 0.0)
    assert {name for name in os.listdir(held.directory) if not name.endswith(".tmp")} == file_names("1-3 4-5 6-6")
    assert same(recovery.load(LocalDisk(held.directory)).store, state(6))


def test_stopping_ends_a_running_checkpoint_without_a_log_line(held, children, settled, caplog):
    checkpointer = Checkpointer(held.directory, Policy(1, 0.0), NOTHING)
    checkpointer.maybe_start(Sealed(100, 5))
    held.await_reader()
    checkpointer.stop()
    assert children[0].returncode == -signal.SIGKILL
    settled()
    assert checkpointer.outcomes == {"done": 0, "failed": 0}
    assert errors(caplog) == []
    assert set(os.listdir(held.directory)) == file_names("1-3 4-5 6-6")


def test_an_engine_that_stops_leaves_what_it_cannot_remove_of_a_checkpoint_to_the_next_start(held, children, settled):
    disk = WatchedDisk(held.directory)
    recovered = Recovered(Store(), 6, Finding.CLEAN, None, [], [], None, 0, 0, 0.0)
    checkpointer = Checkpointer(held.directory, Policy(1, 0.0), NOTHING)
    engine = LocalEngine(disk, wal.Wal(disk, 7, 1 << 20), recovered, checkpointer)
    checkpointer.maybe_start(Sealed(100, 5))
    held.await_reader()
    litter = held.directory / (file_name("@5") + ".tmp")
    litter.write_bytes(b"half of it")
    disk.before = failing("remove")
    engine.stop()
    settled()
    assert children[0].returncode == -signal.SIGKILL
    assert litter.exists()


def test_a_checkpoint_that_cannot_be_started_is_a_log_line_and_nothing_else(tmp_path, children, settled, caplog):
    lay_out(tmp_path, "1-3 4-5 6-6")
    checkpointer = Checkpointer(tmp_path, Policy(1, 0.0), NOTHING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("logd.local.checkpointer.sys.executable", str(tmp_path / "no such program"))
        checkpointer.maybe_start(Sealed(100, 5))
    assert len(errors(caplog)) == 1
    checkpointer.maybe_start(Sealed(100, 5))
    assert children == []


def test_a_checkpoint_ends_when_its_parent_lets_go_of_it(held):
    command = [sys.executable, "-m", "logd", "checkpoint", str(held.directory), "--upto", "5"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}) as child:
        try:
            held.await_reader()
            assert child.poll() is None
            child.stdin.close()
            assert child.wait(30) == Exit.CRASHED
        finally:
            child.kill()
    assert set(os.listdir(held.directory)) == file_names("1-3 4-5 6-6")


PARENT = """
import sys, time, pathlib
from logd.local import checkpointer, wal
parent = checkpointer.Checkpointer(pathlib.Path(sys.argv[1]), checkpointer.Policy(1, 0.0), checkpointer.Newest(0, 0))
parent.maybe_start(wal.Sealed(100, 5))
print("started", flush=True)
time.sleep(600)
"""


def test_a_checkpoint_ends_when_its_parent_is_killed(held):
    command = [sys.executable, "-c", PARENT, str(held.directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}) as parent:
        try:
            assert parent.stdout.readline() == b"started\n"
            (child,) = psutil.Process(parent.pid).children()
            held.await_reader()
        finally:
            parent.kill()
    await_true(lambda: is_gone(child), 30, "the end of the checkpoint")
    assert set(os.listdir(held.directory)) == file_names("1-3 4-5 6-6")
