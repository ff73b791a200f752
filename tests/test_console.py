"""/status and the files of /console, as a program sees them. A person's view is in test_console_browser.py."""

import json
import re
import time
from html.parser import HTMLParser

import pytest

from kv.resources import console
from kv.resources.console import DIRECTORY
from tests.support.clients import call
from tests.support.harness import Server, await_true

FILES = sorted(console.read(DIRECTORY))
TOKEN = "correct-horse"


@pytest.fixture(scope="module")
def server(module_path):
    with Server(module_path / "data", "--workers=2") as server:
        yield server


@pytest.fixture(scope="module")
def guarded(module_path):
    directory = module_path / "guarded"
    directory.mkdir()
    (directory / "token").write_text(TOKEN)
    (directory / "token").chmod(0o600)
    flags = ("--workers=1", "--console=off", f"--token-file={directory / 'token'}")
    with Server(directory / "data", *flags) as server:
        yield server


class Page(HTMLParser):
    """What a page refers to, and what of it a strict policy forbids."""

    def __init__(self, text):
        super().__init__()
        self.references, self.forbidden = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.references += [value for name, value in attributes if name in ("src", "href") and "#" not in value]
        self.forbidden += [name for name, _ in attributes if name.startswith("on") or name == "style"]
        self.forbidden += [tag] * (tag == "style" or (tag == "script" and "src" not in dict(attributes)))


def status(server):
    answer = call(server.port, "GET", "/status")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    return json.loads(answer.body)


def process(server, role):
    (found,) = (each for each in status(server)["processes"] if each["role"] == role)
    return found


def workers(server):
    return [each for each in status(server)["processes"] if each["role"] == "worker"]


def await_whole(server):
    await_true(lambda: len([each for each in workers(server) if each["ready_at"]]) == 2, what="two workers")


# /status -------------------------------------------------------------------------------------------------


def test_status_lists_each_process_with_its_pid_and_since_when_it_works(server):
    await_whole(server)
    shown = status(server)
    assert abs(shown["time"] - time.time()) < 60
    for role in ("supervisor", "logd", "gunicorn", "worker"):
        listed = [each for each in shown["processes"] if each["role"] == role]
        assert {each["pid"] for each in listed} == {each.pid for each in server.role(role)}
        for each in listed:
            assert each["started_at"] <= each["ready_at"] <= shown["time"]
            assert each["resident_bytes"] > 1 << 20


def test_a_killed_logd_is_gone_then_starts_then_works_and_is_a_restart_and_a_warning(server):
    killed = server.only("logd")
    before = process(server, "logd")["restarts"]
    killed.kill()
    await_true(lambda: process(server, "logd")["pid"] not in (killed.pid, None), what="another logd")
    await_true(lambda: process(server, "logd")["ready_at"], what="a logd that works")
    after = process(server, "logd")
    assert (after["pid"], after["restarts"]) == (server.only("logd").pid, before + 1)
    assert after["ended_at"] <= after["started_at"] <= after["ready_at"]
    warning = next(each for each in reversed(status(server)["warnings"]) if each["message"].startswith("logd ended"))
    assert (warning["level"], warning["role"], warning["pid"]) == ("error", "supervisor", server.process.pid)
    assert abs(warning["time"] - after["ended_at"]) < 5


def test_a_killed_worker_is_replaced_and_gunicorn_is_quoted(server):
    await_whole(server)
    killed = server.role("worker")[0]
    killed.kill()
    await_true(lambda: killed.pid not in [each["pid"] for each in workers(server)], what="the end of a worker")
    await_whole(server)
    assert 1 in [each["restarts"] for each in workers(server)]
    quoted = [each for each in status(server)["warnings"] if each["role"] == "gunicorn"]
    assert any(f"pid:{killed.pid}" in each["message"] for each in quoted)


def test_status_is_answered_while_logd_is_away(server):
    logd = server.only("logd")
    logd.suspend()
    try:
        assert process(server, "logd")["pid"] == logd.pid
    finally:
        logd.resume()


# The page and its files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/console", *(f"/console/{name}" for name in FILES if name != "index.html")])
def test_each_file_is_served_with_what_makes_it_safe_and_again_only_when_it_has_changed(server, path):
    answer, head = server.call("GET", path), server.call("HEAD", path)
    assert (answer.status, head.status, head.headers) == (200, 200, answer.headers)
    assert answer.body == (DIRECTORY / (path.removeprefix("/console").strip("/") or "index.html")).read_bytes()
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
    assert "unsafe" not in policy
    assert policy.endswith("; require-trusted-types-for 'script'")
    assert (answer.headers["x-content-type-options"], answer.headers["cache-control"]) == ("nosniff", "no-cache")
    again = server.call("GET", path, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status, again.body) == (304, b"")


def test_the_page_has_one_address_because_its_links_are_relative_to_it(server):
    assert server.call("GET", "/console/index.html").status == 404


def test_what_else_lies_among_the_files_is_not_served_and_stops_nobody(tmp_path):
    (tmp_path / "main.js").write_text("// a script")
    for stray in (".DS_Store", "main.js~", "README"):
        (tmp_path / stray).touch()
    (tmp_path / "old.js").mkdir()
    assert list(console.read(tmp_path)) == ["main.js"]
    assert console.read(tmp_path / "none") == {}


def test_the_page_has_no_script_and_no_style_in_itself_and_refers_to_files_that_there_are(server):
    page = Page(server.call("GET", "/console").body.decode())
    assert page.forbidden == []
    assert page.references
    assert {reference.removeprefix("console/") for reference in page.references} <= set(FILES)


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".js")])
def test_a_script_imports_its_neighbours_alone_opens_with_a_charter_and_reads_no_text_as_html(name):
    text = (DIRECTORY / name).read_text()
    assert text.startswith("// ")
    assert set(re.findall(r'from "([^"]+)"', text)) <= {f"./{each}" for each in FILES}
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|localStorage|sessionStorage", text
    )
    assert max(map(len, text.splitlines())) <= 120


def test_what_the_page_asks_for_needs_the_token(guarded):
    assert [call(guarded.port, "GET", path).status for path in ("/status", "/keys", "/metrics")] == [401] * 3
    answer = call(guarded.port, "GET", "/status", headers={"Authorization": f"Bearer {TOKEN}"})
    assert {each["role"] for each in json.loads(answer.body)["processes"]} == {
        "supervisor",
        "logd",
        "gunicorn",
        "worker",
    }


def test_without_the_console_its_paths_are_not_there_and_status_is(guarded):
    for path in ("/console", "/console/main.js"):
        assert call(guarded.port, "GET", path).status == 404
