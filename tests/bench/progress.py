"""How it goes, while it goes: a bar on a terminal, and lines anywhere.

Knows nothing of what it shows.
"""

import sys
from typing import Self

from tqdm import tqdm


class Bar:
    """Progress on stderr, by the seconds that were planned. A context manager."""

    def __init__(self, seconds: float) -> None:
        layout = "{percentage:3.0f}% |{bar}| {elapsed}, about {remaining} left{postfix}"
        self._bar = tqdm(total=seconds, bar_format=layout, disable=not sys.stderr.isatty(), leave=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def doing(self, text: str) -> None:
        """What is under way."""
        self._bar.set_postfix_str(text)

    def done(self, seconds: float) -> None:
        """So much of what was planned is over."""
        self._bar.update(min(seconds, self._bar.total - self._bar.n))

    def say(self, text: str) -> None:
        """Something worth a line has happened."""
        tqdm.write(text, file=sys.stderr)
