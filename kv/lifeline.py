"""How a process ends when its parent is gone.

There are two means, because each fails somewhere. A pipe whose write end only the parent has works everywhere, but a
process that is stopped (SIGSTOP) does not read it. PR_SET_PDEATHSIG kills a stopped process too; but it exists on Linux
only, fires when the forking *thread* ends, and does nothing when the parent was gone before the call.
"""

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, where the kernel can. Called in the child."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def make() -> tuple[int, int]:
    """A pipe: the read end, which children inherit, and the write end, which no other process may have."""
    return os.pipe()
