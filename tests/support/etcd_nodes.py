"""A cluster of real etcd nodes on 127.0.0.1: started, killed, frozen, and replaced as an operator would.

Owns the processes, directories and certificates of the nodes. `EtcdNodes` is a context manager that leaves none of its
processes behind, also when a test fails. Nodes are numbered from 0. Of the server that uses them, it knows the flags.

etcd is found on PATH, or in `.etcd`, where `tests/bring_etcd.sh` brings it; without it, `EtcdNodes` raises SkipTest.
"""

import base64
import contextlib
import http.client
import json
import os
import random
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import unittest
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from tests.support.harness import ROOT, await_true

_PATH: Final = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{ROOT / '.etcd/usr/bin'}"
_PORTS: Final = range(20_000, 32_000)
"""Below those from which the kernel takes the ports of clients, so that a node finds its own free when it returns."""
_ANSWER_SECONDS: Final = 1.0
_READY_SECONDS: Final = 30.0


def find_program(name: str) -> str:
    """Where etcd or etcdctl is. Raises SkipTest where there is none."""
    if not (path := shutil.which(name, path=_PATH)):
        raise unittest.SkipTest(
            f"{name} is neither on PATH nor in .etcd; tests/bring_etcd.sh brings it where apt has it"
        )
    return path


class Refused(Exception):
    """etcdctl failed; the message is what it printed."""


class Certificates:
    """An authority, and certificates that it signs: of the nodes, of the administrator, and of whom one is made for."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self.ca, self._ca_key = self._paths("ca")
        _openssl("req", "-x509", *_KEY, "-subj", "/CN=ca", "-keyout", self._ca_key, "-out", self.ca)
        self.server, self.server_key = self.make("server", "subjectAltName=IP:127.0.0.1,DNS:localhost")
        self.root, self.root_key = self.make("root")

    def make(self, name: str, extension: str = "basicConstraints=CA:FALSE") -> tuple[Path, Path]:
        """A certificate for that common name, and its key."""
        certificate, key = self._paths(name)
        request, extensions = self._directory / f"{name}.csr", self._directory / f"{name}.ext"
        extensions.write_text(f"{extension}\n")
        _openssl("req", *_KEY, "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        signed_by = ("-CA", self.ca, "-CAkey", self._ca_key, "-CAcreateserial", "-days", "2", "-extfile", extensions)
        _openssl("x509", "-req", "-in", request, *signed_by, "-out", certificate)
        return certificate, key

    def context(self) -> ssl.SSLContext:
        """What a client of the nodes needs."""
        context = ssl.create_default_context(cafile=str(self.ca))
        context.load_cert_chain(self.root, self.root_key)
        return context

    def _paths(self, name: str) -> tuple[Path, Path]:
        return self._directory / f"{name}.pem", self._directory / f"{name}.key"


_KEY: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _openssl(*arguments: str | Path) -> None:
    if not shutil.which("openssl"):
        raise unittest.SkipTest("openssl is not installed")
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


class Node(NamedTuple):
    """Where a node is."""

    name: str
    client_port: int
    peer_port: int
    directory: Path

    @property
    def peer_url(self) -> str:
        """Where the other nodes find it."""
        return f"http://127.0.0.1:{self.peer_port}"


class EtcdNodes:
    """The nodes of one cluster. `flags` go to each of them; with certificates, clients need one of their own."""

    def __init__(self, directory: Path, *flags: str, count: int = 3, certificates: Certificates | None = None) -> None:
        self._etcd, self._etcdctl = find_program("etcd"), find_program("etcdctl")
        ports = _free_ports(2 * count)
        self.nodes = [Node(f"node{n}", ports[2 * n], ports[2 * n + 1], directory / f"node{n}") for n in range(count)]
        self._directory = directory
        self._flags = flags
        self._certificates = certificates
        self._administrator: list[str] = []
        if certificates:
            self._administrator = [f"--cert={certificates.root}", f"--key={certificates.root_key}"]
        self._token = secrets.token_hex(8)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            self.start_all()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for number in self.running:
            self.kill(number)

    # What clients need ------------------------------------------------------------------------------------

    def url(self, number: int) -> str:
        """Where clients find a node."""
        return f"http{'s' if self._certificates else ''}://127.0.0.1:{self.nodes[number].client_port}"

    @property
    def endpoints(self) -> str:
        """Where clients find all of them: URLs, separated by commas."""
        return ",".join(self.url(number) for number in range(len(self.nodes)))

    @property
    def server_flags(self) -> tuple[str, ...]:
        """What makes a server use them."""
        return ("--engine=etcd", f"--etcd-endpoints={self.endpoints}")

    def etcdctl(self, *arguments: str, node: int | None = None, credentials: Sequence[str] | None = None) -> Any:  # noqa: ANN401
        """What etcdctl answers, by way of all nodes or of one. Raises Refused.

        Credentials are its flags; without them it is the administrator who asks.
        """
        command = [
            self._etcdctl,
            "--write-out=json",
            "--dial-timeout=1s",
            *(self._administrator if credentials is None else credentials),
        ]
        command += [f"--endpoints={self.endpoints if node is None else self.url(node)}", *arguments]
        if self._certificates:
            command.append(f"--cacert={self._certificates.ca}")
        environment = os.environ | {"ETCDCTL_API": "3"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
        if done.returncode:
            raise Refused(done.stderr)
        lines = [line for line in done.stdout.splitlines() if line.startswith(("{", "["))]
        return json.loads(lines[-1]) if lines else None

    def require_user(self, user: str, password: str | None, prefix: str) -> None:
        """Add a user who may use the keys with this prefix alone, and refuse clients that are no user.

        Without a password, the user is who has a certificate with that common name.
        """
        for name, secret in (("root", "root" if password else None), (user, password)):
            self.etcdctl("user", "add", *([f"{name}:{secret}"] if secret else [name, "--no-password"]))
        self.etcdctl("role", "add", user)
        self.etcdctl("role", "grant-permission", user, "readwrite", prefix, "--prefix=true")
        self.etcdctl("user", "grant-role", user, user)
        self.etcdctl("user", "grant-role", "root", "root")
        self.etcdctl("auth", "enable")
        if not self._certificates:
            self._administrator = ["--user=root:root"]

    def versions(self, prefix: str) -> dict[str, int]:
        """How often each key with this prefix was put since it was last created."""
        found = self.etcdctl("get", prefix, "--prefix", "--keys-only").get("kvs", [])
        return {base64.b64decode(each["key"]).decode(): each["version"] for each in found}

    # What the nodes say -----------------------------------------------------------------------------------

    def status(self, number: int) -> dict[str, Any] | None:
        """What a node says of itself: Maintenance/Status as JSON, numbers as text. None when it does not answer."""
        try:
            return self._request(number, "POST", "/v3/maintenance/status", "{}")
        except (OSError, http.client.HTTPException):
            return None

    def version(self) -> str:
        """The version of the nodes."""
        status = self.status(0)
        return str(status["version"]) if status else "unknown"

    @property
    def running(self) -> list[int]:
        """The nodes whose process is there."""
        return list(self._processes)

    def leads(self, number: int) -> bool:
        """True for a node that knows itself to be the leader."""
        status = self.status(number)
        return status is not None and status.get("leader") == status["header"]["member_id"]

    def leader(self) -> int:
        """The node that leads, once there is one that knows it."""
        found: list[int] = []

        def is_there() -> bool:
            found[:] = [number for number in self.running if self.leads(number)]
            return len(found) == 1

        await_true(is_there, _READY_SECONDS, "a leader")
        return found[0]

    def followers(self) -> list[int]:
        """The other nodes whose process is there."""
        leader = self.leader()
        return [number for number in self.running if number != leader]

    def await_ready(self, numbers: Sequence[int] | None = None) -> None:
        """Wait until these nodes, or all, take requests."""
        for number in self.running if numbers is None else numbers:
            await_true(lambda: self._is_ready(number), _READY_SECONDS, f"readiness of etcd's node {number}")  # noqa: B023

    def log(self, number: int) -> str:
        """What a node has written to stderr."""
        return self._log_path(number).read_text(errors="replace")

    # What is done to them ---------------------------------------------------------------------------------

    def spawn(self, number: int, *flags: str) -> None:
        """Start a node that does not run, and do not wait for it."""
        node = self.nodes[number]
        node.directory.mkdir(parents=True, exist_ok=True)
        with self._log_path(number).open("ab") as log:
            self._processes[number] = subprocess.Popen(
                [*self._command(node), *self._flags, *flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_all(self) -> None:
        """Start every node, and wait until all take requests."""
        for number in range(len(self.nodes)):
            self.spawn(number)
        self.await_ready()

    def start(self, number: int) -> None:
        """Start a node that does not run, and wait until it takes requests."""
        self.spawn(number)
        self.await_ready([number])

    def pid(self, number: int) -> int:
        """The process of a node."""
        return self._processes[number].pid

    def stop(self, number: int) -> None:
        """End a node in order."""
        process = self._processes.pop(number)
        process.terminate()
        process.wait(_READY_SECONDS)

    def kill(self, number: int) -> None:
        """End a node as a loss of its machine does; what it has synced stays."""
        process = self._processes.pop(number)
        process.kill()
        process.wait()

    def freeze(self, number: int) -> None:
        """Stop a node without ending it, as a partition does: its connections stay open and silent."""
        self._processes[number].send_signal(signal.SIGSTOP)
        os.waitpid(self.pid(number), os.WUNTRACED)  # on a busy machine its threads go on for a moment

    def resume(self, number: int) -> None:
        """Let it go on."""
        self._processes[number].send_signal(signal.SIGCONT)

    def lose_disk(self, number: int) -> None:
        """End a node, and remove all that it had."""
        if number in self._processes:
            self.kill(number)
        shutil.rmtree(self.nodes[number].directory)

    def replace(self, number: int) -> None:
        """Put an empty node in the place of one that lost its disk: "Replace a node" in docs/scaling.md.

        Under its old id, it would vote as if it remembered what it has lost.
        """
        node = self.nodes[number]
        members = {member.get("name"): member["ID"] for member in self.etcdctl("member", "list")["members"]}
        self.etcdctl("member", "remove", f"{members[node.name]:x}")
        await_true(lambda: self._is_added(node), _READY_SECONDS, "a cluster that takes a new member")
        self.spawn(number, "--initial-cluster-state=existing")
        self.await_ready([number])

    def restore(self, number: int, snapshot: Path) -> None:
        """Have a node that does not run begin with a snapshot: "Restore" in docs/scaling.md."""
        node = self.nodes[number]
        shutil.rmtree(node.directory)
        flags = [f"--name={node.name}", f"--data-dir={node.directory}", f"--initial-cluster={self._initial_cluster()}"]
        self.etcdctl("snapshot", "restore", str(snapshot), *flags, f"--initial-advertise-peer-urls={node.peer_url}")

    def _is_added(self, node: Node) -> bool:
        try:
            self.etcdctl("member", "add", node.name, f"--peer-urls={node.peer_url}")
        except Refused as error:
            if "unhealthy cluster" in str(error):  # another node has been there for less than five seconds
                return False
            raise
        return True

    def _command(self, node: Node) -> list[str]:
        client_url = self.url(self.nodes.index(node))
        command = [
            self._etcd,
            f"--name={node.name}",
            f"--data-dir={node.directory}",
            "--logger=zap",
            "--log-level=warn",
        ]
        command += [f"--listen-client-urls={client_url}", f"--advertise-client-urls={client_url}"]
        command += [f"--listen-peer-urls={node.peer_url}", f"--initial-advertise-peer-urls={node.peer_url}"]
        command += [f"--initial-cluster={self._initial_cluster()}", f"--initial-cluster-token={self._token}"]
        if own := self._certificates:
            command += ["--client-cert-auth", f"--trusted-ca-file={own.ca}"]
            command += [f"--cert-file={own.server}", f"--key-file={own.server_key}"]
        return command

    def _initial_cluster(self) -> str:
        return ",".join(f"{each.name}={each.peer_url}" for each in self.nodes)

    # Over its JSON gateway --------------------------------------------------------------------------------

    def _is_ready(self, number: int) -> bool:
        returncode = self._processes[number].poll()
        assert returncode is None, f"node {number} of etcd ended with {returncode}:\n{self.log(number)[-5_000:]}"
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self._request(number, "GET", "/health") == {"health": "true"}
        return False

    def _request(self, number: int, method: str, path: str, body: str | None = None) -> dict[str, Any]:
        port = self.nodes[number].client_port
        connection = (
            http.client.HTTPSConnection(
                "127.0.0.1", port, timeout=_ANSWER_SECONDS, context=self._certificates.context()
            )
            if self._certificates
            else http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_SECONDS)
        )
        with contextlib.closing(connection):
            connection.request(method, path, body)
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
            return answer

    def _log_path(self, number: int) -> Path:
        return self._directory / f"node{number}.log"


def _free_ports(count: int) -> list[int]:
    """Different ports of this machine that are not in use."""
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            found.append(port)
            if len(found) == count:
                break
    return found
