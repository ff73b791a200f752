"""Preconditions of a request (RFC 9110, 13): what its fields say, and what has to be checked for it.

Knows fields of HTTP and the checks of the protocol; no routes and no storage. For a change the checks go with the
write, and are evaluated where that takes its place in the order of all writes. A read is compared with the value that
it found.
"""

import re
from typing import Final

import falcon

from kv.request import Refusal, Request
from logd.shared.protocol import Check

IF_MATCH: Final = b"if-match"
IF_NONE_MATCH: Final = b"if-none-match"
FIELDS: Final = frozenset({IF_MATCH, IF_NONE_MATCH})

_TAG: Final = re.compile(rb'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
_LIST: Final = re.compile(rb"[ \t,]*(?:%b[ \t]*(?:,[ \t,]*|\Z))+" % _TAG.pattern)


class Tags:
    """What one of the two fields says: any value, or one with one of these tags."""

    def __init__(self, name: bytes, text: bytes) -> None:
        """Raises Refusal when the text is no list of tags."""
        self.is_any = text == b"*"
        if not (self.is_any or _LIST.fullmatch(text)):
            raise Refusal(falcon.HTTP_400, f"{str(name, 'ascii')} cannot be parsed")
        self._tags = [(bool(weak), str(tag, "latin-1")) for weak, tag in _TAG.findall(text)]

    def strong(self) -> list[str] | None:
        """The tags that can be equal in a strong comparison; None for any value."""
        return None if self.is_any else [tag for is_weak, tag in self._tags if not is_weak]

    def weak(self) -> list[str] | None:
        """The tags that can be equal in a weak comparison, which are all; None for any value."""
        return None if self.is_any else [tag for _, tag in self._tags]

    def match_weakly(self, tag: str) -> bool:
        """True when a value with this tag is meant."""
        return self.is_any or tag in (self.weak() or [])


def if_none_match(req: Request) -> Tags | None:
    """What If-None-Match says, if it is there. Raises Refusal."""
    return _tags(req, IF_NONE_MATCH) if req.meaning.narrowing else None


def checks(req: Request, key: str) -> list[Check]:
    """What has to hold for a change of this key; nearly always nothing. Raises Refusal."""
    if not req.qualifiers(FIELDS):
        return []
    found = []
    if wanted := _tags(req, IF_MATCH):
        found.append(Check(key, wanted.strong(), negated=False))
    if unwanted := _tags(req, IF_NONE_MATCH):
        found.append(Check(key, unwanted.weak(), negated=True))
    return found


def _tags(req: Request, name: bytes) -> Tags | None:
    """The field may be on several lines, which are one list (RFC 9110, 5.3)."""
    lines = [value for each, value in req.scope["headers"] if each == name]
    return Tags(name, b", ".join(lines)) if lines else None
