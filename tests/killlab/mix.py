"""What the clients of the lab ask for.

Knows neither connections nor servers.
"""

import random
from collections.abc import Iterator
from typing import NamedTuple

from tests.support.history import Kind
from tests.support.recorder import Request


class Mix(NamedTuple):
    """What clients ask for: shares of all requests; what is left of 1 are puts."""

    reads: float
    deletes: float
    clears: float

    def script(self, keys: int, rng: random.Random) -> Iterator[Request]:
        """Requests without end."""
        deletes, clears = self.reads + self.deletes, self.reads + self.deletes + self.clears
        while True:
            choice = rng.random()
            key = int(rng.random() * keys)
            if choice < self.reads:
                yield Kind.GET, key
            elif choice < deletes:
                yield Kind.DELETE, key
            else:
                yield (Kind.CLEAR, 0) if choice < clears else (Kind.PUT, key)
