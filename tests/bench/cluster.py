"""The targets of the section `cluster`: three nodes of etcd, used by our server, over etcd's JSON gateway, and by gRPC.

All of them use the same nodes, so that none has a leader that is better placed; only one is loaded at a time. What the
nodes need of the processor is counted for whom they work.
"""

import contextlib
import urllib.parse
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

from tests.bench import generators
from tests.bench.cases import ETCD_GATEWAY, ETCD_GRPC, SERVER_ON_ETCD, Case, Sample
from tests.bench.targets import PYTHON, Target, entries, fill_etcd
from tests.support.clients import send_all
from tests.support.etcd_nodes import EtcdNodes
from tests.support.harness import ROOT, Server

_FILLERS = 32


def targets(directory: Path, cases: Sequence[Case], flags: Sequence[str], stack: contextlib.ExitStack) -> list[Target]:
    """The three of them, on nodes that end with the stack. Raises SkipTest where etcd is not found."""
    nodes = stack.enter_context(EtcdNodes(directory / "etcd"))
    return [_ServerOnEtcd(nodes, cases, directory / "server", flags), _Gateway(nodes, cases), _Grpc(nodes)]


class _OnNodes(Target):
    """Works on nodes that run already."""

    def __init__(self, nodes: EtcdNodes, cases: Sequence[Case] = ()) -> None:
        super().__init__()
        self._nodes = nodes
        self._cases = cases

    def _start(self, stack: contextlib.ExitStack) -> None:
        pass

    def _members(self) -> Iterable[psutil.Process]:
        return [psutil.Process(self._nodes.pid(number)) for number in self._nodes.running]


class _ServerOnEtcd(_OnNodes):
    """The server of this project, with the engine on etcd."""

    name = SERVER_ON_ETCD

    def __init__(self, nodes: EtcdNodes, cases: Sequence[Case], directory: Path, flags: Sequence[str]) -> None:
        super().__init__(nodes, cases)
        self._server = Server(directory, *nodes.server_flags, *flags)
        self.note = f"our server; three nodes of etcd {nodes.version()}"

    def _start(self, stack: contextlib.ExitStack) -> None:
        stack.enter_context(self._server)
        puts = [("PUT", f"/kv/{key}", value.encode()) for key, value in entries(self._cases)]
        answers = send_all(self._server.port, puts, _FILLERS)
        assert {answer.status for answer in answers.values()} == {200}

    def _load(self, case: Case, seconds: int) -> Sample:
        url = f"http://127.0.0.1:{self._server.port}"
        return generators.wrk(url, generators.SCRIPTS[case.operation], case, seconds)

    def _members(self) -> Iterable[psutil.Process]:
        return [*self._server.members(), *super()._members()]


class _Gateway(_OnNodes):
    """etcd as it comes, over HTTP."""

    name = ETCD_GATEWAY
    note = "etcd's own JSON gateway, of one of the nodes"

    def _start(self, stack: contextlib.ExitStack) -> None:
        fill_etcd(self._nodes.url(0), self._cases)

    def _load(self, case: Case, seconds: int) -> Sample:
        return generators.wrk(self._nodes.url(0), generators.ETCD_SCRIPT, case, seconds)


class _Grpc(_OnNodes):
    """etcd by its own protocol: single puts and ranges, of the keys of the gateway."""

    name = ETCD_GRPC
    note = "gRPC by Python, one call in flight on each connection, to one of the nodes"

    def _load(self, case: Case, seconds: int) -> Sample:
        address = urllib.parse.urlsplit(self._nodes.url(0)).netloc
        command = [str(PYTHON), "-m", "tests.bench.etcd_load", address, str(seconds)]
        return generators.run_script(command, case, seconds, {"PYTHONPATH": str(ROOT)})
