"""A request's way through Falcon, without the steps that no request of this server needs.

Falcon's own `__call__` also serves WebSockets, server-sent events, media handlers and response middleware, and looks
for each of them with every request. What is left here is middleware, route, responder and error handlers, all of them
Falcon's. A plain answer, a text with nothing but perhaps a tag, is handed to the host whole; any other goes by ASGI
events. Knows no routes of this server, and not what an error is answered with.

It stands on methods of Falcon that are not public (`_get_responder`, `_handle_exception`, `_middleware`), so Falcon's
version is pinned, and tests/test_dispatch.py compares each kind of answer with that of Falcon's own `__call__`.
"""

import contextlib
import functools
from collections.abc import AsyncGenerator
from typing import Any, Final

import falcon
import falcon.asgi
import falcon.inspect
from falcon.routing import CompiledRouter

from kv.http.context import TEXT, WITHOUT_BODY, Receive, Send
from kv.request import Request

_LAST: Final = {"type": "http.response.body"}


class Response(falcon.asgi.Response):
    """A response that costs little to make: what is not set is found in the class."""

    status = falcon.HTTP_200
    data = None
    text = None
    stream = None
    _media = None
    _extra_headers = None
    _cookies = None
    context = None  # type: ignore[assignment]  # nothing of this server stores anything there

    def __init__(self, options: Any = None) -> None:  # noqa: ANN401 - as in the class above
        self._headers: dict[str, str] = {}
        self.options = options


class Router(CompiledRouter):
    """Falcon's router, which finds one route without taking the path apart: the one that nearly all requests take."""

    def __init__(self, prefix: str) -> None:
        """`prefix` is all that this route has before a parameter for the rest of the path."""
        super().__init__()
        self._prefix = prefix
        self._route: Any = None
        """What is found for the prefix alone."""

    def find(self, uri: str, req: Any = None) -> Any:  # noqa: ANN401 - as in the class above
        if not uri.startswith(self._prefix):
            return super().find(uri, req)
        if self._route is None:
            self._route = super().find(self._prefix)
        resource, methods, (name,), template = self._route
        return resource, methods, {name: uri[len(self._prefix) :]}, template


falcon.inspect.register_router(Router)(falcon.inspect.inspect_compiled_router)  # it asks for the very class


class App(falcon.asgi.App[Request, Response]):
    """A Falcon application whose requests take the short way."""

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:  # type: ignore[override]
        """Answer one request, or take part in the lifespan protocol."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        request, response = Request(scope, receive), Response(self.resp_options)
        params: dict[str, Any] = {}
        try:
            try:
                for process_request in self._middleware[0]:
                    await process_request(request, response)  # type: ignore[operator]  # on ASGI it is
                responder, params, _, request.uri_template = self._get_responder(request)
                await responder(request, response, **params)  # type: ignore[arg-type, misc]  # never a WebSocket
            except Exception as error:
                if not await self._handle_exception(request, response, error, params):
                    raise
            if not self._answer_at_once(request, response):
                await self._send(request, response, send)
        finally:
            if request.held:
                request.held.release()  # Falcon closes no stream of a HEAD, nor one whose client is gone early

    def _answer_at_once(self, request: Request, response: Response) -> bool:
        """Hand the answer to the host, when it is a plain one. False when it has to be sent by events."""
        exchange, fields = request.exchange, response._headers
        if exchange is None or response.text is not None or response.stream is not None:
            return False
        if response._extra_headers or response._cookies or self.resp_options.default_media_type != TEXT:
            return False
        etag = fields.get("etag", "") if fields else ""
        if len(fields) > (etag != ""):
            return False
        return exchange.answer(_code(response.status), response.data or b"", etag.encode())

    async def _send(self, request: Request, response: Response, send: Send) -> None:
        body, status = response.data, _code(response.status)
        if body is None and response.text is not None:
            body = response.text.encode()
        if status in WITHOUT_BODY:
            body = None
        elif body is not None:
            response._headers["content-length"] = str(len(body))
        elif response.stream is None and not (request.method == "HEAD" and "content-length" in response._headers):
            response._headers["content-length"] = "0"
        fields = response._asgi_headers(self.resp_options.default_media_type if status not in WITHOUT_BODY else None)
        await send({"type": "http.response.start", "status": status, "headers": fields})
        if request.method == "HEAD":
            await send(_LAST)
        elif body is None and response.stream is not None:
            await _send_stream(response.stream, send)
        else:
            await send({"type": "http.response.body", "body": body or b""})


@functools.lru_cache(maxsize=128)
def _code(status: str) -> int:
    """Of a status line: a code and a phrase."""
    return int(status[:3])


async def _send_stream(stream: AsyncGenerator[bytes, None], send: Send) -> None:
    async with contextlib.aclosing(stream):
        async for piece in stream:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send(_LAST)
