"""/openapi.yaml: the description of the HTTP interface, for people and for tools.

Owns the file beside it; does not know the routes. Tests compare the two.
"""

from pathlib import Path
from typing import Final

import falcon.asgi

from kv.request import Request, Resource

PATH: Final = Path(__file__).with_name("openapi.yaml")


class DescriptionResource(Resource):
    """The file, read once."""

    def __init__(self) -> None:
        self._description = PATH.read_bytes()

    async def on_get(self, req: Request, resp: falcon.asgi.Response) -> None:
        """Answer with the file; as plain text, like every answer of this server."""
        resp.data = self._description

    on_head = on_get
