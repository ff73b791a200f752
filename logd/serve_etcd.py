"""Serving a cluster of etcd: the order of a start.

    read the credentials → connect → check the cluster, take over the record → serve → stop

Started by the supervisor (kv/supervisor.py), which obeys the exit status. When the cluster does not answer within
seconds, this serves all the same: /health says why nothing works yet, and waiting requests are answered once it does.

grpc is imported by `run`, as it is installed for this engine alone.
"""

import argparse
import logging
import os
import select
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import setproctitle

from logd import hosting
from logd.shared.protocol import Exit
from logd.shared.text import printable

if TYPE_CHECKING:
    from logd.etcd.engine import EtcdEngine

GRPC_SETTINGS: Final = {
    "GRPC_ENABLE_FORK_SUPPORT": "0",
    "GRPC_VERBOSITY": "NONE",  # what it would say of each try is said here once
    # Without its event engine, the thread that waits for an answer polls the socket itself: a call changes threads 3
    # times instead of 11 and takes 330 µs of processor time instead of 400; PUTs of one connection are 1.15 to 1.34
    # times as fast, those of many as fast as with it.
    "GRPC_EXPERIMENTS": "-event_engine_client",
    # But then nobody polls an endpoint that has refused, as calls to it fail at once: without this, which is 5000 by
    # default, a link that has lost all endpoints finds none again.
    "GRPC_CLIENT_CHANNEL_BACKUP_POLL_INTERVAL_MS": "100",
}
"""What gRPC looks for in the environment. It has to be there before the first import."""
_READY_SECONDS: Final = 3.0

log = logging.getLogger("logd")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The command line, which the supervisor writes."""
    hosting.add_flags(parser)
    parser.add_argument("--endpoints", required=True, help="URLs, separated by commas")
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--gateway", required=True, help="random; the same for all that serve the same workers")
    parser.add_argument("--reads", required=True, choices=("auto", "index", "log"))
    parser.add_argument("--compact-s", required=True, type=float)
    parser.add_argument("--request-bytes-max", required=True, type=int)
    parser.add_argument("--request-timeout-s", required=True, type=float)
    parser.add_argument("--ca-file", type=Path)
    parser.add_argument("--cert-file", type=Path)
    parser.add_argument("--key-file", type=Path)
    parser.add_argument("--user-file", type=Path)


def run(arguments: argparse.Namespace) -> int:
    """Serve until the lifeline closes; the exit status."""
    hosting.ignore_group_signals()
    setproctitle.setproctitle(f"kv: logd etcd {printable(arguments.prefix)}")
    for name, value in GRPC_SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        from logd.etcd.checks import Unusable  # noqa: PLC0415
        from logd.etcd.writer import Fenced  # noqa: PLC0415
    except ImportError as error:
        log.critical("the packages of requirements-etcd.txt are not installed: %s", error)
        return Exit.USAGE
    try:
        engine = _engine(arguments)
        _await_ready(engine, arguments.lifeline_fd)
        hosting.serve(engine, arguments, at_end=engine.give_up_records)
    except Unusable as error:
        log.critical("%s", error)
        return Exit.USAGE
    except Fenced as error:
        log.critical("%s: nothing is answered from here on", error)
        return Exit.CRASHED
    log.info("stopped")
    return Exit.STOPPED


def _engine(arguments: argparse.Namespace) -> "EtcdEngine":
    """Raises checks.Unusable."""
    from logd.etcd import credentials  # noqa: PLC0415
    from logd.etcd.engine import EtcdEngine, Settings  # noqa: PLC0415

    return EtcdEngine(
        Settings(
            endpoints=arguments.endpoints.split(","),
            prefix=arguments.prefix,
            gateway=arguments.gateway,
            reads=arguments.reads,
            compact_s=arguments.compact_s,
            request_bytes_max=arguments.request_bytes_max,
            request_timeout_s=arguments.request_timeout_s,
            credentials=credentials.of_channel(arguments.ca_file, arguments.cert_file, arguments.key_file),
            user=credentials.of_user(arguments.user_file),
        )
    )


def _await_ready(engine: "EtcdEngine", lifeline_fd: int) -> None:
    """Wait until the record is ours, so that whoever hears that the server listens can use it; or for some seconds."""
    deadline = time.monotonic() + _READY_SECONDS
    while not engine.is_ready() and (left := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select([engine.fileno(), lifeline_fd], [], [], left)
        if lifeline_fd in ready:
            return
        engine.collect()  # nobody could send anything yet, so there are no replies
