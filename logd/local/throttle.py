"""Throttles work in the background to a tenth of a processor, less than a millisecond at a time.

Owns the timer that lets this process rest; does not know what the work is.

A low priority is not enough beside a server. On a machine of two processors a checkpoint at full speed and the lowest
priority (or SCHED_IDLE) made the 99th percentile of writes three to five times as long, with or without its writing.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Final

BURST_SECONDS: Final = 0.0005
REST_RATIO: Final = 9
"""Seconds of rest for each second of processor time."""

_hurried: Final = threading.Event()


@contextlib.contextmanager
def throttled() -> Iterator[None]:
    """Rest after each burst of work in this block, until `hurry`. To be entered in the main thread.

    A timer interrupts the work, which need not know of it. A call into C is not interrupted, and waiting is no work:
    the length of a rest follows from the processor time since the last one. (The kernel has a timer of processor time
    too, ITIMER_PROF; it is as coarse as the scheduler's tick.)
    """
    used_before = time.process_time()

    def rest(_signal: int, _frame: FrameType | None) -> None:
        nonlocal used_before
        if not _hurried.is_set():
            time.sleep(REST_RATIO * (time.process_time() - used_before))
            used_before = time.process_time()
            signal.setitimer(signal.ITIMER_REAL, BURST_SECONDS)

    signal.signal(signal.SIGALRM, rest)
    signal.setitimer(signal.ITIMER_REAL, BURST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)  # one that is already on its way would end the process


def hurry() -> None:
    """No more rests after the present one, for the rest of this process's life. From any thread."""
    _hurried.set()
