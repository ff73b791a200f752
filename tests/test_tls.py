"""TLS: requests, deadlines and stops as without it, how the certificate is replaced, and the warning without TLS."""

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
from kv.config import Config, UnusableFile
from kv.supervisor import check_files
from tests.support.clients import exchange, read_to_end
from tests.support.harness import Server, await_true, make_certificate, run_to_end


@pytest.fixture(scope="module")
def certificate(module_path):
    return make_certificate(module_path)


class TlsServer(Server):
    """A server that speaks TLS."""

    def __init__(self, directory, certificate, *flags):
        cert, key = certificate
        super().__init__(directory, f"--tls-cert-file={cert}", f"--tls-key-file={key}", *flags)
        self.context = ssl.create_default_context(cafile=cert)

    def ask(self, method, path, body=None):
        """Status and body of the answer to one request."""
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=self.context)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def is_healthy(self):
        try:
            return self.ask("GET", "/health") == (200, b"ok")
        except OSError:
            return False


@contextlib.contextmanager
def started(server):
    """A server that is ready over TLS; it is ended at the end."""
    with server.spawned():
        await_true(server.is_healthy, 30, "readiness over TLS")
        yield server


@pytest.fixture
def tls_server(tmp_path, certificate):
    flags = ("--workers=1", "--header-timeout-s=0.5", "--keep-alive-s=0.5")
    with started(TlsServer(tmp_path / "data", certificate, *flags)) as server:
        yield server


def test_over_tls_it_serves_reloads_and_stops_as_without(tls_server):
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


def test_over_tls_deadlines_hold_and_plain_http_and_old_versions_are_refused(tls_server):
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
def quick(module_path, certificate):
    with started(TlsServer(module_path / "data", certificate, *QUICK)) as server:
        assert server.ask("PUT", "/kv/large", LARGE) == (200, b"")
        yield server


def connect_tls(server, sent=b"", receive_bytes=1 << 16):
    """A client with a small receive buffer."""
    client = socket.socket()
    client.settimeout(30)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    client.connect(("127.0.0.1", server.port))
    wrapped = server.context.wrap_socket(client, server_hostname="127.0.0.1")
    wrapped.sendall(sent)
    return wrapped


def is_open(server, client):
    """Whether the worker still has its end of a connection."""
    port = client.getsockname()[1]
    return any(each.raddr and each.raddr.port == port for each in server.only("worker").net_connections())


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
def test_a_handshake_has_the_deadline_of_headers(quick, sent):
    with socket.create_connection(("127.0.0.1", quick.port), 5) as client:
        client.sendall(sent)
        assert read_to_end(client) == b""


def test_over_tls_a_client_that_does_not_read_its_answer_is_cut_off(quick):
    with connect_tls(quick, b"GET /kv/large HTTP/1.1\r\nHost: h\r\n\r\n") as client:
        await_true(lambda: not is_open(quick, client), 5, "the end of the connection")


def test_over_tls_a_client_that_does_not_close_its_side_is_cut_off(quick):
    with connect_tls(quick, b"GET /live HTTP/1.0\r\n\r\n") as client:
        await_true(lambda: not is_open(quick, client), 5, "the end of the connection")


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
    """The bytes received by a client that takes a few times --body-timeout-s for a MiB shortly before the end."""
    received = 0
    with connect_tls(server, b"GET /kv/ending HTTP/1.0\r\n\r\n") as client:
        while data := client.recv(1 << 14):
            received += len(data)
            if left_bytes < len(ENDING) - received < left_bytes + (1 << 20):
                time.sleep(0.05)
    return received


def test_over_tls_an_answer_is_not_cut_off_at_its_end_while_its_client_makes_progress(quick):
    """From some point on, which the kernel decides, the server cannot see that the client still reads."""
    assert quick.ask("PUT", "/kv/ending", ENDING) == (200, b"")
    left = range(1 << 20, 5 << 20, 1 << 19)
    with ThreadPoolExecutor(len(left)) as clients:
        received = list(clients.map(lambda left_bytes: read_slowly_before_the_end(quick, left_bytes), left))
    assert all(each > len(ENDING) for each in received), received


@pytest.mark.parametrize("client", ["idle", "in a handshake", "answered last"])
def test_over_tls_no_client_delays_a_stop(tmp_path, certificate, client):
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
            await_true(lambda: is_open(server, other))
            if client != "in a handshake":
                other.recv(1000)
            server.process.send_signal(signal.SIGTERM)
            if client == "answered last":
                await_true(lambda: "stopping on SIGTERM" in server.log)
                other.sendall(b"v")
                assert other.recv(1000).startswith(b"HTTP/1.1 200 ")
            assert server.wait(4) == 0


def test_a_certificate_whose_file_is_gone_is_used_until_another_can_be_loaded(tmp_path):
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

        server.only("gunicorn").kill()  # its successor has no certificate to go on with
        await_true(lambda: server.log.count("gunicorn is not started: --tls-cert-file") > 1)
        cert.write_bytes(kept)
        await_true(server.is_healthy, 30, "health")

        other, other_key = make_certificate(tmp_path, "other")
        other.rename(cert)
        other_key.rename(key)
        server.process.send_signal(signal.SIGHUP)
        server.context = ssl.create_default_context(cafile=cert)
        await_true(server.is_healthy, 30, "the other certificate")


def test_a_reload_of_the_whole_group_keeps_the_certificate_whose_file_is_gone(tmp_path):
    """Gunicorn gets the signal too, and not only from the supervisor, which would have refused it."""
    files = cert, _ = make_certificate(tmp_path)
    with started(TlsServer(tmp_path / "data", files, "--workers=1")) as server:
        gunicorn, worker = server.only("gunicorn"), server.only("worker")
        cert.unlink()
        server.signal_group(signal.SIGHUP)
        await_true(lambda: "the workers go on with the last certificate: --tls-cert-file" in server.log, 30)
        await_true(lambda: not worker.is_running(), 30, "the end of the old worker")
        await_true(server.is_healthy, 30, "health")
        assert server.only("gunicorn") == gunicorn


@pytest.mark.parametrize("damage", ["missing", "no certificate", "the key of another"])
def test_a_certificate_that_cannot_be_used_ends_the_start_with_one_line(tmp_path, certificate, damage):
    cert, key = certificate
    if damage == "missing":
        cert = tmp_path / "none"
    elif damage == "no certificate":
        cert = tmp_path / "cert"
        cert.write_text("no certificate\n")
    else:
        _, key = make_certificate(tmp_path, "another")
    flags = [f"--working-dir={tmp_path / 'data'}", f"--tls-cert-file={cert}", f"--tls-key-file={key}"]
    status, said = run_to_end(*flags)
    assert status == 2
    assert len([line for line in said if f"--tls-cert-file {cert}" in line and "cannot be used" in line]) == 1
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("damaged", ["etcd_ca_file", "etcd_cert_file", "etcd_key_file"])
def test_the_check_of_an_upgrade_finds_each_file_for_etcd_that_cannot_be_used(tmp_path, certificate, damaged):
    """logd would find it too late: when everything was stopped for the upgrade."""
    cert, key = certificate
    files = {"etcd_ca_file": cert, "etcd_cert_file": cert, "etcd_key_file": key}
    check_files(Config(engine="etcd", value_bytes_max=1, **files))
    with pytest.raises(UnusableFile, match=f"--{damaged.replace('_', '-')} {tmp_path / 'none'}.* cannot be used"):
        check_files(Config(engine="etcd", value_bytes_max=1, **files | {damaged: tmp_path / "none"}))


def test_a_certificate_without_a_key_is_refused(tmp_path, certificate):
    status, said = run_to_end(f"--working-dir={tmp_path / 'data'}", f"--tls-cert-file={certificate[0]}")
    assert status == 2
    assert "must be given together" in said[-1]


@pytest.mark.parametrize(
    ("host", "given", "warning"),
    [
        ("127.0.0.1", [], None),
        ("::1", [], None),
        ("localhost", [], None),
        ("0.0.0.0", [], "without authentication"),
        ("::", ["tls_cert_file", "tls_key_file"], "without authentication"),
        ("192.0.2.1", ["token_file"], "without TLS"),
        ("example.org", ["token_file", "tls_cert_file", "tls_key_file"], None),
    ],
)
def test_a_server_that_others_can_reach_warns_when_the_token_or_tls_is_missing(caplog, host, given, warning):
    tls.warn_if_exposed(Config(host=host, **dict.fromkeys(given, Path("file"))))
    assert [record.levelname for record in caplog.records] == (["WARNING"] if warning else [])
    assert (warning or "") in caplog.text
