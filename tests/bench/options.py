"""The command line of the bench, parsed and checked.

Knows neither targets nor cases.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from kv.config import Config
from tests.bench.cases import HELLO, SERVER, WITH_NAMED_PEERS, Section
from tests.support.arguments import checked, positive_count

_ROUNDS = 3
_SECONDS = 5
_USUAL = tuple(section for section in Section if section is not Section.CLUSTER)
_EPILOG = """
what --only selects:
  headline     1, 64 and 512 connections: the server beside the hello-world, and beside what --peer names
  connections  1 to 4,096 connections, and 1, 64 and 1,024 for the peers
  values       values of 1 B to 1 MiB
  keys         1,000 to 1,000,000 keys that are stored
  transactions conditional PUTs and batches, each beside plain PUTs
  sync         the p50 of a PUT on one connection, beside that of one bare write and sync
  logd         the log writer alone, without HTTP: durable writes and reads a second
  cluster      three nodes of etcd: our server on them, beside etcd's JSON gateway and gRPC; only when it is asked for

peers: in connections, etcd and redis-server are measured where they are installed; in headline and connections, each
server that --peer names. Flags for the server go after `--`.

examples:
  ./tests/bench/run.sh --quick
  ./tests/bench/run.sh --only headline --rounds 9
  ./tests/bench/run.sh --only connections --peer mine=http://127.0.0.1:9000
  ./tests/bench/run.sh --publish

exit status: 0; 1 when something could not be measured; 2 for an error on the command line.
"""


@dataclass(frozen=True)
class Options:
    """The command line, parsed."""

    sections: tuple[Section, ...]
    rounds: int
    seconds: int
    connections: tuple[int, ...]
    """Those of the section of that name; none when it has its own."""
    workers: int
    peers: tuple[tuple[str, str], ...]
    """Names and URLs."""
    without_peers: bool
    out: Path
    publish: bool
    """Write the figures of the documents too."""
    server_flags: tuple[str, ...]


class _Parser(argparse.ArgumentParser):
    """Shows an error in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help lists the options)\n")


def parse(arguments: Sequence[str]) -> Options:
    """Parse the command line. Ends the process with a line on stderr when it makes no sense."""
    parser = _parser()
    given = parser.parse_args(arguments)
    names = [SERVER, HELLO, "etcd", "redis", *(name for name, _ in given.peer)]
    if given.publish and (Section.CONNECTIONS not in given.only or given.connections):
        parser.error("--publish needs the section connections, with its own connections")
    if given.peer and set(WITH_NAMED_PEERS).isdisjoint(given.only):
        parser.error(f"--peer needs {' or '.join(section.value for section in WITH_NAMED_PEERS)}; see --only")
    if doubled := [name for name, _ in given.peer if names.count(name) > 1]:
        parser.error(f"--peer: the name {doubled[0]!r} is used already")
    return Options(
        sections=given.only,
        rounds=given.rounds or (1 if given.quick else _ROUNDS),
        seconds=given.seconds or (1 if given.quick else _SECONDS),
        connections=given.connections,
        workers=given.workers,
        peers=tuple(given.peer),
        without_peers=given.no_peers,
        out=given.out,
        publish=given.publish,
        server_flags=tuple(given.server_flags),
    )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="./tests/bench/run.sh",
        description="Measures the server, a bare hello-world of the same stack, and its peers, in turns.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add, count = parser.add_argument, checked(positive_count)
    add("--only", type=checked(_sections), default=_USUAL, metavar="SECTION,…", help="(all but cluster)")
    add("--rounds", type=count, metavar="N", help=f"how often each load is put on each target ({_ROUNDS})")
    add("--seconds", type=count, metavar="N", help=f"how long a load lasts ({_SECONDS})")
    add("--quick", action="store_true", help="one round of one second: to see that all works, not to measure")
    add("--connections", type=checked(_counts), default=(), metavar="N,…", help="of that section, instead of its own")
    workers = Config().workers
    add("--workers", type=count, default=workers, help=f"of the server and the hello-world ({workers})")
    add("--peer", type=checked(_peer), action="append", default=[], metavar="NAME=URL", help="a server with our paths")
    add("--no-peers", action="store_true", help="leave out etcd and redis, though they are here; not those of --peer")
    out = Path("bench-results")
    add("--out", type=Path, default=out, metavar="DIR", help=f"for the results, and the data meanwhile ({out})")
    add(
        "--publish", action="store_true", help="write the figures of the README and docs/performance.md, and their plot"
    )
    add("server_flags", nargs="*", metavar="-- FLAGS", help="further flags of the server")
    return parser


def _counts(text: str) -> tuple[int, ...]:
    return tuple(sorted({positive_count(part) for part in text.split(",")}))


def _sections(text: str) -> tuple[Section, ...]:
    names = [name.strip() for name in text.split(",")]
    known = [section.value for section in Section]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{unknown[0]!r} is none of {', '.join(known)}")
    return tuple(section for section in Section if section.value in names)


def _peer(text: str) -> tuple[str, str]:
    name, _, url = text.partition("=")
    parts = urlsplit(url)
    if not name or parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/"):
        raise ValueError(f"{text!r} is not NAME=http://HOST:PORT")
    return name, url.rstrip("/")
