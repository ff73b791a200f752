"""The nodes that the specifications of the engine on etcd start, and the runbook that replaces one."""

import psutil
import pytest

from tests.support.etcd_nodes import Certificates, EtcdNodes, Refused


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    with EtcdNodes(tmp_path_factory.mktemp("etcd")) as nodes:
        yield nodes


def value(nodes, key, node):
    """What a node has of a key by itself, without asking the others."""
    found = nodes.etcdctl("get", key, "--consistency=s", node=node)
    return found.get("kvs", [{}])[0].get("value")


def test_a_cluster_outlives_its_leader(nodes):
    leader = nodes.leader()
    nodes.kill(leader)
    assert nodes.leader() != leader
    nodes.etcdctl("put", "after-the-leader", "x", node=nodes.leader())
    nodes.start(leader)
    assert value(nodes, "after-the-leader", leader)


def test_a_frozen_node_is_missed_by_nobody_and_catches_up(nodes):
    follower = nodes.followers()[0]
    nodes.freeze(follower)
    try:
        assert nodes.status(follower) is None
        nodes.etcdctl("put", "meanwhile", "x", node=nodes.leader())
    finally:
        nodes.resume(follower)
    nodes.await_ready([follower])
    assert nodes.etcdctl("get", "meanwhile", node=follower)["kvs"]


def test_a_node_that_lost_its_disk_is_replaced_by_the_runbook(nodes):
    nodes.etcdctl("put", "before-the-loss", "x")
    before = {member["ID"] for member in nodes.etcdctl("member", "list")["members"]}
    follower = nodes.followers()[0]
    nodes.lose_disk(follower)
    nodes.replace(follower)
    after = {member["ID"] for member in nodes.etcdctl("member", "list")["members"]}
    assert len(after - before) == len(before - after) == 1
    assert nodes.etcdctl("get", "before-the-loss", node=follower)["kvs"]


def test_puts_of_a_key_are_counted_by_etcd(nodes):
    for _ in range(3):
        nodes.etcdctl("put", "counted/a", "x")
    nodes.etcdctl("put", "counted/b", "x")
    assert nodes.versions("counted/") == {"counted/a": 3, "counted/b": 1}


def test_clients_need_a_certificate_and_what_it_names_is_who_they_are(tmp_path):
    certificates = Certificates(tmp_path / "certificates")
    with EtcdNodes(tmp_path / "etcd", count=1, certificates=certificates) as nodes:
        nodes.require_user("kv", None, "kv/")
        certificate, key = certificates.make("kv")
        as_kv = [f"--cert={certificate}", f"--key={key}"]
        nodes.etcdctl("put", "kv/a", "x", credentials=as_kv)
        with pytest.raises(Refused, match="permission denied"):
            nodes.etcdctl("put", "other/a", "x", credentials=as_kv)
        with pytest.raises(Refused):
            nodes.etcdctl("put", "kv/a", "x", credentials=["--command-timeout=1s"])


def test_clients_need_a_password(tmp_path):
    with EtcdNodes(tmp_path / "etcd", count=1) as nodes:
        nodes.require_user("kv", "secret", "kv/")
        nodes.etcdctl("put", "kv/a", "x", credentials=["--user=kv:secret"])
        with pytest.raises(Refused):
            nodes.etcdctl("put", "kv/a", "x", credentials=["--user=kv:wrong"])
        with pytest.raises(Refused, match="permission denied"):
            nodes.etcdctl("put", "other/a", "x", credentials=["--user=kv:secret"])


def test_nothing_is_left_of_a_cluster_that_does_not_start(tmp_path):
    before = psutil.Process().children()
    nodes = EtcdNodes(tmp_path / "etcd", "--no-such-flag")
    with pytest.raises(AssertionError, match="no-such-flag"), nodes:
        pass
    assert psutil.Process().children() == before
