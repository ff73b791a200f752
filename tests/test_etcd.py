"""The engine on three real nodes of etcd, through the whole server: what dies, what refuses, and who may come in.

The history of the clients (`Load`) is judged, and etcd's own count of the puts of each key.
"""

import contextlib
import signal

import pytest

from logd.shared.protocol import Exit
from tests.support.clients import send_all
from tests.support.etcd_nodes import Certificates, EtcdNodes
from tests.support.harness import Server, await_true, free_port, run_to_end
from tests.support.load import Load

PATIENT = "--request-timeout-s=30"
"""A third of it is how long writes wait behind a group without an answer. On a busy machine, an election takes longer
than the 3.3 s that this is by default, and what waits gets 503."""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    with EtcdNodes(tmp_path_factory.mktemp("etcd")) as nodes:
        yield nodes


@pytest.fixture
def prefix(request):
    return request.node.name.replace("[", "_").replace("]", "")


@pytest.fixture
def server(nodes, prefix, tmp_path):
    with Server(tmp_path / "data", *nodes.server_flags, f"--etcd-prefix={prefix}", PATIENT) as server:
        yield server


def records(nodes, prefix):
    return list(nodes.versions(f"{prefix}/s/"))


def metric(server, name):
    lines = server.call("GET", "/metrics").body.decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


@contextlib.contextmanager
def absent(nodes, number, *, frozen=False):
    """A node is killed, or stands still, and comes back."""
    (nodes.freeze if frozen else nodes.kill)(number)
    try:
        yield
    finally:
        (nodes.resume if frozen else nodes.start)(number)
        nodes.await_ready()


# What dies -----------------------------------------------------------------------------------------------


def test_no_request_fails_when_logd_is_killed_again_and_again(server):
    with Load(server.port, clients=32) as load:
        for _ in range(3):
            logd = server.only("logd")
            logd.kill()
            await_true(lambda: [each for each in server.role("logd") if each != logd])  # noqa: B023
            load.await_progress()
    assert load.failures == []
    load.verify()


def test_no_request_fails_when_a_follower_dies(nodes, server):
    with Load(server.port, clients=32) as load:
        for follower in nodes.followers():
            with absent(nodes, follower):
                load.await_progress()
            load.await_progress()
    assert load.failures == []
    load.verify()


@pytest.mark.parametrize("frozen", [False, True], ids=["killed", "frozen"])
def test_no_request_fails_when_the_leader_is_gone(nodes, server, frozen):
    with Load(server.port, clients=32) as load, absent(nodes, nodes.leader(), frozen=frozen):
        load.await_progress(20)
    assert load.failures == []
    load.verify()


def test_a_write_is_made_once_though_its_leader_and_its_logd_die(nodes, server, prefix):
    """Each key is written once, so etcd has to have counted one put of it."""

    def writes(round_):
        return [("PUT", f"/kv/{round_}.{n}", b"v") for n in range(2000)]

    for round_ in range(2):
        with absent(nodes, nodes.leader()):
            server.only("logd").kill()
            answers = send_all(server.port, writes(round_), 64)
            assert {answers[n].status for n in range(2000)} == {200}
    assert set(nodes.versions(f"{prefix}/d/").values()) == {1}
    assert len(nodes.versions(f"{prefix}/d/")) == 4000


def test_two_servers_see_what_the_other_has_acknowledged(nodes, server, prefix, tmp_path):
    with Server(tmp_path / "other", *nodes.server_flags, f"--etcd-prefix={prefix}") as other:
        for n in range(20):
            server.put(f"k{n % 5}", b"%d" % n)
            assert other.get(f"k{n % 5}") == b"%d" % n
        assert other.call("DELETE", "/clear").status == 200
        assert server.get("k1") is None
        server.put("k1", b"again")
        assert other.get("k1") == b"again"


def test_a_counter_that_two_servers_raise_by_conditions_loses_nothing(nodes, server, prefix, tmp_path):
    with Server(tmp_path / "other", *nodes.server_flags, f"--etcd-prefix={prefix}") as other:
        server.put("counter", b"0")
        raised = 0
        for n in range(60):
            one = (server, other)[n % 2]
            found = one.call("GET", "/kv/counter")
            if n % 3 == 0:
                stale = (other, server)[n % 2].call("GET", "/kv/counter")
                tag = {"If-Match": stale.headers["etag"]}
                (other, server)[n % 2].call("PUT", "/kv/counter", b"%d" % (int(stale.body) + 1), tag)
                raised += 1
            value = b"%d" % (int(found.body) + 1)
            status = one.call("PUT", "/kv/counter", value, {"If-Match": found.headers["etag"]}).status
            assert status == (412 if n % 3 == 0 else 200)
            raised += status == 200
        assert server.get("counter") == b"%d" % raised


def test_conditional_writes_of_many_clients_to_one_key_beside_plain_ones_all_get_an_answer(server):
    requests = []
    for n in range(300):
        requests.append(("PUT", "/kv/hot", b"%d" % n))
        requests.append(("POST", "/batch", b'{"op":"put","key":"hot","value":"%d"}' % n))
        requests.append(
            ("POST", "/batch", b'{"op":"check","key":"hot","absent":true}\n{"op":"put","key":"cold%d","value":"v"}' % n)
        )
    server.put("hot", b"v")
    answers = send_all(server.port, requests, 48)
    statuses = [answers[n].status for n in range(len(requests))]
    assert (statuses.count(200), statuses.count(412)) == (600, 300)


# Starts and ends -----------------------------------------------------------------------------------------


def test_a_server_leaves_no_record_behind_when_it_stops(nodes, server, prefix):
    server.put("k", b"v")
    assert records(nodes, prefix)
    assert server.stop() == 0
    assert records(nodes, prefix) == []


def test_data_outlives_its_server(nodes, server):
    server.put("k", b"v")
    server.crash()
    server.start()
    assert server.get("k") == b"v"


def test_a_server_waits_for_a_cluster_and_says_so(nodes, prefix, tmp_path):
    for number in range(3):
        nodes.kill(number)
    try:
        server = Server(tmp_path / "data", *nodes.server_flags, f"--etcd-prefix={prefix}", "--request-timeout-s=1")
        with contextlib.ExitStack() as stack:
            stack.push(server.__exit__)
            server.spawn()
            await_true(lambda: "listening" in server.log, 30)
            answer = server.call("GET", "/health")
            assert (answer.status, answer.body[:12]) == (503, b"etcd has not")
            assert server.call("PUT", "/kv/k", b"v").status == 503
            assert server.call("GET", "/kv/k").status == 503
            for number in range(3):
                nodes.spawn(number)
            server.await_ready()
            server.put("k", b"v")
            assert server.stop() == 0
    finally:
        for number in set(range(3)) - set(nodes.running):
            nodes.spawn(number)
        nodes.await_ready()


def test_without_a_majority_writes_get_503_or_504_and_then_all_is_well(nodes, prefix, tmp_path):
    flags = (*nodes.server_flags, f"--etcd-prefix={prefix}", "--request-timeout-s=3")
    with Server(tmp_path / "data", *flags) as server:
        server.put("k", b"0")
        gone = nodes.followers()
        for number in gone:
            nodes.kill(number)
        try:
            answers = send_all(server.port, [("PUT", f"/kv/n{n}", b"v") for n in range(40)], 20)
            statuses = {n: answers[n].status for n in range(40)}
            assert set(statuses.values()) <= {503, 504}
            assert server.call("GET", "/kv/k").status == 503
            assert server.call("GET", "/health").status == 503
        finally:
            for number in gone:
                nodes.spawn(number)
            nodes.await_ready()
        server.await_ready()
        assert [n for n, status in statuses.items() if status == 503 and server.get(f"n{n}") is not None] == []
        assert server.stop() == 0


def test_a_server_whose_record_is_no_longer_its_own_answers_nothing_and_begins_anew(nodes, prefix, tmp_path):
    with Server(tmp_path / "data", *nodes.server_flags, f"--etcd-prefix={prefix}", "--workers=1") as server:
        server.put("k", b"v")
        for key in records(nodes, prefix):
            nodes.etcdctl("del", key)
        assert server.call("PUT", "/kv/k", b"w").status == 504
        assert "belongs to another process now" in server.log
        server.await_ready()
        assert server.get("k") == b"v"
        server.put("k", b"x")


# What refuses --------------------------------------------------------------------------------------------


def test_without_space_writes_get_507_and_reads_go_on_until_there_is_space_again(tmp_path):
    quota = 16 << 20
    with (
        EtcdNodes(tmp_path / "etcd", f"--quota-backend-bytes={quota}", count=1) as nodes,
        Server(tmp_path / "data", *nodes.server_flags, "--etcd-compact-s=0") as server,
    ):
        server.put("k", b"kept")
        statuses = []
        while 507 not in statuses:
            statuses.append(server.call("PUT", "/kv/large", b"x" * 1_000_000).status)
            assert len(statuses) < 100
        assert set(statuses) == {200, 507}
        assert server.call("DELETE", "/kv/k").status == 507
        assert server.get("k") == b"kept"
        health = server.call("GET", "/health")
        assert (health.status, health.body) == (503, b"no space left in etcd\n")
        revision = nodes.etcdctl("get", "k")["header"]["revision"]
        nodes.etcdctl("compact", str(revision))
        nodes.etcdctl("defrag")
        nodes.etcdctl("alarm", "disarm")
        server.await_ready()  # though nobody has written
        assert server.call("PUT", "/kv/k", b"again").status == 200


def test_what_is_as_large_as_it_may_be_is_stored_and_what_is_larger_gets_413(server):
    key, value = "k" * 60_000, b"v" * (1 << 20)
    assert server.call("PUT", f"/kv/{key}", value).status == 200
    assert server.get(key) == value
    assert server.call("PUT", "/kv/k", value + b"v").status == 413
    large = [f'{{"op":"put","key":"{n}{"p" * 400}","value":"{"v" * 500}"}}' for n in range(1000)]
    assert server.call("POST", "/batch", "\n".join(large).encode()).status == 200
    checks = [f'{{"op":"check","key":"c{n}","absent":true}}' for n in range(49)]
    assert server.call("POST", "/batch", "\n".join(checks[:48]).encode()).status == 200
    assert server.call("POST", "/batch", "\n".join(checks).encode()).status == 413
    key = "c" * (64 << 10)
    check = f'{{"op":"check","key":"{key}","absent":true}}\n{{"op":"put","key":"{key}","value":"{"v" * 900_000}"}}'
    assert server.call("POST", "/batch", check.encode()).status == 200
    assert server.call("POST", "/batch", check.replace("c" * 9, "c" * 10, 1).encode()).status == 413
    assert server.call("GET", "/health").status == 200


def test_many_large_values_at_once_are_stored_and_read(server):
    requests = [("PUT", f"/kv/large{n}", b"v" * (900_000 + n)) for n in range(30)]
    answers = send_all(server.port, requests, 10)
    assert {answers[n].status for n in range(30)} == {200}
    assert [len(server.get(f"large{n}")) for n in range(30)] == [900_000 + n for n in range(30)]


def test_a_node_that_takes_smaller_requests_is_found_at_the_start(tmp_path):
    with EtcdNodes(tmp_path / "etcd", "--max-request-bytes=1000000", count=1) as nodes:
        status, lines = run_to_end(f"--port={free_port()}", *nodes.server_flags)
        assert status == Exit.USAGE
        assert "--max-request-bytes" in lines[-1]


def test_two_clusters_are_not_one(nodes, tmp_path):
    with EtcdNodes(tmp_path / "etcd", count=1) as other:
        endpoints = f"--etcd-endpoints={nodes.url(0)},{other.url(0)}"
        status, lines = run_to_end(f"--port={free_port()}", "--engine=etcd", endpoints)
        assert status == Exit.USAGE
        assert "different clusters" in lines[-1]


# Who may come in -----------------------------------------------------------------------------------------


def test_a_server_with_a_certificate_is_let_in_and_one_without_says_why_it_waits(tmp_path):
    own = Certificates(tmp_path / "own")
    certificate, key = own.make("kv")
    with EtcdNodes(tmp_path / "etcd", count=1, certificates=own) as nodes:
        nodes.require_user("kv", None, "kv/")
        flags = (*nodes.server_flags, f"--etcd-ca-file={own.ca}")
        with Server(tmp_path / "data", *flags, f"--etcd-cert-file={certificate}", f"--etcd-key-file={key}") as server:
            server.put("k", b"v")
            assert server.get("k") == b"v"
        stranger = Server(tmp_path / "stranger", *flags)
        with contextlib.ExitStack() as stack:
            stack.push(stranger.__exit__)
            stranger.spawn()
            await_true(lambda: "listening" in stranger.log, 30)
            assert "no endpoint of etcd answers" in stranger.log
            assert stranger.call("GET", "/health").status == 503


def test_a_server_with_a_user_writes_under_its_prefix_and_nowhere_else(tmp_path):
    with EtcdNodes(tmp_path / "etcd", count=1) as nodes:
        nodes.require_user("kv", "secret", "kv/")
        file = tmp_path / "user"
        file.write_text("kv:secret\n")
        file.chmod(0o600)
        flags = (*nodes.server_flags, f"--etcd-user-file={file}")
        with Server(tmp_path / "data", *flags) as server:
            server.put("k", b"v")
            assert server.get("k") == b"v"
        stranger = Server(tmp_path / "stranger", *flags, "--etcd-prefix=others")
        with contextlib.ExitStack() as stack:
            stack.push(stranger.__exit__)
            stranger.spawn()
            await_true(lambda: "listening" in stranger.log, 30)
            assert b"permission denied" in stranger.call("GET", "/health").body


# In the background ---------------------------------------------------------------------------------------


def test_what_was_cleared_is_removed_from_etcd(nodes, server, prefix):
    send_all(server.port, [("PUT", f"/kv/k{n}", b"v") for n in range(1500)], 32)
    assert server.call("DELETE", "/clear").status == 200
    server.put("kept", b"v")
    await_true(lambda: list(nodes.versions(f"{prefix}/d/")) == [f"{prefix}/d/1/kept"], 30)


def test_replaced_values_are_compacted_away(nodes, tmp_path, prefix):
    flags = (*nodes.server_flags, f"--etcd-prefix={prefix}", "--etcd-compact-s=0.2")
    with Server(tmp_path / "data", *flags) as server:
        server.put("k", b"v")
        old = nodes.etcdctl("get", "k")["header"]["revision"]

        def is_forgotten():
            server.put("k", b"w")
            try:
                nodes.etcdctl("get", f"{prefix}/d/0/k", f"--rev={old}")
            except Exception as error:
                return "compacted" in str(error)
            return False

        await_true(is_forgotten, 30)


def test_the_numbers_of_the_cluster_are_shown_and_those_of_a_log_are_not(nodes, server):
    server.put("k", b"v")
    server.get("k")
    assert metric(server, "kv_log_groups_total") >= 1
    assert metric(server, "kv_etcd_calls_total") >= 2
    assert metric(server, "kv_etcd_raft_term") >= 1
    text = server.call("GET", "/metrics").body.decode()
    assert 'version="3.' in text
    for name in ("kv_log_bytes", "kv_log_segments", "kv_checkpoints_total", "kv_recovery_info", "kv_keys"):
        assert f"\n{name}" not in text


def test_the_whole_group_may_be_signalled(server):
    server.put("k", b"v")
    assert server.stop(signal.SIGINT) == 0
    assert server.left_behind() == []
