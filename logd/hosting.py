"""What every way to serve has in common: what the supervisor hands over, its signals, and the life of the socket."""

import argparse
import os
import signal
from collections.abc import Callable

import zmq

from logd import server
from logd.engine import Engine


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The part of the command line that does not depend on the engine; the supervisor writes it."""
    parser.add_argument("--socket-fd", required=True, type=int, help="a listening Unix socket, for the workers")
    parser.add_argument("--lifeline-fd", required=True, type=int, help="the read end of a pipe; its end means stop")
    parser.add_argument("--ready-fd", required=True, type=int, help="the write end of a pipe; a line means ready")
    parser.add_argument("--message-bytes-max", required=True, type=int)


def ignore_group_signals() -> None:
    """They are for the supervisor, which ends this process when it is its turn. Children inherit this."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def serve(
    engine: Engine, arguments: argparse.Namespace, *, served: str = "", at_end: Callable[[], None] = lambda: None
) -> None:
    """Serve until the lifeline closes, then stop the engine; `at_end` is called before that, unless serving failed.

    `served` names what is served, for a successor that has to serve the same. Raises what `Engine.collect` raises.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        socket = server.open_socket(context, arguments.socket_fd, arguments.message_bytes_max)
        os.write(arguments.ready_fd, f"{served}\n".encode())
        os.close(arguments.ready_fd)
        server.Server(socket, engine, arguments.lifeline_fd).run()
        at_end()
    finally:
        engine.stop()
    socket.close()
    context.term()
