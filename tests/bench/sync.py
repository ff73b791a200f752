"""A probe: what one bare write and sync costs on the disk that the server writes to.

Knows no server. It appends to a growing file what the log would write for one PUT, and waits for the disk as the log
does.
"""

import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from logd.local import wal
from logd.local.frame import FRAME_HEADER_BYTES
from logd.shared import protocol

_SYNCS_MIN: Final = 20

if sys.platform == "darwin":  # fsync there leaves the data in the drive's cache
    import fcntl

    def _sync(fd: int) -> None:
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)

else:
    _sync = os.fdatasync


class BareSync(NamedTuple):
    """One write and sync, in microseconds."""

    p50_us: float
    p99_us: float


def measure(directory: Path, frame_bytes: int, seconds: float) -> BareSync:
    """Write and sync for that long, in a file that is gone afterwards."""
    path = directory / "bare-sync"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        durations_ns = _append_and_sync(fd, b"v" * frame_bytes, seconds)
    finally:
        os.close(fd)
        path.unlink()
    return BareSync(percentile(durations_ns, 0.5) / 1000, percentile(durations_ns, 0.99) / 1000)


def _append_and_sync(fd: int, data: bytes, seconds: float) -> list[int]:
    """How long each took, in nanoseconds."""
    durations_ns: list[int] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline or len(durations_ns) < _SYNCS_MIN:
        began = time.perf_counter_ns()
        os.pwrite(fd, data, len(durations_ns) * len(data))
        _sync(fd)
        durations_ns.append(time.perf_counter_ns() - began)
    return durations_ns


def percentile(values: Sequence[int], share: float) -> int:
    """The least value that at least this share of the values does not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


def frame_bytes(key: str, value_bytes: int) -> int:
    """What the log writes for one PUT that is alone in its group."""
    session = bytes(protocol.SESSION_ID_BYTES)
    batch = protocol.WriteBatch(session, 1_000, 1_000, False, {key: bytes(value_bytes)}, [])
    return FRAME_HEADER_BYTES + sum(map(len, wal.payload_parts([protocol.encode(batch)])))
