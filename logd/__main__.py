"""The command line of logd: `serve`, its child `checkpoint`, and the commands for people (logd/tools/commands.py).

A command ends with an `Exit`, which a supervisor obeys. This module knows which exception ends with which, and what to
say of it; what a command does it does not know.
"""

import argparse
import logging
import shlex
import signal
import sys
from pathlib import Path
from typing import Final

from logd import serve, serve_etcd
from logd.local import checkpoint
from logd.local.commit import DiskFailed
from logd.local.recovery import Damaged, Finding
from logd.shared import logging_setup, standard_streams
from logd.shared.protocol import Exit
from logd.tools import commands
from logd.tools.errors import CannotRun
from logd.tools.streams import ReaderGone

_ROOT: Final = Path(__file__).resolve().parent.parent
_INTERRUPTED: Final = 128 + signal.SIGINT  # as a shell says it

log = logging.getLogger("logd")


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit status."""
    standard_streams.open_missing()
    arguments = _parse(argv)
    logging_setup.set_up(arguments.role, arguments.log_level, arguments.log_format, arguments.warnings_fd)
    try:
        return Exit(arguments.run(arguments))
    except CannotRun as error:
        log.critical("%s", error)
        return error.status
    except Damaged as error:
        log.critical("%s. Nothing was changed", error)
        for line in _advice(error, vars(arguments).get("directory")):
            log.critical("%s", line)
        return Exit.DAMAGED
    except DiskFailed as error:
        log.critical("the disk failed, nothing of that group was acknowledged: %s", error)
        return Exit.DISK_FAILED
    except ReaderGone:
        return Exit.CRASHED
    except KeyboardInterrupt:
        log.critical("interrupted")
        return _INTERRUPTED


def _advice(damaged: Damaged, directory: Path | None) -> list[str]:
    if damaged.finding is Finding.OTHER_VERSION:
        return ["nothing has to be repaired: use the version of the program that wrote it"]
    tool = f"cd {shlex.quote(str(_ROOT))} && {shlex.quote(sys.executable)} -m logd"
    place = shlex.quote(str(directory.absolute())) if directory else "DIR"
    return [f"to see more: {tool} inspect {place}", f"to repair: {tool} repair {place}"]


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m logd", description="The log writer, and tools for its data.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    serving = subparsers.add_parser("serve", help="own DIR and serve it on a socket (started by python -m kv)")
    serve.add_flags(serving)
    serving.set_defaults(run=serve.run, role="logd")

    serving_etcd = subparsers.add_parser("serve-etcd", help="serve a cluster of etcd (started by python -m kv)")
    serve_etcd.add_flags(serving_etcd)
    serving_etcd.set_defaults(run=serve_etcd.run, role="logd")

    child = subparsers.add_parser("checkpoint", help="turn sealed segments into a snapshot (started by serve)")
    checkpoint.add_flags(child)
    child.set_defaults(run=checkpoint.run, role="checkpoint")

    for started_by_a_program in (serving, serving_etcd, child):
        logging_setup.add_flags(started_by_a_program)
    commands.add_to(subparsers)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
