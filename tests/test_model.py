"""Random operations, stops, kills and starts against the real server, compared with a dict."""

import signal
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

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
