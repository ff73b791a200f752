"""What a process uses of the machine. Used by logd and by the workers; knows nothing of what they do."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Final

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def resident_bytes(pid: int | None = None) -> int:
    """The resident memory of this process, or of another; 0 where the system has no cheap way to ask for it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, IndexError):  # another one may have ended, or is ending
            return int(Path(f"/proc/{pid or 'self'}/statm").read_bytes().split()[1]) * _PAGE_BYTES
    return 0
