"""The three stages of the public challenge, as its harness tests them: HTTP API, persistence, crash recovery."""

import contextlib
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import http_contract
from tests.support.clients import exchange, read_all, send_all
from tests.support.etcd_nodes import EtcdNodes
from tests.support.harness import Server, await_true, need_descriptors

DEADLINE_SECONDS = 15.0  # what the contract gives a stop, and a burst of 10,000 writes


@pytest.fixture(scope="module")
def server(module_path):
    with Server(module_path / "data") as server:
        yield server


@pytest.fixture
def figure(record_property):
    """Reports a measured time, in the output and in the results file. Nothing is asserted about it here."""

    def report(name, seconds):
        record_property(name, round(seconds, 3))
        print(f"{name}: {seconds:.3f} s")

    return report


def is_text(answer, status, body):
    """True for an answer of this status and body, with the headers that every answer has."""
    assert (answer.status, answer.body) == (status, body)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["content-length"] == str(len(body))
    return True


def puts(values):
    return [("PUT", f"/kv/{key}", value) for key, value in values.items()]


def store_all(server, values, connections=32):
    answers = send_all(server.port, puts(values), connections)
    assert [answers[n].status for n in range(len(values))] == [200] * len(values)


# Stage 1: HTTP API ---------------------------------------------------------------------------------------


def test_a_key_can_be_stored_read_replaced_and_deleted(server):
    assert is_text(server.call("PUT", "/kv/country:capital", b"Paris"), 200, b"")
    assert is_text(server.call("GET", "/kv/country:capital"), 200, b"Paris")
    assert is_text(server.call("PUT", "/kv/country:capital", b"Bern"), 200, b"")
    assert is_text(server.call("GET", "/kv/country:capital"), 200, b"Bern")
    assert is_text(server.call("DELETE", "/kv/country:capital"), 200, b"")
    assert is_text(server.call("GET", "/kv/country:capital"), 404, b"key not found\n")
    assert is_text(server.call("DELETE", "/kv/country:capital"), 200, b"")


def test_clear_removes_every_key_and_the_store_goes_on(server):
    store_all(server, {f"cleared{n}": b"x" for n in range(100)})
    assert is_text(server.call("DELETE", "/clear"), 200, b"")
    assert set(read_all(server.port, [f"cleared{n}" for n in range(100)]).values()) == {None}
    server.put("cleared1", b"again")
    assert server.get("cleared1") == b"again"


class OverHttp:
    """A server, as the contract asks it. Most lines change nothing, so it is filled again only after those that do."""

    def __init__(self, server):
        self._server = server
        self._stored = None

    def fill(self, data):
        if self._stored != data:
            assert self._server.call("DELETE", "/clear").status == 200
            for key, value in data.items():
                self._server.put(key, value)

    def ask(self, method, target, body, headers):
        self._stored = None
        return self._server.call(method, target, body, headers)

    def stored(self, keys):
        self._stored = {key: value for key in keys if (value := self._server.get(key)) is not None}
        return self._stored


@pytest.fixture(scope="module", params=["local", "etcd"])
def limited(request, module_path):
    """A server on each engine: what is promised does not depend on it."""
    directory = module_path / request.param
    flags = [f"--value-bytes-max={http_contract.VALUE_BYTES_MAX}"]
    with contextlib.ExitStack() as stack:
        if request.param == "etcd":
            flags += stack.enter_context(EtcdNodes(directory / "etcd")).server_flags
        yield OverHttp(stack.enter_context(Server(directory / "data", *flags)))


@pytest.mark.parametrize("line", http_contract.LINES, ids=str)
def test_each_line_of_the_contract_holds(limited, line):
    http_contract.assert_holds(line, limited)


def test_a_value_may_be_long(server):
    server.put("value", b"x" * 1_000_000)
    assert is_text(server.call("GET", "/kv/value"), 200, b"x" * 1_000_000)


@pytest.mark.parametrize("length", [1, 255, 4_096, 50_000])
def test_a_key_may_be_long(server, length):
    key = "k" * (length - 1)
    store_all(server, {key + "a": b"a", key + "b": b"b"})
    assert read_all(server.port, [key + "a", key + "b", key + "c"]) == {
        key + "a": b"a",
        key + "b": b"b",
        key + "c": None,
    }


def test_a_value_over_the_limit_is_refused_when_it_has_only_begun(server):
    head = b"PUT /kv/large HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (16 * 1024 * 1024 + 1)
    answer = exchange(server.port, head + b"x" * 1_000)  # returns, so the connection was closed
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.endswith(b"\r\n\r\nvalue too large\n")
    assert server.get("large") is None


def test_a_body_that_ends_early_is_not_stored(tmp_path):
    with Server(tmp_path / "data", "--workers=1") as server:
        exchange(server.port, b"PUT /kv/length HTTP/1.1\r\nContent-Length: 10\r\n\r\n12345", half_close=True)
        exchange(
            server.port, b"PUT /kv/chunks HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n", half_close=True
        )
        server.put("later", b"x")  # the worker has one order: had it stored anything of the others, then before this
        assert read_all(server.port, ["length", "chunks", "later"]) == {"length": None, "chunks": None, "later": b"x"}


def test_concurrent_clients_do_not_disturb_each_other(server):
    values = {f"many{n}": str(n).encode() for n in range(2_000)}
    store_all(server, values, connections=100)
    assert read_all(server.port, list(values)) == values
    deleted = [key for n, key in enumerate(values) if n % 2]
    answers = send_all(server.port, [("DELETE", f"/kv/{key}", None) for key in deleted], 100)
    assert [answer.status for answer in answers.values()] == [200] * len(deleted)
    assert read_all(server.port, list(values)) == values | dict.fromkeys(deleted)


def test_a_reader_never_sees_a_mixture_of_two_values(server):
    server.put("contested", b"0" * 50_000)
    writes = [("PUT", "/kv/contested", str(n % 10).encode() * 50_000) for n in range(400)]
    reads = [("GET", "/kv/contested", None)] * 400
    answers = send_all(server.port, [request for pair in zip(writes, reads, strict=True) for request in pair], 16)
    assert [answer.status for answer in answers.values()] == [200] * 800
    found = [answers[n].body for n in range(1, 800, 2)]
    assert [body[:10] for body in found if body != body[:1] * 50_000] == []


# Stage 2: persistence ------------------------------------------------------------------------------------


def test_data_outlives_a_stop_and_a_start(tmp_path, figure):
    values = {f"kept{n}": f"🎉\n\0{n}".encode() for n in range(500)} | {"k" * 5_000: b"long"}
    with Server(tmp_path / "data") as server:
        store_all(server, {"before": b"cleared"})
        server.call("DELETE", "/clear")
        store_all(server, dict.fromkeys(values, b"replaced") | {"gone": b"deleted"})
        store_all(server, values)
        server.call("DELETE", "/kv/gone")
        expected = values | {"gone": None, "before": None}
        for _ in range(3):
            began = time.monotonic()
            assert server.stop(signal.SIGTERM) == 0
            figure("stop when idle", time.monotonic() - began)
            assert time.monotonic() - began < DEADLINE_SECONDS
            began = time.monotonic()
            server.start()
            figure("start after a stop", time.monotonic() - began)
            assert read_all(server.port, list(expected)) == expected


def test_a_clear_outlives_a_stop_and_a_start(tmp_path):
    with Server(tmp_path / "data") as server:
        store_all(server, {f"key{n}": b"x" for n in range(100)})
        server.call("DELETE", "/clear")
        server.put("after", b"1")
        assert server.stop() == 0
        server.start()
        assert read_all(server.port, ["key0", "key99", "after"]) == {"key0": None, "key99": None, "after": b"1"}


# Stage 3: crash recovery ---------------------------------------------------------------------------------


def test_an_acknowledged_write_survives_sigkill(tmp_path, figure):
    with Server(tmp_path / "data") as server:
        server.put("key", b"value")
        server.put("other", "Zürich".encode())
        server.crash()
        began = time.monotonic()
        server.start()  # without the pause of one second that the public harness makes
        figure("start after SIGKILL", time.monotonic() - began)
        assert read_all(server.port, ["key", "other"]) == {"key": b"value", "other": "Zürich".encode()}


def test_crash_after_crash_keeps_what_was_written_replaced_deleted_and_cleared_between(tmp_path):
    expected = {}
    with Server(tmp_path / "data") as server:
        for cycle in range(6):
            fresh = {f"cycle{cycle}-{n}": str(cycle).encode() for n in range(50)} | {"counter": str(cycle).encode()}
            store_all(server, fresh)
            expected |= fresh
            if cycle == 3:
                assert server.call("DELETE", "/clear").status == 200
                expected = dict.fromkeys(expected)
            for n in range(0, 50, 5):
                assert server.call("DELETE", f"/kv/cycle{cycle}-{n}").status == 200
                expected[f"cycle{cycle}-{n}"] = None
            server.crash()
            server.start()
            assert read_all(server.port, list(expected)) == expected


def test_a_crash_in_a_burst_of_writes_loses_none_that_was_acknowledged(tmp_path):
    expected = {}
    with Server(tmp_path / "data") as server, ThreadPoolExecutor(1) as pool:
        for cycle in range(3):
            values = {f"burst{cycle}-{n}": str(n).encode() * 50 for n in range(10_000)}
            keys = list(values)
            answers = {}
            sending = pool.submit(send_all, server.port, puts(values), 64, answers)
            enough = random.randint(200, 3_000)
            await_true(lambda answers=answers, enough=enough: len(answers) >= enough, 30, "a part of the burst")
            server.crash()
            sending.result()
            assert len(answers) < len(values), "the crash came too late to interrupt anything"
            assert {answer.status for answer in answers.values()} == {200}
            server.start()
            expected |= {keys[n]: values[keys[n]] for n in answers}
            found = read_all(server.port, keys)
            for key in keys:  # what was not acknowledged is there as a whole or not at all
                if key not in expected:
                    assert found[key] in (None, values[key])
                    expected[key] = found[key]
        assert read_all(server.port, list(expected)) == expected


def test_a_large_dataset_written_concurrently_survives_sigkill(tmp_path, figure):
    values = {f"large{n}": (f"{n}:" + "ü" * random.randint(10, 1_000)).encode() for n in range(10_000)}
    with Server(tmp_path / "data") as server:
        began = time.monotonic()
        store_all(server, values, connections=100)
        figure("10,000 writes by 100 clients", time.monotonic() - began)
        server.crash()
        began = time.monotonic()
        server.start()
        figure("start after SIGKILL with 10,000 keys", time.monotonic() - began)
        assert read_all(server.port, list(values)) == values


def test_ten_thousand_writes_at_once_are_answered_in_time_and_survive_sigkill(tmp_path, figure):
    need_descriptors(10_500)
    values = {f"at-once{n}": str(n).encode() for n in range(10_000)}
    with Server(tmp_path / "data") as server:
        began = time.monotonic()
        store_all(server, values, connections=len(values))
        seconds = time.monotonic() - began
        figure("10,000 writes at once", seconds)
        assert seconds < DEADLINE_SECONDS
        server.crash()
        server.start()
        assert read_all(server.port, list(values)) == values
