"""Who may talk to the server: the token, TLS, and what is said when a file for them cannot be used."""

import http.client
import signal
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from kv import access
from kv.config import Config
from tests.harness import Server, await_true, call, exchange, read_to_end, run_to_end

TOKEN = "correct-horse"
UNAUTHORIZED = (401, b"unauthorized\n")


def write_token(path, token=TOKEN, mode=0o600):
    path.write_text(token + "\n")
    path.chmod(mode)
    return path


def make_certificate(directory, name="server"):
    """A self-signed certificate for 127.0.0.1 and its key."""
    cert, key = directory / f"{name}.pem", directory / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


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
    access.warn(Config(host=host, **dict.fromkeys(given, Path("file"))))
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


@pytest.fixture
def tls_server(tmp_path, certificate):
    server = TlsServer(tmp_path / "data", certificate, "--workers=1", "--header-timeout-s=0.5", "--keep-alive-s=0.5")
    try:
        server.spawn()
        await_true(server.is_healthy, 30, "readiness over TLS")
        yield server
    finally:
        server.__exit__(None, None, None)


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
