"""Clients as people have them: each sees the answer that comes while it is still sending, in every try.

Most of them write all of a request before they read. A server that closes a socket with unread data resets it, and the
reset discards the answer before they look for it.
"""

import contextlib
import http.client
import re
import shutil
import ssl
import subprocess
from typing import NamedTuple

import pytest

from tests.support.harness import Server, await_true, free_port, make_certificate

MIB = 1 << 20
TRIES = 5
BEARER = {"Authorization": "Bearer secret"}


class Early(NamedTuple):
    """A request that is answered before its body has arrived."""

    method: str
    target: str
    size: int
    headers: dict[str, str]
    status: int


EARLY = [
    Early("PUT", "/kv/large", 17 * MIB, BEARER, 413),
    Early("PUT", "/kv/large", 16 * MIB, {}, 401),
    Early("PUT", "/nope", 16 * MIB, BEARER, 404),
    Early("POST", "/kv/a", 16 * MIB, BEARER, 405),
    Early("PUT", "/kv/a%20b", 16 * MIB, BEARER, 400),
]


class TlsServer(Server):
    """A server whose readiness is asked for over TLS."""

    def call(self, method, path, body=None, *, timeout=30.0):
        connection = connect(self, timeout)
        with contextlib.closing(connection):
            connection.request(method, path, body)
            response = connection.getresponse()
            response.read()
            return response


@pytest.fixture(scope="module", params=["http", "https"])
def server(request, module_path):
    directory = module_path / request.param
    directory.mkdir()
    token = directory / "token"
    token.write_text("secret")
    token.chmod(0o600)
    flags = ["--workers=1", f"--token-file={token}"]
    kind = Server
    certificate = None
    if request.param == "https":
        certificate, key = make_certificate(directory)
        flags += [f"--tls-cert-file={certificate}", f"--tls-key-file={key}"]
        kind = TlsServer
    server = kind(directory / "data", *flags)
    server.certificate = certificate
    server.url = f"{request.param}://127.0.0.1:{server.port}"
    with server:
        yield server


def need(program):
    """The path of a program; skips the test where it is not installed."""
    path = shutil.which(program)
    if not path:
        pytest.skip(f"{program} is not installed")
    return path


def connect(server, timeout=60):
    if not server.certificate:
        return http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout)
    context = ssl.create_default_context(cafile=server.certificate)
    return http.client.HTTPSConnection("127.0.0.1", server.port, timeout=timeout, context=context)


def run(command, **environment):
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment or None)


# What sees a status, or nothing ---------------------------------------------------------------------------


def by_http_client(server, tmp_path, early):
    with contextlib.closing(connect(server)) as connection:
        connection.request(early.method, early.target, b"x" * early.size, early.headers)
        return connection.getresponse().status


def by_http_client_in_chunks(server, tmp_path, early):
    chunks = (b"x" * MIB for _ in range(early.size // MIB))
    with contextlib.closing(connect(server)) as connection:
        connection.request(early.method, early.target, chunks, early.headers, encode_chunked=True)
        return connection.getresponse().status


def by_curl(server, tmp_path, early):
    body = tmp_path / "body"
    body.write_bytes(b"x" * early.size)
    command = [
        need("curl"),
        "-s",
        "-o",
        "-",
        "-w",
        "%{http_code}",
        "-X",
        early.method,
        "-T",
        str(body),
        "-H",
        "Expect:",
    ]
    command += [part for name, value in early.headers.items() for part in ("-H", f"{name}: {value}")]
    command += ["--cacert", str(server.certificate)] if server.certificate else []
    return int(run([*command, server.url + early.target]).stdout[-3:] or 0)


FETCH = """
const [url, method, size, headers] = process.argv.slice(1);
fetch(url, {method, body: new Uint8Array(Number(size)), headers: JSON.parse(headers)})
    .then(answer => console.log(answer.status), error => console.log(0));
"""


def by_node_fetch(server, tmp_path, early):
    trust = {"NODE_EXTRA_CA_CERTS": str(server.certificate)} if server.certificate else {}
    shown = "{" + ", ".join(f'"{name}": "{value}"' for name, value in early.headers.items()) + "}"
    command = [need("node"), "-e", FETCH, server.url + early.target, early.method, str(early.size), shown]
    return int(run(command, PATH="/usr/bin:/bin", **trust).stdout or 0)


@pytest.mark.parametrize("see", [by_http_client, by_http_client_in_chunks, by_curl, by_node_fetch])
@pytest.mark.parametrize("early", EARLY, ids=lambda early: str(early.status))
def test_a_client_sees_the_answer_that_comes_before_it_has_sent_all(server, tmp_path, see, early):
    assert [see(server, tmp_path, early) for _ in range(TRIES)] == [early.status] * TRIES


NGINX = """
user root; daemon off; pid {directory}/pid; error_log {directory}/error.log; worker_processes 1;
events {{ }}
http {{
    access_log off; client_max_body_size 0; proxy_request_buffering {buffering}; proxy_http_version 1.1;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
    server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {url}; }} }}
}}
"""


class Proxy:
    """An nginx in front of a server. A context manager; to clients it looks like the server."""

    certificate = None

    def __init__(self, server, directory, buffering):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._configuration = directory / "nginx.conf"
        self._configuration.write_text(
            NGINX.format(directory=directory, port=self.port, url=server.url, buffering=buffering)
        )

    def __enter__(self):
        command = [need("nginx"), "-p", str(self._configuration.parent), "-c", str(self._configuration)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            await_true(self._answers, what="an answer of nginx")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait(10)

    def _answers(self):
        with contextlib.suppress(OSError), contextlib.closing(connect(self)) as connection:
            connection.request("GET", "/live")
            return connection.getresponse().status == 200
        return False


@pytest.mark.parametrize("buffering", ["on", "off"])
def test_the_answer_passes_through_a_proxy(server, tmp_path, buffering):
    with Proxy(server, tmp_path, buffering) as proxy:
        for early in EARLY:
            assert [by_http_client(proxy, tmp_path, early) for _ in range(TRIES)] == [early.status] * TRIES


def test_a_client_may_go_on_with_its_connection_after_an_early_answer(server):
    with contextlib.closing(connect(server)) as connection:
        for _ in range(2):
            connection.request("PUT", "/nope", b"x" * (4 * MIB), BEARER)
            response = connection.getresponse()
            assert (response.status, response.read(), response.will_close) == (404, b"not found\n", False)
            connection.request("GET", "/live")
            response = connection.getresponse()
            assert (response.status, response.read()) == (200, b"ok")


def test_apachebench_keeps_its_connections_alive(server):
    if server.certificate:
        pytest.skip("the certificate is not one that ab trusts")
    said = run([need("ab"), "-k", "-n", "200", "-c", "4", f"{server.url}/live"]).stdout
    assert re.search(r"Keep-Alive requests: +200$", said, re.MULTILINE), said
