"""One request, in and out of HTTP: what is valid, and which answer an outcome gets.

Knows HTTP and the client's methods; knows no ZeroMQ and no batches. The key is taken from the raw path, because in
the decoded one different keys can look the same; the body from the ASGI events, because a body that was cut short
must not look complete.
"""

import re
from collections.abc import AsyncIterator, Awaitable
from typing import Any, Final, Protocol
from urllib.parse import unquote_to_bytes

import falcon
import falcon.asgi

from kv.log_client.client import (
    DataLimitReached,
    Found,
    LargeValue,
    NoSpace,
    OutcomeUnknown,
    RequestFailed,
    Unavailable,
)
from logd.shared.protocol import KEY_PATTERN, Stats

_VALID_KEY: Final = re.compile(KEY_PATTERN.encode())
_RETRY_AFTER_SECONDS: Final = "1"
_PIECE_BYTES: Final = 256 << 10
"""A large value goes to the network in pieces, each when the client has taken most of the last."""

_FAILURES: Final[dict[type[RequestFailed], str]] = {
    Unavailable: falcon.HTTP_503,
    OutcomeUnknown: falcon.HTTP_504,
    NoSpace: falcon.HTTP_507,
    DataLimitReached: falcon.HTTP_507,
}
"""Which status tells what became of a request that logd did not carry out."""


class Storage(Protocol):
    """What the resources need of the client."""

    def get(self, key: str) -> Awaitable[Found]:
        """The value of a key, or None."""

    def put(self, key: str, value: bytes) -> Awaitable[None]:
        """Store a value."""

    def delete(self, key: str) -> Awaitable[None]:
        """Remove a key."""

    def clear(self) -> Awaitable[None]:
        """Remove every key."""

    def unavailable_reason(self) -> Awaitable[str]:
        """Why reads or writes cannot be taken; empty when they can."""

    async def stats(self) -> Stats:
        """How the log writer is. Raises Unavailable."""


class Refusal(Exception):
    """The request gets this status and this line."""

    def __init__(self, status: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class ClientGone(Exception):
    """The client went away before its body was complete: nothing is stored, and nobody is there to be answered."""


class Request(falcon.asgi.Request):
    """A request that is routed by its raw path, and lets a resource read the ASGI events itself.

    Holds what Falcon needs to route and what the resources ask for; Falcon's own constructor would also look at every
    header and the query, for each request.
    """

    def __init__(self, scope: Any, receive: Any, first_event: Any = None, options: Any = None) -> None:  # noqa: ANN401
        raw_path: bytes = scope["raw_path"]
        self.path = "" if raw_path.startswith(b"//") else str(raw_path, "ascii")  # Falcon would take // for /
        self.scope = scope
        self.method = scope["method"]
        self.is_websocket = False
        self.uri_template = None
        self.first_event = first_event
        self.receive = receive

    def announced_bytes(self) -> int | None:
        """What Content-Length says, if there is one."""
        for name, value in self.scope["headers"]:
            if name == b"content-length":
                return int(value)
        return None


class _Resource:
    async def on_options(self, req: Request, resp: falcon.asgi.Response, **_: str) -> None:
        """Not offered: without this, Falcon would answer by itself."""
        raise falcon.HTTPMethodNotAllowed([])


class KeyResource(_Resource):
    """/kv/{key}"""

    def __init__(self, storage: Storage, value_bytes_max: int) -> None:
        self._storage = storage
        self._value_bytes_max = value_bytes_max

    async def on_get(self, req: Request, resp: falcon.asgi.Response, key: str) -> None:
        """Answer with the exact bytes that were stored."""
        value = await self._storage.get(_key(req))
        if value is None:  # no error, and too common to pay for an exception
            answer(req, resp, falcon.HTTP_404, "key not found")
        elif isinstance(value, LargeValue):
            resp.content_length = len(value.data)
            if req.method == "GET":
                resp.stream = _pieces(value)
        else:
            resp.data = value

    on_head = on_get

    async def on_put(self, req: Request, resp: falcon.asgi.Response, key: str) -> None:
        """Store the body."""
        key = _key(req)
        value = await _read_body(req, self._value_bytes_max)
        if not value:
            raise Refusal(falcon.HTTP_400, "value cannot be empty")
        if not _is_utf8(value):
            raise Refusal(falcon.HTTP_400, "value must be valid UTF-8")
        await self._storage.put(key, value)

    async def on_delete(self, req: Request, resp: falcon.asgi.Response, key: str) -> None:
        """Remove the key, whether it is there or not."""
        await self._storage.delete(_key(req))


class ClearResource(_Resource):
    """/clear"""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def on_delete(self, req: Request, resp: falcon.asgi.Response) -> None:
        """Remove every key."""
        await self._storage.clear()


class LiveResource(_Resource):
    """/live"""

    async def on_get(self, req: Request, resp: falcon.asgi.Response) -> None:
        """Say ok: a worker that can say it is alive. Whether it is of use is for /health."""
        resp.text = "ok"

    on_head = on_get


class HealthResource(_Resource):
    """/health"""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def on_get(self, req: Request, resp: falcon.asgi.Response) -> None:
        """Say ok only when reads and writes can be taken."""
        if reason := await self._storage.unavailable_reason():
            raise Unavailable(reason)
        resp.text = "ok"

    on_head = on_get


async def _pieces(value: LargeValue) -> AsyncIterator[bytes]:
    """The bytes of a large value. It is referred to until the client has taken most of them, or has gone."""
    for start in range(0, len(value.data), _PIECE_BYTES):
        yield value.data[start : start + _PIECE_BYTES]
    yield b""  # which is asked for at once, and sent only when there is room for it


def _key(req: Request) -> str:
    """The key of a request, from its raw path."""
    raw: bytes = req.scope["raw_path"][len("/kv/") :]
    key = unquote_to_bytes(raw) if b"%" in raw else raw
    if not key:
        raise Refusal(falcon.HTTP_400, "key cannot be empty")
    if not _VALID_KEY.fullmatch(key):
        raise Refusal(falcon.HTTP_400, "key contains invalid characters")
    return str(key, "ascii")


async def _read_body(req: Request, bytes_max: int) -> bytes:
    """The whole body. Raises ClientGone when it ends early, Refusal as soon as it is known to be too large."""
    length = req.announced_bytes()
    if length is not None and length > bytes_max:
        raise Refusal(falcon.HTTP_413, "value too large")
    event = req.first_event
    parts: list[bytes] = [event["body"]]
    size = len(parts[0])
    while event["more_body"] and size <= bytes_max:
        event = await req.receive()
        if event["type"] != "http.request":
            raise ClientGone
        parts.append(event["body"])
        size += len(event["body"])
    if size > bytes_max:
        raise Refusal(falcon.HTTP_413, "value too large")
    if length is not None and size != length:
        raise ClientGone
    return b"".join(parts)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def answer(req: Request, resp: falcon.asgi.Response, status: str, text: str) -> None:
    """Make a response an error: a status, and one line of text."""
    resp.status = status
    resp.data = text.encode() + b"\n"
    if status == falcon.HTTP_413:  # too much to be read to its end
        resp.set_header("Connection", "close")


async def on_refusal(req: Request, resp: falcon.asgi.Response, error: Refusal, params: dict[str, Any]) -> None:
    """The request is wrong."""
    answer(req, resp, error.status, error.text)
    if error.status == falcon.HTTP_401:
        resp.set_header("WWW-Authenticate", "Bearer")


async def on_failure(req: Request, resp: falcon.asgi.Response, error: RequestFailed, params: dict[str, Any]) -> None:
    """The request is right, and could not be carried out."""
    status = _FAILURES[type(error)]
    answer(req, resp, status, str(error))
    if status == falcon.HTTP_503:
        resp.set_header("Retry-After", _RETRY_AFTER_SECONDS)


async def on_client_gone(req: Request, resp: falcon.asgi.Response, error: ClientGone, params: dict[str, Any]) -> None:
    """Nobody reads this; it only ends the request."""
    answer(req, resp, falcon.HTTP_400, "the body ended early")
