"""Listing keys of the real server: beside writes and clears, through kills, restarts and checkpoints."""

import asyncio
import json
import random
import re
import signal
import threading

import pytest

from tests.support.clients import Connection, run_async, send_all
from tests.support.harness import Server, await_true

NEXT = re.compile(r'<(/keys\?[^>]*)>; rel="next"')


@pytest.fixture(scope="module")
def server(module_path):
    with Server(module_path / "data", "--workers=2") as server:
        yield server


@pytest.fixture(autouse=True)
def _no_keys(request):
    if "server" in request.fixturenames:
        request.getfixturevalue("server").call("DELETE", "/clear")


def next_target(answer):
    """Where the next page is; empty after the last."""
    link = answer.headers.get("link", "")
    return NEXT.fullmatch(link)[1] if link else ""


def walk(server, target):
    """All lines of all pages."""
    lines = []
    while target:
        answer = server.call("GET", target)
        assert answer.status == 200
        lines += answer.body.decode().splitlines()
        target = next_target(answer)
    return lines


def entries(server, target="/keys?values=1"):
    return {entry["key"]: entry["value"] for entry in map(json.loads, walk(server, target))}


def store(server, data):
    answers = send_all(server.port, [("PUT", f"/kv/{key}", value.encode()) for key, value in data.items()], 32)
    assert {answer.status for answer in answers.values()} == {200}


def some(count, seed=1):
    """Keys in no order, and their values."""
    chance = random.Random(seed)
    return {f"{chance.choice('ab')}:{chance.randrange(10**9)}": f"värde {n}" for n in range(count)}


def test_a_walk_finds_all_keys_in_order_a_page_at_a_time(server):
    data = some(2500)
    store(server, data)
    assert walk(server, "/keys") == sorted(data)
    assert walk(server, "/keys?prefix=b&limit=100") == sorted(key for key in data if key.startswith("b"))
    assert entries(server) == data
    page = server.call("GET", "/keys?limit=10000")
    assert (page.body.decode().splitlines(), next_target(page)) == (sorted(data), "")


def test_what_was_acknowledged_is_listed_by_every_worker_and_what_was_deleted_is_not(server):
    for number in range(30):
        server.put(f"{number:02}", b"v")
        assert walk(server, f"/keys?after={number - 1:02}") == [f"{number:02}"]
    for number in range(30):
        assert server.call("DELETE", f"/kv/{number:02}").status == 200
        assert walk(server, f"/keys?limit={number + 1}") == [f"{n:02}" for n in range(number + 1, 30)]


def test_large_values_are_listed_in_bounded_pages(server):
    data = {"a": "v" * (5 << 20), "b": "w", "c": '"\u0001ü😀' * 400_000, "d": "x"}
    store(server, data)
    page = server.call("GET", "/keys?values=1")
    assert (json.loads(page.body), next_target(page)) == (
        {"key": "a", "value": data["a"]},
        "/keys?after=a&limit=1000&values=1",
    )
    head = server.call("HEAD", "/keys?values=1")
    assert (head.body, head.headers["content-length"]) == (b"", str(len(page.body)))
    assert entries(server) == data
    assert entries(server, "/keys?key=d&key=c&values=1&key=x&key=a") == {key: data[key] for key in "dca"}


def test_each_page_is_one_state_while_batches_and_clears_go_on(server):
    """Each batch moves a pair of keys; between clears there is exactly one pair, after one there is none."""
    ends = threading.Event()
    run_async(beside_moves(server.port, ends))


async def beside_moves(port, ends):
    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(list_pairs(port, ends))
        await move_pairs(port)
        ends.set()


async def move_pairs(port):
    client = Connection(port)
    for number in range(300):
        operations = [{"op": "put", "key": f"{side}:{number}", "value": str(number)} for side in ("left", "right")]
        operations += [{"op": "delete", "key": f"{side}:{number - 1}"} for side in ("left", "right")]
        body = b"".join(json.dumps(each).encode() + b"\n" for each in operations)
        assert (await client.call("POST", "/batch", body)).status == 200
        if number % 20 == 19:
            assert (await client.call("DELETE", "/clear")).status == 200
    client.close()


async def list_pairs(port, ends):
    client, last = Connection(port), -1
    while not ends.is_set():
        answer = await client.call("GET", "/keys?values=1")
        found = {entry["key"]: entry["value"] for entry in map(json.loads, answer.body.splitlines())}
        numbers = {int(value) for value in found.values()}
        assert found == {f"{side}:{number}": str(number) for number in numbers for side in ("left", "right")}
        assert len(numbers) <= 1
        assert all(number >= last for number in numbers)
        last = max(numbers, default=last)
    client.close()


def test_a_walk_beside_writes_has_all_that_was_there_throughout_and_stays_in_order(server):
    lasting = some(3000, seed=2)
    store(server, lasting)
    ends = threading.Event()
    writer = threading.Thread(target=change_others, args=(server, lasting, ends))
    writer.start()
    try:
        for _ in range(5):
            found = walk(server, "/keys?limit=200")
            assert found == sorted(set(found))
            assert set(found) >= lasting.keys()
    finally:
        ends.set()
        writer.join()


def change_others(server, lasting, ends):
    seed = 3
    while not ends.is_set():
        others = some(200, seed := seed + 1).keys() - lasting.keys()
        for method, body in (("PUT", b"v"), ("DELETE", None)):
            send_all(server.port, [(method, f"/kv/{key}", body) for key in others], 8)


def test_what_is_listed_is_the_same_after_crashes_checkpoints_and_restarts(tmp_path):
    flags = ("--workers=2", "--segment-bytes=65536", "--checkpoint-log-bytes=65536")
    with Server(tmp_path / "data", *flags) as server:
        data = {}
        for seed in range(3):
            data |= {key: value * 10 for key, value in some(1500, seed).items()}
            store(server, data)
            await_true(lambda: list((tmp_path / "data").glob("*.snap")))
            deleted = random.Random(seed).sample(sorted(data), 300)
            send_all(server.port, [("DELETE", f"/kv/{key}", None) for key in deleted], 32)
            data = {key: value for key, value in data.items() if key not in deleted}
            assert entries(server) == data
            if seed:
                assert server.stop() == 0
            else:
                server.crash()
            server.start()
            assert entries(server) == data
            assert walk(server, "/keys?prefix=a") == sorted(key for key in data if key.startswith("a"))


def test_listing_goes_on_when_logd_is_killed(server):
    data = some(2000)
    store(server, data)
    for _ in range(3):
        answer = server.call("GET", "/keys?limit=1000")
        server.only("logd").send_signal(signal.SIGKILL)
        rest = walk(server, next_target(answer))
        assert answer.body.decode().splitlines() + rest == sorted(data)
