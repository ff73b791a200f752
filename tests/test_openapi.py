"""The description of the interface: it is served, it matches the server, and fuzzers find no difference."""

import re
import subprocess
import sys
from pathlib import Path

import falcon.inspect
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import kv
from kv.app import create_app
from kv.config import Config
from kv.resources import openapi
from logd.shared.protocol import KEY_PATTERN
from tests.support.clients import exchange
from tests.support.harness import Server

DESCRIPTION = yaml.safe_load(openapi.description())
METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}
EXAMPLES_MAX = 40
HEAD = re.compile(rb"HTTP/1\.1 (?P<status>\d{3}) [A-Za-z -]+\r\n(?P<fields>([a-z-]+: [^\r\n]*\r\n)*)\r\n")


@pytest.fixture(scope="module")
def server(module_path):
    flags = ("--value-bytes-max=1KiB", "--header-bytes-max=4KiB", "--header-timeout-s=0.1", "--body-timeout-s=0.1")
    with Server(module_path / "data", *flags) as server:
        yield server


def resolve(entry):
    """What is meant, where there is a reference."""
    while "$ref" in entry:
        name = entry["$ref"].removeprefix("#/components/").split("/")
        entry = DESCRIPTION["components"][name[0]][name[1]]
    return entry


def bodies(status):
    """The error texts that the description lists for a status."""
    found = set()
    for operation in operations().values():
        if status in operation["responses"]:
            content = resolve(operation["responses"][status]).get("content", {}).get("text/plain", {})
            found |= {example["value"] for example in content.get("examples", {}).values()}
            found |= {content["schema"]["const"]} if "const" in content.get("schema", {}) else set()
    return found


def operations():
    return {
        (path, method): operation
        for path, item in DESCRIPTION["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    }


# The file ------------------------------------------------------------------------------------------------


def test_it_is_served_as_plain_text(server):
    answer = server.call("GET", "/openapi.yaml")
    assert (answer.status, answer.body) == (200, openapi.description().encode())
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    head = server.call("HEAD", "/openapi.yaml")
    assert (head.status, head.body, head.headers) == (200, b"", answer.headers)


def test_it_lists_exactly_the_paths_that_there_are():
    routes = falcon.inspect.inspect_routes(create_app(None, 1))
    assert set(DESCRIPTION["paths"]) == {route.path.replace(":path", "") for route in routes}


@pytest.mark.parametrize("path", DESCRIPTION["paths"])
def test_it_lists_exactly_the_methods_that_a_path_has(server, path):
    listed = ", ".join(sorted(method.upper() for each, method in operations() if each == path))
    for method in {"OPTIONS", "POST", "PATCH", "TRACE", "PROPFIND"} - set(listed.split(", ")):
        answer = server.call(method, path.replace("{key}", "key"))
        assert (answer.status, answer.headers.get("allow")) == (405, listed)


def test_it_is_of_this_version_and_names_the_limits_of_this_version():
    assert DESCRIPTION["info"]["version"] == kv.__version__
    assert DESCRIPTION["components"]["schemas"]["Key"]["pattern"] == f"^{KEY_PATTERN}$"
    assert (Config().value_bytes_max, Config().header_bytes_max) == (16 << 20, 64 << 10)
    assert "16 MiB" in DESCRIPTION["paths"]["/kv/{key}"]["put"]["requestBody"]["description"]
    assert "64 KiB" in DESCRIPTION["components"]["responses"]["HeadersTooLarge"]["description"]


@pytest.mark.parametrize(
    ("status", "request_bytes"),
    [
        ("400", b"GET /kv/ HTTP/1.1\r\n\r\n"),
        ("400", b"GET /kv/%20 HTTP/1.1\r\n\r\n"),
        ("400", b"PUT /kv/k HTTP/1.1\r\nContent-Length: 0\r\n\r\n"),
        ("400", b"PUT /kv/k HTTP/1.1\r\nContent-Length: 1\r\n\r\n\xff"),
        ("400", b"PUT /kv/k HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n"),
        ("400", b"nonsense\r\n\r\n"),
        ("404", b"GET /kv/nothing HTTP/1.1\r\n\r\n"),
        ("405", b"POST /clear HTTP/1.1\r\n\r\n"),
        ("408", b"GET /health HTTP/1.1\r\nA:"),
        ("413", b"PUT /kv/k HTTP/1.1\r\nContent-Length: 1025\r\n\r\n"),
        ("414", b"GET /kv/" + b"k" * 5000 + b" HTTP/1.1\r\n\r\n"),
        ("431", b"GET /kv/k HTTP/1.1\r\nA: " + b"a" * 5000 + b"\r\n\r\n"),
    ],
)
def test_it_lists_the_text_of_an_error(server, status, request_bytes):
    request_bytes = request_bytes.replace(b" HTTP/1.1\r\n", b" HTTP/1.1\r\nHost: h\r\nConnection: close\r\n")
    head, _, body = exchange(server.port, request_bytes).partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert body.decode() in bodies(status)


# Fuzzing -------------------------------------------------------------------------------------------------


FUZZER_OPTIONS = """
[parameters]
"header.If-Match" = "*"
"header.If-None-Match" = '"x"'

[checks]
positive_data_acceptance.expected-statuses = ["2xx", "3xx", "401", "404", "412", "5xx"]
negative_data_rejection.expected-statuses = ["400", "401", "404", "405", "413", "414", "431", "5xx"]

[[operations]]
include-operation-id = "makeBatch"
checks.positive_data_acceptance.enabled = false

[[operations]]
include-operation-id = "listKeys"
checks.positive_data_acceptance.enabled = false

[[operations]]
include-operation-id = "headKeys"
checks.positive_data_acceptance.enabled = false
"""
"""What a description cannot say: which tags a list of them may hold, what makes lines a batch, that no key goes with a
prefix."""


def test_a_fuzzer_of_the_description_finds_no_difference(server, tmp_path):
    schemathesis = Path(sys.executable).with_name("schemathesis")
    (tmp_path / "options.toml").write_text(FUZZER_OPTIONS)
    (tmp_path / "openapi.yaml").write_text(openapi.description())
    done = subprocess.run(
        [
            *(schemathesis, "--config-file=options.toml", "run", "openapi.yaml"),
            f"--url=http://127.0.0.1:{server.port}",
            *(f"--max-examples={EXAMPLES_MAX}", "--no-color", "--continue-on-failure", "--request-timeout=30"),
        ],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "NO_PROXY": "*", "HOME": str(tmp_path)},
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Tested: {len(operations())}" in done.stdout


REQUESTS = st.tuples(
    st.sampled_from([b"GET", b"PUT", b"DELETE", b"POST", b"BREW", b""]),
    st.sampled_from(
        [b" /kv/key", b" /kv/", b" /kv/%00", b" /kv/%", b" /clear", b" /health?a=b", b" *", b" http://x/", b""]
    ),
    st.sampled_from([b" HTTP/1.1\r\n", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b" HTTP/2.0\r\n", b" \n", b"\r\n"]),
    st.lists(
        st.sampled_from(
            [
                *(b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Content-Length: -1\r\n"),
                *(b"Content-Length: 9999\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n"),
                *(b"Expect: 100-continue\r\n", b"Connection: upgrade\r\nUpgrade: h2c\r\n", b"Host: x\n", b"Host\r\n"),
                *(b": x\r\n", b"X:\0\r\n", b"X: " + b"x" * 5000 + b"\r\n", b" folded\r\n"),
            ]
        ),
        max_size=3,
    ).map(b"".join),
    st.sampled_from([b"\r\n", b"\r\n", b"\n", b""]),
    st.sampled_from(
        [b"", b"", b"hello", b"\xff\xfe\0\0\0", b"5\r\nhello\r\n0\r\n\r\n", b"fffffffff\r\n", b"5\r\nhello"]
    ),
).map(b"".join)
LAST = b"DELETE /clear HTTP/1.1\r\nConnection: close\r\n\r\n"


@settings(max_examples=300, deadline=None)
@given(st.lists(REQUESTS | st.binary(max_size=8), min_size=1, max_size=3).map(b"".join))
def test_whatever_bytes_arrive_each_answer_is_whole_and_one_that_is_described(server, data):
    listed = {status for operation in operations().values() for status in operation["responses"]}
    answers = exchange(server.port, data + LAST)
    while answers:
        head = HEAD.match(answers)
        assert head, answers
        answers = answers[head.end() :]
        if head["status"] == b"100":
            continue
        assert head["status"].decode() in listed
        assert re.search(rb"content-type: (text/plain; charset=utf-8|application/jsonl)\r\n", head["fields"])
        length = int(re.search(rb"content-length: (\d+)\r\n", head["fields"])[1])
        assert len(answers) >= length
        answers = answers[length:]


def test_what_fuzzers_send_ends_no_process_and_shows_no_defect(server):
    """The last test here: what came before it has left no trace."""
    assert server.call("GET", "/health").body == b"ok"
    assert [line for line in server.log.splitlines() if " INFO " not in line] == []
