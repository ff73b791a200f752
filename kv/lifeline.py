"""How a process notices that the one it belongs to is gone.

Two means, because each has a hole. A pipe whose write end only the parent holds is portable, but a process that is
stopped (SIGSTOP) does not look at it. PR_SET_PDEATHSIG kills a stopped process too, but is Linux only, fires when the
forking *thread* ends, and not at all for a parent that was gone before the call.
"""

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, where the kernel can. To be called in the child."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def make() -> tuple[int, int]:
    """A pipe: its read end is for children to inherit, its write end for nobody."""
    read, write = os.pipe()
    os.set_inheritable(read, True)
    return read, write
