"""From bytes to request heads and bodies: the same bytes mean the same in whatever pieces they arrive."""

import gc

import pytest

from kv.http import known_heads
from kv.http.request_parser import FIELD_OVERHEAD_BYTES, FinalRefusal, RequestParser

LIMIT = 2000


class Events(list):
    """What a parser finds, with the pieces of a body joined."""

    def on_head(self, head):
        self.append((head.method, head.raw_path, head.query, head.version, head.keep_alive, head.body_bytes))
        self.append(tuple(head.fields))

    def on_body(self, piece):
        assert piece
        if isinstance(self[-1], bytes):
            piece = self.pop() + piece
        self.append(piece)

    def on_end(self):
        self.append("end")


def feed(parser, events, piece):
    """As a connection does."""
    if not (known := parser.known_request(piece)):
        return parser.feed(piece)
    head, body = known
    events.on_head(head)
    if body:
        events.on_body(body)
    events.on_end()
    return None


def parse(*pieces):
    """The events, and last the refusal, if there is one."""
    events = Events()
    parser = RequestParser(events, LIMIT)
    for piece in pieces:
        if refusal := feed(parser, events, piece):
            parser.close()
            return [*events, refusal]
    return list(events)


def request(line=b"GET /kv/a HTTP/1.1", *fields, host=b"Host: h", body=b""):
    return b"\r\n".join([line, *([host] if host else []), *fields, b"", b""]) + body


PUT = request(b"PUT /kv/a?b HTTP/1.1", b"Content-Length: 5", body=b"hello")
CHUNKED = request(
    b"PUT /kv/a HTTP/1.1",
    b"Transfer-Encoding: chunked ",
    body=b"5;a=b\r\nhello\r\nA\r\nhellohello\r\n0\r\nX: y\r\n\r\n",
)
STREAMS = {
    "get": request(),
    "put": PUT,
    "chunked": CHUNKED,
    "empty lines first": b"\r\n\r\n" + request(),
    "absolute form": request(b"GET http://h:1/kv/a?q HTTP/1.1"),
    "1.0": request(b"GET / HTTP/1.0", b"Connection: keep-alive", host=b""),
    "1.2": request(b"GET / HTTP/1.2"),
    "upgrade": request(b"PUT / HTTP/1.1", b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 3", body=b"abc"),
    "upgrade, chunked": request(
        b"PUT / HTTP/1.1",
        b"Upgrade: x",
        b"Connection: upgrade",
        b"Transfer-Encoding: chunked",
        body=b"1\r\na\r\n0\r\n\r\n",
    ),
    "proxy connection": request(b"GET / HTTP/1.1", b"Proxy-Connection: close"),
    "obsolete text": request(b"GET / HTTP/1.1", b"X: \xc3\xa9\t"),
    "unknown method": request(b"BREW / HTTP/1.1"),
    "method in lower case": request(b"get / HTTP/1.1"),
    "method that is not ASCII": request(b"G\xc3\x89T / HTTP/1.1"),
    "target that is not ASCII": request(b"GET /\xc3\xa9 HTTP/1.1"),
    "fragment": request(b"GET /a#b HTTP/1.1"),
    "version": request(b"GET / HTTP/2.0"),
    "no host": request(host=b""),
    "two hosts": request(b"GET / HTTP/1.1", b"Host: h"),
    "bad host": request(host=b"Host: a b"),
    "two lengths": request(b"PUT / HTTP/1.1", b"Content-Length: 5", b"Content-Length: 6", body=b"hello"),
    "length and chunked": request(
        b"PUT / HTTP/1.1", b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"
    ),
    "gzip": request(b"PUT / HTTP/1.1", b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"),
    "chunked in 1.0": request(b"PUT / HTTP/1.0", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "bad chunk": request(b"PUT / HTTP/1.1", b"Transfer-Encoding: chunked", body=b"5\r\nhelloX\r\n0\r\n\r\n"),
    "bad field": request(b"HEAD / HTTP/1.1", b"X : y"),
    "large field": request(b"GET / HTTP/1.1", b"X: " + b"x" * LIMIT),
    "large target": request(b"GET /" + b"x" * LIMIT + b" HTTP/1.1"),
    "connect": request(b"CONNECT h:1 HTTP/1.1"),
}


@pytest.mark.parametrize("after", [b"", PUT, CHUNKED, request(b"BREW / HTTP/1.1")], ids=["", "put", "chunked", "bad"])
@pytest.mark.parametrize("name", STREAMS)
def test_the_same_bytes_mean_the_same_in_whatever_pieces_they_arrive(name, after):
    stream = PUT + STREAMS[name] + after
    whole = parse(stream)
    for cut in range(1, len(stream)):
        assert parse(stream[:cut], stream[cut:]) == whole, stream[:cut]
    assert parse(*(stream[at : at + 1] for at in range(len(stream)))) == whole


def parse_one_by_one(*requests):
    """The events when each request comes whole and alone, on one connection."""
    events = Events()
    parser = RequestParser(events, LIMIT)
    found = []
    for each in requests:
        refusal = feed(parser, events, each)
        found.append([*events, *([refusal] if refusal else [])])
        events.clear()
        if refusal:
            break
    return found


@pytest.mark.parametrize("between", [b"", request(), PUT, CHUNKED])
@pytest.mark.parametrize("name", STREAMS)
def test_a_request_means_the_same_when_its_fields_were_seen_before(name, between):
    stream = STREAMS[name]
    cold = parse(stream)
    warm = parse_one_by_one(PUT, *([between] if between else []), stream, stream, stream)
    for events in warm[2 if between else 1 :]:
        assert events == cold


@pytest.mark.parametrize(
    "other",
    [
        request(b"PUT /kv/a HTTP/1.1", b"Content-Length: 4", body=b"hell"),
        request(b"PUT /kv/a HTTP/1.1", b"Content-Length: 5", body=b"hello") + request(),
        request(b"PUT /kv/a HTTP/1.1", b"Content-Length: 5", body=b"hell"),
        request(b"PUT /kv/a HTTP/1.0", b"Content-Length: 5", body=b"hello"),
        request(b"BREW /kv/a HTTP/1.1", b"Content-Length: 5", body=b"hello"),
        request(b"PUT /kv/a HTTP/1.1", b"Content-Length: 5", b"Content-Length: 5", body=b"hello"),
        b"\r\n" + request(b"PUT /kv/a HTTP/1.1", b"Content-Length: 5", body=b"hello"),
        request(b"PUT /kv/a?b HTTP/1.1", b"Content-Length: 5", body=b"hello"),
        request(b"PUT /kv/%61 HTTP/1.1", b"Content-Length: 5", body=b"hello"),
    ],
)
def test_what_only_resembles_a_request_seen_before_is_parsed(other):
    seen = request(b"PUT /kv/a HTTP/1.1", b"Content-Length: 5", body=b"hello")
    assert parse_one_by_one(seen, seen, other)[2] == parse(other)


def parsed(parser, *requests):
    """Of requests that come whole and alone, those that were parsed: the fields of all others were known."""
    return [each for each in requests if not parser.known_request(each) and parser.feed(each) is None]


def new_parser():
    return RequestParser(Events(), 64 * 1024)


def test_fields_are_parsed_once_also_when_reads_and_writes_alternate():
    get, put = request(), request(b"PUT /kv/a HTTP/1.1", b"Content-Length: 5", body=b"hello")
    delete, other_put = request(b"DELETE /kv/b HTTP/1.1"), put.replace(b"/kv/a", b"/kv/b").replace(b"hello", b"world")
    assert parsed(new_parser(), get, put, get, other_put, delete, put) == [get, put]


def test_what_is_known_of_one_client_is_not_known_of_another():
    assert parsed(new_parser(), request(), request()) == [request()]
    assert parsed(new_parser(), request()) == [request()]


def test_what_is_known_of_a_client_is_bounded_in_blocks_and_in_bytes():
    different = [request(b"GET /kv/a HTTP/1.1", b"X: %d" % number) for number in range(known_heads.BLOCKS_MAX + 1)]
    assert parsed(new_parser(), *different, *reversed(different)) == [*different, different[0]]
    half = [request(b"GET /kv/a HTTP/1.1", b"X: " + each * (known_heads.BYTES_MAX // 2)) for each in (b"x", b"y")]
    assert parsed(new_parser(), *half, *half) == half * 2
    large = request(b"GET /kv/a HTTP/1.1", b"X: " + b"x" * known_heads.BYTES_MAX)
    small = request()
    assert parsed(new_parser(), small, large, large, small) == [small, large, large]


def test_a_block_that_is_found_again_takes_no_more_room():
    x, y = (known_heads.Known(block, known_heads.Fields(), 0, known_heads.BYTES_MAX) for block in (b"x", b"y"))
    known = known_heads.KnownHeads()
    for _ in range(3):
        known.add(x)
    assert known.find(b"x") is x
    known.add(y)
    assert (known.find(b"x"), known.find(b"y")) == (None, y)


def test_what_many_clients_send_takes_room_once_and_no_longer_than_they_are_there():
    gc.collect()  # other parsers
    before = len(known_heads._alive)
    many = [new_parser() for _ in range(9)]
    assert [parsed(parser, request(), request()) for parser in many] == [[request()]] * 9
    assert len({id(head.fields) for head, _ in (parser.known_request(request()) for parser in many)}) == 1
    assert len(known_heads._alive) == before + 1
    for parser in many:
        parser.close()
    del parser, many
    assert len(known_heads._alive) == before


def test_what_is_known_of_a_client_is_bounded_in_fields_however_small_they_are():
    many = request(b"GET /kv/a HTTP/1.1", *[b"X:"] * (known_heads.BYTES_MAX // FIELD_OVERHEAD_BYTES))
    assert parsed(new_parser(), many, many) == [many, many]


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("stream", ["get", "put", "chunked", "upgrade", "absolute form"])
def test_nothing_of_a_request_is_kept_once_it_is_complete(stream, pieces):
    parser = RequestParser(Events(), LIMIT)
    data = STREAMS[stream].replace(b"/kv/a", b"/kv/a?b")  # such as is not remembered
    cut = len(data) // 2 if pieces == 2 else len(data)
    for piece in filter(None, (data[:cut], data[cut:])):
        assert parser.feed(piece) is None
    assert not any((parser._url, parser._fields, parser._decisive, parser._complete))


@pytest.mark.parametrize(
    ("stream", "refusal"),
    [
        ("unknown method", FinalRefusal(400, "bad request")),
        ("target that is not ASCII", FinalRefusal(400, "bad request", "GET")),
        ("no host", FinalRefusal(400, "bad request", "GET")),
        ("bad field", FinalRefusal(400, "bad request", "HEAD")),
        ("gzip", FinalRefusal(400, "transfer-encoding not supported", "PUT")),
        ("large field", FinalRefusal(431, "request header fields too large", "GET")),
        ("large target", FinalRefusal(414, "uri too long", "GET")),
    ],
)
def test_a_refusal_says_why_and_of_which_method(stream, refusal):
    assert parse(STREAMS[stream]) == [refusal]


@pytest.mark.parametrize("value", [b"h", b"h:80", b"h:", b"[::1]:80", b"127.0.0.1", b"a-b.c", b"", b"%41", b" \th \t"])
def test_a_host_may_have_a_port_and_be_an_address(value):
    assert parse(request(host=b"Host: " + value))[-1] == "end"


@pytest.mark.parametrize(
    ("version", "connection", "persists"),
    [
        (b"1.1", [], True),
        (b"1.1", [b"close"], False),
        (b"1.1", [b"keep-alive, CLOSE"], False),
        (b"1.1", [b"keep-alive", b"close"], False),
        (b"1.1", [b"close-notify"], True),
        (b"1.0", [], False),
        (b"1.0", [b"Keep-Alive"], True),
        (b"1.0", [b"keep-alive, close"], False),
    ],
)
def test_a_connection_persists_as_version_and_options_say(version, connection, persists):
    fields = [b"Connection: " + value for value in connection]
    assert parse(request(b"GET / HTTP/" + version, *fields))[0][4] is persists


def test_trailers_are_no_fields_of_the_head():
    fields = parse(CHUNKED)[1]
    assert fields == ((b"host", b"h"), (b"transfer-encoding", b"chunked"))


@pytest.mark.parametrize(
    ("beginning", "status"),
    [
        (b"GET /", 414),
        (b"GET / HTTP/1.1\r\nX: ", 431),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 400, 431),
        (b"\r\n" * LIMIT, 431),
    ],
)
def test_a_head_that_does_not_end_is_refused_at_its_limit(beginning, status):
    pieces = [beginning, *[b"x" * 100] * (LIMIT // 100 + 2)]
    assert parse(*pieces)[-1].status == status


def test_the_memory_of_an_unfinished_head_is_counted_and_released():
    parser = RequestParser(Events(), LIMIT)
    parser.feed(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 10)
    assert parser.is_in_head
    assert parser.unfinished_head_bytes > 10 * 100
    parser.feed(b"Host: h\r\n\r\n")
    assert not parser.is_in_head
    assert parser.unfinished_head_bytes == 0
