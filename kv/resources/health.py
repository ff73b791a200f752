"""/live and /health: whether a worker runs, and whether the server is of use."""

import falcon.asgi

from kv.log_client.outcomes import Unavailable
from kv.request import Request, Resource
from kv.resources.storage import Storage


class LiveResource(Resource):
    """Is the worker alive? One that answers is."""

    async def on_get(self, req: Request, resp: falcon.asgi.Response) -> None:
        """Say ok, without asking logd."""
        resp.text = "ok"

    on_head = on_get


class HealthResource(Resource):
    """Are reads and writes possible?"""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def on_get(self, req: Request, resp: falcon.asgi.Response) -> None:
        """Say ok, or why not."""
        if reason := await self._storage.unavailable_reason():
            raise Unavailable(reason)
        resp.text = "ok"

    on_head = on_get
