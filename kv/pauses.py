"""Time in which a process did not run, and which counts for no deadline.

A process that was stopped (SIGSTOP, docker pause, a stalled machine) finds, when it goes on, that all deadlines have
passed, although nobody was late. Knows clocks; does not know whose deadlines they are.
"""

from typing import Final

_PERIODS_MAX: Final = 4
"""A look that is later than so many periods comes after a pause."""


class Pauses:
    """Notices pauses by looks at the clock that should have been regular."""

    def __init__(self, clock: float, *, period_s: float, timeout_max_s: float) -> None:
        """A look is due every `period_s`; no deadline is later than `timeout_max_s` after it was set."""
        self._period_s = period_s
        self._timeout_max_s = timeout_max_s
        self._last = clock
        self._excused_s = 0.0
        self._excused_until = clock

    def look(self, clock: float) -> float:
        """The time to compare deadlines with: that of the clock, without the pauses since they were set.

        It need not be known which deadlines were set before a pause: after the longest time-out all of them have passed
        or were set anew. One that is set meanwhile may be noticed late, but not after that.
        """
        late_s = clock - self._last - self._period_s
        self._last = clock
        if late_s > _PERIODS_MAX * self._period_s:
            self._excused_s += late_s
            self._excused_until = clock + self._timeout_max_s
        elif clock >= self._excused_until:
            self._excused_s = 0.0
        return clock - self._excused_s
