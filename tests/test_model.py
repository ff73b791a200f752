"""Random operations, stops, kills and starts against the real server, compared with a dict."""

import json
import signal
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from logd.shared.etag import etag
from tests.support.clients import read_all
from tests.support.harness import Server, await_true

KEYS = ["a", "A", "a.b", "a:b", "-", "_" * 300, "0"]
keys = st.sampled_from(KEYS)
values = st.one_of(
    st.text(min_size=1, max_size=20).map(lambda text: text.encode("utf-8", "ignore") or b"x"),
    st.sampled_from([b"\0", "🎉".encode(), b"\r\n"]),
    st.just(100_000).map(lambda size: b"x" * size),
)
operations = st.one_of(
    st.tuples(st.just("PUT"), keys, values),
    st.tuples(st.just("DELETE"), keys, st.none()),
    st.tuples(st.sampled_from(["GET", "HEAD"]), keys, st.none()),
)
CONDITIONS = {
    "if there is a value": ("If-Match", "*"),
    "if there is none": ("If-None-Match", "*"),
    "if nothing has changed": ("If-Match", None),
    "if it has changed": ("If-None-Match", None),
}
"""None is the tag of what the model has, or of what nobody writes when it has nothing."""
conditional = st.tuples(st.sampled_from(["PUT", "DELETE"]), keys, values, st.sampled_from(list(CONDITIONS)))
batches = st.tuples(
    st.dictionaries(keys, st.one_of(st.none(), st.text("abc", min_size=1)), min_size=1, max_size=4),
    st.lists(st.tuples(keys, st.booleans()), max_size=2),
)
"""What is written, None for a delete; and checks, that hold or do not."""
TAG_OF_NOTHING = etag(b"what nobody writes")


class ServerIsADict(RuleBasedStateMachine):
    """Each answer is what a dict would have given, whatever happened to the processes in between."""

    def __init__(self):
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="kvt-")
        self.server = Server(
            Path(self.directory.name) / "data", "--segment-bytes=100000", "--checkpoint-log-bytes=200000"
        )
        self.expected = {}
        try:
            self.server.start()
        except BaseException:
            self.teardown()
            raise

    @rule(requests=st.lists(operations, min_size=1, max_size=20))
    def call(self, requests):
        for method, key, value in requests:
            answer = self.server.call(method, f"/kv/{key}", value)
            if method == "PUT":
                assert (answer.status, answer.body) == (200, b"")
                self.expected[key] = value
            elif method == "DELETE":
                assert (answer.status, answer.body) == (200, b"")
                self.expected.pop(key, None)
            else:
                body = self.expected.get(key, b"key not found\n")
                assert answer.status == (200 if key in self.expected else 404)
                assert answer.headers["content-length"] == str(len(body))
                assert answer.body == (body if method == "GET" else b"")

    def tag(self, key):
        """Of what the model has."""
        return etag(self.expected[key]) if key in self.expected else None

    @rule(requests=st.lists(conditional, min_size=1, max_size=10))
    def call_on_a_condition(self, requests):
        for method, key, value, condition in requests:
            name, text = CONDITIONS[condition]
            tag = self.tag(key)
            matches = tag is not None  # "*", and the tag that the model has
            holds = matches == (name == "If-Match")
            header = {name: text or f'"{tag or TAG_OF_NOTHING}"'}
            answer = self.server.call(method, f"/kv/{key}", value if method == "PUT" else None, header)
            assert answer.status == (200 if holds else 412)
            if holds and method == "PUT":
                self.expected[key] = value
            elif holds:
                self.expected.pop(key, None)
            if method == "PUT" or not holds:
                assert answer.headers.get("etag") == (f'"{self.tag(key)}"' if key in self.expected else None)

    @rule(batch=batches)
    def carry_out_a_batch(self, batch):
        writes, checks = batch
        failed, lines = [], []
        for key, holds in checks:
            tag = self.tag(key)
            if (tag is None) == holds:
                lines.append({"op": "check", "key": key, "absent": True})
            else:
                lines.append({"op": "check", "key": key, "etag": tag if holds else TAG_OF_NOTHING})
            if not holds:
                failed.append({"key": key, "etag": tag and f'"{tag}"'})
        for key, text in writes.items():
            change = {"op": "delete"} if text is None else {"op": "put", "value": text}
            lines.append({"key": key, **change})
        answer = self.server.call("POST", "/batch", "\n".join(map(json.dumps, lines)).encode())
        found = [json.loads(line) for line in answer.body.splitlines()]
        if failed:
            assert (answer.status, found) == (412, failed)
            return
        for key, text in writes.items():
            self.expected.pop(key, None)
            if text is not None:
                self.expected[key] = text.encode()
        assert answer.status == 200
        assert found == [{"key": key, "etag": f'"{self.tag(key)}"'} for key, text in writes.items() if text is not None]

    @precondition(lambda self: self.expected)
    @rule()
    def clear(self):
        assert self.server.call("DELETE", "/clear").status == 200
        self.expected = {}

    @rule(how=st.sampled_from(["SIGTERM", "SIGINT", "SIGKILL", "SIGKILL logd"]))
    def interrupt(self, how):
        if how == "SIGKILL logd":
            logd = self.server.only("logd")
            logd.kill()
            await_true(lambda: logd not in self.server.members(), what="the end of logd")
            return
        if how == "SIGKILL":
            self.server.crash()
        else:
            assert self.server.stop(getattr(signal, how)) == 0
            assert self.server.left_behind() == []
        self.server.start()

    @invariant()
    def holds_what_the_dict_holds(self):
        found = read_all(self.server.port, KEYS)
        assert {key: value for key, value in found.items() if value is not None} == self.expected

    def teardown(self):
        try:
            self.server.__exit__()
        finally:
            self.directory.cleanup()


TestServerIsADict = ServerIsADict.TestCase
TestServerIsADict.settings = settings(
    max_examples=3,
    stateful_step_count=20,
    deadline=None,
    database=None,
    print_blob=True,
    phases=[Phase.explicit, Phase.generate],  # a server for each attempt to shrink would take too long
    suppress_health_check=list(HealthCheck),
)
