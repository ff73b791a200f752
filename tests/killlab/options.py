"""The command line of the kill lab, parsed and checked.

Knows neither servers nor clients.
"""

import argparse
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.killlab.cluster import ROLES_OF
from tests.killlab.kills import ROLES, Order, at_intervals, at_random, one_of_each, parse_orders, parse_seconds
from tests.killlab.mix import Mix
from tests.support.arguments import checked, positive_count

_SERVER_FLAGS = ("--segment-bytes=1048576", "--checkpoint-log-bytes=2097152")
_SHARES = (
    ("--read-share", 0.4, "reads; all shares are of the requests, and what is left of 1 are puts"),
    ("--delete-share", 0.05, "deletes"),
    ("--clear-share", 0.0, "deletes of everything"),
    ("--conditional-share", 0.1, "compare-and-set, each after a read"),
    ("--batch-share", 0.05, "batches"),
    ("--count-share", 0.03, "increments of a counter, each tried twice; none with --clear-share"),
    ("--read-many-share", 0.1, "reads of several keys at once, where the server has them"),
)
_LIVE_INTERVAL_SECONDS = 3.0
_LIVE_SECONDS = 24 * 3600.0
_EPILOG = f"""
roles: {", ".join(ROLES_OF["local"])} (all processes of a server at once). Without --kill, --random and
--every, each of --roles is killed once. After the death of the supervisor or the group the server is started again,
as a person would.

with --engine etcd: {", ".join(ROLES_OF["etcd"])}
(a node that loses its disk, and is replaced by the runbook). A killed node is started again after 3 s.

flags for the server go after `--`; with the local engine it gets {" ".join(_SERVER_FLAGS)}
before them, so that a short run has checkpoints too.

examples:
  python -m tests.killlab --kill logd@3s,worker@6s,gunicorn@9s,supervisor@12s,group@15s --report report.html
  python -m tests.killlab --minutes 10 --every 2s
  python -m tests.killlab --kill stop:logd@5s+2s --clients 200 -- --workers=4
  python -m tests.killlab --engine etcd --servers 2 --kill etcd-leader@5s,stop:etcd-leader@12s+4s,etcd-disk@20s
  python -m tests.killlab --live --clients 8

exit status: 0 when all is well, 1 when it is not, 2 for an error on the command line.
"""


@dataclass(frozen=True)
class Options:
    """One experiment."""

    engine: str
    servers: int
    orders: tuple[Order, ...]
    seconds: float
    seed: int
    clients: int
    keys: int
    preload: int
    mix: Mix
    value_bytes: int
    strict: bool
    live: bool
    directory: Path | None
    report: Path | None
    server_flags: tuple[str, ...]


def parse(arguments: Sequence[str]) -> Options:
    """Parse the command line. Ends the process with a line on stderr when it makes no sense."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.live:
        given.every = given.every or _LIVE_INTERVAL_SECONDS
        given.seconds = _LIVE_SECONDS
    seconds = given.minutes * 60 if given.minutes else given.seconds
    rng = random.Random(given.seed)
    orders = [order for part in given.kill for order in part]
    roles = given.roles or ROLES_OF[given.engine]
    if given.random is not None:
        orders += at_random(given.random, roles, seconds, rng)
    if given.every:
        orders += at_intervals(given.every, roles, seconds, rng)
    if not given.kill and given.random is None and not given.every:
        orders = one_of_each(roles, seconds)
    if others := [order for order in orders if order.role not in ROLES_OF[given.engine]]:
        parser.error(f"{others[0]}: there is no {others[0].role} with --engine {given.engine}")
    if given.servers > 1 and given.engine == "local":
        parser.error("--servers needs --engine etcd, because a directory is of one server")
    if late := [order for order in orders if order.at_s >= seconds]:
        parser.error(f"{late[0]} comes after the end; --seconds is {seconds:g}")
    mix = _mix(given)
    if sum(mix) > 1:
        parser.error("the shares are more than 1 together")
    return Options(
        engine=given.engine,
        servers=given.servers,
        orders=tuple(sorted(orders)),
        seconds=seconds,
        seed=given.seed,
        clients=given.clients,
        keys=given.keys,
        preload=given.preload,
        mix=mix,
        value_bytes=given.value_bytes,
        strict=given.strict,
        live=given.live,
        directory=given.directory,
        report=given.report,
        server_flags=(*(_SERVER_FLAGS if given.engine == "local" else ()), *given.server_flags),
    )


def _mix(given: argparse.Namespace) -> Mix:
    return Mix(
        given.read_share,
        given.delete_share,
        given.clear_share,
        given.conditional_share,
        given.batch_share,
        0.0 if given.clear_share else given.count_share,
        given.read_many_share,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.killlab",
        description="Kills processes of a server under load, and judges what its clients saw.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    on = parser.add_argument_group("on what")
    on.add_argument(
        "--engine", choices=tuple(ROLES_OF), default="local", help="(local); for etcd, three nodes are started"
    )
    on.add_argument("--servers", type=checked(positive_count), default=1, metavar="N", help="that share them (1)")
    kills = parser.add_argument_group("what is killed, and when")
    kills.add_argument(
        "--kill",
        type=checked(parse_orders),
        action="append",
        default=[],
        metavar="ROLE@TIME,…",
        help="kill a process of that role at that time; stop:ROLE@TIME+TIME freezes it for a while instead",
    )
    kills.add_argument("--random", type=checked(_count), metavar="N", help="that many kills at random times")
    kills.add_argument(
        "--every", type=checked(_positive_seconds), metavar="TIME", help="a random kill after each such time"
    )
    kills.add_argument(
        "--roles", type=checked(_roles), metavar="ROLE,…", help="that the random kills choose from (all)"
    )
    length = parser.add_argument_group("how long").add_mutually_exclusive_group()
    length.add_argument("--seconds", type=checked(_positive_seconds), default=30.0, help="(30)")
    length.add_argument("--minutes", type=checked(_positive), help="instead of --seconds")
    load = parser.add_argument_group("load")
    load.add_argument("--clients", type=checked(positive_count), default=64, metavar="N", help="(64)")
    load.add_argument("--keys", type=checked(positive_count), default=500, metavar="N", help="that they share (500)")
    load.add_argument(
        "--preload",
        type=checked(_count),
        default=0,
        metavar="N",
        help="keys written before the load and verified after it (0)",
    )
    for name, share, what in _SHARES:
        load.add_argument(name, type=checked(_share), default=share, metavar="X", help=f"{what} ({share:g})")
    load.add_argument("--value-bytes", type=checked(positive_count), default=100, metavar="N", help="at least 16 (100)")
    parser.add_argument(
        "--seed", type=int, default=int.from_bytes(os.urandom(4)), help="of everything random; shown in the report"
    )
    length.add_argument(
        "--live", action="store_true", help="a show: until Ctrl-C, a random kill every few seconds (see --every)"
    )
    parser.add_argument(
        "--strict", action="store_true", help="a request that fails when logd, or a node of etcd, is killed is an error"
    )
    parser.add_argument(
        "--directory", type=Path, help="where the server keeps its data, and it stays (a temporary one)"
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE.html", help="write a page with the timeline and all figures"
    )
    parser.add_argument("server_flags", nargs="*", metavar="-- FLAGS", help="further flags of the server")
    return parser


def _positive(text: str) -> float:
    if not (number := float(text)) > 0:
        raise ValueError(f"{text} is not more than 0")
    return number


def _positive_seconds(text: str) -> float:
    if not (seconds := parse_seconds(text)) > 0:
        raise ValueError(f"{text} is not more than 0")
    return seconds


def _count(text: str) -> int:
    if (number := int(text)) < 0:
        raise ValueError(f"{text} is less than 0")
    return number


def _share(text: str) -> float:
    if not 0 <= (share := float(text)) <= 1:
        raise ValueError(f"{text} is not between 0 and 1")
    return share


def _roles(text: str) -> tuple[str, ...]:
    roles = tuple(role.strip() for role in text.split(","))
    if unknown := [role for role in roles if role not in ROLES]:
        raise ValueError(f"{unknown[0]!r} is no role; there are {', '.join(ROLES)}")
    return roles
