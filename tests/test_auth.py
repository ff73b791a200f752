"""The token: which requests need it, how it is replaced, and the message when its file cannot be used."""

import http.client
import signal

import pytest

from tests.support.clients import call, exchange
from tests.support.harness import Server, await_true, run_to_end

TOKEN = "correct-horse"
UNAUTHORIZED = (401, b"unauthorized\n")


def write_token(path, token=TOKEN, mode=0o600):
    path.write_text(token + "\n")
    path.chmod(mode)
    return path


def ask(port, method, path, body=None, *, authorization=None):
    """Status and body, and the headers, of the answer to one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, {"Authorization": authorization} if authorization else {})
        response = connection.getresponse()
        return (response.status, response.read()), response.headers
    finally:
        connection.close()


@pytest.fixture(scope="module")
def token_file(module_path):
    return write_token(module_path / "token")


@pytest.fixture(scope="module")
def guarded(module_path, token_file):
    with Server(module_path / "data", f"--token-file={token_file}", "--workers=1") as server:
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
def test_any_other_request_without_the_token_is_refused(guarded, method, path, authorization):
    answer, headers = ask(guarded.port, method, path, b"x" if method == "PUT" else None, authorization=authorization)
    assert answer == UNAUTHORIZED
    assert headers["WWW-Authenticate"] == "Bearer"
    assert headers["Content-Type"] == "text/plain; charset=utf-8"


def test_a_request_with_two_tokens_is_refused(guarded):
    head = (
        f"GET /kv/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{f'Authorization: Bearer {TOKEN}' + chr(13) + chr(10)}"
    )
    assert exchange(guarded.port, f"{head}\r\n".encode()).startswith(b"HTTP/1.1 ")
    assert exchange(guarded.port, f"{head}Authorization: Bearer x\r\n\r\n".encode()).startswith(b"HTTP/1.1 401 ")


def test_a_refused_write_is_answered_before_its_body_has_arrived(guarded):
    head = b"PUT /kv/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    answer = exchange(guarded.port, head + b"x")  # returns when the server has closed
    assert answer.startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("path", ["/health", "/live"])
def test_health_and_live_need_no_token(guarded, path):
    assert ask(guarded.port, "GET", path)[0] == (200, b"ok")


def test_the_token_is_in_no_command_line_no_environment_and_no_log(guarded):
    for process in guarded.members():
        assert TOKEN not in " ".join(process.cmdline())
        assert TOKEN not in str(process.environ())
    assert TOKEN not in guarded.log


def test_a_reload_takes_a_new_token_and_does_not_happen_with_an_unusable_one(tmp_path):
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
