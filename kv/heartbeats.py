"""Finds workers that are frozen, by the beats that they count in the scoreboard.

No clock is involved: what is counted are looks of the supervisor at beats that have not moved. When the whole group is
paused, the supervisor does not look either; when the wall clock jumps, nobody notices.
"""

from typing import Final

from kv.scoreboard import Scoreboard

LOOK_SECONDS: Final = 1.0
_LOOKS_MAX: Final = 30


class Heartbeats:
    """What the supervisor knows of the workers' beats. To be asked every `LOOK_SECONDS`, and not more often."""

    def __init__(self, scoreboard: Scoreboard) -> None:
        self._scoreboard = scoreboard
        self._beats: dict[int, float] = {}
        """By pid, as of the last look."""
        self._looks: dict[int, int] = {}
        """By pid, how many looks ago the beats moved."""

    def look(self) -> list[int]:
        """The pids of the workers that have not moved for too many looks. They are counted from zero then."""
        beats = self._scoreboard.beats()
        self._looks = {
            pid: self._looks.get(pid, 0) + 1 if self._beats.get(pid) == count else 0 for pid, count in beats.items()
        }
        self._beats = beats
        frozen = [pid for pid, looks in self._looks.items() if looks >= _LOOKS_MAX]
        self._looks.update(dict.fromkeys(frozen, 0))
        return frozen
