"""One request and its answer. Its `receive` and `send` are what the ASGI application is called with.

Owns what is specific to one request: which part of its body has arrived, how far its answer is, and how an answer's
head is encoded. Knows a `Channel`, which is its connection; knows no other request, no deadlines and no limits.

The application runs without a task of its own: `step` runs it until it awaits a future, and again when that is done;
when it is a `PromptFuture`, at once, which saves a turn of the event loop for each request. `asyncio.current_task`, and
what is built on it (`asyncio.timeout`), are not for handlers.
"""

import asyncio
import functools
import http
import logging
import time
from collections.abc import Coroutine
from email.utils import formatdate
from typing import Any, Final, Protocol
from urllib.parse import unquote

from kv.http.context import SHORTCUT, TEXT, WITHOUT_BODY, Application
from kv.http.request_parser import FIELD_OVERHEAD_BYTES, FinalRefusal, RequestHead
from kv.prompt_future import PromptFuture

BODY_BUFFER_BYTES: Final = 64 * 1024
"""How much of a body is buffered while the application does not read it; then the client has to wait."""
TLS_PIECE_BYTES: Final = 64 * 1024
"""The most to write at once over TLS: uvloop's TLS accepts any amount, and does not count it in its buffer size."""
PIECE_BYTES_MIN: Final = 128
"""What a piece of a body counts for, however small it is: many tiny pieces cost more than their bytes."""
_REQUEST_OVERHEAD_BYTES: Final = 1024
"""Memory of a request that waits for the answer to another, beside its fields and its body."""
_ASGI: Final = {"version": "3.0", "spec_version": "2.3"}
_STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) for status in http.HTTPStatus
}

log = logging.getLogger("kv.http.exchange")


class Channel(Protocol):
    """What an exchange needs of its connection."""

    loop: asyncio.AbstractEventLoop
    scheme: str
    application: Application
    is_write_paused: bool
    """True while the client should read before more is written."""

    async def drain(self) -> None:
        """Wait until the client has read, or is gone."""

    def write(self, data: bytes | memoryview) -> None:
        """Send a part of the answer."""

    def on_wait_for_body(self, exchange: "Exchange") -> None:
        """The application wants more of the body than has arrived."""

    def on_answered(self, exchange: "Exchange") -> None:
        """The answer is complete."""

    def on_no_answer(self, exchange: "Exchange") -> None:
        """The application has failed to answer."""


class Exchange:
    """A request that waits for its answer, is being answered, or has its answer while its body still arrives."""

    __slots__ = (
        "_connection",
        "_coroutine",
        "_encoded_head",
        "_is_end_known",
        "_parts",
        "_waiter",
        "arrived_at",
        "head",
        "held_bytes",
        "is_disconnected",
        "is_started",
        "keep_alive",
        "more_body",
        "response_complete",
        "response_started",
        "status",
        "unread_bytes",
    )

    def __init__(self, connection: Channel, head: RequestHead, now: float, *, whole_body: bytes | None = None) -> None:
        self.head = head
        self.keep_alive = head.keep_alive
        self.more_body = whole_body is None
        """The body, or its end, has not arrived completely."""
        self.arrived_at = now
        self._parts: list[bytes] = [whole_body] if whole_body else []
        self.unread_bytes = self.held_bytes = len(whole_body) if whole_body else 0
        """Of the body, what has arrived and the application has not received; and what it costs to hold."""
        self.status = 0
        self.is_started = False
        self.is_disconnected = False
        self.response_started = False
        self.response_complete = False
        self._connection = connection
        self._coroutine: Coroutine[Any, Any, None]
        self._is_end_known = False  # the application has been given the last event of the body
        self._waiter: asyncio.Future[None] | None = None

    def start(self) -> None:
        """Run the application until it has to wait."""
        self.is_started = True
        self._coroutine = self._connection.application(self._scope(), self.receive, self.send)
        self.step()

    def step(self, _: object = None) -> None:
        """Go on with the application."""
        try:
            awaited = self._coroutine.send(None)
        except StopIteration:
            self._on_end()
        except Exception as error:
            if not (self.is_disconnected and isinstance(error, ConnectionError)):
                log.exception("%s failed", self.head.method)
            self._on_end()
        else:
            if isinstance(awaited, PromptFuture):
                awaited.resume = self.step
            elif awaited is None:  # asyncio.sleep(0)
                self._connection.loop.call_soon(self.step)
            else:
                awaited._asyncio_future_blocking = False  # as a task does, to show that it awaits the future
                awaited.add_done_callback(self.step)

    def _on_end(self) -> None:
        if not (self.response_complete or self.is_disconnected):
            self._connection.on_no_answer(self)

    def _scope(self) -> dict[str, Any]:
        head = self.head
        return {
            "type": "http",
            "asgi": _ASGI,
            "http_version": head.version,
            "scheme": self._connection.scheme,
            "method": head.method,
            "path": unquote(head.raw_path.decode()) if b"%" in head.raw_path else head.raw_path.decode(),
            "raw_path": head.raw_path,
            "query_string": head.query,
            "root_path": "",
            "headers": head.fields,
            SHORTCUT: self,
        }

    def waiting_bytes(self) -> int:
        """Memory that it needs while it waits for the answer to another request."""
        return _REQUEST_OVERHEAD_BYTES + FIELD_OVERHEAD_BYTES * len(self.head.fields) + self.held_bytes

    # The body --------------------------------------------------------------------------------------------

    def feed(self, piece: bytes) -> None:
        """A piece of the body has arrived."""
        self._parts.append(piece)
        self.unread_bytes += len(piece)
        self.held_bytes += max(len(piece), PIECE_BYTES_MIN)
        self._wake()

    def end(self, now: float) -> None:
        """The request has arrived completely."""
        self.more_body = False
        self.arrived_at = now
        self._wake()

    def disconnect(self) -> None:
        """No answer can be sent any more, and the body is not needed."""
        self.is_disconnected = True
        self._parts = []
        self.held_bytes = self.unread_bytes = 0
        self._wake()

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self) -> dict[str, Any]:
        """The next ASGI event: a piece of the body, or a disconnect when the client is gone or has its answer.

        An application that decides by the head does not ask. Only when it does, `100 Continue` is sent to a client that
        expects it (RFC 9110, 10.1.1).
        """
        while not self._has_event():
            self._connection.on_wait_for_body(self)
            self._waiter = self._connection.loop.create_future()
            await self._waiter
        if self.is_disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        parts, self._parts, self.unread_bytes = self._parts, [], 0
        self._is_end_known = not self.more_body
        body = b"".join(parts)  # one part is not copied
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    def take_body(self) -> bytes | None:
        """As in kv/http/context.py."""
        if self.more_body or self._is_end_known or self.is_disconnected:
            return None
        parts, self._parts, self.unread_bytes = self._parts, [], 0
        self._is_end_known = True
        return b"".join(parts)

    def _has_event(self) -> bool:
        if self._parts or self.is_disconnected or self.response_complete:
            return True
        return not (self.more_body or self._is_end_known)

    def awaits_continue(self) -> bool:
        """True when the client waits for `100 Continue` before it sends the body."""
        return self.head.expects_continue and self.more_body and not self.held_bytes

    # The answer ------------------------------------------------------------------------------------------

    def answer(self, status: int, text: bytes, etag: bytes) -> bool:
        """As in kv/http/context.py. The same bytes as by `send`."""
        connection = self._connection
        if self.more_body or self.is_disconnected or self.response_started or connection.is_write_paused:
            return False
        if self.head.method == "HEAD" or status in WITHOUT_BODY or len(text) > TLS_PIECE_BYTES:
            return False
        self.status = status
        self.response_started = self.response_complete = True
        connection.write(encode_text_head(status, len(text), self.head.version, self.keep_alive, etag) + text)
        connection.on_answered(self)
        return True

    async def send(self, event: dict[str, Any]) -> None:
        """Write the answer: first comes the event with its head, then those with its body. The head waits for the body.

        Raises ConnectionResetError when the client is gone.
        """
        connection = self._connection
        if connection.is_write_paused and not self.is_disconnected:
            await connection.drain()
        if self.is_disconnected:
            raise ConnectionResetError("the client is gone")
        if not self.response_started:
            self.response_started = True
            self.status = event["status"]
            self._encoded_head = self._encode_head(event["headers"])
            return
        body = event.get("body", b"") if self.head.method != "HEAD" else b""
        if len(body) > TLS_PIECE_BYTES and connection.scheme == "https":
            await self._send_in_pieces(body)
        else:
            connection.write(self._encoded_head + body)
        self._encoded_head = b""
        if not event.get("more_body", False):
            self.response_complete = True
            self._wake()
            connection.on_answered(self)

    async def _send_in_pieces(self, body: bytes) -> None:
        """Write to TLS only what can be sent, and return when nearly all is. The sweep has a deadline for the rest."""
        connection = self._connection
        connection.write(self._encoded_head)
        view = memoryview(body)
        for start in range(0, len(body), TLS_PIECE_BYTES):
            connection.write(view[start : start + TLS_PIECE_BYTES])
            if connection.is_write_paused:
                await connection.drain()
            if self.is_disconnected:
                raise ConnectionResetError("the client is gone")

    def _encode_head(self, fields: list[tuple[bytes, bytes]]) -> bytes:
        names = dict(fields)
        etag, link = names.pop(b"etag", b""), names.pop(b"link", b"")
        own = b"etag: %b\r\n" % etag if etag else b""
        if link:
            own += b"link: %b\r\n" % link
        if own:
            fields = list(names.items())
        has_length = b"content-length" in names or self.status in WITHOUT_BODY
        if names.get(b"connection") == b"close" or not has_length or self.awaits_continue():
            self.keep_alive = False
        return encode_head(self.status, tuple(fields), self.head.version, self.keep_alive, own)


def encode_refusal(refusal: FinalRefusal) -> bytes:
    """The whole answer to a request that is not served."""
    body = refusal.text.encode() + b"\n"
    more = ((b"retry-after", b"1"),) if refusal.status == http.HTTPStatus.SERVICE_UNAVAILABLE else ()
    head = encode_head(refusal.status, (*_text_fields(len(body)), *more), "1.1", keep_alive=False)
    return head if refusal.method == "HEAD" else head + body


def encode_text_head(status: int, length: int, version: str, keep_alive: bool, etag: bytes = b"") -> bytes:
    """The head of a plain answer: as `encode_head` for a text of so many bytes."""
    own = b"etag: %b\r\n" % etag if etag else b""
    return _end_head(_encode_text_fields(status, length, version, keep_alive), own)


@functools.lru_cache(maxsize=512)
def _encode_text_fields(status: int, length: int, version: str, keep_alive: bool) -> bytes:
    return _encode_fields(status, _text_fields(length), _persistence(version, keep_alive))


def _text_fields(length: int) -> tuple[tuple[bytes, bytes], ...]:
    return (b"content-length", b"%d" % length), (b"content-type", TEXT.encode())


def encode_head(
    status: int, fields: tuple[tuple[bytes, bytes], ...], version: str, keep_alive: bool, own: bytes = b""
) -> bytes:
    """The head of an answer. Without a length, the end of the connection is the end of the body.

    `own` are the lines that only this answer has. `fields` are the same for many, and are encoded once for them.
    """
    return _end_head(_encode_fields(status, fields, _persistence(version, keep_alive)), own)


def _end_head(head: bytes, own: bytes) -> bytes:
    return b"%b%b%b\r\n" % (head, _date_line(int(time.time())), own)


def _persistence(version: str, keep_alive: bool) -> bytes:
    """The value of a Connection field; empty when there is none."""
    return b"close" if not keep_alive else b"keep-alive" if version == "1.0" else b""


@functools.lru_cache(maxsize=512)
def _encode_fields(status: int, fields: tuple[tuple[bytes, bytes], ...], connection: bytes) -> bytes:
    lines = [b"%b: %b\r\n" % field for field in fields if field[0] != b"connection"]
    if connection:
        lines.append(b"connection: %b\r\n" % connection)
    return b"".join([_STATUS_LINES[status], *lines])


@functools.lru_cache(maxsize=1)
def _date_line(seconds: int) -> bytes:
    """Formatted once a second."""
    return f"date: {formatdate(seconds, usegmt=True)}\r\n".encode()
