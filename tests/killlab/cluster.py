"""What an experiment is made on: a server with a directory, or servers that share the nodes of an etcd cluster.

Owns the processes: who has which role, how each is killed, and what brings it back when nothing of the server does.
Knows neither orders nor load.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple, Self

import psutil

from tests.support.etcd_nodes import EtcdNodes
from tests.support.harness import Server

GROUP: Final = "group"
LEADER: Final = "etcd-leader"
FOLLOWER: Final = "etcd-follower"
DISK: Final = "etcd-disk"
_OF_A_SERVER: Final = ("logd", "worker", "gunicorn", "supervisor")
ROLES_OF: Final = {
    "local": (*_OF_A_SERVER, "checkpoint", GROUP),
    "etcd": (*_OF_A_SERVER, GROUP, LEADER, FOLLOWER, DISK),
}
"""The roles that there are with each engine."""

NODE_AWAY_SECONDS: Final = 3.0
"""How long a killed node of etcd is away: longer than an election."""
_KEYS: Final = "kv/d/"


def _nothing() -> None:
    """Somebody else brings it back."""


class Victim(NamedTuple):
    """Processes that are killed or frozen together."""

    pid: int
    """Of the first of them, for the report."""
    processes: Sequence[psutil.Process]
    kill: Callable[[], object]
    """Raises psutil.NoSuchProcess when it has ended by itself."""
    bring_back: Callable[[], object] = _nothing
    away_s: float = 0.0
    """How long after the kill it is to be brought back."""


class Cluster:
    """Servers, and the nodes that they share, where they share any. A context manager: afterwards none is left."""

    def __init__(self, engine: str, servers: int, directory: Path, flags: Sequence[str]) -> None:
        self._nodes = EtcdNodes(directory / "etcd") if engine == "etcd" else None
        if self._nodes:
            flags = (*self._nodes.server_flags, *flags)
            self._servers = [Server(directory / f"server{n}", *flags) for n in range(servers)]
        else:
            self._servers = [Server(directory, *flags)]
        self._repairs = ThreadPoolExecutor(1)
        self._repaired: list[Future[None]] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:  # nothing is left of a start that fails
            if self._nodes:
                stack.enter_context(self._nodes)
            stack.callback(self._repairs.shutdown)
            for server in self._servers:
                stack.enter_context(server)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)  # type: ignore[arg-type]

    @property
    def ports(self) -> list[int]:
        """Where the servers listen."""
        return [server.port for server in self._servers]

    def ended(self) -> list[int]:
        """The exit statuses of servers that have ended by themselves. One that was killed has been replaced already."""
        statuses = [server.process.poll() for server in self._servers if server.process]
        return [status for status in statuses if status is not None]

    def victims(self, role: str) -> list[Victim]:
        """Who has a role at this moment."""
        if role in (LEADER, FOLLOWER, DISK):
            return [self._as_victim(number, role) for number in self._nodes_of(role)]
        if role == GROUP:
            return [_group(server) for server in self._servers]
        return [_single(server, process) for server in self._servers for process in server.role(role)]

    def await_ready(self) -> None:
        """Wait for repairs to be done, and until every server takes requests. Raises what a repair raised."""
        for repair in self._repaired:
            repair.result()
        for server in self._servers:
            server.await_ready()

    def crash(self) -> None:
        """SIGKILL to every process."""
        for server in self._servers:
            server.crash()
        if self._nodes:
            for number in self._nodes.running:
                self._nodes.kill(number)

    def start(self) -> None:
        """Start again what `crash` has ended, and wait until all take requests."""
        if self._nodes:
            self._nodes.start_all()
        for server in self._servers:
            server.start()

    def puts_counted(self) -> dict[str, int]:
        """How often each key was put since it was last created, as etcd counts it; empty with another engine."""
        counted = self._nodes.versions(_KEYS) if self._nodes else {}
        newest = max((int(key.split("/")[2]) for key in counted), default=0)  # older generations were cleared
        start = f"{_KEYS}{newest}/"
        return {key.removeprefix(start): version for key, version in counted.items() if key.startswith(start)}

    # Nodes of etcd ----------------------------------------------------------------------------------------

    def _nodes_of(self, role: str) -> Iterable[int]:
        """None while a node is away: with a second one gone, there is no majority, and nothing can be learned."""
        nodes = self._nodes
        if nodes is None or not all(repair.done() for repair in self._repaired):
            return []
        there = [n for n in nodes.running if psutil.Process(nodes.pid(n)).status() != psutil.STATUS_STOPPED]
        leaders = [n for n in there if nodes.leads(n)] if len(there) == len(nodes.nodes) else []
        if role == LEADER or not leaders:
            return leaders
        return [n for n in there if n not in leaders]

    def _as_victim(self, number: int, role: str) -> Victim:
        assert self._nodes
        process = psutil.Process(self._nodes.pid(number))
        if role == DISK:
            lose, replace = (functools.partial(each, number) for each in (self._nodes.lose_disk, self._replace))
            return Victim(process.pid, [process], lose, replace, NODE_AWAY_SECONDS)
        kill, spawn = (functools.partial(each, number) for each in (self._nodes.kill, self._nodes.spawn))
        return Victim(process.pid, [process], kill, spawn, NODE_AWAY_SECONDS)

    def _replace(self, number: int) -> None:
        """By the runbook, which waits for others. The load goes on meanwhile, and so does the experiment."""
        assert self._nodes
        self._repaired.append(self._repairs.submit(self._nodes.replace, number))


def _group(server: Server) -> Victim:
    assert server.process
    return Victim(server.process.pid, server.members(), server.crash, server.spawn)


def _single(server: Server, process: psutil.Process) -> Victim:
    is_first = server.process is not None and process.pid == server.process.pid
    return Victim(
        process.pid, [process], process.kill, functools.partial(_start_anew, server) if is_first else _nothing
    )


def _start_anew(server: Server) -> None:
    server.wait()
    server.spawn()
