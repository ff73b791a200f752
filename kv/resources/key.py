"""/kv/{key}: one value."""

from collections.abc import AsyncIterator
from typing import Final

import falcon
import falcon.asgi

from kv.log_client.large_values import LargeValue
from kv.log_client.reads import release_unclaimed
from kv.request import Request, Resource, answer_error, check_value
from kv.resources.storage import Storage

_PIECE_BYTES: Final = 256 << 10
"""A large value is sent in pieces, each when most of the one before has been received."""


class KeyResource(Resource):
    """Reads, stores and removes a value."""

    def __init__(self, storage: Storage, value_bytes_max: int) -> None:
        self._storage = storage
        self._value_bytes_max = value_bytes_max

    async def on_get(self, req: Request, resp: falcon.asgi.Response, key: str) -> None:
        """Answer with the exact bytes that were stored."""
        read = self._storage.get(req.key())
        try:
            value = await read
        except BaseException:  # such as a cancellation, which may come when the value is here
            release_unclaimed(read)
            raise
        if value is None:  # no error, and too common to pay for an exception
            answer_error(req, resp, falcon.HTTP_404, "key not found")
        elif isinstance(value, LargeValue):
            req.release_at_end(value)
            resp.content_length = len(value.data)
            if req.method == "GET":
                resp.stream = _pieces(value)
        else:
            resp.data = value

    on_head = on_get

    async def on_put(self, req: Request, resp: falcon.asgi.Response, key: str) -> None:
        """Store the body."""
        key = req.key()
        req.refuse_qualifiers()
        value = await req.body(self._value_bytes_max)
        check_value(value)
        await self._storage.put(key, value)

    async def on_delete(self, req: Request, resp: falcon.asgi.Response, key: str) -> None:
        """Remove the key, whether it is there or not."""
        key = req.key()
        req.refuse_qualifiers()
        await self._storage.delete(key)


async def _pieces(value: LargeValue) -> AsyncIterator[bytes]:
    for start in range(0, len(value.data), _PIECE_BYTES):
        yield value.data[start : start + _PIECE_BYTES]
