"""Descriptors 0 to 2, which may be closed when a program is started.

Then the next files that it opens get these numbers: what is meant for stderr would be written into a file of data.
"""

import os
import sys
from typing import Final

_STANDARD: Final = (0, 1, 2)


def open_missing() -> None:
    """Open those that are closed on /dev/null, and stderr as a file. To be called before anything else is opened.

    `sys.stdin` and `sys.stdout` stay None, so that a command that needs one can say that it is closed.
    """
    for fd in _STANDARD:
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
            os.set_inheritable(fd, True)
    sys.stderr = sys.stderr or open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
