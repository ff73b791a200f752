"""A pace for work in the background: a tenth of a processor, a few milliseconds at a time.

Owns the timer that lets this process rest; does not know what it works at.

A low priority is not enough beside a server: whatever is idle is taken, in turns that last until the scheduler's next
tick, by a neighbour in the same caches. On a machine of two processors a checkpoint at full speed and the lowest
priority (or SCHED_IDLE) made the 99th percentile of writes four to five times as long, with or without its writing.
"""

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Final

BURST_SECONDS: Final = 0.004
REST_RATIO: Final = 9
"""How long to rest for each second of processor time."""


@contextlib.contextmanager
def unhurried() -> Iterator[None]:
    """Rest after each burst of processor time, in here. To be entered in the main thread.

    The kernel's timer of processor time (setitimer(2), ITIMER_PROF) interrupts the work, which need not know of it. A
    call into C is not interrupted: the rest is as long as what was really used demands.
    """
    used_before = time.process_time()

    def rest(_signal: int, _frame: FrameType | None) -> None:
        nonlocal used_before
        time.sleep(REST_RATIO * (time.process_time() - used_before))
        used_before = time.process_time()

    signal.signal(signal.SIGPROF, rest)
    signal.setitimer(signal.ITIMER_PROF, BURST_SECONDS, BURST_SECONDS)
    try:
        yield
    finally:
        hurry()
        signal.signal(signal.SIGPROF, signal.SIG_IGN)  # one that is under way would end the process


def hurry() -> None:
    """Work without rests, from the end of the present one. From any thread."""
    signal.setitimer(signal.ITIMER_PROF, 0)
