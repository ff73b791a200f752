"""Refuses requests that do not carry the token.

Knows which paths need no token, and no other route.
"""

import hmac
import logging
from pathlib import Path
from typing import Any, Final

import falcon
import falcon.asgi

from kv.config import UnusableFile
from kv.request import Refusal, Request
from kv.token_file import read_token

_OPEN_PATHS: Final = frozenset({"/health", "/live", "/console"})
_OPEN_DIRECTORY: Final = "/console/"

log = logging.getLogger("kv.auth")


class TokenAuth:
    """Falcon middleware. When the file cannot be used any more, it refuses every request.

    It does not raise then: a worker that fails to start stops gunicorn, and with it the service.
    """

    def __init__(self, token_file: Path) -> None:
        try:
            self._token = read_token(token_file)
        except UnusableFile as error:
            log.error("%s; every request is refused until the workers are reloaded", error)
            self._token = b""

    async def process_request(self, req: Request, resp: falcon.asgi.Response) -> None:
        """Raise a Refusal with status 401 when the token is missing or wrong."""
        is_open = req.path in _OPEN_PATHS or req.path.startswith(_OPEN_DIRECTORY)
        if not is_open and not self._has_token(req.scope):
            raise Refusal(falcon.HTTP_401, "unauthorized")

    def _has_token(self, scope: dict[str, Any]) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1 or not self._token:
            return False
        scheme, _, token = given[0].partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token)
