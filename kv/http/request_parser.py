"""From one client's bytes to request heads and bodies, or to the one refusal that ends a connection.

Owns what HTTP/1.x asks of a request (RFC 9112, RFC 9110) beyond what httptools (llhttp) checks, and the limits on a
head. Knows no socket and no application: it hands heads, pieces of bodies and their ends to a `Receiver`.

Whatever it decides depends on the bytes alone, never on the pieces in which they arrive.

What llhttp leaves open, or does in a way of its own, and what is done here:

* a Transfer-Encoding other than `chunked`, or one in HTTP/1.0, would leave a body undecoded: refused;
* HTTP/1.1 without exactly one Host, or with one that is no host: refused (RFC 9112, 3.2);
* a head of any size is accepted: 414 or 431 beyond `head_bytes_max`;
* HTTP/1.2 and later are refused: served as 1.1 (RFC 9110, 2.5);
* whether a connection persists: llhttp lets Proxy-Connection decide, and `keep-alive` win over `close` in HTTP/1.0;
* an offer to upgrade ends its parsing: the offer is not accepted, and the head is parsed again without it.

A request that comes whole and alone, with a plain request line and fields that this client has sent before, is not
parsed again (kv/http/known_heads.py): only such requests are remembered, by what was found in them here.
"""

import contextlib
import functools
import re
from typing import Final, NamedTuple, Protocol

import httptools

from kv.http.known_heads import Fields, Known, KnownHeads

MAX_AT_ONCE_BYTES: Final = 16 * 1024
"""The most to feed at once: as many requests as are in it cost time and memory before the first is answered."""
FIELD_OVERHEAD_BYTES: Final = 160
"""Memory of a header field beside a long name or value."""
_PLAIN_LINE: Final = re.compile(rb"(GET|PUT|HEAD|DELETE) (/[A-Za-z0-9:_.-]{1,64}/[A-Za-z0-9:_.-]{1,512}) HTTP/1\.1\r\n")
_PLAIN_LINE_BYTES_MAX: Final = 600
_METHODS: Final = {method.encode(): method for method in ("GET", "PUT", "HEAD", "DELETE")}
_END_OF_HEAD: Final = b"\r\n\r\n"
_RAW_SLACK_BYTES: Final = 64
"""A head has so many bytes beside its target and its fields, which are what the limit counts."""

_HOST: Final = re.compile(
    rb"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?", re.ASCII
)


class FinalRefusal(NamedTuple):
    """Why a request is not served. It is answered in its turn, and the connection ends."""

    status: int
    text: str
    method: str = ""
    """Of the request that is refused; empty when that is not known."""


class RequestHead:
    """What a request says before its body."""

    __slots__ = ("body_bytes", "expects_continue", "fields", "keep_alive", "method", "query", "raw_path", "version")

    def __init__(self, method: str, raw_path: bytes, query: bytes, version: str, fields: Fields) -> None:
        self.method = method
        self.raw_path = raw_path
        """As it was sent: not decoded."""
        self.query = query
        self.version = version
        """"1.0" or "1.1"; a later 1.x is served as 1.1."""
        self.fields = fields
        self.keep_alive = True
        self.expects_continue = False
        self.body_bytes: int | None = 0
        """The announced length of the body; None when it is chunked."""


class Receiver(Protocol):
    """Receives what a parser finds, in order: a head, pieces of its body, the end of the request."""

    def on_head(self, head: RequestHead) -> None:
        """A request begins."""

    def on_body(self, piece: bytes) -> None:
        """A piece of its body; never empty."""

    def on_end(self) -> None:
        """The request has arrived completely."""


class _Refused(Exception):
    """Carries a refusal through the C code that calls back."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


_BAD_REQUEST: Final = (400, "bad request")


class RequestParser:
    """Parses the requests of one connection. After a refusal it must not be fed again, nor once it is closed."""

    def __init__(self, receiver: Receiver, head_bytes_max: int) -> None:
        self._receiver = receiver
        self._head_bytes_max = head_bytes_max
        self._parser = self._new_parser()
        self.raw_bytes = 0
        """Fed since the last head, piece of a body or end of a request: an unfinished head, or the frame of a chunk."""
        self.is_in_message = False
        self._is_in_head = False
        self._url = b""
        self._fields = Fields()
        self._field_bytes = 0
        self._decisive: dict[bytes, list[bytes]] = {}
        """The values of those fields that decide how the request is read, by name."""
        self._complete: RequestHead | None = None
        """The head of a request that may have arrived whole and alone, until `feed` has looked."""
        self._known = KnownHeads(head_bytes_max - _PLAIN_LINE_BYTES_MAX)

    def close(self) -> None:
        """Release what a head takes, and the C parser, which refers back to this object."""
        self._forget_head()
        with contextlib.suppress(AttributeError):
            del self._parser

    @property
    def is_in_head(self) -> bool:
        """True when a head has begun and is not complete. Empty lines before it count as its beginning."""
        return self._is_in_head or (self.raw_bytes > 0 and not self.is_in_message)

    @property
    def unfinished_head_bytes(self) -> int:
        """The memory that an unfinished head takes."""
        return self.raw_bytes + FIELD_OVERHEAD_BYTES * len(self._fields) if self.is_in_head else 0

    def feed(self, data: bytes | memoryview) -> FinalRefusal | None:
        """Parse what has arrived, at most `MAX_AT_ONCE_BYTES`. Returns the refusal that ends the connection, if any."""
        is_between = not (self.is_in_message or self.raw_bytes)
        refusal = self._parse(data)
        head, self._complete = self._complete, None
        if head and is_between and not refusal:
            self._remember(head, data)
        return refusal

    def known_request(self, data: bytes) -> tuple[RequestHead, bytes] | None:
        """Head and body, when this is one whole request whose fields are known; else None: then `feed` parses it."""
        if self.raw_bytes or self.is_in_message or not (line := _PLAIN_LINE.match(data)):
            return None
        start = line.end()
        end = data.find(_END_OF_HEAD, start) + len(_END_OF_HEAD)
        known = self._known.find(data[start:end])
        if known is None or len(data) - end != known.body_bytes:
            return None
        method, path = line.groups()
        head = RequestHead(_METHODS[method], path, b"", "1.1", known.fields)
        head.body_bytes = known.body_bytes
        return head, data[end:]

    def _remember(self, head: RequestHead, data: bytes | memoryview) -> None:
        """Remember the fields of a request that came whole, alone, and without anything unusual."""
        if self.is_in_message or self.raw_bytes or not (line := _PLAIN_LINE.match(data)):
            return
        if not head.keep_alive or head.expects_continue or head.body_bytes is None:
            return
        block = bytes(data[line.end() : len(data) - head.body_bytes])
        if block.find(_END_OF_HEAD) == len(block) - len(_END_OF_HEAD):
            size = len(block) + FIELD_OVERHEAD_BYTES * len(head.fields)
            self._known.add(Known(block, head.fields, head.body_bytes, size))

    def _parse(self, data: bytes | memoryview) -> FinalRefusal | None:
        self.raw_bytes += len(data)
        try:
            while True:
                try:
                    self._parser.feed_data(data)
                    break
                except httptools.HttpParserUpgrade as offer:
                    data = self._head_without_upgrade() + bytes(data[offer.args[0] :])
                    self._parser = self._new_parser()
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, _Refused):
                raise
            return self._refusal(error.__context__.status, error.__context__.text)
        except httptools.HttpParserInvalidMethodError:
            return FinalRefusal(*_BAD_REQUEST)
        except httptools.HttpParserError:
            return self._refusal(*_BAD_REQUEST)
        if self.raw_bytes > self._head_bytes_max + _RAW_SLACK_BYTES:
            return self._refusal(*self._too_long())
        return None

    def _refusal(self, status: int, text: str) -> FinalRefusal:
        return FinalRefusal(status, text, self._parser.get_method().decode() if self.is_in_message else "")

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        # Version and persistence are judged here and by the connection.
        parser.set_dangerous_leniencies(lenient_version=True, lenient_keep_alive=True)
        return parser

    def _head_without_upgrade(self) -> bytes:
        fields = [b"%b: %b\r\n" % field for field in self._fields if field[0] != b"upgrade"]
        line = self._parser.get_method(), self._url, self._parser.get_http_version().encode()
        return b"%b %b HTTP/%b\r\n%b\r\n" % (*line, b"".join(fields))

    # Called by httptools ---------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        self.is_in_message = self._is_in_head = True
        self._forget_head()  # of an offer to upgrade

    def _forget_head(self) -> None:
        """Nothing of it may take room while the connection is idle."""
        self._url, self._fields, self._field_bytes, self._decisive = b"", Fields(), 0, {}

    def on_url(self, piece: bytes) -> None:
        """The target, or a piece of it. It has no fragment, and nothing that is not ASCII (RFC 9112, 3.2)."""
        self._url += piece
        if len(self._url) > self._head_bytes_max:
            raise _Refused(414, "uri too long")
        if b"#" in piece or not piece.isascii():
            raise _Refused(*_BAD_REQUEST)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head, or a trailer; trailers are counted and ignored."""
        self._field_bytes += len(name) + len(value) + 4
        if self._field_bytes + len(self._url) > self._head_bytes_max:
            raise _Refused(431, "request header fields too large")
        if self._is_in_head:
            field = (name.lower(), value.strip(b" \t"))
            self._fields.append(field)
            if field[0] in _DECISIVE:
                self._decisive.setdefault(field[0], []).append(field[1])

    def on_headers_complete(self) -> None:
        """The head is complete: judge it, and hand it over."""
        parser = self._parser
        method = parser.get_method()
        major, _, minor = parser.get_http_version().partition(".")
        if major != "1" or method == b"CONNECT":
            raise _Refused(*_BAD_REQUEST)
        path, query = _split_target(self._url)
        head = RequestHead(method.decode(), path, query, "1.0" if minor == "0" else "1.1", self._fields)
        self._judge(head)
        if parser.should_upgrade():  # `feed` parses the head again without the offer
            return
        self._is_in_head = False
        self.raw_bytes = self._field_bytes = 0
        self._complete = head
        self._receiver.on_head(head)

    def _judge(self, head: RequestHead) -> None:
        """Read the fields that decide how the request is understood. Raises _Refused."""
        of_note = self._decisive
        hosts = of_note.get(b"host", ())
        if len(hosts) > 1 or (not hosts and head.version != "1.0") or not all(map(_is_host, hosts)):
            raise _Refused(*_BAD_REQUEST)
        if len(of_note) == 1 and hosts and head.version == "1.1":
            return  # as most requests without a body
        codings = of_note.get(b"transfer-encoding")
        if codings:
            if [coding.lower() for coding in codings] != [b"chunked"] or head.version == "1.0":
                raise _Refused(400, "transfer-encoding not supported")
            head.body_bytes = None
        elif b"content-length" in of_note:
            head.body_bytes = _length(of_note[b"content-length"])
        head.keep_alive = _is_kept_alive(head.version, of_note.get(b"connection", ()))
        expectations = of_note.get(b"expect", ())
        head.expects_continue = head.version == "1.1" and any(each.lower() == b"100-continue" for each in expectations)

    def on_body(self, piece: bytes) -> None:
        """A piece of the body."""
        self.raw_bytes = 0
        self._receiver.on_body(piece)

    def on_message_complete(self) -> None:
        """The request has arrived completely."""
        if self._parser.should_upgrade():
            return
        self.is_in_message = False
        self.raw_bytes = 0
        self._forget_head()
        self._receiver.on_end()

    def _too_long(self) -> tuple[int, str]:
        if self._is_in_head and not self._fields and len(self._url) > self._head_bytes_max:
            return 414, "uri too long"
        return 431, "request header fields too large"


_DECISIVE: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection", b"expect"})


@functools.lru_cache(maxsize=256)
def _is_host(value: bytes) -> bool:
    """True for a host with an optional port, as a Host field may have it (RFC 9110, 7.2). Clients repeat theirs."""
    return _HOST.fullmatch(value) is not None


def _length(values: list[bytes]) -> int:
    if len(values) != 1 or not values[0].isdigit():
        raise _Refused(*_BAD_REQUEST)
    return int(values[0])


def _is_kept_alive(version: str, connection: list[bytes] | tuple[()]) -> bool:
    """Whether the connection persists (RFC 9112, 9.3)."""
    options = {option.strip().lower() for value in connection for option in value.split(b",")}
    return b"close" not in options and (version != "1.0" or b"keep-alive" in options)


def _split_target(target: bytes) -> tuple[bytes, bytes]:
    """Path and query, each as it was sent. A target may name the host too (RFC 9112, 3.2.2). Raises _Refused."""
    if target.startswith(b"/"):
        path, _, query = target.partition(b"?")
        return path, query
    try:
        parsed = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError as error:
        raise _Refused(*_BAD_REQUEST) from error
    return parsed.path or b"/", parsed.query or b""
