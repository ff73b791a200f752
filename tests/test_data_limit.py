"""The limit on the data, through HTTP: what grows beyond it is refused, and all else goes on."""

import asyncio
import itertools

import pytest

from tests.support.clients import Connection, run_async
from tests.support.harness import Server

LIMIT = 200_000
FULL = (507, b"data limit reached\n")


def answer_of(server, method, path, body=None):
    answer = server.call(method, path, body)
    return answer.status, answer.body


def fill(server):
    """Put values until one does not fit; the keys that are there."""
    keys = (f"key{number}" for number in itertools.count())
    return list(itertools.takewhile(lambda key: answer_of(server, "PUT", f"/kv/{key}", bytes(10_000)) != FULL, keys))


@pytest.fixture(scope="module")
def server(module_path):
    with Server(module_path / "data", f"--data-bytes-max={LIMIT}") as server:
        yield server


@pytest.fixture
def full(server):
    server.call("DELETE", "/clear")
    return fill(server)


def test_growth_is_507_and_was_not_made_while_all_else_goes_on(server, full):
    assert len(full) == LIMIT // 10_005
    assert answer_of(server, "GET", f"/kv/key{len(full)}")[0] == 404
    assert answer_of(server, "PUT", "/kv/key0", bytes(20_000)) == FULL
    assert server.get("key0") == bytes(10_000)
    assert answer_of(server, "PUT", "/kv/key0", b"x" * 10_000)[0] == 200
    assert answer_of(server, "PUT", "/kv/key0", b"small")[0] == 200
    assert answer_of(server, "DELETE", "/kv/key1")[0] == 200
    assert answer_of(server, "PUT", "/kv/new", bytes(19_000))[0] == 200
    assert answer_of(server, "DELETE", "/clear")[0] == 200
    assert len(fill(server)) == len(full)


def test_the_server_is_healthy_at_its_limit(server, full):
    assert answer_of(server, "GET", "/health") == (200, b"ok")


def test_deletes_and_writes_that_shrink_never_pay_for_large_values_that_others_write_meanwhile(server, full):
    """All clients write at once and without a pause, so that their writes share batches."""
    stopping = asyncio.Event()
    greedy, modest = [], []

    async def grow(number):
        client = Connection(server.port)
        while not stopping.is_set():
            answer = await client.call("PUT", f"/kv/greedy{number}", bytes(50_000))
            greedy.append((answer.status, answer.body))
        client.close()

    async def be_modest(number):
        client = Connection(server.port)
        shared = full[number % 2]
        for _ in range(60):
            for method, key, body in [
                ("PUT", shared, b"x" * 9_000),
                ("PUT", f"m{number}", b"1"),
                ("DELETE", "none", None),
            ]:
                modest.append((await client.call(method, f"/kv/{key}", body)).status)
            modest.append((await client.call("DELETE", f"/kv/m{number}")).status)
        client.close()

    async def run():
        growing = [asyncio.ensure_future(grow(number)) for number in range(8)]
        try:
            await asyncio.gather(*(be_modest(number) for number in range(8)))
        finally:
            stopping.set()
            await asyncio.gather(*growing)

    assert answer_of(server, "PUT", "/kv/key0", b"x")[0] == 200  # room for what is modest, and not for what is greedy
    run_async(run())
    assert set(modest) == {200}
    assert set(greedy) == {FULL}


def test_a_restart_with_a_limit_below_what_is_stored_serves_and_refuses_growth(tmp_path):
    with Server(tmp_path / "data") as server:
        server.put("a", bytes(1000))
        server.stop()
        server.flags = ("--data-bytes-max=500",)
        server.start()
        assert server.get("a") == bytes(1000)
        assert answer_of(server, "PUT", "/kv/b", b"x") == FULL
        assert answer_of(server, "PUT", "/kv/a", b"x" * 999)[0] == 200
        assert answer_of(server, "PUT", "/kv/a", bytes(499))[0] == 200
        assert answer_of(server, "PUT", "/kv/a", bytes(500)) == FULL
        assert server.stop() == 0
