"""Backup of a directory while it is served, and what is restored from it."""

import asyncio
import contextlib
import errno
import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logd.__main__ import main
from logd.local import checkpoint, recovery
from logd.local.disk import DirectoryLock, LocalDisk
from logd.local.store import Store
from logd.shared.protocol import KEY_PATTERN, Exit
from logd.tools import export, import_, streams
from logd.tools.errors import CannotRun
from tests.support.builders import WatchedDisk, contents, failing, file_name, lay_out, offsets, operations, state
from tests.support.clients import Connection, read_all, run_async
from tests.support.harness import ROOT, Server


def lines_of(data):
    return [json.loads(line) for line in data.split(b"\n")[:-1]]


def as_dict(data):
    return {line["key"]: line["value"] for line in lines_of(data)}


# What is read --------------------------------------------------------------------------------------------


class Watched(LocalDisk):
    """A directory in which something happens just before the n-th time that it is read."""

    def __init__(self, directory, looks, happen):
        super().__init__(directory)
        self.looks_left, self.happen = looks, happen

    def look(self):
        self.looks_left -= 1
        if self.looks_left == 0:
            self.happen()

    def names(self):
        self.look()
        return super().names()

    def size(self, name):
        self.look()
        return super().size(name)

    def open(self, name):
        self.look()
        return super().open(name)


def test_a_state_that_is_read_while_checkpoints_remove_files_is_not_older_than_the_start_of_the_read(tmp_path):
    found = []
    for looks in range(1, 100):
        directory = tmp_path / str(looks)
        lay_out(directory, "1-3 @3 4-6 7-8")

        def go_on(directory=directory):
            lay_out(directory, "7-9 10-12 13-13")
            for upto in (6, 9, 12):
                checkpoint.make(LocalDisk(directory), upto)

        disk = Watched(directory, looks, go_on)
        recovered = export.read_state(disk)
        assert recovered.store.data == state(recovered.sequence).data
        found.append(recovered.sequence)
        if disk.looks_left > 0:
            break
    assert min(found) >= 8
    assert {8, 13} <= set(found)


def test_a_tail_that_is_still_being_written_is_left_out(tmp_path):
    lay_out(tmp_path, "1-3 4-6")
    path = tmp_path / file_name("4-6")
    whole = path.read_bytes()
    for size in range(offsets(whole)[1], offsets(whole)[2]):
        path.write_bytes(whole[:size])
        assert export.read_state(LocalDisk(tmp_path)).sequence == 4


def test_a_frame_that_was_being_written_while_it_was_read_is_not_damage(tmp_path):
    lay_out(tmp_path, "1-6")
    path = tmp_path / file_name("1-6")
    whole = path.read_bytes()
    at = offsets(whole)[3] + 30
    path.write_bytes(whole[:at] + bytes(8) + whole[at + 8 :])
    disk = Watched(tmp_path, 3, lambda: path.write_bytes(whole))  # names, open, and names again
    assert export.read_state(disk).sequence == 6


def test_what_stays_damaged_is_refused_also_when_the_log_grows_meanwhile(tmp_path):
    lay_out(tmp_path, "1-6")
    path = tmp_path / file_name("1-6")
    damaged = bytearray(path.read_bytes())
    damaged[offsets(damaged)[2] + 30] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(recovery.Damaged, match="DAMAGED_FRAME"):
        export.read_state(Watched(tmp_path, 3, lambda: path.write_bytes(damaged + b"x")))


def test_a_directory_that_is_emptied_while_it_is_read_is_no_empty_state(tmp_path):
    lay_out(tmp_path, "1-3")
    disk = Watched(tmp_path, 1, (tmp_path / file_name("1-3")).unlink)
    with pytest.raises(FileNotFoundError, match="taken away"):
        export.read_state(disk)


def test_files_that_change_all_the_time_are_reported_as_such(tmp_path):
    class Restless(LocalDisk):
        count = 0

        def open(self, name):
            Restless.count += 1
            raise FileNotFoundError(errno.ENOENT, "gone", f"{name}{self.count}")

    lay_out(tmp_path, "1-3")
    with pytest.raises(TimeoutError, match="changed"):
        export.read_state(Restless(tmp_path))


# The command ---------------------------------------------------------------------------------------------


def test_export_neither_takes_the_lock_nor_leaves_anything_in_the_directory(tmp_path, capfdbinary, caplog):
    lay_out(tmp_path / "data", "1-3 @3 4-6")
    before = contents(tmp_path / "data")
    assert main(["export", str(tmp_path / "data")]) == Exit.STOPPED
    assert contents(tmp_path / "data") == before
    assert [(each.levelname, each.message) for each in caplog.records] == [("INFO", "exported 3 keys as of frame 6")]
    lock = DirectoryLock(tmp_path / "data")
    lock.acquire()
    assert main(["export", str(tmp_path / "data"), str(tmp_path / "out")]) == Exit.STOPPED
    lock.release()
    assert (tmp_path / "out").read_bytes() == capfdbinary.readouterr().out


@pytest.fixture
def watched(monkeypatch, tmp_path):
    """The disk that a backup into `tmp_path` is written to."""
    disk = WatchedDisk(tmp_path)
    monkeypatch.setattr(streams, "LocalDisk", {tmp_path: disk}.__getitem__)
    return disk


def test_a_backup_is_written_durably_for_the_owner_alone(tmp_path, watched):
    streams.write(str(tmp_path / "out"), [b"one", b"two"])
    temporary = f"out.{os.getpid()}.tmp"
    assert operations(watched.calls) == [
        f"create {temporary}",
        f"append {temporary}",
        f"sync {temporary}",
        f"append {temporary}",
        f"sync {temporary}",
        f"rename {temporary} out",
        "sync_directory",
    ]
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o600
    assert (tmp_path / "out").read_bytes() == b"onetwo"
    assert watched.open_files == []


@pytest.mark.parametrize("operation", ["create", "append", "sync", "rename"])
def test_a_backup_that_fails_leaves_the_one_before_it_and_nothing_else(tmp_path, watched, operation):
    (tmp_path / "out").write_bytes(b"before")
    watched.before = failing(operation)
    with pytest.raises(CannotRun, match=f"^{tmp_path}/out: Input/output error"):
        streams.write(str(tmp_path / "out"), [b"one"])
    assert (tmp_path / "out").read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["out"]


def test_a_backup_that_is_interrupted_leaves_the_one_before_it_and_nothing_else(tmp_path, watched):
    (tmp_path / "out").write_bytes(b"before")
    watched.before = failing("sync", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        streams.write(str(tmp_path / "out"), [b"one"])
    assert (tmp_path / "out").read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["out"]


def test_a_pipe_is_written_to_and_a_link_stays_one(tmp_path):
    lay_out(tmp_path / "data", "1-3")
    pipe, link, file = tmp_path / "pipe", tmp_path / "link", tmp_path / "file"
    os.mkfifo(pipe)
    link.symlink_to(file)
    assert main(["export", str(tmp_path / "data"), str(link)]) == Exit.STOPPED
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    assert main(["export", str(tmp_path / "data"), str(pipe)]) == Exit.STOPPED
    reader.join()
    assert read == [file.read_bytes()]
    assert link.is_symlink()


@given(st.dictionaries(st.from_regex(rf"\A{KEY_PATTERN}\Z"), st.text(min_size=1), min_size=1))
def test_any_text_is_exported_and_imported_unchanged(texts):
    store = Store()
    store.load({key: text.encode() for key, text in texts.items()})
    exported = b"".join(export.encode(store))
    assert as_dict(exported) == texts
    with tempfile.TemporaryDirectory(prefix="kvt-") as directory:
        disk = WatchedDisk(Path(directory), syncs=False)
        import_.write(disk, import_.decode(exported.splitlines(keepends=True)))
        assert recovery.load(disk).store.data == store.data


# Under load ----------------------------------------------------------------------------------------------

EXPORTS = 6
KEYS_EACH = 7
PADDING = '\0\x1f\x7f "\\\n\r\u2028é𝄞😀' * 30


class Writer:
    """Writes 1, 2, 3 … to its keys in turn, each when the one before was answered."""

    def __init__(self, number):
        self.keys = [f"writer{number}-{n}" for n in range(KEYS_EACH)]
        self.attempted = self.acknowledged = 0

    async def run(self, port, stopping):
        client = Connection(port)
        try:
            while not stopping.is_set():
                self.attempted += 1
                body = f"{self.attempted}{PADDING}".encode()
                answer = await client.call("PUT", f"/kv/{self.keys[self.attempted % KEYS_EACH]}", body)
                assert answer.status == 200
                self.acknowledged = self.attempted
        finally:
            client.close()

    def written(self, last):
        """What its keys hold after that write."""
        counters = range(max(1, last - KEYS_EACH + 1), last + 1)
        return {self.keys[counter % KEYS_EACH]: f"{counter}{PADDING}" for counter in counters}

    def last_in(self, texts):
        return max((int(texts[key].removesuffix(PADDING)) for key in self.keys if key in texts), default=0)


@contextlib.contextmanager
def writers(port, count):
    """Clients that write until this ends."""
    found, stopping = [Writer(number) for number in range(count)], threading.Event()

    async def run():
        await asyncio.gather(*(writer.run(port, stopping) for writer in found))

    failed = []

    def run_and_tell():
        try:
            run_async(run())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run_and_tell)
    thread.start()
    try:
        yield found
    finally:
        stopping.set()
        thread.join()
    assert not failed


def logd(*arguments):
    command = [sys.executable, "-m", "logd", *map(str, arguments)]
    return subprocess.run(command, check=False, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True)


SMALL = ("--segment-bytes=20000", "--checkpoint-log-bytes=40000", "--checkpoint-ratio=0.1")


def test_a_backup_under_load_is_one_state_between_its_beginning_and_its_end_and_is_restored_as_it_is(tmp_path):
    with Server(tmp_path / "data", *SMALL) as server, writers(server.port, 4) as clients:
        for number in range(EXPORTS):
            acknowledged = [client.acknowledged for client in clients]
            done = logd("export", server.directory, tmp_path / f"{number}.jsonl")
            attempted = [client.attempted for client in clients]
            assert done.returncode == 0, done.stderr
            texts = as_dict((tmp_path / f"{number}.jsonl").read_bytes())
            lasts = [client.last_in(texts) for client in clients]
            for low, last, high in zip(acknowledged, lasts, attempted, strict=True):
                assert low <= last <= high
            expected = [client.written(last) for client, last in zip(clients, lasts, strict=True)]
            assert texts == {key: text for each in expected for key, text in each.items()}
        assert server.log.count("checkpoint as of frame") >= 2
        assert " ERROR " not in server.log
    assert logd("import", tmp_path / "restored", tmp_path / f"{EXPORTS - 1}.jsonl").returncode == 0
    with Server(tmp_path / "restored") as server:
        keys = [key for client in clients for key in client.keys]
        assert read_all(server.port, keys) == {key: texts[key].encode() for key in keys}
        assert len(texts) == len(keys)
        assert server.stop() == 0
