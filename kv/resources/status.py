"""/status: the processes of the server and its last warnings, as JSON. What /metrics has is not here again.

Answers without logd too: a worker knows all of it from memory that the processes share.
"""

import time

import falcon.asgi
import msgspec

from kv.request import Request, Resource
from kv.scoreboard import Process, Scoreboard
from logd.shared import recent_warnings
from logd.shared.recent_warnings import Warned


class _Status(msgspec.Struct):
    time: float
    """When this was so, in seconds since 1970 by the clock of the server: ages are the difference to it."""
    processes: list[Process]
    warnings: list[Warned]
    """Oldest first."""


class StatusResource(Resource):
    """How the server is, for people and for scripts."""

    def __init__(self, scoreboard: Scoreboard) -> None:
        self._scoreboard = scoreboard

    async def on_get(self, req: Request, resp: falcon.asgi.Response) -> None:
        """Answer with the state of this moment."""
        kept = recent_warnings.installed()
        status = _Status(time.time(), self._scoreboard.processes(), kept.read() if kept else [])
        resp.content_type = "application/json"
        resp.data = msgspec.json.encode(status)

    on_head = on_get
