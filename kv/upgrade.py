"""The upgrade: the supervisor's process runs the code on disk from its beginning, and keeps the listening sockets.

First the code on disk is checked, in a process of its own, while the server serves: the same command line with
--check-config sets up changed requirements, loads all code, and checks the options and the files that they name. Then,
when all other processes have stopped in order, this process replaces itself by exec. Its pid stays the same, and the
socket stays open, so that no connection is refused. (nginx and gunicorn start a second master beside the first. Here
that would be two processes that own one directory of data, and a new pid.)

Knows how the server was started; does not know how the other processes are stopped.
"""

import os
import socket
import subprocess
import sys
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

from kv import children
from kv.environment import python_path
from kv.errors import CannotServe

_RUN_SH: Final = "KV_RUN_SH"
"""The variable in which run.sh says where it is; missing when the server was started by Python alone."""
_LISTEN_FDS: Final = "KV_UPGRADE_LISTEN_FDS"


def start_check() -> subprocess.Popen[bytes]:
    """Check the code on disk; the process ends with 0 when it can be started. Raises OSError."""
    run_sh = os.environ.get(_RUN_SH)
    command = ["/bin/sh", run_sh, *sys.argv[1:]] if run_sh else [sys.executable, *sys.orig_argv[1:]]
    return subprocess.Popen(
        [*command, "--check-config"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        preexec_fn=children.prepare,  # noqa: PLW1509 - this process has one thread
    )


def replace_process(listeners: Sequence[socket.socket]) -> NoReturn:
    """Become the code on disk. The caller has blocked signals. Raises CannotServe, and does not return otherwise.

    Does what the last line of run.sh does, which was good for the check. A shell in between would not do: when it waits
    for a command, it may unblock the signals, and be killed by one.
    """
    for listener in listeners:
        listener.set_inheritable(True)
    environment = os.environ | {_LISTEN_FDS: f"{os.getpid()}:{','.join(str(each.fileno()) for each in listeners)}"}
    command = [sys.executable, *sys.orig_argv[1:]]
    if run_sh := os.environ.get(_RUN_SH):
        project = Path(run_sh).resolve().parent
        environment |= python_path(project)
        command = [str(project / ".venv" / "bin" / "python"), "-m", "kv", *sys.argv[1:]]
    try:
        os.execve(command[0], command, environment)  # noqa: S606 - no shell is what is wanted
    except OSError as error:
        raise CannotServe(f"{command[0]} cannot be executed: {error.strerror}") from error


def kept_listeners(environment: MutableMapping[str, str]) -> list[socket.socket]:
    """The sockets that `replace_process` has kept open; none when this process was not started by it.

    Removes the variable that says so. The pid in it is this process's, unless the variable was meant for another one
    (the idea is that of LISTEN_PID, sd_listen_fds(3)).
    """
    pid, _, fds = environment.pop(_LISTEN_FDS, "").partition(":")
    if pid != str(os.getpid()):
        return []
    listeners = [socket.socket(fileno=int(fd)) for fd in fds.split(",")]
    for listener in listeners:
        listener.set_inheritable(False)
    return listeners
