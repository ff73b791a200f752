"""/console: a page for people, and the files that it is made of (kv/console).

Owns which files there are and the headers that a browser needs to be safe with them; what they do is theirs. They are
the same for everybody and hold nothing secret, so they need no token (kv/auth.py); all that the page shows comes from
the other paths, which do.
"""

from pathlib import Path
from typing import Final, NamedTuple

import falcon
import falcon.asgi

from kv import preconditions
from kv.request import Refusal, Request, Resource, set_etag
from logd.shared.etag import etag

DIRECTORY: Final = Path(__file__).parent.with_name("console")
_PAGE: Final = "index.html"
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS: Final = {
    # Script, style and requests of this server alone, none of them in the page itself; no frames, in neither direction.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # ask each time whether it is still the same: an upgrade changes all at once
}


class File(NamedTuple):
    """What is served under one name."""

    type: str
    tag: str
    data: bytes


def read(directory: Path) -> dict[str, File]:
    """The files by name. Others, such as an editor's backup, are left out; without the directory there are none."""
    return {path.name: _read(path) for path in directory.glob("*") if path.suffix in _TYPES and path.is_file()}


def _read(path: Path) -> File:
    data = path.read_bytes()
    return File(_TYPES[path.suffix], etag(data), data)


_FILES: Final = read(DIRECTORY)
"""Read in gunicorn's master: all workers have the same, whatever is on disk when one of them is started."""


class ConsoleFileResource(Resource):
    """What the page is made of. The page itself is not among it: from there, its relative links would lead nowhere."""

    async def on_get(self, req: Request, resp: falcon.asgi.Response, file: str) -> None:
        """Answer with a file, unless the browser has it already."""
        _answer(req, resp, None if file == _PAGE else _FILES.get(file))

    on_head = on_get


class ConsoleResource(Resource):
    """The page itself."""

    async def on_get(self, req: Request, resp: falcon.asgi.Response) -> None:
        """Answer with the page."""
        _answer(req, resp, _FILES.get(_PAGE))

    on_head = on_get


def _answer(req: Request, resp: falcon.asgi.Response, found: File | None) -> None:
    if found is None:
        raise Refusal(falcon.HTTP_404, "not found")
    for name, value in _HEADERS.items():
        resp.set_header(name, value)
    resp.content_type = found.type
    set_etag(resp, found.tag)
    known = preconditions.if_none_match(req)
    if known and known.match_weakly(found.tag):
        resp.status = falcon.HTTP_304
    else:
        resp.data = found.data
