"""GET /openapi.yaml: the description of the HTTP interface, for people and for tools.

Owns the file beside it; does not know the routes. That the two agree is for tests to see.
"""

from pathlib import Path
from typing import Final

import falcon
import falcon.asgi

from kv.resources import Request

PATH: Final = Path(__file__).with_name("openapi.yaml")


class DescriptionResource:
    """/openapi.yaml"""

    def __init__(self) -> None:
        self._description = PATH.read_bytes()

    async def on_get(self, req: Request, resp: falcon.asgi.Response) -> None:
        """Answer with the file; as plain text, which every answer of this server is."""
        resp.data = self._description

    on_head = on_get

    async def on_options(self, req: Request, resp: falcon.asgi.Response) -> None:
        """Not offered: without this, Falcon would answer by itself."""
        raise falcon.HTTPMethodNotAllowed([])
