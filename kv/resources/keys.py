"""/keys: which keys there are, a page at a time, with or without their values.

Owns the parameters of the query, the lines of a page, and the link to the next one; does not know where a page ends.
"""

import codecs
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Final

import falcon
import falcon.asgi
import msgspec

from kv.log_client.large_values import claimed
from kv.request import Refusal, Request, Resource, check_key
from kv.resources.storage import Storage
from logd.shared.protocol import PAGE_BYTES_MAX, PAGE_KEYS_MAX, Page, PageQuery

_LIMIT_DEFAULT: Final = 1000
_LINES: Final = "application/jsonl"
_PIECE_BYTES: Final = 256 << 10
"""A large answer is sent in pieces, each when most of the one before has been received."""
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
        req.release_at_end(held)
        if held.page.left:
            resp.set_header("Link", f'</keys?{_next(query, held.page)}>; rel="next"')
        if query.with_values:
            resp.content_type = _LINES
            _answer_values(resp, held.page)
        else:
            _answer(resp, "\n".join([*held.page.keys, ""]).encode())

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


def _answer_values(resp: falcon.asgi.Response, page: Page) -> None:
    values = page.values
    if len(values) == 1 and len(values[0]) > PAGE_BYTES_MAX:
        resp.content_length = sum(map(len, _large_line(page.keys[0], values[0])))
        resp.stream = _stream(_large_line(page.keys[0], values[0]))
    else:
        entries = zip(page.keys, values, strict=True)
        _answer(resp, _encode_lines({"key": key, "value": value.decode()} for key, value in entries))


def _answer(resp: falcon.asgi.Response, body: bytes) -> None:
    if len(body) <= _PIECE_BYTES:
        resp.data = body
    else:
        resp.content_length = len(body)
        resp.stream = _stream(_cut(body))


def _large_line(key: str, value: bytes) -> Iterator[bytes]:
    """The line of one large value, in pieces: as text it would take several times its memory."""
    yield b'{"key":%b,"value":"' % _encode(key)
    for text in codecs.iterdecode(_cut(value), "utf-8"):
        yield _encode(text)[1:-1]
    yield b'"}\n'


def _cut(data: bytes) -> Iterator[bytes]:
    return (data[start : start + _PIECE_BYTES] for start in range(0, len(data), _PIECE_BYTES))


async def _stream(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
