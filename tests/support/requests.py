"""The requests of recorded clients as bytes, and what the answers to them tell of the values of keys.

Values are numbers, which `Requests` gives out and finds again: by the bytes of a value, or by its tag. Knows no
connections, no times, and nothing of what makes a history good.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

from logd.shared.etag import etag
from tests.support.history import ABSENT, FOREIGN, Kind

COUNTER: Final = -1
"""Takes the place of a key: the counter that `Kind.COUNT` increments, which is beside the keys of the history."""

_NUMBER_BYTES: Final = 16
_FAMILY_KEYS: Final = 3
_DELETES_OF_CAS: Final = 8
_DELETES_OF_BATCHES: Final = 3
_CONDITIONAL: Final = frozenset({Kind.CAS, Kind.BATCH, Kind.COUNT})

Request: TypeAlias = tuple[Kind, int]
"""What to do, and the index of the key. The value of a put is a new one.

A batch writes, and a read of several keys reads, the three keys of a *family*, of which this is one.
"""

Values: TypeAlias = Mapping[int, int]
"""By key, the numbers of values, or ABSENT."""


class Asked(NamedTuple):
    """A request as it is sent, and what it names and is to write. `value` is what a request for one key writes."""

    data: bytes
    value: int
    reads: Values
    writes: Values


class Answer(NamedTuple):
    """As it came; the head in lower case."""

    status: int
    head: bytes
    body: bytes


class Requests:
    """Writes requests for some keys and reads answers. No two writes store the same value, but for the counter's."""

    def __init__(self, keys: Sequence[str], value_bytes: int) -> None:
        self.counter = f"{keys[0]}-counter"
        self._numbers = itertools.count(1)
        self._padding = b"." * max(0, value_bytes - _NUMBER_BYTES)
        self._names = [*keys, self.counter]
        self._keys = {name: key for key, name in enumerate(keys)}
        self._tags: dict[str, int] = {}
        length = _NUMBER_BYTES + len(self._padding)
        self._heads = {
            kind: [
                b"%s /kv/%s HTTP/1.1\r\nHost: x\r\n%s\r\n" % (kind.name.encode(), key.encode(), more)
                for key in self._names
            ]
            for kind, more in {Kind.GET: b"", Kind.DELETE: b"", Kind.PUT: b"Content-Length: %d\r\n" % length}.items()
        }

    # What is asked for -----------------------------------------------------------------------------------

    def make(self, kind: Kind, key: int, known: Values) -> Asked:
        """What to send. `known` is what the client knows to be stored; a put has a value that no other write stores."""
        match kind:
            case Kind.PUT:
                value = next(self._numbers)
                return Asked(self._heads[kind][key] + self._new_body(value), value, {}, {})
            case Kind.CLEAR:
                return Asked(b"DELETE /clear HTTP/1.1\r\nHost: x\r\n\r\n", ABSENT, {}, {})
            case Kind.CAS:
                return self._conditional(key, known.get(key, ABSENT), next(self._numbers))
            case Kind.COUNT:
                count = known.get(COUNTER, ABSENT)
                return self._conditional(COUNTER, count, count + 1)
            case Kind.BATCH | Kind.READ:
                family = self._family(key)
                return self._batch(family, known) if kind == Kind.BATCH else self._read(family)
        return Asked(self._heads[kind][key], ABSENT, {}, {})

    def _conditional(self, key: int, expected: int, value: int) -> Asked:
        """A put, or now and then a delete, where there is what is expected."""
        is_delete = key != COUNTER and expected != ABSENT and value % _DELETES_OF_CAS == 0
        condition = b'If-Match: "%s"' % self._tag(expected).encode() if expected != ABSENT else b"If-None-Match: *"
        head = self._heads[Kind.DELETE if is_delete else Kind.PUT][key].removesuffix(b"\r\n")
        body = b"" if is_delete else self._new_body(value)
        written = ABSENT if is_delete else value
        return Asked(b"%s%s\r\n\r\n%s" % (head, condition, body), written, {key: expected}, {key: written})

    def _batch(self, family: Sequence[int], known: Values) -> Asked:
        """Checks of what is known of the keys; and puts to all of them, but now and then a delete of the last."""
        value = next(self._numbers)
        reads = {key: known[key] for key in family if key in known}
        writes = dict.fromkeys(family, value)
        if value % _DELETES_OF_BATCHES == 0:
            writes[family[-1]] = ABSENT
        text = self._new_body(value).decode()
        operations = [{"op": "check", "key": self._names[key], **self._check(value)} for key, value in reads.items()]
        for key, written in writes.items():
            change = {"op": "put", "value": text} if written else {"op": "delete"}
            operations.append({"key": self._names[key], **change})
        body = "\n".join(map(json.dumps, operations)).encode()
        return Asked(
            b"POST /batch HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body), value, reads, writes
        )

    def _check(self, value: int) -> dict[str, object]:
        return {"absent": True} if value == ABSENT else {"etag": self._tag(value)}

    def _read(self, family: Sequence[int]) -> Asked:
        query = "&".join(f"key={self._names[key]}" for key in family)
        data = f"GET /keys?{query}&values=1 HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        return Asked(data, ABSENT, dict.fromkeys(family, ABSENT), {})

    def _family(self, key: int) -> Sequence[int]:
        first = key - key % _FAMILY_KEYS
        return range(first, min(first + _FAMILY_KEYS, len(self._keys)))

    def _body(self, value: int) -> bytes:
        return b"%0*d%s" % (_NUMBER_BYTES, value, self._padding)

    def _tag(self, value: int) -> str:
        return etag(self._body(value))

    def _new_body(self, value: int) -> bytes:
        """What is to be stored; its tag may come back in any answer from now on."""
        body = self._body(value)
        self._tags[etag(body)] = value
        return body

    # What is answered ------------------------------------------------------------------------------------

    def found(self, kind: Kind, asked: Asked, key: int, answer: Answer) -> Values | None:
        """What an answer says was there, or is there now; None when it is no answer to this request."""
        status, head, body = answer
        if kind in _CONDITIONAL and status == 412:
            return self._not_met(kind, asked, head, body)
        if kind == Kind.GET and status in (200, 404):
            return {key: self.value(body) if status == 200 else ABSENT}
        if status != 200:
            return None
        if kind == Kind.READ:
            lines = map(json.loads, body.splitlines())
            return {**asked.reads, **{self._keys[line["key"]]: self.value(line["value"].encode()) for line in lines}}
        return asked.writes or {key: asked.value}

    def _not_met(self, kind: Kind, asked: Asked, head: bytes, body: bytes) -> Values:
        """What was there: what the answer says, and what was named in the checks that held."""
        if kind == Kind.BATCH:
            lines = map(json.loads, body.splitlines())
            return {**asked.reads, **{self._keys[line["key"]]: self._tagged(line["etag"]) for line in lines}}
        _, _, tag = head.partition(b"\r\netag: ")
        return dict.fromkeys(asked.reads, self._tagged(tag.partition(b"\r\n")[0].decode() or None))

    def _tagged(self, tag: str | None) -> int:
        """The number of the value that has a tag."""
        return ABSENT if tag is None else self._tags.get(tag.strip('"'), FOREIGN)

    def value(self, body: bytes) -> int:
        """The number of a value that was found: of the whole of it, or it is none of ours."""
        number = body[:_NUMBER_BYTES]
        is_ours = len(number) == _NUMBER_BYTES and number.isdigit() and body[_NUMBER_BYTES:] == self._padding
        return int(number) if is_ours else FOREIGN
