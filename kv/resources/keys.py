"""/keys: which keys there are, a page at a time, with or without their values.

Owns the parameters of the query, the lines of a page, and the link to the next one; does not know where a page ends.
"""

import asyncio
import codecs
import functools
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Final

import falcon
import falcon.asgi
import msgspec

from kv.log_client.large_values import claimed
from kv.request import Refusal, Request, Resource, check_key
from kv.resources.storage import Storage
from logd.shared.protocol import PAGE_KEYS_MAX, Page, PageQuery

_LIMIT_DEFAULT: Final = 1000
_LINES: Final = "application/jsonl"
_PIECE_BYTES: Final = 64 << 10
"""Of values, for a piece of an answer. It is sent when most of the one before has been received."""
_ENTRY_OVERHEAD_BYTES: Final = 64
"""What an entry counts for in a piece, beside its value."""
_KEYS_AT_ONCE: Final = 1024
"""In a piece of an answer without values."""
_encode: Final = msgspec.json.Encoder().encode
_encode_lines: Final = msgspec.json.Encoder().encode_lines


class KeysResource(Resource):
    """Lists keys."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def on_get(self, req: Request, resp: falcon.asgi.Response) -> None:
        """Answer with a page, and say where the next one is."""
        query = parse(req.parameters())
        held = await claimed(self._storage.page(query))
        req.held = held
        if held.page.left:
            resp.set_header("Link", f'</keys?{_next(query, held.page)}>; rel="next"')
        if query.with_values:
            resp.content_type = _LINES
            await _answer(resp, functools.partial(_entries, held.page))
        else:
            await _answer(resp, functools.partial(_keys, held.page))

    on_head = on_get


# What is asked for ---------------------------------------------------------------------------------------


def parse(parameters: Iterable[tuple[str, str]]) -> PageQuery:
    """What the parameters ask for. Raises Refusal, which names the one that is wrong."""
    keys: list[str] = []
    given: dict[str, str] = {}
    for name, value in parameters:
        if name == "key":
            check_key(value.encode())
            keys.append(value)
        elif name not in _CHECKS:
            raise Refusal(falcon.HTTP_400, f"unknown parameter: {name}")
        elif name in given:
            raise Refusal(falcon.HTTP_400, f"parameter given twice: {name}")
        else:
            _CHECKS[name](name, value)
            given[name] = value
    with_values = "values" in given
    if keys:
        return _query_of_keys(keys, given, with_values=with_values)
    limit = int(given.get("limit", _LIMIT_DEFAULT))
    return PageQuery(given.get("prefix", ""), given.get("after", ""), limit, None, with_values)


def _query_of_keys(keys: list[str], given: Iterable[str], *, with_values: bool) -> PageQuery:
    for name in given:
        if name != "values":
            raise Refusal(falcon.HTTP_400, f"{name} cannot go with key")
    if len(keys) > PAGE_KEYS_MAX:
        raise Refusal(falcon.HTTP_400, f"key may be given at most {PAGE_KEYS_MAX} times")
    return PageQuery(keys=keys, with_values=with_values)


def _check_part_of_key(name: str, value: str) -> None:
    try:
        check_key(value.encode() or b"-")  # nothing is a part of every key
    except Refusal:
        raise Refusal(falcon.HTTP_400, f"{name} contains invalid characters") from None


def _check_limit(name: str, value: str) -> None:
    digits = value.lstrip("0")
    if not (digits.isdecimal() and len(digits) <= len(str(PAGE_KEYS_MAX)) and int(digits) <= PAGE_KEYS_MAX):
        raise Refusal(falcon.HTTP_400, f"{name} must be a number from 1 to {PAGE_KEYS_MAX}")


def _check_values(name: str, value: str) -> None:
    if value != "1":
        raise Refusal(falcon.HTTP_400, f"{name} must be 1")


_CHECKS: Final[dict[str, Callable[[str, str], None]]] = {
    "prefix": _check_part_of_key,
    "after": _check_part_of_key,
    "limit": _check_limit,
    "values": _check_values,
}


# What is answered ----------------------------------------------------------------------------------------


def _next(query: PageQuery, page: Page) -> str:
    """The query of the page after this one. No key has a character that would have to be escaped."""
    if query.keys is not None:
        parameters = [("key", key) for key in query.keys[-page.left :]]
    else:
        parameters = [("prefix", query.prefix)] if query.prefix else []
        parameters += [("after", page.keys[-1]), ("limit", str(query.limit))]
    if query.with_values:
        parameters.append(("values", "1"))
    return "&".join([f"{name}={value}" for name, value in parameters])


async def _answer(resp: falcon.asgi.Response, pieces: Callable[[], Iterator[bytes]]) -> None:
    """Answer with these pieces. More than one are made twice, to be measured and to be sent, and never kept.

    So an answer takes no more memory than its page, which is counted, and a piece, however much JSON escapes.
    """
    first = list(itertools.islice(pieces(), 2))
    if len(first) > 1:
        resp.content_length = sum([len(piece) async for piece in _in_turns(pieces())])
        resp.stream = _in_turns(pieces())
    else:
        resp.data = b"".join(first)


async def _in_turns(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
        await asyncio.sleep(0)  # all together would keep other requests waiting for tenths of a second


def _keys(page: Page) -> Iterator[bytes]:
    for start in range(0, len(page.keys), _KEYS_AT_ONCE):
        yield "\n".join([*page.keys[start : start + _KEYS_AT_ONCE], ""]).encode()


def _entries(page: Page) -> Iterator[bytes]:
    entries: list[dict[str, str]] = []
    size = 0
    for key, value in zip(page.keys, page.values, strict=True):
        if entries and size + len(value) > _PIECE_BYTES:
            yield _encode_lines(entries)
            entries, size = [], 0
        if len(value) > _PIECE_BYTES:
            yield from _large_entry(key, value)
        else:
            entries.append({"key": key, "value": value.decode()})
            size += _ENTRY_OVERHEAD_BYTES + len(value)
    if entries:
        yield _encode_lines(entries)


def _large_entry(key: str, value: bytes) -> Iterator[bytes]:
    yield b'{"key":%b,"value":"' % _encode(key)
    cut = (value[start : start + _PIECE_BYTES] for start in range(0, len(value), _PIECE_BYTES))
    for text in codecs.iterdecode(cut, "utf-8"):
        yield _encode(text)[1:-1]
    yield b'"}\n'
