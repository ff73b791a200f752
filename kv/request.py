"""One request, in and out of HTTP: what of it is valid, and which answer an outcome gets.

Knows HTTP and the failures of the log client; knows no routes and no messages. The key is taken from the raw path,
because in the decoded one different keys can look the same; the body from the ASGI events, because in Falcon's stream a
body that was cut short looks complete.
"""

import re
from collections.abc import Container, Iterable
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import falcon
import falcon.asgi
from falcon.constants import HTTP_METHODS

from kv import cross_site
from kv.http.context import SHORTCUT, Shortcut
from kv.http.known_heads import Fields
from kv.log_client.large_values import Held
from kv.log_client.outcomes import (
    DataLimitReached,
    NoSpace,
    OutcomeUnknown,
    PreconditionFailed,
    RequestFailed,
    Unavailable,
)
from logd.shared.protocol import KEY_PATTERN

_VALID_KEY: Final = re.compile(KEY_PATTERN.encode())
VALUES: Final = "/kv/"
"""What the paths of values begin with; the key follows."""
_KEY_START: Final = len(VALUES)
_QUALIFYING: Final = (b"if-", b"content-range")
"""How the names of fields begin that make a change conditional (RFC 9110, 13) or partial (14.4)."""
_RETRY_AFTER_SECONDS: Final = "1"

_STATUS_OF_FAILURE: Final[dict[type[RequestFailed], str]] = {
    Unavailable: falcon.HTTP_503,
    OutcomeUnknown: falcon.HTTP_504,
    NoSpace: falcon.HTTP_507,
    DataLimitReached: falcon.HTTP_507,
    PreconditionFailed: falcon.HTTP_412,
}


class Refusal(Exception):
    """The request is wrong. It gets this status and this line."""

    def __init__(self, status: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class ClientGone(Exception):
    """The client went away before its body was complete: nothing is stored, and no answer can be sent."""


class Meaning:
    """What the fields of a request say that nearly every request asks for."""

    __slots__ = ("body_bytes", "narrowing")

    def __init__(self, fields: Iterable[tuple[bytes, bytes]]) -> None:
        self.body_bytes: int | None = None
        """The announced length of the body."""
        self.narrowing: list[bytes] = []
        """The names of those that narrow what the request is about, or say who made it; nearly always none."""
        for name, value in fields:
            if name == b"content-length":
                self.body_bytes = int(value)
            elif name.startswith(_QUALIFYING) or name in cross_site.FIELDS:
                self.narrowing.append(name)


def _find_meaning(fields: list[tuple[bytes, bytes]]) -> Meaning:
    """Of fields that come for the first time, as far as is known. It is kept with those that may be repeated."""
    meaning = Meaning(fields)
    if isinstance(fields, Fields):
        fields.meaning = meaning
    return meaning


class Request(falcon.asgi.Request):
    """A request that is routed by its raw path, and lets a resource read the ASGI events itself.

    Holds what Falcon needs to route and what the resources ask for; Falcon's own constructor would also look at every
    header and the query, for each request.
    """

    held: Held | None = None
    """A large value, or a page: released when the application is done with this request, however it ends."""

    def __init__(self, scope: Any, receive: Any, first_event: Any = None, options: Any = None) -> None:  # noqa: ANN401
        raw_path: bytes = scope["raw_path"]
        self.path = "" if raw_path.startswith(b"//") else str(raw_path, "ascii")  # Falcon treats // like /
        self.scope = scope
        self.method = scope["method"]
        self.is_websocket = False
        self.uri_template = None
        self.first_event = first_event
        self.receive = receive
        self.exchange: Shortcut | None = scope.get(SHORTCUT)
        fields = scope["headers"]
        self.meaning = (fields.meaning if isinstance(fields, Fields) else None) or _find_meaning(fields)

    def key(self) -> str:
        """The key in the path. Raises Refusal."""
        raw_path: bytes = self.scope["raw_path"]
        if _VALID_KEY.fullmatch(raw_path, _KEY_START):
            return self.path[_KEY_START:]
        key = unquote_to_bytes(raw_path[_KEY_START:])
        check_key(key)
        return str(key, "ascii")

    async def body(self, bytes_max: int, too_large: str = "value too large") -> bytes:
        """The whole body. Raises Refusal as soon as it is known to be too large, ClientGone when it ends early."""
        length = self.meaning.body_bytes
        if length is not None and length > bytes_max:
            raise Refusal(falcon.HTTP_413, too_large)
        body = self.exchange.take_body() if self.exchange else None
        if body is None:
            body = await self._receive_body(bytes_max)
        if len(body) > bytes_max:
            raise Refusal(falcon.HTTP_413, too_large)
        if length is not None and len(body) != length:
            raise ClientGone
        return body

    async def _receive_body(self, bytes_max: int) -> bytes:
        """The body by ASGI events; what is longer than `bytes_max` is cut. Raises ClientGone."""
        parts: list[bytes] = []
        size, is_last = 0, False
        while not is_last and size <= bytes_max:
            event = await self.receive()
            if event["type"] != "http.request":
                raise ClientGone
            parts.append(event["body"])
            size += len(event["body"])
            is_last = not event["more_body"]
        return b"".join(parts)

    def parameters(self) -> list[tuple[str, str]]:
        """The names in the query, as they are, and their values, percent-decoded. No byte beyond ASCII is left."""
        query: bytes = self.scope["query_string"]
        pairs = [each.partition(b"=")[::2] for each in query.split(b"&")] if query else []
        return [(_ascii(name), _ascii(unquote_to_bytes(value))) for name, value in pairs]

    def qualifiers(self, known: Container[bytes] = ()) -> list[bytes]:
        """The names of the fields that narrow a change; nearly always none. `known` are those that the caller obeys.

        Every request that changes something has to be asked, once. Raises Refusal for one that a page of another site
        sent, for any other such field, and for a query: to skip one would be to do more than was asked for.
        """
        if self.scope["query_string"]:
            raise Refusal(falcon.HTTP_400, f"unknown parameter: {self.parameters()[0][0]}")
        found = self.meaning.narrowing
        if not found:
            return found
        if cross_site.is_cross_site(self.scope):
            raise Refusal(falcon.HTTP_403, "cross-site request refused")
        found = [name for name in found if name not in cross_site.FIELDS]
        for name in found:
            if name not in known:
                raise Refusal(falcon.HTTP_400, f"{str(name, 'ascii')} not supported")
        return found


def _ascii(text: bytes) -> str:
    return str(text, "ascii", "backslashreplace")


def check_key(key: bytes) -> None:
    """Raise Refusal when this is no key."""
    if not key:
        raise Refusal(falcon.HTTP_400, "key cannot be empty")
    if not _VALID_KEY.fullmatch(key):
        raise Refusal(falcon.HTTP_400, "key contains invalid characters")


def check_value(value: bytes) -> None:
    """Raise Refusal when a body is no value."""
    if not value:
        raise Refusal(falcon.HTTP_400, "value cannot be empty")
    try:
        value.decode()
    except UnicodeDecodeError:
        raise Refusal(falcon.HTTP_400, "value must be valid UTF-8") from None


def quoted(tag: str) -> str:
    """A tag as HTTP writes it (RFC 9110, 8.8.3)."""
    return f'"{tag}"'


def set_etag(resp: falcon.asgi.Response, tag: str) -> None:
    """Have the answer name a value by its tag. On the path of most requests: as set_header, which checks every name."""
    resp._headers["etag"] = quoted(tag)


class Resource:
    """A path, with an `on_…` for each method that it offers."""

    async def on_options(self, req: Request, resp: falcon.asgi.Response, **_: str) -> None:
        """Refuse, as Falcon refuses all other methods that are not offered; this one it would answer by itself."""
        raise falcon.HTTPMethodNotAllowed([])

    def allowed_methods(self) -> str:
        """What the path offers, as the value of an Allow header."""
        return ", ".join(
            sorted(each for each in HTTP_METHODS if each != "OPTIONS" and hasattr(self, f"on_{each.lower()}"))
        )


# Answers that are errors ---------------------------------------------------------------------------------


def answer_error(req: Request, resp: falcon.asgi.Response, status: str, text: str) -> None:
    """Make a response an error: a status, and one line of text."""
    resp.status = status
    resp.data = text.encode() + b"\n"
    if status == falcon.HTTP_413:  # the rest is too much to wait for
        resp.set_header("Connection", "close")


async def on_refusal(req: Request, resp: falcon.asgi.Response, error: Refusal, params: dict[str, Any]) -> None:
    """The request is wrong."""
    answer_error(req, resp, error.status, error.text)
    if error.status == falcon.HTTP_401:
        resp.set_header("WWW-Authenticate", "Bearer")


async def on_failure(req: Request, resp: falcon.asgi.Response, error: RequestFailed, params: dict[str, Any]) -> None:
    """The request is right, and could not be carried out."""
    status = _STATUS_OF_FAILURE[type(error)]
    answer_error(req, resp, status, str(error))
    if status == falcon.HTTP_503:
        resp.set_header("Retry-After", _RETRY_AFTER_SECONDS)
    elif isinstance(error, PreconditionFailed) and (tag := error.failed[0][1]):
        set_etag(resp, tag)


async def on_client_gone(req: Request, resp: falcon.asgi.Response, error: ClientGone, params: dict[str, Any]) -> None:
    """No client reads this answer; it only ends the request."""
    answer_error(req, resp, falcon.HTTP_400, "the body ended early")
