"""The HTTP contract as one table: what is asked for, what comes back, and what is stored afterwards.

Owns what holds for every server of this interface, whatever engine is behind it. Knows neither servers nor engines: a
specification says how one is filled, asked and inspected (`Contractor`), and has `assert_holds` check it line by line.
Connections, bodies that arrive in pieces, and failures of an engine are specified elsewhere.

To add a line is to add a `Line` to `LINES`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol, TypeAlias

VALUE_BYTES_MAX: Final = 512
"""The limit on values that a server has to have for this table."""
TEXT: Final = "text/plain; charset=utf-8"
JSON_LINES: Final = "application/jsonl"
JSON: Final = "application/json"
HTML: Final = "text/html; charset=utf-8"
_TYPES: Final = frozenset(
    {TEXT, JSON_LINES, JSON, HTML, "text/css; charset=utf-8", "text/javascript; charset=utf-8", "image/svg+xml"}
)
NOT_MODIFIED: Final = 304
"""Has no body, and so neither type nor length (RFC 9110, 15.4.5)."""

Data: TypeAlias = Mapping[str, bytes]
Fields: TypeAlias = Mapping[str, str]
_NO_FIELDS: Final[Fields] = MappingProxyType({})
DATA: Final[Data] = {"a": b"1", "b": b"2"}


class Line(NamedTuple):
    """One line of the contract. `requests` is methods, separated by `|`, and the target: `GET|DELETE /kv/`."""

    requests: str
    status: int
    answer: bytes | None = b""
    """The body; None where it is not the same every time. That of HEAD is empty, and has the length of this one."""
    body: bytes | None = None
    then: Data | None = None
    """All keys and values afterwards; None where nothing has changed."""
    sent: Fields = _NO_FIELDS
    headers: Fields = _NO_FIELDS
    """Headers of the answer, beside those that each answer has."""
    given: Data = DATA

    def __str__(self) -> str:
        body = "" if self.body is None else f" {ascii(self.body[:20])[1:]}"
        return f"{self.requests[:60]}{body} {dict(self.sent) or ''} {self.status}"


class Answer(Protocol):
    """What came back; the names of the headers are in lower case."""

    @property
    def status(self) -> int: ...

    @property
    def body(self) -> bytes: ...

    @property
    def headers(self) -> Fields: ...


class Contractor(Protocol):
    """A server that is held to the contract."""

    def fill(self, data: Data) -> None:
        """Have it hold this and nothing else."""

    def ask(self, method: str, target: str, body: bytes | None, headers: Fields) -> Answer:
        """Make one request."""

    def stored(self, keys: Iterable[str]) -> Data:
        """What it holds, at least of these keys."""


def assert_holds(line: Line, server: Contractor) -> None:
    """Make the requests of a line, and check each answer and what is stored after it."""
    methods, _, target = line.requests.partition(" ")
    then = line.given if line.then is None else line.then
    server.fill(line.given)
    for method in methods.split("|"):  # no line has several methods that change something
        answer = server.ask(method, target, line.body, line.sent)
        assert (method, answer.status) == (method, line.status)
        assert_well_formed(method, answer)
        if line.answer is not None:
            assert answer.body == (b"" if method == "HEAD" else line.answer)
            if answer.status != NOT_MODIFIED:
                assert answer.headers["content-length"] == str(len(line.answer))
        assert {name: answer.headers.get(name) for name in line.headers} == line.headers
        assert server.stored(then.keys() | line.given.keys()) == then


def assert_well_formed(method: str, answer: Answer) -> None:
    """Check what holds for every answer: its type and length, and that an error is one line of text."""
    if answer.status == NOT_MODIFIED:
        assert answer.body == b""
        assert "content-length" not in answer.headers
        return
    assert answer.headers["content-type"] in _TYPES
    if method == "HEAD":
        assert answer.body == b""
        assert answer.headers["content-length"].isdecimal()
        return
    assert answer.headers["content-length"] == str(len(answer.body))
    if answer.status >= 400 and answer.headers["content-type"] == TEXT:
        assert len(answer.body) > 1
        assert answer.body.find(b"\n") == len(answer.body) - 1


# The lines -----------------------------------------------------------------------------------------------


_VALUES: Final = (
    b"x",
    b"x" * VALUE_BYTES_MAX,
    "😀 ü €".encode(),
    "日本語".encode(),
    "👩‍👩‍👧 🇨🇭".encode(),
    "\u0000\U0010ffff".encode(),
    b"line\nline\r\n\ttab\n",
    b"\x00",
    b"a\x00b",
    b" ",
    b"\n",
    b"\xef\xbb\xbfbom",
    bytes(range(64)),
    bytes(range(64, 128)),
    b"0\r\n\r\n",
    b"key not found\n",
)
_NOT_UTF_8: Final = (
    b"\xff", b"\xff\xfe", b"a\x80", b"\xe2\x82", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80",
    "ü".encode("latin-1"),
)  # fmt: skip
_KEYS: Final = {
    "a": "a",
    "%61": "a",
    "%41z09%3A_%2e-": "Az09:_.-",
    "a%3Ab": "a:b",
    "user:1_x.y-Z": "user:1_x.y-Z",
    ".": ".",
    "..": "..",
    "%2e%2E": "..",
    ":": ":",
    "-": "-",
    "0": "0",
    "kv": "kv",
    "clear": "clear",
    "k" * 30_000: "k" * 30_000,
}
"""Keys as they are written in a path, and what they are."""
_NO_KEYS: Final = (
    "%FF", "%FE", "%2F", "a%2Fb", "a/b", "/a", "a/", "%00", "a%00", "a%0A", "%0A", "+", "a+b", "%20", "a%20b", "%09",
    "%C3%BC", "%F0%9F%98%80", "%EF%BF%BD", "%7F", "%zz", "%4", "%", "a%", "%%41", "%25", "a%2541", "~", "a*b", "a,b",
    "a;b", "a=b", "a@b", "(a)", "a!", "$a", "a&b", "'a'", "a|b", "a\\b", "[a]", "a%0D%0Ab", "%u0041",
    "../x", ".%2F.", "k" * 30_000 + "+",
)  # fmt: skip
_NO_PATHS: Final = (
    "/", "/kv", "/kv?a", "/nope", "/KV/a", "/kv;a", "/keys/", "/keys/a", "/clear/", "/clear/a", "/Clear", "/health/",
    "/a/kv/a", "/other/k", "/kv%2Fa", "/kv%2F", "/kv%2Fa/b", "/kv%2F/b", "//kv/b", "/%2Fkv/b", "//clear", "/%2Fclear",
    "//health", "/%2Fhealth", "/status/", "/console/a/b",
)  # fmt: skip
_METHODS: Final = (
    "GET", "HEAD", "PUT", "DELETE", "POST", "PATCH", "OPTIONS", "TRACE",
    "COPY", "LOCK", "MKCOL", "MOVE", "PROPFIND", "PROPPATCH", "UNLOCK", "REPORT",
)  # fmt: skip
_OFFERED: Final = {
    "/batch": "POST",
    "/keys": "GET, HEAD",
    "/kv/a": "DELETE, GET, HEAD, PUT",
    "/kv/": "DELETE, GET, HEAD, PUT",
    "/kv/%FF": "DELETE, GET, HEAD, PUT",
    "/clear": "DELETE",
    "/health": "GET, HEAD",
    "/live": "GET, HEAD",
    "/metrics": "GET, HEAD",
    "/status": "GET, HEAD",
    "/openapi.yaml": "GET, HEAD",
    "/console": "GET, HEAD",
    "/console/style.css": "GET, HEAD",
}


def _valid_key(written: str, key: str) -> Iterator[Line]:
    yield Line(f"PUT /kv/{written}", 200, body=b"v", given={}, then={key: b"v"})
    yield Line(f"GET|HEAD /kv/{written}", 200, b"v", given={key: b"v"})
    yield Line(f"DELETE /kv/{written}", 200, given={key: b"v", "other": b"w"}, then={"other": b"w"})


def _not_offered(path: str, allow: str) -> Line:
    methods = "|".join(method for method in _METHODS if method not in allow.split(", "))
    return Line(f"{methods} {path}", 405, b"method not allowed\n", b"v", headers={"allow": allow})


TAG_1: Final = '"6b86b273ff34fce19d6b804eff5a3f57"'
"""The tag of the value `1`: the first 32 digits of its SHA-256."""
_TAG_3: Final = '"4e07408562bedb8b60ce05c1decfe3ad"'
_TAG_E: Final = '"ffffffffffffffffffffffffffffffff"'
_HOLD: Final[tuple[Fields, ...]] = (
    {"If-Match": TAG_1},
    {"If-Match": f'W/"x", "a,b" ,, {TAG_1}'},
    {"If-Match": "*"},
    {"If-None-Match": _TAG_E},
    {"If-None-Match": f'W/{_TAG_E}, "", "ÿ"'},
    {"If-Match": TAG_1, "If-None-Match": _TAG_3},
)
"""For a key whose value is `1`."""
_DO_NOT_HOLD: Final[tuple[Fields, ...]] = (
    {"If-Match": _TAG_E},
    {"If-Match": f"W/{TAG_1}"},
    {"If-None-Match": "*"},
    {"If-None-Match": TAG_1},
    {"If-None-Match": f"{_TAG_3}, W/{TAG_1}"},
    {"If-Match": TAG_1, "If-None-Match": "*"},
)
_NO_TAGS: Final = (
    "",
    ",",
    "x",
    TAG_1[1:-1],
    TAG_1[:-1],
    f"w/{TAG_1}",
    f"*, {TAG_1}",
    f"{TAG_1} {_TAG_3}",
    '"a b"',
    "**",
)
_FAILED: Final = b"precondition failed\n"


def _preconditions() -> Iterator[Line]:
    for sent in _HOLD:
        yield Line("PUT /kv/a", 200, body=b"3", then={**DATA, "a": b"3"}, sent=sent, headers={"etag": _TAG_3})
        yield Line("DELETE /kv/a", 200, then={"b": b"2"}, sent=sent)
    for sent in _DO_NOT_HOLD:
        yield Line("PUT|DELETE /kv/a", 412, _FAILED, b"3", sent=sent, headers={"etag": TAG_1})
    for sent in ({"If-Match": "*"}, {"If-Match": TAG_1}):
        yield Line("PUT|DELETE /kv/c", 412, _FAILED, b"3", sent=sent)
        yield Line("GET|HEAD /kv/c", 404, b"key not found\n", sent=sent)
    for sent in ({"If-None-Match": "*"}, {"If-None-Match": TAG_1}):
        yield Line("PUT /kv/c", 200, body=b"1", then={**DATA, "c": b"1"}, sent=sent, headers={"etag": TAG_1})
        yield Line("DELETE /kv/c", 200, sent=sent)
        yield Line("GET|HEAD /kv/c", 404, b"key not found\n", sent=sent)
    for text in ("*", TAG_1, f"{_TAG_3},W/{TAG_1}"):
        yield Line("GET|HEAD /kv/a", 304, sent={"If-None-Match": text}, headers={"etag": TAG_1})
    yield Line("GET|HEAD /kv/a", 200, b"1", sent={"If-None-Match": _TAG_3}, headers={"etag": TAG_1})
    yield Line("GET|HEAD /kv/a", 200, b"1", headers={"etag": TAG_1})
    yield Line("PUT /kv/a", 200, body=b"1", headers={"etag": TAG_1})
    for text in _NO_TAGS:
        for field in ("If-Match", "If-None-Match"):
            answer = f"{field.lower()} cannot be parsed\n".encode()
            yield Line("PUT|DELETE /kv/a", 400, answer, b"3", sent={field: text})
        yield Line("GET|HEAD /kv/a", 400, answer, sent={"If-None-Match": text})
    for field in ("If-Match", "If-None-Match"):
        yield Line("DELETE /clear", 400, f"{field.lower()} not supported\n".encode(), sent={field: "*"})


_A, _C = ({"op": "check", "key": key, "etag": TAG_1} for key in "ac")
_C_ABSENT: Final = {"op": "check", "key": "c", "absent": True}
_LINES_ANSWER: Final = {"content-type": JSON_LINES}


def _jsonl(*lines: object) -> bytes:
    return b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines)


def _put(key: str, value: str) -> dict[str, str]:
    return {"op": "put", "key": key, "value": value}


def _delete(key: str) -> dict[str, str]:
    return {"op": "delete", "key": key}


def _batch(status: int, answer: bytes, *lines: object, then: Data | None = None) -> Line:
    return Line("POST /batch", status, answer, _jsonl(*lines), then, headers=_LINES_ANSWER)


def _batches() -> Iterator[Line]:
    put = _jsonl({"key": "c", "etag": TAG_1})
    yield _batch(200, put, _put("c", "1"), then={**DATA, "c": b"1"})
    yield _batch(200, put, _A, _C_ABSENT, _put("c", "1"), _delete("a"), then={"b": b"2", "c": b"1"})
    yield _batch(200, b"", _delete("a"), _delete("c"), then={"b": b"2"})
    yield _batch(200, b"", _A, _C_ABSENT)
    yield _batch(200, put, {**_A, "etag": TAG_1[1:-1]}, _put("c", "1"), then={**DATA, "c": b"1"})
    yield _batch(412, _jsonl({"key": "c", "etag": None}), _A, _C, _put("a", "3"), _delete("b"))
    failed = _jsonl({"key": "c", "etag": None}, {"key": "a", "etag": TAG_1})
    yield _batch(412, failed, _delete("b"), _C, {"op": "check", "key": "a", "absent": True}, _C_ABSENT)
    yield Line("POST /batch", 413, b"batch too large\n", b"x" * (VALUE_BYTES_MAX + 1))
    yield Line("POST /batch", 400, b"batch cannot be empty\n", b"")
    yield Line("POST /batch?x=1", 400, b"unknown parameter: x\n", b"")
    yield Line("POST /batch", 400, b"if-match not supported\n", b"", sent={"If-Match": "*"})


_PRECONDITIONS: Final = (*_preconditions(), *_batches())

_MANY: Final[Data] = {"a": b"1", "a:b": b"2", "B": b"3", "a:a": b"4", "c": "ü\n".encode(), "a.b": b"6"}
_IN_ORDER: Final = ("B", "a", "a.b", "a:a", "a:b", "c")


def _keys(target: str, *keys: str, link: str = "", given: Data = _MANY) -> Line:
    headers = {"content-type": TEXT, **_link(link)}
    return Line(f"GET|HEAD {target}", 200, "".join(f"{key}\n" for key in keys).encode(), headers=headers, given=given)


def _entries(target: str, *keys: str, link: str = "", given: Data = _MANY) -> Line:
    body = b"".join(b'{"key":"%b","value":%b}\n' % (key.encode(), _json(given[key])) for key in keys)
    return Line(f"GET|HEAD {target}", 200, body, headers={**_LINES_ANSWER, **_link(link)}, given=given)


def _json(value: bytes) -> bytes:
    return json.dumps(value.decode(), ensure_ascii=False).encode()


def _link(target: str) -> Fields:
    return {"link": f'<{target}>; rel="next"'} if target else {}


def _wrong(query: str, text: str) -> Line:
    return Line(f"GET|HEAD /keys?{query}", 400, f"{text}\n".encode())


def _listing() -> Iterator[Line]:
    yield _keys("/keys", *_IN_ORDER)
    yield _keys("/keys?", *_IN_ORDER)
    yield _keys("/keys?prefix=&after=", *_IN_ORDER)
    yield _keys("/keys", given={})
    yield _keys("/keys?prefix=a", "a", "a.b", "a:a", "a:b")
    yield _keys("/keys?prefix=a:", "a:a", "a:b")
    yield _keys("/keys?prefix=%61%3A", "a:a", "a:b")
    yield _keys("/keys?prefix=a:c")
    yield _keys("/keys?prefix=d")
    yield _keys("/keys?after=a", "a.b", "a:a", "a:b", "c")
    yield _keys("/keys?after=a-", "a.b", "a:a", "a:b", "c")
    yield _keys("/keys?after=c")
    yield _keys("/keys?after=B&prefix=a:", "a:a", "a:b")
    yield _keys("/keys?after=a:a&prefix=a", "a:b")
    yield _keys("/keys?after=c&prefix=a")
    yield _keys("/keys?limit=6", *_IN_ORDER)
    yield _keys("/keys?limit=10000", *_IN_ORDER)
    yield _keys("/keys?limit=2", "B", "a", link="/keys?after=a&limit=2")
    yield _keys("/keys?limit=01&after=a&prefix=a", "a.b", link="/keys?prefix=a&after=a.b&limit=1")
    yield _keys("/keys?limit=2&prefix=a:", "a:a", "a:b")
    yield _entries("/keys?values=1", *_IN_ORDER)
    yield _entries("/keys?values=1&prefix=c", "c")
    yield _entries("/keys?values=1&prefix=d")
    yield _entries("/keys?prefix=a&values=1&limit=1", "a", link="/keys?prefix=a&after=a&limit=1&values=1")
    yield _keys("/keys?key=c&key=x&key=B&key=%61", "c", "B", "a")
    yield _keys("/keys?key=x")
    yield _keys("/keys?key=a&key=a", "a", "a")
    yield _entries("/keys?key=c&key=x&values=1&key=B", "c", "B")
    yield _wrong("x=1", "unknown parameter: x")
    yield _wrong("prefix=a&%70refix=b", "unknown parameter: %70refix")
    yield _wrong("prefix=a&&limit=1", "unknown parameter: ")
    yield _wrong("Limit=1", "unknown parameter: Limit")
    yield _wrong("prefix=a&prefix=a", "parameter given twice: prefix")
    yield _wrong("values=1&values=1", "parameter given twice: values")
    for limit in ("", "0", "-1", "+1", "1.0", "10001", "1e3", "x", "%D9%A1", "9" * 5000, "1_0"):
        yield _wrong(f"limit={limit}", "limit must be a number from 1 to 10000")
    yield _wrong("limit", "limit must be a number from 1 to 10000")
    for values in ("", "0", "true", "2"):
        yield _wrong(f"values={values}", "values must be 1")
    for name in ("prefix", "after"):
        for value in ("/", "%2F", "a+b", "%20", "%", "%4", "%zz", "%FF", "%C3%BC", "%00", "a%0A", "=", "*"):
            yield _wrong(f"{name}={value}", f"{name} contains invalid characters")
        yield _wrong(f"key=a&{name}=a", f"{name} cannot go with key")
    yield _wrong("limit=1&key=a", "limit cannot go with key")
    yield _wrong("key=", "key cannot be empty")
    yield _wrong("key", "key cannot be empty")
    yield _wrong("key=a&key=%FF", "key contains invalid characters")
    yield _wrong("&".join(["key=a"] * 10_001), "key may be given at most 10000 times")


_CROSS_SITE: Final[tuple[Fields, ...]] = (
    {"Host": "h", "Sec-Fetch-Site": "cross-site"},
    {"Host": "h", "Sec-Fetch-Site": "same-site", "Origin": "http://h"},
    {"Host": "h", "Origin": "http://other"},
    {"Host": "h", "Origin": "http://h:81"},
    {"Host": "h", "Origin": "https://h"},
    {"Host": "h", "Origin": "null"},
    {"Host": "h", "Origin": ""},
)
_OWN_SITE: Final[tuple[Fields, ...]] = (
    {"Host": "h", "Sec-Fetch-Site": "same-origin", "Origin": "https://a.proxy"},
    {"Host": "h", "Sec-Fetch-Site": "none"},
    {"Host": "H:81", "Origin": "http://h:81"},
    {"Host": "h", "Originator": "x"},
)


def _requests_of_browsers() -> Iterator[Line]:
    """A page of another site changes nothing; what it may read is up to the browser."""
    for sent in _CROSS_SITE:
        yield Line("PUT|DELETE /kv/a", 403, b"cross-site request refused\n", b"3", sent=sent)
        yield Line("DELETE /clear", 403, b"cross-site request refused\n", sent=sent)
        yield Line("POST /batch", 403, b"cross-site request refused\n", _jsonl(_delete("a")), sent=sent)
        yield Line("GET|HEAD /kv/a", 200, b"1", sent=sent)
    for sent in _OWN_SITE:
        yield Line("PUT /kv/a", 200, body=b"3", then={**DATA, "a": b"3"}, sent=sent)
        yield Line("DELETE /clear", 200, then={}, sent=sent)
        yield Line("POST /batch", 200, b"", _jsonl(_delete("a")), then={"b": b"2"}, sent=sent)


def _not_carried_out(field: str) -> Line:
    """To skip a field that narrows a change would change more than was asked for."""
    text = f"{field.lower()} not supported\n".encode()
    return Line("PUT|DELETE /kv/a", 400, text, b"3", sent={field: "bytes 0-0/3"})


LINES: Final = (
    Line("PUT /kv/c", 200, body=b"3", then={**DATA, "c": b"3"}),
    Line("PUT /kv/a", 200, body=b"3", then={**DATA, "a": b"3"}),
    Line("PUT /kv/A", 200, body=b"3", then={**DATA, "A": b"3"}),
    Line("PUT|DELETE /kv/a?b=c&d", 400, b"unknown parameter: b\n", body=b"3"),
    Line("DELETE /clear?prefix=a", 400, b"unknown parameter: prefix\n"),
    Line("DELETE /clear?%ff%0a", 400, b"unknown parameter: %ff%0a\n"),
    Line("DELETE /clear?&a", 400, b"unknown parameter: \n"),
    Line("DELETE /clear?", 200, then={}),
    *_PRECONDITIONS,
    *_listing(),
    *_requests_of_browsers(),
    *(_not_carried_out(field) for field in ("Content-Range", "If-Modified-Since", "If-Unmodified-Since", "If-Range")),
    Line("GET|HEAD /kv/a", 200, b"1"),
    Line("GET|HEAD /kv/a?b=c", 200, b"1"),
    Line("GET|HEAD /kv/c", 404, b"key not found\n"),
    Line("GET|HEAD /kv/A", 404, b"key not found\n"),
    Line("GET|HEAD /kv/a", 200, "ü".encode(), given={"a": "ü".encode()}),
    Line("DELETE /kv/a", 200, then={"b": b"2"}),
    Line("DELETE /kv/c", 200),
    Line("DELETE /clear", 200, then={}),
    Line("DELETE /clear", 200, given={}),
    Line("GET|HEAD /health", 200, b"ok"),
    Line("GET|HEAD /live", 200, b"ok"),
    Line("GET|HEAD /metrics", 200, None),
    Line("GET|HEAD /status", 200, None, headers={"content-type": JSON}),
    Line("GET|HEAD /openapi.yaml", 200, None),
    Line("GET|HEAD /console", 200, None, headers={"content-type": HTML}),
    Line("GET|HEAD /console/style.css", 200, None, headers={"content-type": "text/css; charset=utf-8"}),
    *(Line(f"GET|HEAD /console/{name}", 404, b"not found\n") for name in ("x", "..", "%2e%2e", "a%2fb", "a%00")),
    Line("PUT|GET|HEAD|DELETE /kv/", 400, b"key cannot be empty\n", b"3"),
    Line("PUT|GET|HEAD|DELETE /kv/", 400, b"key cannot be empty\n"),
    Line("PUT /kv/a", 400, b"value cannot be empty\n", b""),
    Line("PUT /kv/a", 400, b"value cannot be empty\n"),
    Line("PUT /kv/a", 413, b"value too large\n", b"x" * (VALUE_BYTES_MAX + 1)),
    *(Line("PUT /kv/a", 200, body=value, then={**DATA, "a": value}) for value in _VALUES),
    *(Line("GET|HEAD /kv/a", 200, value, given={"a": value}) for value in _VALUES),
    *(Line("PUT /kv/a", 400, b"value must be valid UTF-8\n", value) for value in _NOT_UTF_8),
    *(line for written, key in _KEYS.items() for line in _valid_key(written, key)),
    *(Line(f"PUT|GET|HEAD|DELETE /kv/{key}", 400, b"key contains invalid characters\n", b"3") for key in _NO_KEYS),
    *(_not_offered(path, allow) for path, allow in _OFFERED.items()),
    *(Line(f"{'|'.join(_METHODS)} {path}", 404, b"not found\n", b"3") for path in _NO_PATHS),
    Line("OPTIONS *", 404, b"not found\n"),
)
