"""What a process uses of the machine. Used by logd and by the workers; knows nothing of what they do."""

import os
import sys
from pathlib import Path
from typing import Final

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    """The resident memory of this process; 0 where the system has no cheap way to ask for it."""
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * _PAGE_BYTES
