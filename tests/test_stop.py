"""Stopping in order: requests in flight are answered, the exit status is 0, and nothing is left behind."""

import asyncio
import contextlib
import random
import signal
import socket
import time

import psutil
import pytest

from tests.support.clients import IDLE_S, SlowPut, idle_connection, read_to_end, run_async
from tests.support.harness import Server, await_true, need_descriptors
from tests.support.load import Load

REPEATED = (signal.SIGTERM, signal.SIGINT, signal.SIGTERM)


@pytest.fixture(params=["group", "top"])
def send(request):
    """Sends a signal to every process of a server at once, or only to the top process."""

    def to_group(server, number):
        server.signal_group(number)

    def to_top(server, number):
        server.process.send_signal(number)

    return {"group": to_group, "top": to_top}[request.param]


@pytest.mark.parametrize(
    "signals", [(signal.SIGTERM,), (signal.SIGINT,), REPEATED], ids=["SIGTERM", "SIGINT", "TERM+INT+TERM"]
)
def test_a_body_that_is_still_arriving_is_awaited_and_stored(tmp_path, send, signals):
    value = "in flight 🎉".encode() * 1_000
    with Server(tmp_path / "data", "--workers=1") as server, SlowPut(server.port, "slow", value) as put:
        with idle_connection(server.port) as idle:
            send(server, signals[0])
            assert read_to_end(idle) == b""  # which shows that the signal has reached the worker
        for number in signals[1:]:
            send(server, number)
        answer = put.finish()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nconnection: close\r\n" in answer.lower()
        assert server.wait() == 0
        assert server.left_behind() == []
        assert "killing it" not in server.log
        server.start()
        assert server.get("slow") == value


def test_a_large_value_that_is_being_read_arrives_whole(tmp_path, send):
    value = bytes(range(128)) * (16 << 13)
    with Server(tmp_path / "data", "--workers=1") as server:
        server.put("large", value)
        with socket.create_connection(("127.0.0.1", server.port), 30) as client:
            client.sendall(b"GET /kv/large HTTP/1.1\r\nHost: h\r\n\r\n")
            assert client.recv(1, socket.MSG_PEEK)
            with idle_connection(server.port) as idle:
                send(server, signal.SIGTERM)
                assert read_to_end(idle) == b""  # which shows that the signal has reached the worker
            assert read_to_end(client).partition(b"\r\n\r\n")[2] == value
        assert server.wait() == 0
        assert server.left_behind() == []


def test_ten_thousand_open_requests_are_all_answered(tmp_path):
    count, head = 10_000, "PUT /kv/open-%d HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n"
    need_descriptors(count + 100)
    answered = []

    async def put(number, invited, stopping):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write((head % number).encode())
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"  # it waits for the body
        invited.release()
        await stopping.wait()
        writer.write(b"x")
        answered.append(await reader.readline())
        writer.close()

    async def run():
        invited, stopping = asyncio.Semaphore(0), asyncio.Event()
        async with asyncio.timeout(100), asyncio.TaskGroup() as requests:
            for number in range(count):
                requests.create_task(put(number, invited, stopping))
            for _ in range(count):
                await invited.acquire()
            server.signal_group(signal.SIGTERM)
            stopping.set()

    with Server(tmp_path / "data", "--stop-timeout-s=60") as server:
        run_async(run())
        assert answered == [b"HTTP/1.1 200 OK\r\n"] * count
        assert server.wait(60) == 0
        assert server.left_behind() == []


@pytest.mark.parametrize("signals", [(signal.SIGTERM,), REPEATED], ids=["SIGTERM", "TERM+INT+TERM"])
def test_every_request_of_busy_clients_is_answered(tmp_path, send, signals):
    with Server(tmp_path / "data") as server:
        with Load(server.port, clients=32) as load:
            assert not load.failures
            for number in signals:
                send(server, number)
                await_true(lambda: "stopping on" in server.log, what="the line that says that it stops")
            assert server.wait() == 0
        unanswered = [each for each in load.failures if each.answered and each.idle_s < IDLE_S]
        assert unanswered == []
        assert server.left_behind() == []
        server.start()
        load.verify()


def test_no_new_connection_is_served_once_the_workers_stop(tmp_path, send):
    with Server(tmp_path / "data", "--workers=1") as server, SlowPut(server.port, "slow", b"value") as put:
        with idle_connection(server.port) as idle:
            send(server, signal.SIGTERM)
            assert (
                read_to_end(idle) == b""
            )  # the only worker closes idle connections after it has stopped accepting new ones
        try:
            late = socket.create_connection(("127.0.0.1", server.port), 30)
        except ConnectionError:
            late = None
        else:
            late.sendall(b"PUT /kv/late HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx")
        assert put.finish().startswith(b"HTTP/1.1 200 ")
        assert server.wait() == 0
        if late:
            with late:
                assert read_to_end(late) == b""
        server.start()
        assert server.get("late") is None
        assert server.get("slow") == b"value"


def test_an_idle_server_stops_with_all_its_idle_connections(tmp_path, send, record_property):
    """Also with those that it has just accepted: it does not wait for the end of the time that it has."""
    with Server(tmp_path / "data", "--stop-timeout-s=60") as server:
        server.put("key", b"value")
        idle = [socket.create_connection(("127.0.0.1", server.port), 30) for _ in range(50)]
        try:
            began = time.monotonic()
            send(server, signal.SIGTERM)
            assert server.wait() == 0
            record_property("seconds", round(time.monotonic() - began, 3))
            print(f"stop with 50 idle connections: {time.monotonic() - began:.3f} s")
            assert [read_to_end(each) for each in idle] == [b""] * len(idle)
        finally:
            for each in idle:
                each.close()
        assert server.left_behind() == []


def test_a_body_that_never_ends_does_not_keep_the_server_from_stopping(tmp_path):
    with Server(tmp_path / "data", "--stop-timeout-s=1") as server, SlowPut(server.port, "never", b"value"):
        assert server.stop() == 0
        assert server.left_behind() == []
        server.start()
        assert server.get("never") is None


def stop_while_it_starts(server, send, wait):
    """Start, wait for the moment of the signal, stop, and check what is left and what was logged."""
    said_before = len(server.log)
    server.spawn()
    wait(lambda: server.log[said_before:])
    send(server, signal.SIGTERM)
    status = server.wait()
    said = server.log[said_before:]
    if "starting" not in said:  # SIGTERM came before there was a supervisor
        assert status in (0, -signal.SIGTERM)
        await_true(lambda: server.left_behind() == [], what="the end of what run.sh had started")
    else:
        assert status == 0
        assert server.left_behind() == []
    assert "Traceback" not in said
    assert "killing it" not in said


def test_sigterm_at_any_moment_of_the_start_leaves_nothing_behind_and_loses_nothing(tmp_path, send):
    with Server(tmp_path / "data") as server:
        server.put("key", b"value")
        assert server.stop() == 0
        for delay_s in (0, *(random.uniform(0, 0.4) for _ in range(4))):
            print(f"SIGTERM after {delay_s:.3f} s")
            stop_while_it_starts(server, send, lambda _, delay_s=delay_s: time.sleep(delay_s))
        server.start()
        assert server.get("key") == b"value"


def test_sigterm_while_recovery_writes_leaves_nothing_behind_and_loses_nothing(tmp_path, send):
    def until_recovered(said):
        deadline = time.monotonic() + 30
        while "recovered [" not in said():
            assert time.monotonic() < deadline

    with Server(tmp_path / "data") as server:
        server.put("key", b"value")
        assert server.stop() == 0
        for _ in range(4):
            stop_while_it_starts(server, send, until_recovered)
        server.start()
        assert server.get("key") == b"value"


def test_a_stop_during_a_checkpoint_leaves_no_temporary_file(tmp_path, send):
    with Server(tmp_path / "data", "--segment-bytes=65536", "--checkpoint-log-bytes=131072") as server:
        logd = server.only("logd")

        def is_held_up_while_it_writes():
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in logd.children():
                    child.suspend()
                    if list(server.directory.glob("snapshot-*.tmp")):
                        return True
                    child.resume()
            return False

        with Load(server.port, value_bytes=20_000) as load:
            await_true(is_held_up_while_it_writes, 60, "a checkpoint that writes")
            load.await_progress()
            send(server, signal.SIGTERM)
            assert server.wait() == 0
        assert server.left_behind() == []
        server.start()
        load.verify()


def test_the_port_and_the_directory_are_free_at_once_after_a_stop(tmp_path):
    with Server(tmp_path / "data") as server:
        for n in range(2):
            server.put(f"key{n}", b"value")
            with socket.create_connection(("127.0.0.1", server.port)):  # leaves a connection in TIME_WAIT
                assert server.stop() == 0
            server.start()
            assert [server.get(f"key{each}") for each in range(n + 1)] == [b"value"] * (n + 1)
