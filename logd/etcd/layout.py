"""The names of keys in etcd.

    PREFIX/gen                  the generation, in decimal digits; no such key: 0
    PREFIX/d/<generation>/KEY   a value, as it was sent
    PREFIX/s/<gateway>/<lane>   a record (logd/etcd/records.py)

`DELETE /clear` writes the next generation, so it takes as long for a million keys as for one. Nobody can write into an
earlier generation, as every write compares the present one; the keeper removes what is left there.
"""

import re
from typing import NamedTuple


class Layout:
    """The names of one server's keys. Servers with the same prefix share their data."""

    def __init__(self, prefix: str, gateway: str) -> None:
        self._prefix = prefix.encode()
        self._gateway = gateway.encode()
        self._data = re.compile(re.escape(self._prefix) + rb"/d/(?:0|[1-9][0-9]*)/")
        self.generation = self._prefix + b"/gen"
        self.records = self._prefix + b"/s/"
        self.never = self._prefix + b"/never"
        """No such key is ever made."""

    def record(self, lane: int) -> bytes:
        """The record of a lane of this server."""
        return b"%s%s/%d" % (self.records, self._gateway, lane)

    def data(self, generation: int) -> bytes:
        """What the keys of a generation begin with."""
        return b"%s/d/%d/" % (self._prefix, generation)

    def range_end(self, generation: int, prefix: str) -> bytes:
        """Before what the keys of a generation are that begin with this prefix; every key does with an empty one."""
        return span_of(self.data(generation) + prefix.encode()).end

    def data_of_others(self, generation: int) -> "list[Span]":
        """Where the keys of all other generations are; beside keys of strangers, if `is_data` says so."""
        digits, own = self._prefix + b"/d/", span_of(self.data(generation))
        return [Span(digits + b"0", own.first), Span(own.end, digits + b":")]  # ":" follows "9"

    def is_data(self, key: bytes) -> bool:
        """Whether a key is that of a value, of any generation."""
        return self._data.match(key) is not None


class Span(NamedTuple):
    """The keys from `first` on, and before `end`."""

    first: bytes
    end: bytes


def span_of(prefix: bytes) -> Span:
    """All keys that begin with this. Its last byte must not be the highest."""
    return Span(prefix, prefix[:-1] + bytes([prefix[-1] + 1]))
