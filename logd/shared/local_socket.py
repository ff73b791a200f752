"""The socket between the workers and logd: who makes it, how it is found, and who may use it.

The supervisor makes it once and hands it to each logd that it starts, as it hands the HTTP port to each gunicorn. So
its name is never free while the server lives, and nobody can put another socket in its place.

On Linux the name is abstract: it is in no directory. No clean-up of temporary files can remove it, it goes with the
last process that has the socket open, it is as long for every DIR and every TMPDIR, and it is in no copy of DIR. It is
random, so no two servers meet. Such a name has no permissions: logd itself refuses the connections of other users
(logd/server.py, `open_socket`).

The alternatives: a path in a directory for temporary files can be removed by others and outlives a SIGKILL. A path in
DIR may be too long (107 bytes), is in every copy of DIR, and two servers then fight for it. A pair of connected sockets
needs no name, but ZeroMQ connects by a name only.

macOS has no abstract names. There the socket is in a new directory for this user alone, below the one for temporary
files; a SIGKILL leaves that behind. This was not tried.
"""

import secrets
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from typing import Final

_BACKLOG: Final = 4096
_HAS_ABSTRACT_NAMES: Final = sys.platform == "linux"


class LocalSocket:
    """The listening socket. Made by the supervisor."""

    def __init__(self) -> None:
        """Make it. Raises OSError."""
        self._directory: Path | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        if _HAS_ABSTRACT_NAMES:
            name = f"kv-{secrets.token_hex(16)}"
            self._socket.bind(f"\0{name}")
            self.address = f"ipc://@{name}"
        else:
            self._directory = Path(tempfile.mkdtemp(prefix="kv-"))  # mode 0700
            path = self._directory / "logd.sock"
            self._socket.bind(str(path))
            self.address = f"ipc://{path}"
        self._socket.listen(_BACKLOG)

    def fileno(self) -> int:
        """The descriptor that logd inherits."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close it, once logd has ended for good."""
        self._socket.close()
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)
