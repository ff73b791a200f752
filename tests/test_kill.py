"""SIGKILL, SIGSTOP, damage and a full disk, for one process or file at a time, while clients send requests.

The history of the clients (`Load`) is judged at the end, so each of these tests also says: no acknowledged write was
lost or undone, no refused one appeared, and one order of all requests explains every read.
"""

import contextlib
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from logd.shared.protocol import Exit
from tests.support.clients import ANSWER_SECONDS, IDLE_S, read_all, send_all
from tests.support.harness import Server, await_true, mounted
from tests.support.history import Kind
from tests.support.load import Load
from tests.support.recorder import BROKEN

CHECKPOINT_OFTEN = ("--segment-bytes=65536", "--checkpoint-log-bytes=131072")
ON_SMALL_DISK = ("--segment-bytes=65536", "--value-bytes-max=100000")  # so that there is room for a ballast
NO_ROOM = b"no space left on device\n"


@pytest.fixture
def server(tmp_path):
    with Server(tmp_path / "data") as server:
        yield server


def figure(name, value):
    print(f"{name}: {value:.3f} s")


def await_successor(server, role, *predecessors):
    """Wait for another process with that role, and return it."""
    found = []

    def is_there():
        found[:] = [each for each in server.role(role) if each not in predecessors]
        return found

    await_true(is_there, 30, f"another {role}")
    return found[0]


def remote_ports(process):
    """The ports of the clients whose connections a process has."""
    return {each.raddr.port for each in process.net_connections("tcp") if each.raddr}


def failed(load, reason):
    """The clients that had a failure for that reason."""
    return {each.client for each in load.failures if each.reason == reason}


@contextlib.contextmanager
def frozen(process):
    process.suspend()
    try:
        yield
    finally:
        process.resume()


# The log writer ------------------------------------------------------------------------------------------


def test_no_request_fails_when_logd_is_killed(server):
    with Load(server.port, clients=64) as load:
        for _ in range(3):
            logd = server.only("logd")
            logd.kill()
            await_successor(server, "logd", logd)
            load.await_progress()
    assert load.failures == []
    figure("longest silence when logd is killed", load.longest_silence_s)
    load.verify()


def test_no_read_of_a_large_value_fails_when_logd_is_killed(tmp_path):
    with Server(tmp_path / "data", "--body-bytes-in-flight-max=16MiB") as server:
        value = b"v" * (1 << 20)
        server.put("large", value)
        answers = {}
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(send_all, server.port, [("GET", "/kv/large", None)] * 2000, 64, answers)
            for goal in (200, 1000):
                await_true(lambda goal=goal: len(answers) >= goal, 30, "some answers")
                logd = server.only("logd")
                logd.kill()
                await_successor(server, "logd", logd)
            reading.result()
        assert len(answers) == 2000
        assert all(answer.body == value for answer in answers.values())


def test_no_request_fails_when_logd_is_killed_ten_times_in_a_row(tmp_path):
    with Server(tmp_path / "data", "--request-timeout-s=50") as server:
        with Load(server.port, clients=16) as load:
            logd = server.only("logd")
            for _ in range(10):
                logd.kill()
                logd = await_successor(server, "logd", logd)  # recovers at this moment
            load.await_progress()
        assert load.failures == []
        figure("longest silence when logd is killed ten times", load.longest_silence_s)
        load.verify()
        server.crash()
        server.start()
        load.verify()


def test_writes_to_a_frozen_logd_end_at_their_deadline_and_never_with_a_wrong_200(tmp_path):
    limits = ("--request-timeout-s=1", "--workers=1", "--value-bytes-max=50000", "--queue-bytes-max=500000")
    with Server(tmp_path / "data", *limits) as server:
        server.put("before", b"value")
        keys = [f"frozen{n}" for n in range(40)]
        writes = [("PUT", f"/kv/{key}", key.encode() * 5_000) for key in keys]
        with frozen(server.only("logd")):
            answers = send_all(server.port, [*writes, ("GET", "/kv/before", None), ("GET", "/health", None)], 42)
            *of_writes, read, health = (answers[n] for n in range(42))
            assert read.status == health.status == 503
            assert {answer.status for answer in of_writes} == {503, 504}
            for answer in of_writes:
                assert b"too many" in answer.body if answer.status == 503 else b"not known" in answer.body
                assert answer.headers.get("retry-after") == ("1" if answer.status == 503 else None)
        server.await_ready()
        assert server.get("before") == b"value"
        for key, answer in zip(
            keys, of_writes, strict=True
        ):  # a write of unknown outcome was applied as a whole, or not at all
            assert server.get(key) in ({None} if answer.status == 503 else {None, key.encode() * 5_000})
        for key in keys:
            server.put(key, b"after")
        assert read_all(server.port, keys) == dict.fromkeys(keys, b"after")


def test_clients_of_a_frozen_logd_are_served_again_when_it_continues(tmp_path):
    with Server(tmp_path / "data", "--request-timeout-s=1") as server:
        with Load(server.port, clients=12) as load:
            with frozen(server.only("logd")):
                await_true(lambda: failed(load, "503") == failed(load, "504") == set(range(12)), 30, "the deadlines")
            load.await_progress()
            failures = len(load.failures)
            load.await_progress()
            assert len(load.failures) == failures
        assert {(each.kind == Kind.GET, each.reason) for each in load.failures} == {
            (True, "503"),
            (False, "504"),
        }
        load.verify()


def test_a_frozen_logd_that_is_killed_is_replaced(tmp_path):
    with Server(tmp_path / "data", "--request-timeout-s=50") as server:
        with Load(server.port) as load:
            logd = server.only("logd")
            logd.suspend()
            logd.kill()
            load.await_progress()
        assert load.failures == []
        load.verify()


def test_logd_that_dies_with_a_damaged_log_ends_the_service_with_a_line_that_says_so(tmp_path):
    with Server(tmp_path / "data", "--segment-bytes=20000") as server:
        for n in range(10):
            server.put(f"key{n}", b"x" * 5_000)
        damaged = server.segments()[0]
        data = bytearray(damaged.read_bytes())
        data[100] ^= 0xFF
        damaged.write_bytes(data)
        assert server.get("key0") == b"x" * 5_000  # reads are answered from memory
        server.only("logd").kill()
        assert server.wait(30) == Exit.DAMAGED
        assert (
            len([line for line in server.log.splitlines() if "[DAMAGED_FRAME]" in line and damaged.name in line]) == 1
        )
        assert len([line for line in server.log.splitlines() if "logd cannot serve (damaged)" in line]) == 1
        assert server.left_behind() == []
        assert damaged.read_bytes() == data


# Workers and their master --------------------------------------------------------------------------------


def test_only_the_connections_of_a_killed_worker_fail_and_its_successor_serves(tmp_path):
    with Server(tmp_path / "data", "--workers=2") as server:
        await_true(lambda: len(server.role("worker")) == 2, what="two workers")
        with Load(server.port, clients=16) as load:
            second, first = sorted(server.role("worker"), key=lambda worker: len(remote_ports(worker)))
            owners = {client for port, client in load.local_ports().items() if port in remote_ports(first)}
            assert owners
            first.kill()
            third = await_successor(server, "worker", first, second)
            load.await_progress()
            assert sorted(each.client for each in load.failures) == sorted(owners)
            with frozen(second):  # so that only the third worker can accept a new connection
                server.put("new", b"value")
                assert server.get("new") == b"value"
            assert third in server.role("worker")
            load.await_progress()
        assert len(load.failures) == len(owners)
        assert {each.reason for each in load.failures} <= {BROKEN}
        load.verify()


def test_a_frozen_worker_does_not_stop_the_others(tmp_path):
    with Server(tmp_path / "data", "--workers=2") as server:
        await_true(lambda: len(server.role("worker")) == 2, what="two workers")
        with Load(server.port, clients=16) as load:
            stopped = max(server.role("worker"), key=lambda worker: len(remote_ports(worker)))
            with frozen(stopped):
                stuck = {client for port, client in load.local_ports().items() if port in remote_ports(stopped)}
                others = set(range(16)) - stuck
                load.await_progress(20, others)
                for n in range(20):  # each on a new connection
                    server.put("new", b"%d" % n)
                    assert server.get("new") == b"%d" % n
            load.await_progress()
        assert load.failures == []
        load.verify()


def test_no_connection_is_refused_when_gunicorns_master_is_killed(server):
    with Load(server.port, clients=16) as load:
        for _ in range(2):
            master, workers = server.only("gunicorn"), server.role("worker")
            assert workers
            master.kill()
            await_successor(server, "gunicorn", master)
            await_true(lambda workers=workers: not set(workers) & set(server.members()), 30, "the end of its workers")
            await_true(lambda: server.role("worker"), 30, "new workers")
            load.await_progress()
    assert {each.reason for each in load.failures} <= {BROKEN}
    figure("longest silence when gunicorn's master is killed", load.longest_silence_s)
    load.verify()


def test_busy_clients_do_not_notice_that_sighup_replaces_the_workers(server):
    with Load(server.port, clients=16) as load:
        workers = server.role("worker")
        assert workers
        server.process.send_signal(signal.SIGHUP)
        await_true(lambda: not set(workers) & set(server.members()), 30, "the end of the old workers")
        load.await_progress()
    assert [each for each in load.failures if each.answered == 0 or each.idle_s < IDLE_S] == []
    load.verify()


# The supervisor ------------------------------------------------------------------------------------------


def test_when_the_supervisor_is_killed_the_others_end_and_the_same_command_starts_at_once(server):
    with Load(server.port) as load:
        for _ in range(3):
            others = [each for each in server.members() if each.pid != server.process.pid]
            assert len(others) >= 3
            server.process.kill()
            server.wait()
            killed_at = time.monotonic()
            server.spawn()
            await_true(lambda others=others: not set(others) & set(server.members()), 30, "the end of all others")
            figure("all others are gone after", time.monotonic() - killed_at)
            server.await_ready()
            load.await_progress()
    load.verify()
    assert server.stop() == 0
    assert server.left_behind() == []


# Checkpoints ---------------------------------------------------------------------------------------------


def test_a_checkpoint_under_load_covers_segments_and_removes_them(tmp_path):
    with Server(tmp_path / "data", *CHECKPOINT_OFTEN) as server:
        with Load(server.port, value_bytes=1_000) as load:
            first = server.segments()[0]
            await_true(lambda: len(list(server.directory.glob("snapshot-*.snap"))) == 2, 60, "two snapshots")
            await_true(lambda: not first.exists(), 60, "the removal of the first segment")
            load.await_progress()
        assert load.failures == []
        server.crash()
        server.start()
        load.verify()
        assert "recovered [CLEAN]" in server.log
        assert server.stop() == 0
        assert server.left_behind() == []


@pytest.mark.parametrize("victim", ["checkpoint", "logd", "group"])
def test_nothing_is_lost_when_something_is_killed_during_a_checkpoint(tmp_path, victim):
    with Server(tmp_path / "data", *CHECKPOINT_OFTEN) as server:
        with Load(server.port, value_bytes=1_000) as load:
            for delay_s in (0, *(random.uniform(0, 0.2) for _ in range(3))):
                logd = server.only("logd")
                await_true(logd.children, 60, "a checkpoint")
                children = logd.children()
                time.sleep(delay_s)  # no condition to wait for: the kill may come at any moment of the checkpoint
                if victim == "checkpoint":
                    for child in children:
                        with contextlib.suppress(psutil.NoSuchProcess):  # it may have finished
                            child.kill()
                    if not delay_s:
                        await_true(lambda: "failed (status -9)" in server.log, what="a line about it")
                    load.await_progress()
                if victim == "group":
                    server.crash()
                    server.start()
                else:  # a checkpoint that failed is tried again after a while, but at once by another logd
                    logd.kill()
                    await_successor(server, "logd", logd)
                load.await_progress()
        if victim != "group":
            assert load.failures == []
        load.verify()
        server.crash()
        server.start()
        load.verify()
        assert not list(server.directory.glob("*.tmp"))


# A full disk ---------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A directory on a file system of 8 MB."""
    with mounted(tmp_path / "disk", "8m") as disk:
        yield disk


def fill(server, stored):
    """Write until there is no room, and add each write to `stored`; return the key whose write was refused."""
    for n in range(1_000):
        key, value = f"fill{len(stored)}", b"%d" % n * 10_000
        answer = server.call("PUT", f"/kv/{key}", value)
        if answer.status != 200:
            assert (answer.status, answer.body) == (507, NO_ROOM)
            return key
        stored[key] = value
    raise AssertionError("the disk does not get full")


def take_all_room(path):
    """Somebody else's file grows until there is no room."""
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def test_on_a_full_disk_writes_get_507_and_reads_go_on_and_writes_work_again_when_there_is_room(small_disk):
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 1_000_000)
    with Server(small_disk / "data", *ON_SMALL_DISK) as server:
        stored = {}
        refused = fill(server, stored)
        pids = {each.pid for each in server.members()}
        expected = stored | {refused: None}
        assert len(stored) > 10
        assert read_all(server.port, list(expected)) == expected
        health = server.call("GET", "/health")
        assert (health.status, health.body) == (503, NO_ROOM)
        overwritten = server.call("PUT", "/kv/fill0", b"y" * 50_000)
        assert (overwritten.status, overwritten.body) == (507, NO_ROOM)
        assert read_all(server.port, list(expected)) == expected

        ballast.unlink()
        server.await_ready()
        server.put(refused, b"now")
        expected[refused] = b"now"
        assert server.call("DELETE", "/kv/fill0").status == 200
        expected["fill0"] = None
        assert read_all(server.port, list(expected)) == expected
        assert {each.pid for each in server.members()} == pids
        server.crash()
        server.start()
        assert read_all(server.port, list(expected)) == expected


def test_on_a_full_disk_many_clients_lose_nothing_and_no_refused_write_is_applied(small_disk):
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 1_000_000)
    with Server(small_disk / "data", *ON_SMALL_DISK) as server:
        with Load(server.port, clients=12, value_bytes=3_000) as load:

            def is_full_for_each_client():
                take_all_room(ballast)  # or checkpoints would go on making room: what is live is small
                return failed(load, "507") == set(range(12))

            await_true(is_full_for_each_client, ANSWER_SECONDS, "a full disk for each client")
        assert {each.reason for each in load.failures} <= {"503", "507"}
        load.verify()
        ballast.unlink()
        server.await_ready()
        server.put("room", b"again")
        load.verify()
        server.crash()
        server.start()
        load.verify()
        assert server.get("room") == b"again"


def test_reads_work_again_after_logd_is_killed_on_a_full_disk(small_disk):
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 1_000_000)
    with Server(small_disk / "data", *ON_SMALL_DISK) as server:
        stored = {}
        fill(server, stored)
        server.only("logd").kill()
        assert read_all(server.port, list(stored)) == stored
        ballast.unlink()
        server.await_ready()
        server.put("after", b"value")


def test_a_server_that_was_killed_on_a_full_disk_starts_again(small_disk):
    with Server(small_disk / "data", *ON_SMALL_DISK) as server:
        stored = {}
        fill(server, stored)
        server.crash()
        said_before = len(server.log)
        server.spawn()
        await_true(lambda: "listening" in server.log[said_before:] or server.process.poll() is not None, 30, "a start")
        assert server.process.poll() is None, server.log[said_before:]
        assert read_all(server.port, list(stored)) == stored
