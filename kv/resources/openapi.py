"""/openapi.yaml: the description of the HTTP interface, for people and for tools.

Owns the file beside it; does not know the routes. Tests compare the two.
"""

from pathlib import Path
from typing import Final

import falcon.asgi

from kv import __version__
from kv.request import Request, Resource

_PATH: Final = Path(__file__).with_name("openapi.yaml")


def description() -> str:
    """The file, with the version of the program filled in."""
    return _PATH.read_text(encoding="utf-8").replace("{version}", __version__)


_DESCRIPTION: Final = description().encode()
"""Read in gunicorn's master: it describes the code that is served, whatever is on disk when a worker is started."""


class DescriptionResource(Resource):
    """The description."""

    async def on_get(self, req: Request, resp: falcon.asgi.Response) -> None:
        """Answer with it; as plain text, like every answer of this server."""
        resp.data = _DESCRIPTION

    on_head = on_get
