"""Lets in only requests that carry the token, when there is one.

Knows the paths that are open to everybody, and no other route. The token is in a file, so that it is in no command
line, no environment and no log; each worker reads it when it starts, so that a reload takes a new one.
"""

import hmac
import logging
from pathlib import Path
from typing import Any, Final

import falcon
import falcon.asgi

from kv.request import Refusal, Request
from kv.tls import CannotUse, read_token

_OPEN_PATHS: Final = frozenset({"/health", "/live"})

log = logging.getLogger("kv.auth")


class Gate:
    """Falcon middleware. With a file that cannot be used any more it lets nobody in.

    It does not fail then: a worker that does not start ends the service.
    """

    def __init__(self, token_file: Path) -> None:
        try:
            self._token = read_token(token_file)
        except CannotUse as error:
            log.error("%s; every request is refused until the workers are reloaded", error)
            self._token = b""

    async def process_request(self, req: Request, resp: falcon.asgi.Response) -> None:
        """Raise the refusal of a request that may not pass."""
        if req.path not in _OPEN_PATHS and not self._admits(req.scope):
            raise Refusal(falcon.HTTP_401, "unauthorized")

    def _admits(self, scope: dict[str, Any]) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1 or not self._token:
            return False
        scheme, _, token = given[0].partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token)
