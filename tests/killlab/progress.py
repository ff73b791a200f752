"""Progress of an experiment: a bar on a terminal, and lines anywhere.

Knows nothing of what it shows.
"""

import sys
import time
from typing import Final, Self

from tqdm import tqdm

_LINE_SECONDS: Final = 30.0


class Bar:
    """Progress on stderr. A context manager."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._is_terminal = sys.stderr.isatty()
        layout = "{percentage:3.0f}% |{bar}| {n:.0f} of {total:.0f} s{postfix}"
        self._bar = tqdm(total=seconds, bar_format=layout, disable=not self._is_terminal, leave=False)
        self._counted_at = time.monotonic()
        self._requests = 0
        self._line_at = _LINE_SECONDS

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def log(self, text: str) -> None:
        """Show one line of text."""
        tqdm.write(text, file=sys.stderr)

    def update(self, elapsed_s: float, requests: int, failed: int) -> None:
        """Show how far the load has come; on a terminal at most twice a second, elsewhere every half minute."""
        now = time.monotonic()
        if self._is_terminal and now - self._counted_at >= 0.5:
            rate = (requests - self._requests) / (now - self._counted_at)
            self._counted_at, self._requests = now, requests
            self._bar.n = min(elapsed_s, self._seconds)
            self._bar.set_postfix_str(f"{rate:,.0f} requests/s, {failed:,} failed")
        elif not self._is_terminal and elapsed_s >= self._line_at:
            self._line_at += _LINE_SECONDS
            self.log(f"{elapsed_s:7.0f} s  {requests:,} requests, {failed:,} failed")
