"""The Falcon application: routes, and which handler answers which error.

Does not know how a request is answered (kv/resources.py), nor how the application is hosted (kv/http/worker.py).
"""

import logging
import os
from typing import Any, Final

import falcon
import falcon.asgi

from kv import metrics, resources, scoreboard
from kv.auth import TokenAuth
from kv.config import Config, Inherited
from kv.log_client.client import Client, RequestFailed
from kv.openapi import DescriptionResource

_TEXT: Final = "text/plain; charset=utf-8"
_ALLOWED: Final = {
    "/kv/{key:path}": "DELETE, GET, HEAD, PUT",
    "/clear": "DELETE",
    "/health": "GET, HEAD",
    "/live": "GET, HEAD",
    "/metrics": "GET, HEAD",
    "/openapi.yaml": "GET, HEAD",
}

log = logging.getLogger("kv.app")

App = falcon.asgi.App[resources.Request, falcon.asgi.Response]


class HostedApp(App):
    """What the worker asks."""

    client: Client | None = None

    def gauges(self) -> dict[str, float]:
        """Values."""
        client = self.client
        if client is None:
            return {}
        sent = sum(len(batch.writes) for batch in client._session.unanswered.values())
        return {
            "queued_writes": len(client._writes) + sent,
            "queued_bytes": client._queue_bytes,
            "large_bytes": client._large_bytes,
            "large_reads_waiting": len(client._large),
        }

    def reads_wait_for_room(self) -> bool:
        """Room."""
        return bool(self.client and self.client._large)


def main() -> App:
    """The application as gunicorn hosts it, from what the supervisor left in the environment."""
    config = Config.from_environment(os.environ)
    client = Client(
        Inherited.from_environment(os.environ).logd_address,
        request_timeout_s=config.request_timeout_s,
        queue_bytes_max=config.queue_bytes_max,
        large_bytes_max=config.body_bytes_in_flight_max,
    )
    shared = scoreboard.of_this_process()
    middleware: list[Any] = [_Lifespan(client)]
    if config.token_file:
        middleware.append(TokenAuth(config.token_file))
    app = create_app(client, config.value_bytes_max, middleware, shared=shared, workers=config.workers)
    app.client = client
    return app


def create_app(
    storage: resources.Storage,
    value_bytes_max: int,
    middleware: list[Any] | None = None,
    *,
    shared: scoreboard.Scoreboard | None = None,
    workers: int = 1,
) -> HostedApp:
    """The application over any storage. `shared` is where it and others count, if there are any."""
    app = HostedApp(media_type=_TEXT, request_type=resources.Request, middleware=middleware)
    app.add_route("/kv/{key:path}", resources.KeyResource(storage, value_bytes_max))
    app.add_route("/clear", resources.ClearResource(storage))
    app.add_route("/health", resources.HealthResource(storage))
    app.add_route("/live", resources.LiveResource())
    app.add_route("/metrics", metrics.MetricsResource(storage, shared or scoreboard.Scoreboard(), workers))
    app.add_route("/openapi.yaml", DescriptionResource())
    app.add_error_handler(Exception, _on_defect)
    app.add_error_handler(falcon.HTTPError, _on_http_error)
    app.add_error_handler(RequestFailed, resources.on_failure)
    app.add_error_handler(resources.ClientGone, resources.on_client_gone)
    app.add_error_handler(resources.Refusal, resources.on_refusal)
    return app


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


async def _on_http_error(
    req: resources.Request, resp: falcon.asgi.Response, error: falcon.HTTPError, params: dict[str, Any]
) -> None:
    """What Falcon refuses by itself: no such path, or a method that is not offered there.

    A method that Falcon has never heard of is a bad request to it; nothing else that gets here is one.
    """
    if req.uri_template is None:
        resources.answer(req, resp, falcon.HTTP_404, "not found")
    else:
        resources.answer(req, resp, falcon.HTTP_405, "method not allowed")
        resp.set_header("Allow", _ALLOWED[req.uri_template])


async def _on_defect(
    req: resources.Request, resp: falcon.asgi.Response, error: Exception, params: dict[str, Any]
) -> None:
    log.error("%s %s failed", req.method, req.path, exc_info=error)
    resources.answer(req, resp, falcon.HTTP_500, "internal server error")
