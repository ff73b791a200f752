"""A Falcon hello-world, hosted the fastest way: the most that this stack can do, and what ratios are relative to.

Gunicorn reads this module as its configuration too. It has the server's routes, so that the same script loads both. It
reads no body and has no data; it knows nothing of the server.
"""

import sys
from typing import Any

import falcon.asgi
from uvicorn_worker import UvicornWorker

worker_class = "tests.bench.hello.Worker"
backlog = 65535
worker_tmp_dir = "/dev/shm" if sys.platform == "linux" else None
control_socket_disable = True


class Worker(UvicornWorker):  # type: ignore[misc] # the package has no types
    """Uvicorn's, with everything off that costs and is not needed."""

    CONFIG_KWARGS: dict[str, Any] = {  # noqa: RUF012 - as in the class above
        "loop": "uvloop",
        "http": "httptools",
        "ws": "none",
        "lifespan": "off",
        "access_log": False,
        "proxy_headers": False,
        "server_header": False,
        "date_header": False,
    }


class Hello:
    """Answers 11 bytes to every method."""

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, key: str = "") -> None:
        resp.text = "hello world"

    on_put = on_post = on_get


app = falcon.asgi.App(media_type=falcon.MEDIA_TEXT)
app.add_route("/kv/{key}", Hello())
app.add_route("/batch", Hello())
