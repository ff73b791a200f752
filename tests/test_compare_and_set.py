"""Compare-and-set and batches through HTTP, with many clients, while every process in turn is killed.

A counter is read, and replaced by its successor on the condition that nobody else has changed it; each increment also
writes a pair of keys in one batch. In the end the counter is what was answered 200, and at most what is not known.
"""

import asyncio
import json
import random

from tests.killlab.cluster import Cluster
from tests.killlab.kills import Killer, Order
from tests.support.clients import Connection, call, run_async
from tests.support.harness import await_true

CLIENTS = 32
EACH_IS_KILLED = 2
OFTEN = ("--segment-bytes=65536", "--checkpoint-log-bytes=131072", "--workers=3")


class Tally:
    """What the clients were answered."""

    def __init__(self) -> None:
        self.made = self.unknown = self.failed = 0
        self.last_seen = 0

    def count(self, status: int | None) -> None:
        """Count an attempt to increment; None for one without an answer."""
        if status == 200:
            self.made += 1
        elif status == 412:
            self.failed += 1
        elif status in (None, 504):
            self.unknown += 1
        else:
            assert status == 503


async def attempt(client: Connection, tally: Tally, *, in_batch: bool) -> None:
    """Read the counter and try to increment it."""
    known = tally.last_seen
    found = await client.call("GET", "/kv/counter")
    if found.status not in (200, 404):
        return
    value = int(found.body) if found.status == 200 else 0
    assert value >= known
    tally.last_seen = max(tally.last_seen, value)
    successor = b"%d" % (value + 1)
    try:
        if in_batch:
            check = {"etag": found.headers["etag"]} if value else {"absent": True}
            lines = [{"op": "check", "key": "counter", **check}]
            lines += [{"op": "put", "key": key, "value": successor.decode()} for key in ("counter", "left", "right")]
            body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
            answer = await client.call("POST", "/batch", body)
        else:
            condition = {"If-Match": found.headers["etag"]} if value else {"If-None-Match": "*"}
            answer = await client.call("PUT", "/kv/counter", successor, condition)
    except (OSError, EOFError):
        tally.count(None)
        raise
    tally.count(answer.status)


async def increment_until(stopping: asyncio.Event, port: int, tally: Tally, number: int) -> None:
    """Increment as one client, that connects again when its connection breaks."""
    while not stopping.is_set():
        client = Connection(port)
        try:
            while not stopping.is_set():
                await attempt(client, tally, in_batch=number % 2 == 0)
        except (OSError, EOFError):
            await asyncio.sleep(0.01)
        finally:
            client.close()


def test_a_counter_is_what_was_answered_whatever_is_killed_and_a_batch_is_whole(tmp_path):
    randomly = random.Random(1)
    with Cluster("local", 1, tmp_path / "data", OFTEN) as cluster:
        tally = Tally()
        port = cluster.ports[0]

        async def load() -> None:
            stopping = asyncio.Event()
            clients = [increment_until(stopping, port, tally, number) for number in range(CLIENTS)]
            running = [asyncio.ensure_future(each) for each in clients]
            for role in ("logd", "worker", "gunicorn", "supervisor", "group") * EACH_IS_KILLED:
                before = tally.made
                await until(lambda before=before: tally.made > before + 20, running)
                killer = Killer(cluster, [Order(0, role)], randomly)
                assert len(await asyncio.to_thread(lambda killer=killer: list(killer.carry_out_due(0)))) == 1
            before = tally.made
            await until(lambda: tally.made > before + 20, running)
            stopping.set()
            await asyncio.gather(*running)

        run_async(load())
        assert tally.failed > 0
        for _ in range(2):
            await_true(lambda: call(port, "GET", "/health").status == 200, 30, "the server to be well")
            assert tally.made <= int(call(port, "GET", "/kv/counter").body) <= tally.made + tally.unknown
            assert call(port, "GET", "/kv/left").body == call(port, "GET", "/kv/right").body
            cluster.crash()
            cluster.start()


async def until(condition, running) -> None:
    """Wait for it, at most a minute; a client that fails fails the test."""
    for _ in range(6000):
        for each in running:
            if each.done():
                each.result()
        if condition():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError("no progress")
