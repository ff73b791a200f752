"""The worker class under the real gunicorn: how it ends, deadlines, limits, bytes that are hostile or unusual."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from email.utils import parsedate_to_datetime
from types import SimpleNamespace

import psutil
import pytest

from kv import lifeline, scoreboard
from kv.config import Inherited
from kv.http import worker
from kv.http.buffer_budget import BufferBudget
from tests.support.clients import Answer, call
from tests.support.harness import ROOT, await_true, is_gone

WORKER_CLASS = "kv.http.worker.Worker"
TEXT = "text/plain; charset=utf-8"
HEADER_LIMIT = 8192
VALUE_LIMIT = 1 << 20
LINGER_LIMIT = 8 << 20

QUICK = {
    "KV_HEADER_TIMEOUT_S": "0.3",
    "KV_BODY_TIMEOUT_S": "0.5",
    "KV_KEEP_ALIVE_S": "0.5",
    "KV_LINGER_TIMEOUT_S": "0.5",
    "KV_STOP_TIMEOUT_S": "0",
    "KV_HEADER_BYTES_MAX": str(HEADER_LIMIT),
}

# What gunicorn hosts. Besides the paths below it is the real application, over a dict.
APP = (
    f"VALUE_LIMIT = {VALUE_LIMIT}"
    + """
import asyncio, os
from kv.app import create_app
class Storage(dict):
    async def get(self, key): return dict.get(self, key)
    async def put(self, key, value): self[key] = value
    async def delete(self, key): self.pop(key, None)
    async def clear(self): dict.clear(self)
    async def unavailable_reason(self): return ""

storage = Storage()
kv = create_app(storage, VALUE_LIMIT)
events = []

async def answer(send, body, more=False):
    length = [] if more else [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": length})
    await send({"type": "http.response.body", "body": body, "more_body": more})

async def read(receive):
    body, event = b"", {"more_body": True}
    while event.get("more_body"):
        event = await receive()
        if event["type"] == "http.disconnect":
            return None
        body += event["body"]
    return body

class App:
    def gauges(self): return {}
    def reads_wait_for_room(self): return False
    async def __call__(self, scope, receive, send): await app_(scope, receive, send)

async def app_(scope, receive, send):
    if scope["type"] == "lifespan":
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})
        return
    path = scope["raw_path"].decode()
    if path == "/events":
        return await answer(send, "\\n".join([*events, ""]).encode())
    if path == "/pid":
        return await answer(send, b"%d" % os.getpid())
    events.append(f"{path} begins")
    if path.startswith("/echo/"):
        body = await read(receive)
        if body is None:
            events.append(f"{path} disconnected")
            return
        if scope["query_string"] == b"slow":
            await asyncio.sleep(1)
        await answer(send, f"{scope['method']} {path} ".encode() + body)
    elif path.startswith("/never/"):
        await asyncio.Event().wait()
    elif path.startswith("/large/"):
        await answer(send, bytes(32 << 20), more=True)
        while (await receive())["type"] != "http.disconnect":
            pass
        events.append(f"{path} disconnected")
    else:
        async def noting():
            event = await receive()
            events.append(f"{path} disconnected" if event["type"] == "http.disconnect" else f"{path} goes on")
            return event
        await kv(scope, noting, send)

app = App()
"""
)

# The listening socket writes a line when a worker begins to stop: whether its close has also closed a descriptor that
# was opened meanwhile, and may have the number of the socket.
CONF = """
import os, socket
import kv.lifeline, kv.http.worker
bind = "fd://{listen_fd}"
worker_class = "{worker_class}"
control_socket_disable = True
timeout = 0

class Listener(socket.socket):
    def close(self):
        other = os.open(os.devnull, os.O_RDONLY)
        while other < self.fileno():
            other = os.open(os.devnull, os.O_RDONLY)
        super().close()
        state = "intact" if os.path.exists(f"/dev/fd/{{other}}") else "closed"
        with open("{stops}", "a") as stops:
            print(state, file=stops)

def post_worker_init(worker):
    for listener in worker.sockets:
        listener.sock = Listener(fileno=listener.sock.detach())

{more}
"""


class Gunicorn:
    """A gunicorn with one worker, started as the supervisor does: with a listening socket and a lifeline."""

    def __init__(self, directory, conf="", **environment):
        directory.mkdir(exist_ok=True)
        self._stops = directory / "stops"
        self._stops.touch()
        (directory / "hosted.py").write_text(APP)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        read, self._lifeline = lifeline.make()
        listen_fd = self._listener.fileno()
        scoreboard_fd = scoreboard.make(workers=1)
        inherited = Inherited(
            listen_fds=(listen_fd,),
            lifeline_fd=read,
            logd_address="ipc://unused",
            scoreboard_fd=scoreboard_fd,
            warnings_fd=-1,
        )
        (directory / "conf.py").write_text(
            CONF.format(listen_fd=listen_fd, worker_class=WORKER_CLASS, stops=self._stops, more=conf)
        )
        clean = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        with (directory / "stderr").open("wb") as log:
            self.master = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "-c", directory / "conf.py", "hosted:app"],
                cwd=directory,
                env=clean | {"PYTHONPATH": f"{ROOT}:{directory}"} | inherited.to_environment() | environment,
                pass_fds=(listen_fd, read, scoreboard_fd),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        os.close(read)
        self._scoreboard = scoreboard.Scoreboard(scoreboard_fd)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.master.pid, signal.SIGKILL)
        self.master.wait(10)
        self._listener.close()
        self.cut_lifeline()

    def cut_lifeline(self):
        """What every process of the tree sees when the supervisor is killed."""
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None

    def call(self, path):
        return call(self.port, "GET", path)

    def ask(self, path):
        return self.call(path).body.decode()

    def held_bytes(self):
        """What the worker holds for its clients, as of its last sweep."""
        return self._scoreboard.totals().gauges["held_bytes"]

    def worker(self):
        """The process that serves now."""
        return psutil.Process(int(self.ask("/pid")))

    def count(self, event):
        return self.ask("/events").splitlines().count(event)

    def happened(self, event):
        return self.count(event) > 0

    def stops(self):
        """One line for every listening socket that a worker has closed."""
        return self._stops.read_text().splitlines()

    def begin_stop(self, *signals):
        """Have the worker stop, and wait until it has begun to; then send the further signals."""
        worker, before = self.worker(), self.stops()
        for number in signals or (signal.SIGTERM,):
            worker.send_signal(number)
            await_true(lambda: len(self.stops()) > len(before), what="the stop of the worker")
        return worker


class Client:
    """One connection; sends any bytes."""

    def __init__(self, port, sent=b""):
        self._socket = socket.socket()
        self._socket.settimeout(10)
        self._socket.connect(("127.0.0.1", port))
        self._received = b""
        self.send(sent)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._socket.close()

    def send(self, data):
        with contextlib.suppress(ConnectionError):  # the server's answer is still to be read
            self._socket.sendall(data)

    def _receive(self):
        """Receive what comes next; False at the end of the connection."""
        piece = b""
        with contextlib.suppress(ConnectionError):
            piece = self._socket.recv(1 << 16)
        self._received += piece
        return piece != b""

    def take(self, size):
        """Receive at most so many bytes and discard them; how many there were."""
        return len(self._socket.recv(size))

    def ended(self):
        """Whether the server has closed the connection. Does not wait."""
        self._socket.settimeout(0)
        try:
            while self._receive():
                pass
            return True
        except BlockingIOError:
            return False
        finally:
            self._socket.settimeout(10)

    def answer(self):
        """The next answer, interim ones included."""
        while b"\r\n\r\n" not in self._received:
            assert self._receive(), f"the end, after {self._received}"
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        line, *fields = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (field.split(": ", 1) for field in fields)}
        length = int(headers.get("content-length", 0))
        while len(self._received) < length:
            assert self._receive(), f"the end, after {line} and {self._received}"
        body, self._received = self._received[:length], self._received[length:]
        return Answer(int(line.split()[1]), body, headers)

    def rest(self):
        """What else comes before the server closes the connection."""
        while self._receive():
            pass
        return self._received


@pytest.fixture
def connect():
    """Makes connections that are closed in the end."""
    with contextlib.ExitStack() as clients:
        yield lambda server, sent=b"": clients.enter_context(Client(server.port, sent))


@pytest.fixture(scope="module")
def servers(module_path):
    """Started side by side: one with short deadlines, one with the usual ones and a long grace when stopping."""
    patient = "import kv.http.connection; kv.http.connection._STOP_GRACE_SECONDS = 10.0"
    with (
        Gunicorn(module_path / "quick", **QUICK) as quick,
        Gunicorn(
            module_path / "ours",
            patient,
            KV_HEADER_BYTES_MAX=str(HEADER_LIMIT),
            KV_LINGER_BYTES_MAX=str(LINGER_LIMIT),
        ) as ours,
    ):
        yield quick, ours


@pytest.fixture
def quick(servers):
    return servers[0]


@pytest.fixture
def ours(servers):
    return servers[1]


def refusal(client):
    """The status and the one line of text that end a connection; None when it ends without an answer."""
    if not client.rest():
        return None
    status, body, headers = client.answer()
    assert parsedate_to_datetime(headers.pop("date"))
    assert headers == {"content-type": TEXT, "content-length": str(len(body)), "connection": "close"}
    assert client.rest() == b""
    text, end = body[:-1].decode(), body[-1:]
    assert end == b"\n"
    return status, text


# The end, and deadlines ----------------------------------------------------------------------------------

NO_PDEATHSIG = "kv.lifeline.die_with_parent = lambda: None"  # as on a system that has no such thing


@pytest.mark.parametrize("killed", ["master", "supervisor"])
@pytest.mark.parametrize("conf", ["", NO_PDEATHSIG])
def test_a_worker_ends_with_those_it_belongs_to(tmp_path, killed, conf):
    with Gunicorn(tmp_path, conf) as server:
        worker = server.worker()
        if killed == "supervisor":
            server.cut_lifeline()
        else:
            server.master.kill()
            server.master.wait()
        await_true(lambda: is_gone(worker))
        server.master.wait(10)


def test_a_request_that_never_ends_delays_a_stop_no_longer_than_allowed(quick, connect):
    connect(quick, b"GET /never/1 HTTP/1.1\r\nHost: h\r\n\r\n")
    await_true(lambda: quick.happened("/never/1 begins"))
    worker = quick.begin_stop()
    await_true(lambda: is_gone(worker))


TIMEOUT, TOO_LARGE, TOO_LONG = "request timeout", "request header fields too large", "uri too long"
STALLED = {
    b"": None,
    b"G": (408, TIMEOUT),
    b"GET /echo/1 HTTP/1.1\r\nHost: h\r\n": (408, TIMEOUT),
    b"PUT /echo/1 HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n": (408, TIMEOUT),
    b"PUT /kv/late HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n12345678": (408, TIMEOUT),
    b"PUT /kv/late HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n": (408, TIMEOUT),
    b"GET /echo/1 HTTP/1.1\r\nHost: h\r\nA: " + b"a" * (HEADER_LIMIT + 64): (431, TOO_LARGE),
    b"GET /echo/1 HTTP/1.1\r\nHost: h\r\n" + b"A: a\r\n" * (HEADER_LIMIT // 6): (431, TOO_LARGE),
    b"GET /echo/" + b"1" * HEADER_LIMIT: (414, TOO_LONG),
}


def test_a_connection_that_keeps_the_server_waiting_is_ended(quick, connect):
    clients = {sent: connect(quick, sent) for sent in STALLED}
    assert {sent: refusal(client) for sent, client in clients.items()} == STALLED
    assert quick.call("/kv/late").status == 404


def test_a_header_has_a_deadline_however_busy_its_sender_is(quick, connect):
    client = connect(quick, b"GET /echo/1 HTTP/1.1\r\nHost: h\r\nA: ")

    def ended():
        client.send(b"a")
        return client.ended()

    await_true(ended)
    assert refusal(client) == (408, TIMEOUT)


NEXT_REQUEST = b"GET /echo/1 HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.mark.parametrize(
    "rest", [b"", b"GET /echo/2 HTTP/1.1\r\nHost: h\r\n", b"GET /echo/2 HTTP/1.1\r\nHost: h\r\nA: a\r\nB: "]
)
def test_headers_after_a_whole_request_have_the_deadline_of_headers(quick, connect, rest):
    client = connect(quick, NEXT_REQUEST + (rest or b"G"))
    assert client.answer().status == 200
    assert refusal(client) == (408, TIMEOUT)


def test_headers_after_a_pause_have_the_deadline_of_headers(quick, connect):
    client = connect(quick, NEXT_REQUEST)
    assert client.answer().status == 200
    client.send(b"G")
    assert refusal(client) == (408, TIMEOUT)


def test_a_body_that_is_not_read_because_others_are_answered_first_is_not_late(quick, connect):
    client = connect(
        quick,
        b"GET /echo/1?slow HTTP/1.1\r\nHost: h\r\n\r\nPUT /echo/2 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n",
    )
    assert client.answer().status == 200
    client.send(b"abc")
    assert client.answer()[:2] == (200, b"PUT /echo/2 abc")


def test_headers_that_are_not_read_because_others_are_answered_first_are_not_late(quick, connect):
    client = connect(quick, b"GET /echo/1?slow HTTP/1.1\r\nHost: h\r\n\r\n" * 2 + b"GET /echo/2 HT")
    assert [client.answer().status for _ in range(2)] == [200, 200]
    client.send(b"TP/1.1\r\nHost: h\r\n\r\n")
    assert client.answer()[:2] == (200, b"GET /echo/2 ")


UNNEEDED = b"GET /live HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"


def test_a_body_that_is_not_needed_may_end_and_the_next_request_is_served(quick, connect):
    client = connect(quick, UNNEEDED)
    assert client.answer()[:2] == (200, b"ok")
    client.send(b"5\r\nabcde\r\n0\r\n\r\n" + NEXT_REQUEST)
    assert client.answer()[:2] == (200, b"GET /echo/1 ")


@pytest.mark.parametrize("chunk", [1 << 20, 1])
def test_a_body_that_is_not_needed_is_discarded_up_to_a_limit(ours, connect, chunk):
    client = connect(ours, UNNEEDED)
    assert client.answer()[:2] == (200, b"ok")
    piece = (b"%x\r\n" % chunk + b"a" * chunk + b"\r\n") * (1 + (1 << 20) // (chunk + 64))
    for _ in range(LINGER_LIMIT >> 20):
        assert not client.ended()
        client.send(piece)
    client.send(piece)
    await_true(client.ended)


@pytest.mark.parametrize("piece", [b"1\r\na\r\n", b"0"])
def test_a_body_that_is_not_needed_has_a_deadline_however_busy_its_sender_is(quick, connect, piece):
    client = connect(quick, UNNEEDED)
    assert client.answer()[:2] == (200, b"ok")

    def ended():
        client.send(piece)
        return client.ended()

    await_true(ended)
    assert client.rest() == b""


def test_a_body_that_is_not_needed_and_that_is_broken_ends_the_connection_without_another_answer(ours, connect):
    client = connect(ours, UNNEEDED)
    assert client.answer()[:2] == (200, b"ok")
    client.send(b"zz\r\n")
    assert client.rest() == b""


def test_the_application_gets_a_disconnect_at_once_when_its_request_is_refused(ours, connect):
    client = connect(ours, b"PUT /large/refused HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    await_true(lambda: ours.happened("/large/refused begins"))
    client.send(b"zz\r\n")  # the client does not read, so the connection stays
    await_true(lambda: ours.happened("/large/refused disconnected"))


SLOW = b"GET /echo/1?slow HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "held_bytes_min"),
    [
        (b"GET /echo/1 HTTP/1.1\r\nHost: h\r\n" + b"A: a\r\n" * 100, 600),
        (NEXT_REQUEST + b"GET /echo/1 HTTP/1.1\r\nHost: h\r\n" + b"A: a\r\n" * 1000, 1000),
        (b"PUT /kv/counted HTTP/1.1\r\nHost: h\r\nContent-Length: 900000\r\n\r\n" + b"a" * 800_000, 800_000),
        (SLOW + SLOW, 1000),
        (SLOW * 9000, 200_000),
        (SLOW + b"PUT /kv/counted HTTP/1.1\r\nHost: h\r\nContent-Length: 900000\r\n\r\n" + b"a" * 100_000, 80_000),
    ],
)
@pytest.mark.parametrize("then", [b"", b"\0\r\n\r\n"])
def test_what_a_client_has_sent_counts_until_it_is_gone(ours, connect, sent, held_bytes_min, then):
    with Client(ours.port, sent) as client:
        await_true(lambda: ours.held_bytes() >= held_bytes_min)
        client.send(then)
    await_true(lambda: ours.held_bytes() == 0)


def test_a_client_that_does_not_read_its_answer_is_cut_off(quick, connect):
    connect(quick, b"GET /large/1 HTTP/1.1\r\nHost: h\r\n\r\n")
    await_true(lambda: quick.happened("/large/1 disconnected"))


def test_a_client_that_reads_its_answer_slowly_is_not_cut_off_until_it_stops_reading(quick, connect):
    """Its kernel and ours hold so much that the worker itself sees no progress for long."""
    client = connect(quick, b"GET /large/slow HTTP/1.1\r\nHost: h\r\n\r\n")
    deadline = time.monotonic() + 3 * float(QUICK["KV_BODY_TIMEOUT_S"])
    while time.monotonic() < deadline:
        assert client.take(20_000)
        time.sleep(0.05)
        assert not quick.happened("/large/slow disconnected")
    await_true(lambda: quick.happened("/large/slow disconnected"))


@pytest.mark.parametrize(
    ("waiting", "unsent_bytes", "slowness", "cut_off"),
    [
        (False, 100, [0, 2, 3], []),
        (True, 100, [0, 2, 3], [2]),
        (False, 101, [0, 2, 3], [2]),
        (True, 101, [0, 1, 1], []),
        (True, 101, [], []),
    ],
)
def test_the_slowest_reader_is_cut_off_and_only_when_others_need_its_memory(waiting, unsent_bytes, slowness, cut_off):
    ended = []
    context = SimpleNamespace(
        connections=[
            SimpleNamespace(
                in_flight=1,
                reader=SimpleNamespace(unsent_bytes=unsent_bytes if number == 0 else 0, slowness=each),
                look=lambda _: None,
                is_overdue=lambda _: False,
                time_out=lambda number=number: ended.append(number),
            )
            for number, each in enumerate(slowness)
        ],
        counters=SimpleNamespace(show=lambda _: None),
        application=SimpleNamespace(gauges=dict, reads_wait_for_room=lambda: waiting),
        budget=BufferBudget(100),
    )
    worker.sweep(context, 0.0, 0.0)
    assert ended == cut_off


def test_the_listening_socket_is_closed_once_so_that_no_other_descriptor_is_closed(ours):
    ours.begin_stop()
    assert ours.stops()[-1] == "intact"


@pytest.mark.parametrize("arrived", [0, 1, 20])
def test_a_request_that_is_on_its_way_when_the_worker_stops_is_answered(ours, connect, arrived):
    request = b"PUT /echo/1 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"
    client = connect(ours, request[:arrived])
    ours.begin_stop()  # asks for the worker's pid, so the earlier connection is accepted by now
    client.send(request[arrived:])
    answer = client.answer()
    assert (answer.status, answer.body, answer.headers["connection"]) == (200, b"PUT /echo/1 abc", "close")
    assert client.rest() == b""


def begin_put(connect, server):
    """A connection with a request in flight, whose body is still to come."""
    client = connect(server, b"PUT /echo/1 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    assert client.answer().status == 100
    return client


def assert_finishes(client):
    client.send(b"abc")
    answer = client.answer()
    assert (answer.status, answer.body, answer.headers["connection"]) == (200, b"PUT /echo/1 abc", "close")
    assert client.rest() == b""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_in_flight_is_answered_when_the_worker_stops(ours, connect, number):
    client = begin_put(connect, ours)
    worker = ours.begin_stop(number)
    assert_finishes(client)
    await_true(lambda: is_gone(worker))


def test_a_request_in_flight_is_answered_however_many_signals_to_stop_the_worker_gets(ours, connect):
    client = begin_put(connect, ours)
    ours.begin_stop(signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGINT)
    assert_finishes(client)


# Deadlines that do not apply -----------------------------------------------------------------------------


def test_a_body_that_makes_progress_may_take_longer_than_the_deadline(quick, connect):
    client = connect(quick, b"PUT /echo/1 HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n")
    for _ in range(100):
        client.send(b"a")
        time.sleep(0.011)
    assert client.answer().body == b"PUT /echo/1 " + b"a" * 100


def test_an_answer_may_take_longer_than_every_deadline(quick, connect):
    client = connect(quick, b"PUT /echo/1?slow HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc")
    assert client.answer()[:2] == (200, b"PUT /echo/1 abc")


def test_an_idle_connection_is_closed_after_its_time_without_an_answer(quick, connect):
    client = connect(quick, b"GET /echo/1 HTTP/1.1\r\nHost: h\r\n\r\n")
    assert client.answer().status == 200
    assert client.rest() == b""


def test_an_idle_connection_does_not_delay_a_stop(tmp_path, connect):
    with Gunicorn(tmp_path) as server:
        used, unused = connect(server, b"GET /echo/1 HTTP/1.1\r\nHost: h\r\n\r\n"), connect(server)
        assert used.answer().status == 200
        worker = server.begin_stop()
        await_true(lambda: is_gone(worker), 5)
        assert used.rest() == unused.rest() == b""


# Hostile bytes -------------------------------------------------------------------------------------------

BAD, UNSUPPORTED = "bad request", "transfer-encoding not supported"
CHUNKED = "Transfer-Encoding: chunked"
ABC = "3\r\nabc\r\n0\r\n\r\n"
BAD_HOSTS = (b"a b", b"h/x", b"u@h", b"h:http", b"[::1", b"<h>", b"h?x", b"%zz", b'"h"', b"\xc3\xa9", b"h\\i", b"h#")


def lines(*fields, body=""):
    return "\r\n".join(["PUT /echo/refused HTTP/1.1", "Host: h", *fields, "", body]).encode("latin-1")


@pytest.mark.parametrize(
    ("raw", "status", "text"),
    [
        (b"GARBAGE\r\n\r\n", 400, BAD),
        (b"\r\n\r\nGARBAGE\r\n\r\n", 400, BAD),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, BAD),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, BAD),
        (b"BREW /echo/refused HTTP/2.0\r\n\r\n", 400, BAD),
        (b"BREW(/echo/refused HTTP/1.1\r\nHost: h\r\n\r\n", 400, BAD),
        (b"GET /echo/refused HTTP/9.9\r\n\r\n", 400, BAD),
        (b"GET /echo/refused HTTP/2.0\r\n\r\n", 400, BAD),
        (b"GET /echo/refused HTTP/0.9\r\n\r\n", 400, BAD),
        (b"GET /echo/refused\r\n\r\n", 400, BAD),
        (b"GET /echo/refused b HTTP/1.1\r\nHost: h\r\n\r\n", 400, BAD),
        (b"GET /echo/refused\x00 HTTP/1.1\r\nHost: h\r\n\r\n", 400, BAD),
        (b"GET echo/refused HTTP/1.1\r\nHost: h\r\n\r\n", 400, BAD),
        (b"GET http://h:99999/echo/refused HTTP/1.1\r\nHost: h\r\n\r\n", 400, BAD),
        (b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", 400, BAD),
        (lines().replace(b"Host: h\r\n", b""), 400, BAD),
        (lines("Host: h"), 400, BAD),
        (lines("Host: i").replace(b"Host: h\r\n", b"Host: a b\r\n", 1), 400, BAD),
        *((lines().replace(b"Host: h", b"Host: " + host), 400, BAD) for host in BAD_HOSTS),
        (lines("no colon"), 400, BAD),
        (lines(": no name"), 400, BAD),
        (lines("A : space before the colon"), 400, BAD),
        (lines("A: folded", " line"), 400, BAD),
        (lines("A: nul\0"), 400, BAD),
        (lines("A: bare\rCR"), 400, BAD),
        (lines("A: b").replace(b"\r\n", b"\n"), 400, BAD),
        (lines("Content-Length: 3", "Content-Length: 4", body="abc"), 400, BAD),
        (lines("Content-Length: 3", "Content-Length: 3", body="abc"), 400, BAD),
        (lines("Content-Length: 3, 4", body="abc"), 400, BAD),
        (lines("Content-Length: -3", body="abc"), 400, BAD),
        (lines("Content-Length: +3", body="abc"), 400, BAD),
        (lines("Content-Length: 0x3", body="abc"), 400, BAD),
        (lines("Content-Length:", body="abc"), 400, BAD),
        (lines(f"Content-Length: {1 << 64}", body="abc"), 400, BAD),
        (lines("Content-Length: 3", CHUNKED, body="0\r\n\r\nGET /echo/refused HTTP/1.1\r\nHost: h\r\n\r\n"), 400, BAD),
        (lines(CHUNKED, "Content-Length: 3", body="0\r\n\r\nGET /echo/refused HTTP/1.1\r\nHost: h\r\n\r\n"), 400, BAD),
        (lines("Transfer-Encoding: gzip, chunked", body=ABC), 400, UNSUPPORTED),
        (lines("Transfer-Encoding: gzip", CHUNKED, body=ABC), 400, UNSUPPORTED),
        (lines("Transfer-Encoding: identity", body="abc"), 400, UNSUPPORTED),
        (lines("Transfer-Encoding: gzip", "Content-Length: 3", body="abc"), 400, BAD),
        (lines("Transfer-Encoding: chunked, chunked", body=ABC), 400, BAD),
        (lines(CHUNKED, CHUNKED, body=ABC), 400, BAD),
        (lines("Transfer-Encoding:", " chunked", body=ABC), 400, BAD),
        (lines(CHUNKED, body=ABC).replace(b"1.1", b"1.0"), 400, UNSUPPORTED),
        (lines("A: " + "a" * HEADER_LIMIT), 431, TOO_LARGE),
        (lines("A: " + "a" * 200_000), 431, TOO_LARGE),
        (lines(*["A: a"] * 40_000), 431, TOO_LARGE),
        (lines("A: a").replace(b"refused", b"refused" * 30_000), 414, TOO_LONG),
    ],
    ids=lambda value: repr(value)[2:70].removeprefix(r"PUT /echo/refused HTTP/1.1\r\nHost: h\r\n"),
)
def test_a_request_that_could_be_understood_in_two_ways_or_none_is_refused_and_not_served(
    ours, connect, raw, status, text
):
    served = ours.ask("/events").count("/echo/refused")
    assert refusal(connect(ours, raw)) == (status, text)
    assert ours.ask("/events").count("/echo/refused") == served


@pytest.mark.parametrize(
    ("chunks", "status", "text"),
    [
        ("zz\r\nabc\r\n0\r\n\r\n", 400, BAD),
        ("3\r\nabcd\r\n0\r\n\r\n", 400, BAD),
        ("3\nabc\n0\n\n", 400, BAD),
        ("fffffffffffffffff\r\nabc", 400, BAD),
        ("3\r\nabc\r\n0\r\nContent-Length: 3\r\n\r\n", 400, BAD),
        (f"3\r\nabc\r\n0\r\n{CHUNKED}\r\n\r\n", 400, BAD),
        ("3;" + "e" * (HEADER_LIMIT + 64), 431, TOO_LARGE),
        ("0\r\n" + "A: a\r\n" * (HEADER_LIMIT // 6 + 1), 431, TOO_LARGE),
    ],
    ids=lambda value: repr(value)[1:40],
)
def test_a_put_whose_chunks_are_broken_is_refused_and_not_stored(ours, connect, chunks, status, text):
    client = connect(ours, f"PUT /kv/broken HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n{CHUNKED}\r\n\r\n".encode())
    assert client.answer().status == 100
    client.send(chunks.encode())
    assert refusal(client) == (status, text)
    assert ours.call("/kv/broken").status == 404


@pytest.mark.parametrize(
    ("length", "body"),
    [("Content-Length: 9", b"abc"), (CHUNKED, b"3\r\nabc\r\n"), (CHUNKED, b"3\r\na")],
)
@pytest.mark.parametrize("path", ["/echo/left", "/kv/left"])
def test_the_application_gets_a_disconnect_when_a_client_goes_away_in_the_middle_of_a_body(ours, length, body, path):
    seen = ours.count(f"{path} disconnected")
    head = f"PUT {path} HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n{length}\r\n\r\n"
    with Client(ours.port, head.encode()) as client:
        assert client.answer().status == 100
        client.send(body)
    await_true(lambda: ours.count(f"{path} disconnected") == seen + 1)
    assert ours.call("/kv/left").status == 404


# Unusual, and served -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"GET /echo/1 HTTP/1.1\r\nHost: h\r\n\r\n", b"GET /echo/1 "),
        (b"\r\nGET /echo/1 HTTP/1.1\r\nHost: h\r\n\r\n", b"GET /echo/1 "),
        (b"GET http://h/echo/1 HTTP/1.1\r\nHost: h\r\n\r\n", b"GET /echo/1 "),
        (b"PUT /echo/%FF?a HTTP/1.1\r\nHost: h\r\nContent-Length: 003 \r\n\r\nabc", b"PUT /echo/%FF abc"),
        (
            b"PUT /echo/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: CHUNKED\r\n\r\n3;e\r\nabc\r\n0\r\nA:b\r\n\r\n",
            b"PUT /echo/ abc",
        ),
        (b"PUT /echo/1 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: something\r\n\r\nabc", b"PUT /echo/1 abc"),
        (b"GET /echo/1 HTTP/1.1\r\nHost: h\r\nA: " + b"a" * (HEADER_LIMIT - 50) + b"\r\n\r\n", b"GET /echo/1 "),
        (b"GET /echo/1 HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", b"GET /echo/1 "),
        (b"GET /echo/1 HTTP/1.2\r\nHost: h\r\n\r\n", b"GET /echo/1 "),
        (b"GET /echo/1 HTTP/1.1\r\nHost: h\r\nProxy-Connection: close\r\n\r\n", b"GET /echo/1 "),
        (
            b"PUT /echo/1 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\tchunked  \r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            b"PUT /echo/1 abc",
        ),
    ],
    ids=lambda value: repr(value)[2:60],
)  # fmt: skip
def test_a_request_that_has_one_meaning_is_served_and_so_is_the_next(ours, connect, request_, answer):
    client = connect(ours, request_)
    assert client.answer()[:2] == (200, answer)
    client.send(b"GET /echo/next HTTP/1.1\r\nHost: h\r\n\r\n")
    assert client.answer()[:2] == (200, b"GET /echo/next ")


@pytest.mark.parametrize(
    ("request_", "status", "body"),
    [
        (b"PUT http://h/kv/absolute HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nv", 200, b""),
        (b"GET http://h:1/kv/absolute?q HTTP/1.1\r\nHost: h\r\n\r\n", 200, b"v"),
        (b"GET http://h/kv/%61bsolute HTTP/1.1\r\nHost: h\r\n\r\n", 200, b"v"),
        (b"GET http://h/kv/a%2Fb HTTP/1.1\r\nHost: h\r\n\r\n", 400, b"key contains invalid characters\n"),
        (b"GET http://h/kv/ HTTP/1.1\r\nHost: h\r\n\r\n", 400, b"key cannot be empty\n"),
        (b"GET http://h HTTP/1.1\r\nHost: h\r\n\r\n", 404, b"not found\n"),
        (b"GET http://h?q HTTP/1.1\r\nHost: h\r\n\r\n", 404, b"not found\n"),
        (b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", 404, b"not found\n"),
    ],
)
def test_a_request_may_name_the_host_with_the_path_or_no_path(ours, connect, request_, status, body):
    assert connect(ours, request_).answer()[:2] == (status, body)


@pytest.mark.parametrize("key", [b"\xff", b"a\xc3\xbc", b"a#b"])
def test_a_target_with_bytes_that_no_target_has_is_refused(ours, connect, key):
    client = connect(ours, b"PUT /kv/" + key + b" HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx")
    assert refusal(client) == (400, BAD)


def test_a_body_that_is_not_ascii_arrives_as_it_was_sent_in_however_many_pieces(ours, connect):
    pieces = ["ü#\nü".encode(), "ü#\r\n".encode(), "ü".encode()]
    body = b"".join(pieces)
    client = connect(
        ours, b"PUT /kv/pieces HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
    )
    assert client.answer().status == 100
    for number, piece in enumerate(pieces, start=1):
        client.send(piece)
        await_true(lambda number=number: ours.count("/kv/pieces goes on") == number)
    assert client.answer().status == 200
    assert ours.call("/kv/pieces").body == body


def test_http_1_0_is_answered_and_closed(ours, connect):
    client = connect(ours, b"GET /echo/1 HTTP/1.0\r\n\r\n")
    status, body, headers = client.answer()
    assert (status, body, headers["connection"]) == (200, b"GET /echo/1 ", "close")
    assert client.rest() == b""


def test_http_1_0_is_kept_alive_when_it_asks_for_that(ours, connect):
    client = connect(ours)
    for _ in range(2):
        client.send(b"GET /echo/1 HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")
        status, body, headers = client.answer()
        assert (status, body, headers["connection"]) == (200, b"GET /echo/1 ", "keep-alive")
    client.send(b"GET /echo/1 HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n")
    assert client.answer().headers["connection"] == "close"
    assert client.rest() == b""


def test_pipelined_requests_are_answered_in_order(ours, connect):
    client = connect(
        ours,
        b"GET /echo/1?slow HTTP/1.1\r\nHost: h\r\n\r\n"
        b"PUT /echo/2 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"
        b"PUT /echo/3 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        b"GET /echo/4 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
        b"GET /echo/unserved HTTP/1.1\r\nHost: h\r\n\r\n",
    )
    bodies = [client.answer().body for _ in range(4)]
    assert bodies == [b"GET /echo/1 ", b"PUT /echo/2 abc", b"PUT /echo/3 abc", b"GET /echo/4 "]
    assert client.rest() == b""
    assert not ours.happened("/echo/unserved begins")


@pytest.mark.parametrize("query", [b"", b"?slow"])
def test_large_pipelined_requests_arrive_as_they_were_sent(ours, connect, query):
    sizes = [1, 70_000, 0, 16_384, 16_300, 200_000, 3]
    bodies = [bytes([ord("a") + number]) * size for number, size in enumerate(sizes)]
    head = b"PUT /echo/1%s HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n"
    requests = [head % (query if not number else b"", len(body)) + body for number, body in enumerate(bodies)]
    client = connect(ours, b"".join(requests))
    assert [client.answer().body for _ in bodies] == [b"PUT /echo/1 " + body for body in bodies]
    client.send(requests[1])
    assert client.answer().body == b"PUT /echo/1 " + bodies[1]


@pytest.mark.parametrize("query", [b"", b"?slow"])
def test_a_refused_request_does_not_replace_the_answer_to_the_one_before_it(ours, connect, query):
    client = connect(
        ours, b"PUT /echo/1" + query + b" HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabcGARBAGE\r\n\r\n"
    )
    assert client.answer()[:2] == (200, b"PUT /echo/1 abc")
    await_true(client.ended)


H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"GET /echo/1 HTTP/1.1\r\nHost: h\r\n", b""),
        (b"PUT /echo/1 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n", b"abc"),
        (b"PUT /echo/1 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n", ABC.encode()),
    ],
)
@pytest.mark.parametrize("separately", [False, True])
def test_an_offer_to_speak_http_2_is_not_accepted_and_the_request_is_served(ours, connect, head, body, separately):
    client = connect(ours, head + b"Expect: 100-continue\r\n" + H2C + b"\r\n" + (b"" if separately else body))
    if separately and body:
        assert client.answer().status == 100
        client.send(body)
    assert client.answer()[:2] == (200, head[:3] + b" /echo/1 " + (b"abc" if body else b""))
    client.send(b"GET /echo/next HTTP/1.1\r\nHost: h\r\n\r\n")
    assert client.answer()[:2] == (200, b"GET /echo/next ")


def test_any_number_of_offers_to_speak_http_2_may_be_pipelined(ours, connect):
    client = connect(ours, (b"GET /echo/1 HTTP/1.1\r\nHost: h\r\n" + H2C + b"\r\n") * 1200)
    assert {client.answer()[:2] for _ in range(1200)} == {(200, b"GET /echo/1 ")}


def test_the_body_of_a_request_that_offers_http_2_is_never_taken_for_a_request(ours, connect):
    body = b"GET /echo/smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
    client = connect(ours, b"PUT /kv/h2c HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n%s\r\n" % (len(body), H2C))
    client.send(body)
    assert client.answer().status == 200
    assert ours.call("/kv/h2c").body == body
    assert not ours.happened("/echo/smuggled begins")


@pytest.mark.parametrize(
    ("target", "length", "status"),
    [("/kv/large", VALUE_LIMIT, 100), ("/kv/large", VALUE_LIMIT + 1, 413), ("/kv/a%20b", 1, 400), ("/nope", 1, 404)],
)
def test_a_body_is_asked_for_only_when_it_will_be_read(ours, connect, target, length, status):
    head = f"PUT {target} HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
    client = connect(ours, head.encode())
    answer = client.answer()
    assert answer.status == status
    if status != 100:
        assert answer.headers["connection"] == "close"
        assert client.rest() == b""


def test_a_body_is_not_asked_for_when_it_is_there_or_its_client_speaks_http_1_0(ours, connect):
    head = b"PUT /echo/1 HTTP/%b\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    assert connect(ours, head % b"1.1" + b"abc").answer().status == 200
    client = connect(ours, head % b"1.0")
    await_true(lambda: ours.happened("/echo/1 begins"))
    client.send(b"abc")
    assert client.answer().status == 200


MASTER = """
import os, signal, sys
from kv.http import worker

queued = []
signal.signal(signal.SIGTERM, lambda number, _: queued.append(number))  # gunicorn's master only queues it
os.register_at_fork(**{sys.argv[1]: lambda: os.kill(os.getpid(), signal.SIGTERM)})
worker.keep_stops_of_new_workers()
if not (child := os.fork()):
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), len(queued))
"""


@pytest.mark.parametrize(
    ("moment", "status_of_worker", "queued_by_master"),
    [("before", 0, 1), ("after_in_child", -signal.SIGTERM, 0), ("after_in_parent", 0, 1)],
)
def test_a_signal_to_stop_is_not_lost_while_a_worker_is_forked(moment, status_of_worker, queued_by_master):
    ran = subprocess.run(
        [sys.executable, "-c", MASTER, moment], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout.split() == [str(int(status_of_worker)), str(queued_by_master)]
