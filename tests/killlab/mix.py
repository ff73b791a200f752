"""What the clients of the lab ask for.

Knows neither connections nor servers.
"""

import itertools
import random
from collections.abc import Iterator
from typing import Final, NamedTuple

from tests.support.history import Kind
from tests.support.requests import Request

_BATCHES_WITH_CHECKS: Final = 0.5


class Mix(NamedTuple):
    """What clients ask for: shares of all requests; what is left of 1 are puts.

    A conditional write, and every other batch, comes after a read of what it names, which is no part of the shares. An
    increment of the counter is made twice: the first learns from a 412 what the second builds on.
    """

    reads: float
    deletes: float
    clears: float
    conditional: float = 0.0
    batches: float = 0.0
    counts: float = 0.0
    reads_of_many: float = 0.0

    def script(self, keys: int, rng: random.Random) -> Iterator[Request]:
        """Requests without end."""
        kinds = (Kind.GET, Kind.DELETE, Kind.CLEAR, Kind.CAS, Kind.BATCH, Kind.COUNT, Kind.READ, Kind.PUT)
        shares = list(itertools.accumulate([*self, max(0.0, 1 - sum(self))]))
        look = Kind.READ if self.reads_of_many else Kind.GET
        while True:
            (kind,) = rng.choices(kinds, cum_weights=shares)
            key = 0 if kind in (Kind.CLEAR, Kind.COUNT) else int(rng.random() * keys)
            if kind == Kind.CAS or (kind == Kind.BATCH and rng.random() < _BATCHES_WITH_CHECKS):
                yield Kind.GET if kind == Kind.CAS else look, key
            yield kind, key
            if kind == Kind.COUNT:
                yield kind, key
