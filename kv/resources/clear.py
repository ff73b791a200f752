"""/clear: all values."""

import falcon.asgi

from kv.request import Request, Resource
from kv.resources.storage import Storage


class ClearResource(Resource):
    """Removes every key."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def on_delete(self, req: Request, resp: falcon.asgi.Response) -> None:
        """Remove every key."""
        req.qualifiers()
        await self._storage.clear()
