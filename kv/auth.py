"""The token: reads it from its file, and refuses requests that do not carry it.

Knows which paths need no token, and no other route. The token is in a file so that it appears in no command line, no
environment and no log. Each worker reads the file when it starts, so a reload takes a new token. The supervisor reads
it too, to check it; hence no Falcon is imported before there is a request.
"""

import hmac
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kv.config import UnusableFile

if TYPE_CHECKING:
    import falcon.asgi

    from kv.resources import Request

_OPEN_PATHS: Final = frozenset({"/health", "/live"})

log = logging.getLogger("kv.auth")


def read_token(path: Path) -> bytes:
    """The token in a file that not every user can read. Raises UnusableFile."""
    try:
        mode, token = path.stat().st_mode, path.read_bytes().strip()
    except OSError as error:
        raise UnusableFile(f"--token-file {path} cannot be read: {error.strerror}") from error
    if mode & 0o007:
        raise UnusableFile(f"--token-file {path} can be read or written by every user; chmod o-rwx it")
    if not token.isascii() or not token.decode(errors="replace").isprintable() or b" " in token or not token:
        raise UnusableFile(f"--token-file {path} must hold one word of printable ASCII characters")
    return token


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

    async def process_request(self, req: "Request", resp: "falcon.asgi.Response") -> None:
        """Raise a Refusal with status 401 when the token is missing or wrong."""
        if req.path not in _OPEN_PATHS and not self._has_token(req.scope):
            from kv.resources import Refusal  # noqa: PLC0415 - see above

            raise Refusal("401 Unauthorized", "unauthorized")

    def _has_token(self, scope: dict[str, Any]) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1 or not self._token:
            return False
        scheme, _, token = given[0].partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token)
