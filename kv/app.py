"""The Falcon application: routes, and which handler answers which error.

Does not know how a request is answered (kv/request.py, kv/resources), nor how the application is hosted (kv/http).
"""

import logging
import os
from typing import Any

import falcon
import falcon.asgi

from kv import dispatch, request, scoreboard
from kv.auth import TokenAuth
from kv.config import UNLIMITED, BatchLimits, Config, Inherited
from kv.http.context import TEXT
from kv.log_client.client import Client
from kv.log_client.outcomes import RequestFailed
from kv.metrics import MetricsResource
from kv.request import Request, Resource
from kv.resources.batch import BatchResource
from kv.resources.clear import ClearResource
from kv.resources.console import ConsoleFileResource, ConsoleResource
from kv.resources.health import HealthResource, LiveResource
from kv.resources.key import KeyResource
from kv.resources.keys import KeysResource
from kv.resources.openapi import DescriptionResource
from kv.resources.status import StatusResource
from kv.resources.storage import Storage

log = logging.getLogger("kv.app")


def main() -> "Application":
    """The application as gunicorn hosts it, from what the supervisor left in the environment."""
    config = Config.from_environment(os.environ)
    limits = config.batch_limits()
    client = Client(
        Inherited.from_environment(os.environ).logd_address,
        request_timeout_s=config.request_timeout_s,
        queue_bytes_max=config.queue_bytes_max,
        large_bytes_max=config.body_bytes_in_flight_max,
        has_data_limit=config.data_bytes_max > 0,
        batch_limits=limits,
    )
    middleware: list[Any] = [_Lifespan(client)]
    if config.token_file:
        middleware.append(TokenAuth(config.token_file))
    board = scoreboard.of_this_process()
    return create_app(
        client,
        config.value_bytes_max,
        middleware,
        shared=board,
        workers=config.workers,
        batch_limits=limits,
        has_console=config.console == "on",
    )


def create_app(
    storage: Storage,
    value_bytes_max: int,
    middleware: list[Any] | None = None,
    *,
    shared: scoreboard.Scoreboard | None = None,
    workers: int = 1,
    batch_limits: BatchLimits = UNLIMITED,
    has_console: bool = True,
) -> "Application":
    """The application over any storage. `shared` is where it and others count, if there are any."""
    app = Application(storage, middleware)
    board = shared or scoreboard.Scoreboard()
    app.add_resource(f"{request.VALUES}{{key:path}}", KeyResource(storage, value_bytes_max))
    app.add_resource("/keys", KeysResource(storage))
    app.add_resource("/batch", BatchResource(storage, value_bytes_max, batch_limits))
    app.add_resource("/clear", ClearResource(storage))
    app.add_resource("/health", HealthResource(storage))
    app.add_resource("/live", LiveResource())
    app.add_resource("/metrics", MetricsResource(storage, board, workers))
    app.add_resource("/status", StatusResource(board))
    app.add_resource("/openapi.yaml", DescriptionResource())
    if has_console:
        app.add_resource("/console", ConsoleResource())
        app.add_resource("/console/{file}", ConsoleFileResource())
    return app


class Application(dispatch.App):
    """The ASGI application, and what the worker that hosts it watches between requests."""

    def __init__(self, storage: Storage, middleware: list[Any] | None) -> None:
        super().__init__(
            media_type=TEXT,
            request_type=Request,
            response_type=dispatch.Response,
            middleware=middleware,
            router=dispatch.Router(request.VALUES),
        )
        self._storage = storage
        self._allowed_methods: dict[str, str] = {}
        """By path, as in an Allow header."""
        self.add_error_handler(Exception, _on_defect)
        self.add_error_handler(falcon.HTTPError, self._on_http_error)
        self.add_error_handler(RequestFailed, request.on_failure)
        self.add_error_handler(request.ClientGone, request.on_client_gone)
        self.add_error_handler(request.Refusal, request.on_refusal)

    def add_resource(self, path: str, resource: Resource) -> None:
        """Serve a path."""
        self.add_route(path, resource)
        self._allowed_methods[path] = resource.allowed_methods()

    def gauges(self) -> dict[str, float]:
        """queued_writes, queued_bytes, large_bytes, large_reads_waiting, pages_waiting: as they are now."""
        return self._storage.gauges()

    def reads_wait_for_room(self) -> bool:
        """True when reads of large values, or of pages, wait until clients have read others."""
        return self._storage.reads_wait_for_room()

    async def _on_http_error(
        self, req: Request, resp: falcon.asgi.Response, error: falcon.HTTPError, params: dict[str, Any]
    ) -> None:
        """What Falcon refuses by itself: a path that is not known, or a method that is not offered there.

        A method that Falcon does not know is a bad request to it; no other request is.
        """
        if req.uri_template is None:
            request.answer_error(req, resp, falcon.HTTP_404, "not found")
        else:
            request.answer_error(req, resp, falcon.HTTP_405, "method not allowed")
            resp.set_header("Allow", self._allowed_methods[req.uri_template])


class _Lifespan:
    """Opens the client in the worker's event loop.

    Does not wait for logd: a worker that cannot start stops gunicorn.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    async def process_startup(self, scope: Any, event: Any) -> None:  # noqa: ANN401
        self._client.open()

    async def process_shutdown(self, scope: Any, event: Any) -> None:  # noqa: ANN401
        self._client.close()


async def _on_defect(req: Request, resp: falcon.asgi.Response, error: Exception, params: dict[str, Any]) -> None:
    log.error("%s %s failed", req.method, req.path, exc_info=error)
    request.answer_error(req, resp, falcon.HTTP_500, "internal server error")
