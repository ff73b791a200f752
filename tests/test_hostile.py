"""Hostile clients and other users of the machine, against the real server: each gets its answer or a closed connection.

Honest clients read and write meanwhile, and must notice nothing. What the parser makes of strange bytes, and
every deadline, is in test_worker.py.
"""

import contextlib
import os
import select
import shlex
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from tests.support.clients import exchange, idle_connection, read_to_end, send_all
from tests.support.harness import ROOT, Server, await_true, need_descriptors
from tests.support.load import Load

MIB = 1 << 20
VALUE_BYTES_MAX = 4 * MIB
HELD_BYTES_MAX = 32 * MIB
GROWTH_BYTES_MAX = 64 * MIB
"""What a worker may use beside what it counts for clients: buffers, and what the allocator does not give back."""
ALLOW_KEY = "DELETE, GET, HEAD, PUT"


@pytest.fixture(scope="module")
def server(module_path):
    flags = (
        "--workers=1",
        f"--value-bytes-max={VALUE_BYTES_MAX}",
        f"--body-bytes-in-flight-max={HELD_BYTES_MAX}",
        "--body-timeout-s=3",
        "--header-timeout-s=2",
    )
    with Server(module_path / "data", *flags) as server:
        server.put("large", b"v" * (64 << 10))
        yield server


@pytest.fixture(scope="module")
def load(server):
    with Load(server.port, clients=2) as load:
        yield load
    load.verify()


@pytest.fixture(autouse=True)
def others_are_served(request):
    """Meanwhile and afterwards, in every test that uses the server of the module."""
    if "server" not in request.fixturenames:
        yield
        return
    load = request.getfixturevalue("load")
    yield
    load.await_progress()
    assert load.failures == []


@pytest.fixture
def connect(server):
    """Makes connections that are closed in the end."""
    with contextlib.ExitStack() as clients:

        def connect(sent=b""):
            client = clients.enter_context(socket.create_connection(("127.0.0.1", server.port), 30))
            client.sendall(sent)
            return client

        yield connect


def put(key, size, *fields):
    return "\r\n".join([f"PUT /kv/{key} HTTP/1.1", "Host: h", f"Content-Length: {size}", *fields, "\r\n"]).encode()


def answers(received):
    """The answers in what was received, as (status, body)."""
    found = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        found.append((int(head.split()[1]), received[:length]))
        received = received[length:]
    return found


def rss_bytes(server):
    return server.only("worker").memory_info().rss


class Growth:
    """The most that the worker and the log writer take beyond what they have now. A context manager, which watches."""

    def __init__(self, server):
        self._processes = {role: server.only(role) for role in ("worker", "logd")}
        self._before = {role: process.memory_info().rss for role, process in self._processes.items()}
        self._is_over = threading.Event()
        self.bytes = dict.fromkeys(self._processes, 0)

    def __enter__(self):
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(self, *_):
        self._is_over.set()
        self._watcher.join()

    def _watch(self):
        while not self._is_over.wait(0.005):
            for role, process in self._processes.items():
                self.bytes[role] = max(self.bytes[role], process.memory_info().rss - self._before[role])


def has_ended(client):
    """Whether the other side has closed it. What came before is thrown away."""
    client.setblocking(False)
    try:
        while client.recv(1 << 16):
            pass
        return True
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


# Unusual requests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["PROPFIND", "TRACE", "OPTIONS", "PATCH", "POST"])
@pytest.mark.parametrize(
    ("path", "status", "allow"),
    [("/kv/x", 405, ALLOW_KEY), ("/clear", 405, "DELETE"), ("/health", 405, "GET, HEAD"), ("/nope", 404, None)],
)
def test_a_method_that_is_not_offered_is_405_on_a_known_path(server, method, path, status, allow):
    answer = server.call(method, path)
    assert (answer.status, answer.headers.get("allow")) == (status, allow)


@pytest.mark.parametrize("method", ["BREW", "get", "GETX", "x" * 200])
def test_a_method_that_http_does_not_define_is_400_and_ends_the_connection(server, method):
    answer = server.call(method, "/kv/x")
    assert (answer.status, answer.body, answer.headers["connection"]) == (400, b"bad request\n", "close")


def test_the_body_of_a_request_with_an_unknown_method_is_not_taken_for_a_request(server):
    smuggled = put("smuggled", 1) + b"v"
    exchange(server.port, b"BREW /kv/x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(smuggled) + smuggled)
    assert server.get("smuggled") is None


def test_a_refusal_comes_after_the_answers_to_the_requests_before_it(server):
    received = exchange(server.port, b"GET /health HTTP/1.1\r\nHost: h\r\n\r\nBREW /kv/x HTTP/1.1\r\nHost: h\r\n\r\n")
    assert answers(received) == [(200, b"ok"), (400, b"bad request\n")]


# Connections that end early ------------------------------------------------------------------------------


def test_a_client_that_closes_its_side_for_writing_is_answered(server):
    assert answers(exchange(server.port, put("half", 5) + b"value", half_close=True)) == [(200, b"")]
    assert (
        answers(exchange(server.port, b"GET /kv/half HTTP/1.1\r\nHost: h\r\n\r\n" * 3, half_close=True))
        == [(200, b"value")] * 3
    )


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"PUT /kv/cut HT",
        put("cut", 5) + b"val",
        b"PUT /kv/cut HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nvalue\r\n",
        b"PUT /kv/cut HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nvalue\r\n0\r\n",
    ],
)
def test_half_a_request_is_never_served(server, sent):
    assert exchange(server.port, sent, half_close=True) == b""
    assert server.get("cut") is None


def test_half_a_request_after_a_whole_one_does_not_prevent_its_answer(server):
    received = exchange(
        server.port, b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n" + put("cut", 5) + b"val", half_close=True
    )
    assert answers(received) == [(200, b"ok")]
    assert server.get("cut") is None


def test_a_reset_in_the_middle_of_a_body_stores_nothing(server, connect):
    for _ in range(50):
        client = connect(put("reset", MIB) + b"v" * (MIB // 2))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    assert server.get("reset") is None


# Memory --------------------------------------------------------------------------------------------------


def test_clients_that_pipeline_deeply_and_do_not_read_use_bounded_memory_and_are_cut_off(server, connect):
    before = rss_bytes(server)
    clients = [connect() for _ in range(40)]
    for client in clients:
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            client.send(b"GET /kv/large HTTP/1.1\r\nHost: h\r\n\r\n" * 10_000)
    peak = 0

    def are_cut_off():
        nonlocal peak
        peak = max(peak, rss_bytes(server))
        return not [each for each in server.only("worker").net_connections() if each.raddr and each.raddr.port in ports]

    ports = {client.getsockname()[1] for client in clients}
    await_true(are_cut_off, 20, "the end of those who do not read")
    assert peak - before < HELD_BYTES_MAX + GROWTH_BYTES_MAX


def test_a_client_that_pipelines_without_end_and_does_not_read_is_not_read_from_either(server, connect):
    before = rss_bytes(server)
    client = connect()
    client.setblocking(False)
    requests, sent_bytes = b"GET /live HTTP/1.1\r\nHost: h\r\n\r\n" * 10_000, 0
    while sent_bytes < 64 * MIB and select.select([], [client], [], 1.0)[1]:
        sent_bytes += client.send(requests[sent_bytes % len(requests) :])
    assert sent_bytes < 64 * MIB
    assert rss_bytes(server) - before < HELD_BYTES_MAX
    assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


def test_little_of_what_a_client_pipelines_is_read_before_its_first_request_is_answered(server, connect):
    client = connect()
    client.setblocking(False)
    client.send(b"GET /kv/large HTTP/1.1\r\nHost: h\r\n\r\n" * 10_000)
    in_flight = 0

    def is_waiting():
        nonlocal in_flight
        in_flight = metric(server, "kv_http_requests_in_flight")
        return in_flight > 100

    await_true(is_waiting, what="requests that wait")
    assert in_flight < 1000


def metric(server, name):
    (line,) = (
        line for line in server.call("GET", "/metrics").body.decode().splitlines() if line.startswith(f"{name} ")
    )
    return float(line.split()[1])


def test_headers_that_do_not_end_use_bounded_memory(server, connect):
    before = rss_bytes(server)
    clients = [connect(b"GET /live HTTP/1.1\r\nHost: h\r\n" + b"A: a\r\n" * 10_000) for _ in range(100)]
    await_true(lambda: is_readable(clients[-1]), what="the end of the last")
    received = [read_to_end(client) for client in clients]
    assert rss_bytes(server) - before < HELD_BYTES_MAX + GROWTH_BYTES_MAX
    assert {answer for each in received for answer in answers(each)} == {
        (408, b"request timeout\n"),
        (503, b"too many bytes in flight; the request was not served\n"),
    }
    server.put("after", b"v" * VALUE_BYTES_MAX)


def test_a_client_that_pipelines_deeply_and_reads_is_answered_in_full(server):
    received = exchange(server.port, b"GET /live HTTP/1.1\r\nHost: h\r\n\r\n" * 9_999 + b"GET /live HTTP/1.0\r\n\r\n")
    assert answers(received) == [(200, b"ok")] * 10_000


LARGE_VALUE = bytes(range(128)) * (VALUE_BYTES_MAX // 128)


def assert_bounded(growth):
    assert growth.bytes["worker"] < HELD_BYTES_MAX + GROWTH_BYTES_MAX
    assert growth.bytes["logd"] < GROWTH_BYTES_MAX / 2


def test_clients_that_do_not_read_large_values_use_bounded_memory_and_do_not_delay_small_ones(server, connect):
    server.put("huge", LARGE_VALUE)
    with Growth(server) as growth:
        clients = [connect(b"GET /kv/huge HTTP/1.1\r\nHost: h\r\n\r\n") for _ in range(40)]
        began, looks = time.monotonic(), 0
        while time.monotonic() - began < 2.0 or not all(map(is_readable, clients)):
            assert time.monotonic() - began < 30
            assert server.get("large") == b"v" * (64 << 10)
            looks += 1
    assert looks > 20
    assert_bounded(growth)
    for client in clients:
        client.close()
    assert server.get("huge") == LARGE_VALUE


def test_many_clients_that_read_a_large_value_at_once_get_every_byte_within_bounded_memory(server):
    server.put("huge", LARGE_VALUE)
    with Growth(server) as growth:
        answers = send_all(server.port, [("GET", "/kv/huge", None)] * 160, connections=40)
    assert [answer.status for answer in answers.values()] == [200] * 160
    assert all(answer.body == LARGE_VALUE for answer in answers.values())
    assert_bounded(growth)


class Drip(threading.Thread):
    """Asks for a large value, takes the first of it at once, and then a few bytes now and then. A context manager."""

    def __init__(self, server):
        super().__init__()
        self._is_over = threading.Event()
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)  # so that what it leaves is the server's
        self._socket.settimeout(30)
        self._socket.connect(("127.0.0.1", server.port))
        self._socket.sendall(b"GET /kv/huge HTTP/1.1\r\nHost: h\r\n\r\n")
        self.port = self._socket.getsockname()[1]

    def run(self):
        self._socket.recv(MIB, socket.MSG_WAITALL)
        while self._socket.recv(2000) and not self._is_over.wait(0.05):
            pass

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._is_over.set()
        self.join()
        self._socket.close()


def test_readers_that_read_a_few_bytes_at_a_time_are_cut_off_when_others_need_their_room(server):
    server.put("huge", LARGE_VALUE)
    with contextlib.ExitStack() as stack:
        drips = [stack.enter_context(Drip(server)) for _ in range(HELD_BYTES_MAX // VALUE_BYTES_MAX)]
        await_true(lambda: metric(server, "kv_http_large_values_bytes") == HELD_BYTES_MAX, what="a full house")
        answers = []
        while not answers or answers[-1].status == 503:
            answers.append(server.call("GET", "/kv/huge"))
        assert answers[-1].body == LARGE_VALUE
        served = {each.raddr.port for each in server.only("worker").net_connections() if each.raddr}
        assert len(served & {each.port for each in drips}) < len(drips)
    await_true(lambda: metric(server, "kv_http_large_values_bytes") == 0, what="all room to be free")


@pytest.mark.parametrize("received", [0, 1, MIB], ids=["before its answer", "at its beginning", "in the middle of it"])
@pytest.mark.parametrize("linger", [struct.pack("ii", 0, 0), struct.pack("ii", 1, 0)], ids=["close", "reset"])
def test_a_large_value_takes_no_room_when_its_client_has_gone(server, connect, received, linger):
    server.put("huge", LARGE_VALUE)
    for _ in range(4 * HELD_BYTES_MAX // VALUE_BYTES_MAX):
        client = connect(b"GET /kv/huge HTTP/1.1\r\nHost: h\r\n\r\n")
        if received:
            assert client.recv(received, socket.MSG_WAITALL).startswith(b"HTTP/1.1 200 "[:received])
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        client.close()
    assert server.get("huge") == LARGE_VALUE


def test_head_of_a_large_value_takes_no_room(server):
    server.put("huge", LARGE_VALUE)
    count = 4 * HELD_BYTES_MAX // VALUE_BYTES_MAX
    requests = [b"HEAD /kv/huge HTTP/1.1\r\nHost: h\r\n\r\n"] * count + [b"HEAD /kv/huge HTTP/1.0\r\n\r\n"]
    *heads, rest = exchange(server.port, b"".join(requests)).split(b"\r\n\r\n")
    assert (len(heads), rest) == (len(requests), b"")
    assert all(head.startswith(b"HTTP/1.1 200 ") and b"content-length: %d" % VALUE_BYTES_MAX in head for head in heads)
    assert server.get("huge") == LARGE_VALUE


def test_a_chunked_body_far_beyond_the_limit_is_not_stored_in_memory(server, connect):
    before = rss_bytes(server)
    client = connect(b"PUT /kv/endless HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
    chunk = b"%x\r\n" % MIB + b"v" * MIB + b"\r\n"
    with contextlib.suppress(ConnectionError):
        for _ in range(200):
            client.sendall(chunk)
    assert read_to_end(client)[:12] in (b"HTTP/1.1 413", b"")  # the reset may overtake it
    assert rss_bytes(server) - before < GROWTH_BYTES_MAX
    assert server.get("endless") is None


def test_bodies_that_do_not_end_use_bounded_memory_and_do_not_delay_small_ones(server, connect):
    before = rss_bytes(server)
    size = 3 * MIB
    clients = []

    def the_rest_has_been_refused():
        clients[:] = [client for client in clients if not has_ended(client)]
        return len(clients) <= HELD_BYTES_MAX // size

    for number in range(40):
        clients.append(connect(put(f"slow{number}", size)))
        with contextlib.suppress(ConnectionError):
            clients[-1].sendall(b"v" * (size - 1))
        small = connect(put("small", 5))
        assert_answers_in_two_pieces(small)
        await_true(the_rest_has_been_refused, what="a refusal")
    assert rss_bytes(server) - before < HELD_BYTES_MAX + GROWTH_BYTES_MAX
    for client in clients:
        client.close()
    assert server.get("slow0") is None


def assert_answers_in_two_pieces(client):
    client.sendall(b"small")
    assert client.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_a_body_beyond_the_limit_in_flight_gets_503_and_its_memory_is_free_again(server, connect):
    size = 4 * MIB - 1000
    uploads = [connect() for _ in range(HELD_BYTES_MAX // size)]
    for number, upload in enumerate(uploads):
        upload.sendall(put(f"full{number}", size, "Expect: 100-continue"))
        assert upload.recv(100).startswith(b"HTTP/1.1 100 ")
        upload.sendall(b"v" * (size - 1000))
    last = connect(put("last", size, "Expect: 100-continue"))
    assert last.recv(100).startswith(b"HTTP/1.1 100 ")
    last.sendall(b"v" * (size - 1000))
    ended = []

    def one_is_refused():
        ended[:] = [each for each in [*uploads, last] if is_readable(each)]
        return ended

    await_true(one_is_refused, what="a refusal")
    (answer,) = answers(read_to_end(ended[0]))
    assert answer == (503, b"too many bytes in flight; the request was not served\n")
    for upload in [*uploads, last]:
        if upload is not ended[0]:
            upload.sendall(b"v" * 1000)
            assert upload.recv(1000).startswith(b"HTTP/1.1 200 ")
    server.put("after", b"v" * VALUE_BYTES_MAX)


def is_readable(client):
    client.setblocking(False)
    try:
        return client.recv(1, socket.MSG_PEEK) != b"never"
    except BlockingIOError:
        return False
    finally:
        client.settimeout(30)


# Descriptors ---------------------------------------------------------------------------------------------

IDLE = 10_000


class PoorServer(Server):
    """A server that may have few descriptors, and cannot raise that."""

    def command(self):
        return ["sh", "-c", f"ulimit -n 128; exec {shlex.join(super().command())}"]


def test_a_worker_without_a_free_descriptor_serves_its_connections_and_recovers(tmp_path):
    with PoorServer(tmp_path / "data", "--workers=1") as server, contextlib.ExitStack() as stack:
        assert "WARNING 128 file descriptors are few" in server.log
        before = {process.pid for process in server.members()}
        first = stack.enter_context(idle_connection(server.port))
        greedy = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 10)) for _ in range(300)]
        await_true(lambda: any(map(has_ended, greedy)), what="a reset")

        first.sendall(put("poor", 1) + b"v")
        assert first.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert cpu_share(server, seconds=1.0) < 0.5

        for client in greedy:
            client.close()
        await_true(lambda: is_served(server), what="a new connection")
        assert server.get("poor") == b"v"
        assert {process.pid for process in server.members()} == before


def cpu_share(server, seconds):
    """How many processors the whole tree keeps busy."""

    def used():
        times = [process.cpu_times() for process in server.members()]
        return sum(each.user + each.system for each in times)

    before, began = used(), time.monotonic()
    await_true(lambda: time.monotonic() - began >= seconds)
    return (used() - before) / (time.monotonic() - began)


def is_served(server):
    with contextlib.suppress(OSError):
        return server.call("GET", "/live").status == 200
    return False


def test_ten_thousand_idle_connections_prevent_no_request_from_being_served(server):
    need_descriptors(IDLE + 500)
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 30)) for _ in range(IDLE)]
        server.put("idle", b"v")
        assert server.get("idle") == b"v"
        assert not any(map(has_ended, idle))


# Other users ---------------------------------------------------------------------------------------------

AS_NOBODY = """
import os, sys
files, directory = sys.argv[1].split(":"), sys.argv[2]
os.setgroups([]); os.setgid(65534); os.setuid(65534)

def tried(what, do):
    try:
        do()
        print(what, "allowed")
    except PermissionError:
        print(what, "denied")

for path in files:
    tried("read", lambda: open(path, "rb"))
    tried("write", lambda: open(path, "r+b"))
tried("list", lambda: os.listdir(directory))
tried("create", lambda: open(os.path.join(directory, "new"), "wb"))
tried("visit", lambda: os.listdir(os.path.dirname(os.path.dirname(directory))))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_does_not_get_at_the_data():
    # Not below the directory of the test, which no other user may enter anyway.
    with tempfile.TemporaryDirectory(prefix="kvt-") as top:
        Path(top).chmod(0o755)
        with Server(Path(top) / "open" / "data", "--workers=1") as server:
            Path(top, "open").chmod(0o755)
            server.put("secret", b"v")
            files = [str(path) for path in server.directory.iterdir()]
            told = subprocess.run(
                [sys.executable, "-c", AS_NOBODY, ":".join(files), str(server.directory)],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=30,
                check=True,
            ).stdout.splitlines()
    assert told.pop() == "visit allowed"  # so it is the server that keeps it out
    assert len(told) == 2 * len(files) + 2
    assert [line for line in told if not line.endswith(" denied")] == []


GREETED = """
import os, sys, zmq
uid, address = int(sys.argv[1]), sys.argv[2]
os.setgroups([]); os.setgid(uid); os.setuid(uid)
peer = zmq.Context().socket(zmq.DEALER)
peer.setsockopt(zmq.LINGER, 0)
peer.setsockopt(zmq.PROBE_ROUTER, 1)
monitor = peer.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
peer.connect(address)
poller = zmq.Poller()
poller.register(peer, zmq.POLLIN)
poller.register(monitor, zmq.POLLIN)
ready = dict(poller.poll(20_000))
print("greeted" if peer in ready else "refused" if monitor in ready else "neither")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the socket is in a directory that nobody else may enter")
def test_another_user_does_not_get_at_the_log_writer(server):
    command = [sys.executable, "-c", GREETED]

    def met_by(uid):
        environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
        arguments = [*command, str(uid), server.logd_address()]
        return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout

    assert met_by(uid=0) == "greeted\n"
    assert met_by(uid=65534) == "refused\n"
    server.put("after", b"v")
