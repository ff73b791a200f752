"""The short way of a request through Falcon gives the answers of Falcon's own way."""

import asyncio

import falcon
import falcon.asgi
import pytest
from falcon.routing import CompiledRouter
from hypothesis import example, given
from hypothesis import strategies as st

from kv import dispatch
from kv.request import Request


class Everything:
    """A resource with every kind of answer."""

    async def on_get(self, req, resp, kind):
        if kind == "data":
            resp.data = b"data"
        elif kind == "empty":
            resp.data = b""
        elif kind == "text":
            resp.text = "täxt"
        elif kind == "header":
            resp.set_header("X-Thing", "1")
            resp.status = falcon.HTTP_507
            resp.data = b"no\n"
        elif kind == "not modified":
            resp.status = falcon.HTTP_304
            resp.set_header("ETag", '"a"')
        elif kind == "stream":
            resp.content_length = 4
            resp.stream = pieces(b"ab", b"cd")
        elif kind == "length":
            resp.content_length = 4
        elif kind == "defect":
            raise ValueError(kind)
        elif kind == "http error":
            raise falcon.HTTPMethodNotAllowed(["GET"])

    on_head = on_get

    async def on_put(self, req, resp, kind):
        event = req.first_event or await req.receive()
        resp.data = event["body"]


async def pieces(*them):
    for each in them:
        yield each


class Refusing:
    async def process_request(self, req, resp):
        if req.path == "/refused":
            raise ValueError("refused")


async def on_error(req, resp, error, params):
    resp.status = falcon.HTTP_500
    resp.data = f"{type(error).__name__}\n".encode()


def make(kind, response_type):
    app = kind(
        media_type="text/plain; charset=utf-8",
        request_type=Request,
        response_type=response_type,
        middleware=[Refusing()],
    )
    app.add_route("/{kind}", Everything())
    app.add_error_handler(Exception, on_error)
    app.add_error_handler(falcon.HTTPError, on_error)
    return app


def answer(app, method, path, body=b""):
    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(event):
        sent.append(event)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [],
    }
    asyncio.run(app(scope, receive, send))
    start, *bodies = sent
    assert not bodies[-1].get("more_body")
    return start["status"], sorted(start["headers"]), b"".join(each.get("body", b"") for each in bodies)


KINDS = ["data", "empty", "nothing", "text", "header", "not modified", "stream", "length", "defect", "http error"]


@pytest.mark.parametrize("kind", [*KINDS, "refused", "no/such/path"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
def test_an_answer_is_that_of_falcons_own_way(method, kind):
    short, own = make(dispatch.App, dispatch.Response), make(falcon.asgi.App, falcon.asgi.Response)
    path = f"/{kind}"
    assert answer(short, method, path, b"x") == answer(own, method, path, b"x")


def test_one_response_shows_nothing_of_another():
    app = make(dispatch.App, dispatch.Response)
    first = answer(app, "GET", "/header")
    plain = answer(app, "GET", "/nothing")
    assert first[0] == 507
    assert plain == answer(make(falcon.asgi.App, falcon.asgi.Response), "GET", "/nothing")


def test_a_stream_is_closed_when_its_client_goes_away():
    closed = []

    async def stream():
        try:
            yield b"x"
        finally:
            closed.append(True)

    async def send(event):
        if event["type"] == "http.response.body":
            raise ConnectionResetError

    async def check():
        with pytest.raises(ConnectionResetError):
            await dispatch._send_stream(stream(), send)
        assert closed == [True]

    asyncio.run(check())


class Parts:
    async def on_get(self, req, resp, rest=""):
        pass


def found(router, uri):
    """Of a route: all but those responders that Falcon makes for each route anew."""
    resource, methods, parameters, template = router.find(uri) or (None, {}, {}, None)
    return resource, methods.get("GET"), list(methods), parameters, template


PARTS = Parts()
PART = st.sampled_from(["/", "//", "kv", "kvx", "keys", "a", "%2f", ":", ""])


@given(st.lists(PART, max_size=6).map("".join))
@example("/kv/")
@example("/kv//a")
@example("/kv")
def test_the_route_of_nearly_all_requests_is_found_as_falcon_finds_it(uri):
    short, long = dispatch.Router("/kv/"), CompiledRouter()
    for router in (short, long):
        for path in ("/kv/{rest:path}", "/keys", "/a/{rest}"):
            router.add_route(path, PARTS, _asgi=True)
    assert found(short, uri) == found(long, uri)
