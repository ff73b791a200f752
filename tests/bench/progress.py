"""Progress of the bench: a bar on a terminal, and lines anywhere.

Knows nothing of what it shows.
"""

import sys
from typing import Self

from tqdm import tqdm


class Bar:
    """Progress on stderr, by the seconds that were planned. A context manager."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        layout = "{percentage:3.0f}% |{bar}| {elapsed}, about {remaining} left{postfix}"
        self._bar = tqdm(total=seconds, bar_format=layout, disable=not sys.stderr.isatty(), leave=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def doing(self, text: str) -> None:
        """Show what is being done now."""
        self._bar.set_postfix_str(text)

    def done(self, seconds: float) -> None:
        """Count so many of the planned seconds as over."""
        self._bar.update(min(seconds, self._seconds - self._bar.n))

    def log(self, text: str) -> None:
        """Show one line of text."""
        tqdm.write(text, file=sys.stderr)
