"""Who may talk to the server: the token, TLS, and what is said when a file for them cannot be used."""

import contextlib
import http.client
import signal
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kv import tls
from kv.config import Config
from tests.support.harness import Server, await_true, call, exchange, make_certificate, read_to_end, run_to_end

TOKEN = "correct-horse"
UNAUTHORIZED = (401, b"unauthorized\n")


def write_token(path, token=TOKEN, mode=0o600):
    path.write_text(token + "\n")
    path.chmod(mode)
    return path


def ask(port, method, path, body=None, *, authorization=None, context=None):
    """Status, body and headers of one request."""
    if context:
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, {"Authorization": authorization} if authorization else {})
        response = connection.getresponse()
        return (response.status, response.read()), response.headers
    finally:
        connection.close()


# The token -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def token_file(tmp_path_factory):
    return write_token(tmp_path_factory.mktemp("secret") / "token")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, token_file):
    with Server(tmp_path_factory.mktemp("guarded") / "data", f"--token-file={token_file}", "--workers=1") as server:
        yield server


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_request_with_the_token_is_served(guarded, scheme):
    authorization = f"{scheme} {TOKEN}"
    assert ask(guarded.port, "PUT", "/kv/a", b"1", authorization=authorization)[0] == (200, b"")
    assert ask(guarded.port, "GET", "/kv/a", authorization=authorization)[0] == (200, b"1")


@pytest.mark.parametrize(
    "authorization",
    [None, "Bearer", "Bearer ", "Bearer wrong", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/kv/a"),
        ("PUT", "/kv/a"),
        ("DELETE", "/kv/a"),
        ("DELETE", "/clear"),
        ("GET", "/metrics"),
        ("GET", "/openapi.yaml"),
        ("GET", "/nothing"),
        ("POST", "/kv/a"),
        ("GET", "/%68ealth"),
    ],
)
def test_a_request_without_the_token_is_refused_whatever_it_asks_for(guarded, method, path, authorization):
    answer, headers = ask(guarded.port, method, path, b"x" if method == "PUT" else None, authorization=authorization)
    assert answer == UNAUTHORIZED
    assert headers["WWW-Authenticate"] == "Bearer"
    assert headers["Content-Type"] == "text/plain; charset=utf-8"


def test_two_tokens_in_one_request_are_none(guarded):
    head = (
        f"GET /kv/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{f'Authorization: Bearer {TOKEN}' + chr(13) + chr(10)}"
    )
    assert exchange(guarded.port, f"{head}\r\n".encode()).startswith(b"HTTP/1.1 ")
    assert exchange(guarded.port, f"{head}Authorization: Bearer x\r\n\r\n".encode()).startswith(b"HTTP/1.1 401 ")


def test_the_body_of_a_refused_write_is_not_awaited(guarded):
    head = b"PUT /kv/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    answer = exchange(guarded.port, head + b"x")  # returns when the server has closed
    assert answer.startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("path", ["/health", "/live"])
def test_whether_it_lives_anybody_may_ask(guarded, path):
    assert ask(guarded.port, "GET", path)[0] == (200, b"ok")


def test_the_token_is_in_no_command_line_no_environment_and_no_log(guarded):
    for process in guarded.members():
        assert TOKEN not in " ".join(process.cmdline())
        assert TOKEN not in str(process.environ())
    assert TOKEN not in guarded.log


def test_a_reload_takes_a_new_token_and_is_not_done_with_a_bad_one(tmp_path):
    token_file = write_token(tmp_path / "token")
    with Server(tmp_path / "data", f"--token-file={token_file}", "--workers=1") as server:
        write_token(token_file, "new")
        server.process.send_signal(signal.SIGHUP)
        await_true(lambda: ask(server.port, "GET", "/metrics", authorization="Bearer new")[0][0] == 200, 30)
        await_true(lambda: ask(server.port, "GET", "/metrics", authorization=f"Bearer {TOKEN}")[0] == UNAUTHORIZED, 30)
        token_file.chmod(0o644)
        server.process.send_signal(signal.SIGHUP)
        await_true(lambda: "the workers are not restarted" in server.log)
        assert ask(server.port, "GET", "/metrics", authorization="Bearer new")[0][0] == 200
        worker = server.only("worker")
        worker.kill()  # its successor cannot read the token
        await_true(lambda: "every request is refused" in server.log, 30)
        await_true(lambda: ask(server.port, "GET", "/metrics", authorization="Bearer new")[0] == UNAUTHORIZED, 30)
        await_true(lambda: call(server.port, "GET", "/health").status == 200, 30)  # once it has reached logd


@pytest.mark.parametrize(
    ("text", "mode", "why"),
    [
        ("", 0o600, "must hold one word"),
        ("two words", 0o600, "must hold one word"),
        ("sch\u00f6n", 0o600, "must hold one word"),
        (TOKEN, 0o604, "every user"),
        (TOKEN, 0o602, "every user"),
    ],
)
def test_a_token_file_that_cannot_be_used_ends_the_start_with_one_line(tmp_path, text, mode, why):
    token_file = write_token(tmp_path / "token", text, mode)
    status, said = run_to_end(f"--working-dir={tmp_path / 'data'}", f"--token-file={token_file}")
    assert status == 2
    assert len([line for line in said if str(token_file) in line and why in line]) == 1
    assert not (tmp_path / "data").exists()


def test_a_token_file_that_is_missing_ends_the_start_with_one_line(tmp_path):
    status, said = run_to_end(f"--working-dir={tmp_path / 'data'}", f"--token-file={tmp_path / 'none'}")
    assert status == 2
    assert len([line for line in said if "cannot be read: No such file or directory" in line]) == 1


@pytest.mark.parametrize(
    ("host", "given", "warning"),
    [
        ("127.0.0.1", [], None),
        ("::1", [], None),
        ("localhost", [], None),
        ("0.0.0.0", [], "there is no authentication"),
        ("::", ["tls_cert_file", "tls_key_file"], "there is no authentication"),
        ("192.0.2.1", ["token_file"], "without TLS"),
        ("example.org", ["token_file", "tls_cert_file", "tls_key_file"], None),
    ],
)
def test_a_server_that_others_can_reach_says_what_it_leaves_open(caplog, host, given, warning):
    tls.warn(Config(host=host, **dict.fromkeys(given, Path("file"))))
    assert [record.levelname for record in caplog.records] == (["WARNING"] if warning else [])
    assert (warning or "") in caplog.text


# TLS -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("tls"))


class TlsServer(Server):
    """A server whose readiness is asked for over TLS."""

    def __init__(self, directory, certificate, *flags):
        cert, key = certificate
        super().__init__(directory, f"--tls-cert-file={cert}", f"--tls-key-file={key}", *flags)
        self.context = ssl.create_default_context(cafile=cert)

    def ask(self, method, path, body=None):
        return ask(self.port, method, path, body, context=self.context)[0]

    def is_healthy(self):
        try:
            return self.ask("GET", "/health") == (200, b"ok")
        except OSError:
            return False


@contextlib.contextmanager
def started(server):
    """Ready over TLS, and ended in the end."""
    try:
        server.spawn()
        await_true(server.is_healthy, 30, "readiness over TLS")
        yield server
    finally:
        server.__exit__(None, None, None)


@pytest.fixture
def tls_server(tmp_path, certificate):
    flags = ("--workers=1", "--header-timeout-s=0.5", "--keep-alive-s=0.5")
    with started(TlsServer(tmp_path / "data", certificate, *flags)) as server:
        yield server


def test_over_tls_it_serves_stores_and_stops_as_without(tls_server):
    big = "\u00fc".encode() * 500_000
    assert tls_server.ask("PUT", "/kv/a", big) == (200, b"")
    assert tls_server.ask("GET", "/kv/a") == (200, big)
    assert tls_server.ask("GET", "/kv/b") == (404, b"key not found\n")
    assert f"listening on https://127.0.0.1:{tls_server.port}" in tls_server.log
    tls_server.process.send_signal(signal.SIGHUP)
    await_true(lambda: tls_server.log.count("INFO started") == 2, 30, "the new worker")
    assert tls_server.ask("GET", "/kv/a") == (200, big)
    assert tls_server.stop() == 0
    assert tls_server.left_behind() == []


def test_over_tls_deadlines_hold_and_plain_http_and_old_versions_get_nothing(tls_server):
    address = ("127.0.0.1", tls_server.port)
    connection = socket.create_connection(address, 30)
    with tls_server.context.wrap_socket(connection, server_hostname="127.0.0.1") as slow:
        slow.sendall(b"GET /kv/a HTTP/1.1\r\nHost")
        assert read_to_end(slow).startswith(b"HTTP/1.1 408 ")
    assert not exchange(tls_server.port, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 200")
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("DEFAULT:@SECLEVEL=0")  # or this side would not even offer it
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(address, 30) as plain, pytest.raises((ssl.SSLError, ConnectionError)):
        old.wrap_socket(plain)


QUICK = ("--workers=1", "--header-timeout-s=0.5", "--body-timeout-s=1", "--keep-alive-s=30")
LARGE = b"v" * (16 << 20)


@pytest.fixture(scope="module")
def quick(tmp_path_factory, certificate):
    with started(TlsServer(tmp_path_factory.mktemp("quick") / "data", certificate, *QUICK)) as server:
        assert server.ask("PUT", "/kv/large", LARGE) == (200, b"")
        yield server


def connect_tls(server, sent=b"", receive_bytes=1 << 16):
    """A client that takes little at once."""
    client = socket.socket()
    client.settimeout(30)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    client.connect(("127.0.0.1", server.port))
    wrapped = server.context.wrap_socket(client, server_hostname="127.0.0.1")
    wrapped.sendall(sent)
    return wrapped


def is_held(server, client):
    """Whether a worker has the other end of a connection."""
    port = client.getsockname()[1]
    return any(each.raddr and each.raddr.port == port for each in server.only("worker").net_connections())


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
def test_a_handshake_has_the_deadline_of_headers(quick, sent):
    with socket.create_connection(("127.0.0.1", quick.port), 5) as client:
        client.sendall(sent)
        assert read_to_end(client) == b""


def test_over_tls_a_client_that_does_not_read_its_answer_is_cut_off(quick):
    with connect_tls(quick, b"GET /kv/large HTTP/1.1\r\nHost: h\r\n\r\n") as client:
        await_true(lambda: not is_held(quick, client), 5, "the end of who does not read")


def test_over_tls_a_client_that_does_not_say_goodbye_is_let_go(quick):
    with connect_tls(quick, b"GET /live HTTP/1.0\r\n\r\n") as client:
        await_true(lambda: not is_held(quick, client), 5, "the end of who says nothing")


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_over_tls_a_large_answer_arrives_whole_however_long_it_takes(quick, version):
    received, began = 0, time.monotonic()
    with connect_tls(quick, b"GET /kv/large HTTP/" + version + b"\r\nHost: h\r\n\r\n") as client:
        while received < len(LARGE):
            data = client.recv(1 << 14)
            assert data, f"the end after {received} bytes"
            received += len(data)
            time.sleep(0.003)
    assert time.monotonic() - began > 2, "too fast to tell"


ENDING = b"e" * (6 << 20)


def read_slowly_before_the_end(server, left_bytes):
    """How much comes when a MiB before the last bytes is read in a few times the time allowed without progress."""
    received = 0
    with connect_tls(server, b"GET /kv/ending HTTP/1.0\r\n\r\n") as client:
        while data := client.recv(1 << 14):
            received += len(data)
            if left_bytes < len(ENDING) - received < left_bytes + (1 << 20):
                time.sleep(0.05)
    return received


def test_over_tls_an_answer_is_not_cut_off_at_its_end_while_its_client_makes_progress(quick):
    """At some point the server sees nothing of it any more, though not all is sent: where, is for the kernel to say."""
    assert quick.ask("PUT", "/kv/ending", ENDING) == (200, b"")
    left = range(1 << 20, 5 << 20, 1 << 19)
    with ThreadPoolExecutor(len(left)) as clients:
        received = list(clients.map(lambda left_bytes: read_slowly_before_the_end(quick, left_bytes), left))
    assert all(each > len(ENDING) for each in received), received


@pytest.mark.parametrize("client", ["idle", "in a handshake", "answered last"])
def test_over_tls_no_client_holds_up_a_stop(tmp_path, certificate, client):
    with started(TlsServer(tmp_path / "data", certificate, "--workers=1")) as server:
        if client == "in a handshake":
            other = socket.create_connection(("127.0.0.1", server.port), 30)
        elif client == "idle":
            other = connect_tls(server, b"GET /live HTTP/1.1\r\nHost: h\r\n\r\n")
        else:
            other = connect_tls(
                server, b"PUT /kv/a HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n"
            )
        with other:
            await_true(lambda: is_held(server, other))
            if client != "in a handshake":
                other.recv(1000)
            server.process.send_signal(signal.SIGTERM)
            if client == "answered last":
                await_true(lambda: "stopping on SIGTERM" in server.log)
                other.sendall(b"v")
                assert other.recv(1000).startswith(b"HTTP/1.1 200 ")
            assert server.wait(4) == 0


def test_a_certificate_that_is_gone_is_used_until_another_can_be(tmp_path):
    files = cert, key = make_certificate(tmp_path)
    with started(TlsServer(tmp_path / "data", files, "--workers=1")) as server:
        kept = cert.read_bytes()
        cert.unlink()
        server.process.send_signal(signal.SIGHUP)
        await_true(lambda: "the workers are not restarted: --tls-cert-file" in server.log)
        assert server.ask("GET", "/live") == (200, b"ok")

        server.only("worker").kill()
        await_true(lambda: server.log.count("INFO started") == 2, what="the next worker")
        assert server.ask("GET", "/live") == (200, b"ok")

        server.only("gunicorn").kill()  # whose successor has nothing to go on with
        await_true(lambda: server.log.count("gunicorn is not started: --tls-cert-file") > 1)
        cert.write_bytes(kept)
        await_true(server.is_healthy, 30, "health")

        other, other_key = make_certificate(tmp_path, "other")
        other.rename(cert)
        other_key.rename(key)
        server.process.send_signal(signal.SIGHUP)
        server.context = ssl.create_default_context(cafile=cert)
        await_true(server.is_healthy, 30, "the other certificate")


@pytest.mark.parametrize("damage", ["missing", "no certificate", "the key of another"])
def test_a_certificate_that_cannot_be_used_ends_the_start_with_one_line(tmp_path, certificate, damage):
    cert, key = certificate
    if damage == "missing":
        cert = tmp_path / "none"
    elif damage == "no certificate":
        cert = write_token(tmp_path / "cert")
    else:
        _, key = make_certificate(tmp_path, "another")
    flags = [f"--working-dir={tmp_path / 'data'}", f"--tls-cert-file={cert}", f"--tls-key-file={key}"]
    status, said = run_to_end(*flags)
    assert status == 2
    assert len([line for line in said if f"--tls-cert-file {cert}" in line and "cannot be used" in line]) == 1
    assert not (tmp_path / "data").exists()


def test_a_certificate_without_a_key_makes_no_sense(tmp_path, certificate):
    status, said = run_to_end(f"--working-dir={tmp_path / 'data'}", f"--tls-cert-file={certificate[0]}")
    assert status == 2
    assert "go together" in said[-1]
