"""/kv/{key}: one value."""

from collections.abc import AsyncIterator
from typing import Final

import falcon
import falcon.asgi

from kv import preconditions
from kv.log_client.large_values import LargeValue, claimed
from kv.request import Request, Resource, answer_error, check_value, set_etag
from kv.resources.storage import Storage
from logd.shared.etag import etag
from logd.shared.protocol import Transaction

_PIECE_BYTES: Final = 256 << 10
"""A large value is sent in pieces, each when most of the one before has been received."""


class KeyResource(Resource):
    """Reads, stores and removes a value."""

    def __init__(self, storage: Storage, value_bytes_max: int) -> None:
        self._storage = storage
        self._value_bytes_max = value_bytes_max

    async def on_get(self, req: Request, resp: falcon.asgi.Response, key: str) -> None:
        """Answer with the exact bytes that were stored."""
        value = await claimed(self._storage.get(req.key()))
        if value is None:  # no error, and too common to pay for an exception
            answer_error(req, resp, falcon.HTTP_404, "key not found")
        else:
            _answer_value(req, resp, value)

    on_head = on_get

    async def on_put(self, req: Request, resp: falcon.asgi.Response, key: str) -> None:
        """Store the body."""
        key = req.key()
        checks = preconditions.checks(req, key)
        value = await req.body(self._value_bytes_max)
        check_value(value)
        if checks:
            await self._storage.execute(Transaction(checks, {key: value}, []))
        else:
            await self._storage.put(key, value)
        set_etag(resp, etag(value))

    async def on_delete(self, req: Request, resp: falcon.asgi.Response, key: str) -> None:
        """Remove the key, whether it is there or not."""
        key = req.key()
        if checks := preconditions.checks(req, key):
            await self._storage.execute(Transaction(checks, {}, [key]))
        else:
            await self._storage.delete(key)


def _answer_value(req: Request, resp: falcon.asgi.Response, value: bytes | LargeValue) -> None:
    """With the value, or without it when the client has it already (RFC 9110, 13.1.2)."""
    if isinstance(value, LargeValue):
        req.held = value
    tag = etag(value.data if isinstance(value, LargeValue) else value)
    known = preconditions.if_none_match(req)
    set_etag(resp, tag)
    if known and known.match_weakly(tag):
        resp.status = falcon.HTTP_304
    elif not isinstance(value, LargeValue):
        resp.data = value
    else:
        resp.content_length = len(value.data)
        if req.method == "GET":
            resp.stream = _pieces(value)


async def _pieces(value: LargeValue) -> AsyncIterator[bytes]:
    for start in range(0, len(value.data), _PIECE_BYTES):
        yield value.data[start : start + _PIECE_BYTES]
