"""Pages against a scripted logd: one at a time, within the budget of large values, and sent again."""

from kv.log_client.outcomes import Unavailable
from logd.shared import protocol
from logd.shared.protocol import PAGE_BYTES_MAX, LargeEntry, Page, PageQuery, PageRequest, ReadBatch, ReadLarge, Values
from tests.support.scripted_logd import SHORT_SECONDS, outcome, outcomes, scenario, turn

QUERIES = [PageQuery(prefix=prefix) for prefix in "abc"]
LARGE = 16 * PAGE_BYTES_MAX


async def answer(logd, query, size=PAGE_BYTES_MAX):
    """Answer the next request, which has to be for this."""
    request = await logd.receive(PageRequest)
    assert (request.query, request.bytes_max) == (query, size)
    logd.reply(Page(request.number, [query.prefix], [], 0))


async def keys_of(task):
    """What was found; it is released."""
    held = await task
    held.release()
    return held.page.keys


def held_bytes(client):
    return client.gauges()["large_bytes"]


@scenario(session=False)
async def test_pages_are_requested_one_at_a_time_and_in_order(client, logd):
    tasks = await turn(*map(client.page, QUERIES))
    for query, task in zip(QUERIES, tasks, strict=True):
        await answer(logd, query)
        assert await keys_of(task) == [query.prefix]
    assert held_bytes(client) == 0


@scenario()
async def test_other_requests_do_not_wait_for_a_page(client, logd):
    tasks = await turn(*map(client.page, QUERIES[:2]))
    request = await logd.receive(PageRequest)
    assert client.gauges()["pages_waiting"] == 1
    await logd.sends_nothing_more(client)
    logd.reply(Page(request.number, ["k"], [], 0))
    assert await keys_of(tasks[0]) == ["k"]
    await answer(logd, QUERIES[1])
    await keys_of(tasks[1])
    assert client.gauges()["pages_waiting"] == 0


@scenario()
async def test_a_page_whose_first_value_is_large_is_requested_again_with_room_for_it(client, logd):
    tasks = await turn(*map(client.page, QUERIES[:2]))
    request = await logd.receive(PageRequest)
    assert held_bytes(client) == PAGE_BYTES_MAX
    logd.reply(LargeEntry(request.number, LARGE))
    again = await logd.receive(PageRequest)
    assert (again.query, again.bytes_max) == (QUERIES[0], LARGE)
    assert held_bytes(client) == LARGE
    logd.reply(LargeEntry(again.number, LARGE + 1))
    await answer(logd, QUERIES[0], LARGE + 1)
    assert await keys_of(tasks[0]) == ["a"]
    await answer(logd, QUERIES[1])
    assert await keys_of(tasks[1]) == ["b"]
    assert held_bytes(client) == 0


@scenario(large_bytes_max=1)
async def test_a_page_waits_for_room_that_the_reader_of_another_has(client, logd):
    tasks = await turn(*map(client.page, QUERIES[:2]))
    await answer(logd, QUERIES[0])
    held = await tasks[0]
    await logd.sends_nothing_more(client)
    assert client.reads_wait_for_room()
    held.release()
    held.release()
    assert not client.reads_wait_for_room()
    await answer(logd, QUERIES[1])
    assert await keys_of(tasks[1]) == ["b"]
    assert held_bytes(client) == 0


@scenario(large_bytes_max=1)
async def test_a_page_waits_for_room_that_a_large_value_has(client, logd):
    (read,) = await turn(client.get("large"))
    logd.reply(protocol.Large((await logd.receive(ReadBatch)).number, 0, LARGE))
    request = await logd.receive(ReadLarge)
    (page,) = await turn(client.page(QUERIES[0]))
    await logd.sends_nothing_more(client)
    logd.reply(Values(request.number, 0, [b"v" * LARGE]))
    (await read).release()
    await answer(logd, QUERIES[0])
    assert await keys_of(page) == ["a"]


@scenario()
async def test_a_page_is_requested_again_on_the_next_connection_and_answered_once(client, logd):
    (task,) = await turn(client.page(QUERIES[0]))
    request = await logd.receive(PageRequest)
    await logd.vanish(client)
    logd.appear()
    assert await logd.receive(PageRequest) == request
    logd.reply(Page(request.number, ["k"], [], 0), Page(request.number, ["twice"], [], 0))
    assert await keys_of(task) == ["k"]
    await logd.sends_nothing_more(client)
    assert held_bytes(client) == 0


@scenario(request_timeout_s=SHORT_SECONDS)
async def test_a_page_that_does_not_come_in_time_fails_and_takes_room_until_it_comes(client, logd):
    tasks = await turn(*map(client.page, QUERIES[:2]))
    request = await logd.receive(PageRequest)
    assert await outcomes(tasks) == [Unavailable, Unavailable]
    assert str(tasks[1].exception()) == "too many pages are being read"
    assert held_bytes(client) == PAGE_BYTES_MAX
    logd.reply(Page(request.number, ["k"], [], 0))
    await logd.sends_nothing_more(client)
    assert held_bytes(client) == 0


@scenario(request_timeout_s=SHORT_SECONDS)
async def test_a_page_that_nobody_waits_for_is_not_requested_again(client, logd):
    (task,) = await turn(client.page(QUERIES[0]))
    await logd.receive(PageRequest)
    await logd.vanish(client)
    assert await outcome(task) is Unavailable
    logd.appear()
    await logd.sends_nothing_more(client)
    assert held_bytes(client) == 0


@scenario()
async def test_a_page_whose_reader_was_cancelled_is_not_requested_or_takes_no_room(client, logd):
    tasks = await turn(*map(client.page, QUERIES))
    request = await logd.receive(PageRequest)
    tasks[0].cancel()
    tasks[1].cancel()
    logd.reply(Page(request.number, ["k"], [], 0))
    await answer(logd, QUERIES[2])
    assert await keys_of(tasks[2]) == ["c"]
    assert held_bytes(client) == 0
