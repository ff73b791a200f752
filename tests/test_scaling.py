"""The guide to scaling is true: its first cluster, its backup, its units, and what it has others run."""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess

import pytest
import yaml

from kv.config import Config
from tests.support.clients import call
from tests.support.etcd_nodes import EtcdNodes, find_program
from tests.support.harness import ROOT, Server, await_true, free_port, in_groups
from tests.support.load import Load

GUIDE = (ROOT / "docs" / "scaling.md").read_text()
COMPOSE = yaml.safe_load((ROOT / "deploy" / "compose-etcd.yaml").read_text())
UNIT = ROOT / "deploy" / "etcd@.service"


def block(heading):
    """The commands below a heading of the guide."""
    return re.search(rf"\n#+ {heading}\n.*?```sh\n(.*?)```", GUIDE, re.DOTALL)[1]


def etcd_flags():
    done = subprocess.run([find_program("etcd"), "--help"], check=True, capture_output=True, text=True)
    return set(re.findall(r"(?m)^ +(--[a-z0-9-]+)", done.stdout + done.stderr))


@contextlib.contextmanager
def group(commands, directory):
    """A shell with these commands, as a user types them; all of its processes end with it."""
    with subprocess.Popen(
        ["bash", "-c", commands], cwd=directory, stdin=subprocess.DEVNULL, start_new_session=True
    ) as shell:
        try:
            yield shell.pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
            await_true(lambda: not list(in_groups([shell.pid])), what="the end of every process")


def test_the_first_cluster_goes_as_the_guide_shows_and_no_request_fails_when_a_node_is_killed(tmp_path):
    find_program("etcd")
    for name in ("run.sh", ".etcd"):
        (tmp_path / name).symlink_to(ROOT / name)
    suffix, port = random.randrange(1_000, 2_700), free_port()
    commands = block("A first cluster")
    for shown, used in {"2379": suffix, "2380": suffix + 1, "8080": port}.items():
        commands = commands.replace(shown, str(used))
    with group(commands, tmp_path) as shell:
        await_true(lambda: health(port) == 200, 60, "health")
        with Load(port, clients=8) as load:
            load.await_progress()
            (node,) = [each for each in in_groups([shell]) if "--name b" in " ".join(each.cmdline())]
            node.kill()
            load.await_progress()
        assert load.failures == []
        load.verify()


def health(port):
    with contextlib.suppress(OSError):
        return call(port, "GET", "/health").status
    return None


def test_a_snapshot_is_restored_as_the_guide_shows(tmp_path):
    with EtcdNodes(tmp_path / "etcd") as nodes, Server(tmp_path / "data", *nodes.server_flags) as server:
        server.put("before", b"1")
        nodes.etcdctl("snapshot", "save", str(tmp_path / "kv.db"), node=0)
        server.put("after", b"2")
        server.stop()
        for number in range(3):
            nodes.stop(number)
            nodes.restore(number, tmp_path / "kv.db")
        nodes.start_all()
        server.start()
        assert (server.get("before"), server.get("after")) == (b"1", None)
        server.put("after", b"3")


def test_an_export_is_moved_in_as_the_guide_shows(tmp_path):
    export = "".join(f'{{"key": "key{n}", "value": "value{n}"}}\n' for n in range(250))
    with EtcdNodes(tmp_path / "etcd", count=1) as nodes, Server(tmp_path / "data", *nodes.server_flags) as server:
        commands = block("Moving data in").replace("8080", str(server.port))
        commands = commands.replace("logd export /var/lib/kv/data", "cat").replace(
            "--data-binary", "-o /dev/null --data-binary"
        )
        subprocess.run(["bash", "-ec", commands], input=export, text=True, check=True, timeout=60)
        assert server.get("key0") == b"value0"
        assert server.get("key249") == b"value249"


# What is deployed ----------------------------------------------------------------------------------------


def test_the_compose_file_gives_the_servers_options_that_exist_and_nodes_that_find_each_other():
    nodes = {
        name: each for name, each in COMPOSE["services"].items() if "etcd" in each["image"].split(":")[0].split("/")
    }
    servers = [each for name, each in COMPOSE["services"].items() if name not in nodes]
    assert (len(nodes), len(servers)) == (3, 2)
    for server in servers:
        config = Config.from_environment(server["environment"])
        assert config.etcd_endpoints.split(",") == [f"http://{name}:2379" for name in nodes]
    for name, node in nodes.items():
        assert f"{name}=http://{name}:2380" in node["environment"]["ETCD_INITIAL_CLUSTER"].split(",")
        assert f"--name={name}" in node["command"]


def test_etcd_knows_what_it_is_given():
    known = etcd_flags()
    given = {flag.partition("=")[0] for node in "abc" for flag in COMPOSE["services"][node]["command"][1:]}
    variables = {*COMPOSE["services"]["a"]["environment"], *re.findall(r"\b(ETCD_[A-Z_]+)=", UNIT.read_text())}
    given |= {"--" + name.removeprefix("ETCD_").lower().replace("_", "-") for name in variables}
    assert given <= known


def test_systemd_understands_the_unit_of_a_node(tmp_path):
    program = shutil.which("systemd-analyze")
    if not program:
        pytest.skip("systemd-analyze is not installed here")
    here = tmp_path / "etcd@a.service"
    here.write_text(UNIT.read_text().replace("/usr/bin/etcd", find_program("etcd")))
    done = subprocess.run([program, "verify", here], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
