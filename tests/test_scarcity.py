"""What happens when the surroundings refuse something: no room, no process, a limit on files. Real causes throughout.

Where no file system here gives an error, a library that is preloaded (`LD_PRELOAD`) gives it while a file exists.
"""

import contextlib
import errno
import os
import signal
import threading
import time

import psutil
import pytest

from logd.local import ballast
from logd.local.discard import discard
from logd.local.table import Table
from logd.shared.protocol import Exit
from tests.support import shim
from tests.support.harness import Server, await_true, free_port, mounted, run_to_end
from tests.support.load import Load
from tests.support.shim import Failing


@pytest.fixture(scope="module")
def library(module_path):
    return shim.build(module_path)


@pytest.fixture
def volume(tmp_path):
    """A directory on a file system of 64 MB."""
    with mounted(tmp_path / "volume", "64m") as volume:
        yield volume / "data"


# No room -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
def test_a_sync_that_reports_no_room_ends_nothing_and_writes_go_on_afterwards(tmp_path, library, error):
    failing = Failing(library, tmp_path / "failing", "fdatasync fsync", error)
    flags = "--request-timeout-s=2", "--workers=1"
    with Server(tmp_path / "data", *flags, environment=failing.environment) as server:
        server.put("before", b"1")
        logd = server.only("logd").pid
        failing.path.touch()
        assert server.call("PUT", "/kv/k", b"1").status == 504
        assert server.call("GET", "/health").status == 503
        assert server.get("before") == b"1"
        failing.path.unlink()
        await_true(lambda: server.call("PUT", "/kv/k", b"2").status == 200, what="a write")
        assert server.only("logd").pid == logd
        server.crash()
        server.start()
        assert (server.get("before"), server.get("k")) == (b"1", b"2")


def test_logd_that_starts_again_without_room_waits_for_it(tmp_path, library):
    failing = Failing(library, tmp_path / "failing", "fdatasync fsync", errno.ENOSPC)
    with Server(tmp_path / "data", environment=failing.environment) as server:
        server.put("k", b"1")
        failing.path.touch()
        server.only("logd").kill()
        await_true(lambda: "waiting for room" in server.log)
        failing.path.unlink()
        server.await_ready()
        assert server.get("k") == b"1"
        failing.path.touch()
        server.only("logd").kill()
        await_true(lambda: server.log.count("waiting for room") == 2)
        assert server.stop() == 0


def test_a_sync_that_fails_ends_logd_unacknowledged_and_its_successor_serves_what_was(tmp_path, library):
    failing = Failing(library, tmp_path / "failing", "fdatasync", errno.EIO)
    with Server(tmp_path / "data", "--workers=1", environment=failing.environment) as server:
        server.put("k", b"before")
        logd = server.only("logd").pid
        with Load(server.port, clients=1) as load:
            failing.path.touch()
            await_true(lambda: f"ended with status {Exit.DISK_FAILED}" in server.log)
            failing.path.unlink()
            load.await_progress()
        assert load.failures == []
        load.verify()
        assert server.only("logd").pid != logd
        assert "the disk failed, nothing of that group was acknowledged: [Errno 5]" in server.log
        assert server.get("k") == b"before"


class LimitedServer(Server):
    """One whose files may not be larger than 2 MiB."""

    def command(self):
        return ["sh", "-c", 'ulimit -f 4096; exec "$@"', "sh", *super().command()]  # in units of 512 bytes


def test_a_value_beyond_the_limit_on_file_sizes_is_refused_and_others_go_on(tmp_path):
    with LimitedServer(tmp_path / "data") as server:
        logd = server.only("logd").pid
        for _ in range(3):
            assert server.call("PUT", "/kv/large", b"x" * (4 << 20)).status == 507
        for n in range(5):  # more than one file may hold
            server.put(f"k{n}", b"x" * 900_000)
        assert server.only("logd").pid == logd
        server.crash()
        server.start()
        assert [len(server.get(f"k{n}")) for n in range(5)] == [900_000] * 5


def test_on_a_small_volume_one_key_can_be_overwritten_for_ever(volume):
    with Server(volume, "--workers=1") as server:
        for _ in range(150):
            server.put("k", b"x" * 1_000_000)
        server.put("k", b"y")
        server.crash()
        server.start()
        for _ in range(50):
            server.put("k", b"x" * 1_000_000)
        assert server.stop() == 0
        assert (server.directory / ballast.NAME).stat().st_size >= 1 << 20


def test_a_full_volume_takes_deletes_and_restarts_and_then_writes_again(volume):
    with Server(volume, "--workers=1") as server:
        keys = fill(server)
        assert server.call("PUT", f"/kv/{keys}", b"x" * 1_000_000).status == 507
        server.crash()
        server.start()
        assert server.get("0") == b"x" * 1_000_000
        for key in range(keys):
            assert server.call("DELETE", f"/kv/{key}").status == 200
        await_true(lambda: server.call("PUT", "/kv/k", b"x" * 1_000_000).status == 200, 20, "a write")
        fill(server)
        assert server.call("DELETE", "/clear").status == 200
        await_true(lambda: server.call("PUT", "/kv/k", b"x" * 1_000_000).status == 200, 20, "a write")
        for _ in range(50):
            server.put("k", b"x" * 1_000_000)


def fill(server):
    """Write large values until there is no room. Returns how many."""
    for key in range(100):
        if server.call("PUT", f"/kv/{key}", b"x" * 1_000_000).status == 507:
            return key
    raise AssertionError("the volume is not full")


# No process ----------------------------------------------------------------------------------------------


def test_without_a_process_to_be_had_the_supervisor_tries_again(tmp_path, library):
    failing = Failing(library, tmp_path / "failing", "fork", errno.EAGAIN)
    with Server(tmp_path / "data", environment=failing.environment) as server:
        server.put("k", b"1")
        failing.path.touch()
        server.only("logd").kill()
        await_true(lambda: server.log.count("logd cannot be started: Resource temporarily unavailable") == 3)
        failing.path.unlink()
        server.await_ready()
        assert server.get("k") == b"1"
        assert server.stop() == 0


def test_logd_that_is_killed_before_it_is_ready_is_started_ever_more_rarely_and_at_last_given_up(tmp_path):
    with Server(tmp_path / "data") as server:
        server.put("k", b"1")
        began = time.monotonic()
        while server.process.poll() is None:
            for logd in server.role("logd") + starting(server):
                with contextlib.suppress(psutil.Error):
                    logd.kill()
            time.sleep(0.01)
        assert server.wait() == 1
        assert time.monotonic() - began > 15
        assert server.log.count("before it was ready; starting it again") == 9
        assert server.log.count("logd failed 10 times in a row") == 1
        assert server.members() == []
        server.start()  # removes the files of a recovery that was interrupted
        assert server.get("k") == b"1"
        assert server.stop() == 0
        assert server.left_behind() == []


def starting(server):
    """Those that are on their way to be logd."""
    return [each for each in server.members() if "logd\0serve" in "\0".join(command(each))]


def command(process):
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


# A file system that lacks something ----------------------------------------------------------------------


def test_a_file_system_that_cannot_sync_a_directory_is_refused_with_a_line_that_says_so(tmp_path, library, monkeypatch):
    failing = Failing(library, tmp_path, "fsync", errno.EINVAL)
    for name, value in failing.environment.items():
        monkeypatch.setenv(name, value)
    directory = tmp_path / "data"
    directory.mkdir()
    status, errors = run_to_end(f"--port={free_port()}", f"--working-dir={directory}")
    assert status == Exit.UNUSABLE
    assert f"{directory} cannot be used: " in errors[-1]
    assert "its file system cannot sync a directory (Invalid argument)" in errors[-1]


# Long work -----------------------------------------------------------------------------------------------


def test_to_let_go_of_many_keys_stops_no_other_thread():
    table = Table()
    keys = table.put_all({f"key:{n}": b"%d" % n for n in range(1_000_000)})
    chunks = [keys[n : n + 1000] for n in range(0, len(keys), 1000)]
    del keys
    gaps = []
    discard(table, chunks)
    while table.parts:
        began = time.perf_counter()
        time.sleep(0.0005)
        gaps.append(time.perf_counter() - began)
    assert sorted(gaps)[-3] < 0.05  # a busy machine may stop this thread too
    await_true(lambda: all(thread.name != "discard" for thread in threading.enumerate()))


def test_signals_end_the_server_while_it_waits_for_a_process(tmp_path, library):
    failing = Failing(library, tmp_path / "failing", "fork", errno.EAGAIN)
    with Server(tmp_path / "data", environment=failing.environment) as server:
        failing.path.touch()
        server.only("logd").kill()
        await_true(lambda: "logd cannot be started" in server.log)
        assert server.stop(signal.SIGTERM) == 0
        assert os.listdir(server.directory)
