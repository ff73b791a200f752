"""Reads against a scripted logd: requests and their answers, and large values within their budget."""

import asyncio
import functools

from kv.log_client.large_values import LargeValue, release_unclaimed
from kv.log_client.outcomes import Unavailable
from logd.shared import protocol
from logd.shared.protocol import Large, ReadBatch, ReadLarge, Values
from tests.support.scripted_logd import BOTH_LOOPS, SHORT_SECONDS, outcome, outcomes, scenario, start, turn

MESSAGE_BYTES_MAX = 20 << 20  # what logd accepts by default
LARGE = protocol.LARGE_VALUE_BYTES + 1
HALF_MIB = 1 << 19


# Requests and answers -----------------------------------------------------------------------------------


@scenario(session=False)
async def test_reads_do_not_wait_for_a_session(client, logd):
    await logd.sends_nothing_more(client)


@scenario()
async def test_reads_of_one_turn_are_split_so_that_no_message_is_larger_than_logd_accepts(client, logd):
    keys = [f"{number:05}" * 12_000 for number in range(400)]  # what 400 HTTP connections may read at once
    serving = start(logd.serve({key: key[:5].encode() for key in keys}))
    largest = [0]
    logd.reply = functools.partial(_reply_noting_size, logd, logd.reply, largest)
    tasks = await turn(*map(client.get, keys))
    assert await outcomes(tasks) == [key[:5].encode() for key in keys]
    serving.cancel()
    assert largest[0] < MESSAGE_BYTES_MAX


def _reply_noting_size(logd, reply, largest, *replies):
    largest[0] = max(largest[0], len(logd.raw))
    reply(*replies)


@scenario()
async def test_values_may_come_in_several_parts(client, logd):
    tasks = await turn(*map(client.get, "abcde"))
    request = await logd.receive(ReadBatch)
    logd.reply(Values(request.number, 0, [b"1", None]), Values(request.number, 2, [b"3"]))
    assert await outcomes(tasks[:3]) == [b"1", None, b"3"]
    assert not any(task.done() for task in tasks[3:])
    logd.reply(Values(request.number, 3, [None, b"5"]))
    assert await outcomes(tasks[3:]) == [None, b"5"]
    assert not client._reads._sent


@scenario()
async def test_parts_of_values_from_before_and_after_a_restart_are_one_answer(client, logd):
    tasks = await turn(*map(client.get, "abc"))
    request = await logd.receive(ReadBatch)
    logd.reply(Values(request.number, 0, [b"1"]))
    await tasks[0]
    await logd.vanish(client)
    logd.appear()
    assert await logd.receive(ReadBatch) == request
    logd.reply(Values(request.number, 0, [b"1", b"2"]), Values(request.number, 2, [b"3"]))
    assert await outcomes(tasks) == [b"1", b"2", b"3"]


@scenario()
async def test_a_value_larger_than_may_be_stored_now_can_be_read(client, logd):
    """It was stored when the limit was higher. An answer over MAXMSGSIZE ends a connection for good."""
    value = b"v" * (MESSAGE_BYTES_MAX + 1)
    (read,) = await turn(client.get("stored under a higher limit"))
    request = await logd.receive(ReadBatch)
    logd.reply(Values(request.number, 0, [value]))
    async with asyncio.timeout(5):
        assert await read == value
    await logd.sends_nothing_more(client)


@scenario(request_timeout_s=SHORT_SECONDS)
async def test_reads_without_an_answer_in_time_are_unavailable_and_late_answers_are_ignored(client, logd):
    tasks = await turn(client.get("a"), client.get("b"))
    request = await logd.receive(ReadBatch)
    logd.reply(Values(request.number, 0, [b"in time"]))
    assert await outcomes(tasks) == [b"in time", Unavailable]
    logd.reply(Values(request.number, 1, [b"late"]))
    await logd.sends_nothing_more(client)
    await logd.vanish(client)
    logd.appear()
    await logd.sends_nothing_more(client)


# Large values -------------------------------------------------------------------------------------------


async def found_large(client, logd, *keys, size=LARGE):
    """Reads that logd has answered with the size of a large value."""
    tasks = await turn(*map(client.get, keys))
    request = await logd.receive(ReadBatch)
    assert request.keys == list(keys)
    logd.reply(*(Large(request.number, index, size) for index in range(len(keys))))
    return tasks


async def answer_large(logd, key, value, *, size=LARGE):
    """Answer the next request, which has to be for this large value."""
    request = await logd.receive(ReadLarge)
    assert (request.key, request.bytes_max) == (key, size)
    logd.reply(Values(request.number, 0, [value]))


async def data_of(task):
    """What a read of a large value has found; it is released then."""
    found = await task
    assert isinstance(found, LargeValue)
    data = found.data
    found.release()
    return data


def is_all_released(client):
    gauges = client.gauges()
    return gauges["large_bytes"] == gauges["large_reads_waiting"] == 0 and not client._reads._sent_large


@scenario(loops=BOTH_LOOPS)
async def test_a_large_value_is_requested_again_alone_and_small_ones_do_not_wait_for_it(client, logd):
    tasks = await turn(*map(client.get, "abc"))
    number = (await logd.receive(ReadBatch)).number
    logd.reply(Values(number, 0, [b"1"]), Large(number, 1, LARGE), Values(number, 2, [None]))
    assert await outcomes([tasks[0], tasks[2]]) == [b"1", None]
    assert not client._reads._sent
    await answer_large(logd, "b", b"v" * LARGE)
    assert await data_of(tasks[1]) == b"v" * LARGE
    assert is_all_released(client)
    await logd.sends_nothing_more(client)


@scenario(large_bytes_max=2 * LARGE)
async def test_large_values_that_find_no_room_wait_in_order_until_others_are_released(client, logd):
    tasks = await found_large(client, logd, *"abcd")
    for key in "ab":
        await answer_large(logd, key, b"v" * LARGE)
    unreleased = [await tasks.pop(0), await tasks.pop(0)]
    await logd.sends_nothing_more(client)
    for key in "cd":
        unreleased.pop().release()
        await answer_large(logd, key, b"v" * LARGE)
        assert await data_of(tasks.pop(0)) == b"v" * LARGE
    assert is_all_released(client)


@scenario(large_bytes_max=1)
async def test_one_large_value_may_always_be_read(client, logd):
    for _ in range(2):
        (task,) = await found_large(client, logd, "a")
        await answer_large(logd, "a", b"v" * LARGE)
        assert await data_of(task) == b"v" * LARGE
    assert is_all_released(client)


@scenario()
async def test_no_more_than_a_mebibyte_is_requested_and_not_here(client, logd):
    tasks = await found_large(client, logd, *"abcd", size=HALF_MIB)
    requests = [await logd.receive(ReadLarge) for _ in "ab"]
    await logd.sends_nothing_more(client)
    for request in requests:
        logd.reply(Values(request.number, 0, [b"v" * HALF_MIB]))
    for key in "cd":
        await answer_large(logd, key, b"v" * HALF_MIB, size=HALF_MIB)
    assert [len(await data_of(task)) for task in tasks] == [HALF_MIB] * 4
    assert is_all_released(client)


@scenario(large_bytes_max=1)
async def test_a_large_value_may_be_gone_or_small_when_it_is_requested_again(client, logd):
    for value in (None, b"small", b""):
        (task,) = await found_large(client, logd, "a")
        await answer_large(logd, "a", value)
        assert await task == value
        assert is_all_released(client)


@scenario(large_bytes_max=3 * LARGE)
async def test_a_large_value_that_has_grown_waits_for_the_room_that_it_takes_now_before_all_others(client, logd):
    tasks = await found_large(client, logd, "a")
    await answer_large(logd, "a", b"v" * LARGE)
    first = await tasks.pop()
    tasks = await found_large(client, logd, "b")
    request = await logd.receive(ReadLarge)
    tasks += await found_large(client, logd, "c", size=3 * LARGE)
    logd.reply(Large(request.number, 0, 3 * LARGE))
    await logd.sends_nothing_more(client)
    first.release()
    for key in "bc":
        await answer_large(logd, key, b"v" * 3 * LARGE, size=3 * LARGE)
        assert await data_of(tasks.pop(0)) == b"v" * 3 * LARGE
    assert is_all_released(client)


@scenario(large_bytes_max=1, request_timeout_s=SHORT_SECONDS)
async def test_large_values_that_find_no_room_in_time_are_unavailable_and_never_requested(client, logd):
    tasks = await found_large(client, logd, *"abc")
    await answer_large(logd, "a", b"v" * LARGE)
    assert await outcomes(tasks[1:]) == [Unavailable] * 2
    await logd.sends_nothing_more(client)
    await data_of(tasks[0])
    assert is_all_released(client)
    await logd.sends_nothing_more(client)


@scenario(large_bytes_max=1, request_timeout_s=SHORT_SECONDS)
async def test_a_large_value_that_comes_too_late_takes_room_until_it_has_come(client, logd):
    tasks = await found_large(client, logd, "late")
    request = await logd.receive(ReadLarge)
    assert await outcome(tasks[0]) is Unavailable
    tasks += await found_large(client, logd, "waits")
    await logd.sends_nothing_more(client)
    logd.reply(Values(request.number, 0, [b"v" * LARGE]))
    await answer_large(logd, "waits", b"v" * LARGE)
    assert await data_of(tasks.pop()) == b"v" * LARGE
    assert is_all_released(client)


@scenario(large_bytes_max=1, request_timeout_s=SHORT_SECONDS)
async def test_a_large_value_without_a_reader_is_not_requested_on_a_new_connection_and_takes_no_room(client, logd):
    tasks = await found_large(client, logd, "late")
    await logd.receive(ReadLarge)
    assert await outcome(tasks[0]) is Unavailable
    await logd.vanish(client)
    logd.appear()
    await logd.sends_nothing_more(client)
    assert is_all_released(client)


@scenario(large_bytes_max=1)
async def test_large_values_are_requested_again_after_a_restart_and_each_only_once(client, logd):
    tasks = await turn(*map(client.get, "abc"))
    number = (await logd.receive(ReadBatch)).number
    logd.reply(Large(number, 0, LARGE), Large(number, 1, LARGE))
    request = await logd.receive(ReadLarge)
    await logd.vanish(client)
    logd.appear()
    assert (await logd.receive(ReadBatch)).number == number
    assert await logd.receive(ReadLarge) == request
    logd.reply(Large(number, 0, LARGE), Values(number, 1, [b"small now", b"3"]))
    assert await tasks.pop() == b"3"
    logd.reply(Values(request.number, 0, [b"v" * LARGE]))
    assert await data_of(tasks.pop(0)) == b"v" * LARGE
    await answer_large(logd, "b", b"small now")
    assert await tasks.pop() == b"small now"
    await logd.sends_nothing_more(client)
    assert is_all_released(client)


@scenario(large_bytes_max=1)
async def test_closing_ends_reads_of_large_values_and_a_reader_that_has_one_keeps_it(client, logd):
    tasks = await found_large(client, logd, *"abc")
    await answer_large(logd, "a", b"v" * LARGE)
    found = await tasks.pop(0)
    client.close()
    assert await outcomes(tasks) == [Unavailable] * 2
    assert found.data == b"v" * LARGE


@scenario(large_bytes_max=LARGE)
async def test_reads_wait_for_room_only_when_others_have_it(client, logd):
    assert not client.reads_wait_for_room()
    tasks = await found_large(client, logd, *"ab")
    await answer_large(logd, "a", b"v" * LARGE)
    found = await tasks[0]
    assert client.reads_wait_for_room()
    assert client.gauges() | {"large_bytes": LARGE, "large_reads_waiting": 1} == client.gauges()
    found.release()
    assert not client.reads_wait_for_room()
    await answer_large(logd, "b", b"v" * LARGE)
    await data_of(tasks[1])


@scenario()
async def test_reads_that_wait_for_logd_alone_do_not_wait_for_room(client, logd):
    tasks = await found_large(client, logd, *"abc", size=HALF_MIB)
    requests = [await logd.receive(ReadLarge) for _ in "ab"]
    assert client.gauges()["large_reads_waiting"] == 1
    assert not client.reads_wait_for_room()
    for request in requests:
        logd.reply(Values(request.number, 0, [b"v" * HALF_MIB]))
    await answer_large(logd, "c", None, size=HALF_MIB)
    assert await tasks.pop() is None
    assert [len(await data_of(task)) for task in tasks] == [HALF_MIB] * 2
    assert is_all_released(client)


@scenario()
async def test_a_large_value_is_released_once_however_often_release_is_called(client, logd):
    tasks = await found_large(client, logd, *"ab")
    for key in "ab":
        await answer_large(logd, key, b"v" * LARGE)
    first = await tasks[0]
    first.release()
    first.release()
    assert client.gauges()["large_bytes"] == LARGE
    assert first.data == b""
    await data_of(tasks[1])
    assert is_all_released(client)


@scenario(large_bytes_max=1)
async def test_a_large_value_whose_reader_was_cancelled_takes_no_room(client, logd):
    tasks = await found_large(client, logd, *"abc")
    tasks[1].cancel()  # before it is requested
    request = await logd.receive(ReadLarge)
    tasks[0].cancel()  # before it is here
    logd.reply(Values(request.number, 0, [b"v" * LARGE]))
    await answer_large(logd, "c", b"v" * LARGE)
    await data_of(tasks[2])
    assert is_all_released(client)


@scenario(large_bytes_max=1)
async def test_a_large_value_that_is_here_when_its_reader_is_cancelled_can_be_released(client, logd):
    (read,) = await found_large(client, logd, "a")
    await answer_large(logd, "a", b"v" * LARGE)
    await read
    release_unclaimed(read)
    assert is_all_released(client)


def test_a_read_that_has_no_large_value_has_nothing_to_release():
    async def main():
        pending, cancelled, failed, small = futures = [asyncio.get_running_loop().create_future() for _ in range(4)]
        cancelled.cancel()
        failed.set_exception(Unavailable("no answer"))
        small.set_result(b"small")
        for read in futures:
            release_unclaimed(read)
        assert [pending.done(), cancelled.cancelled(), small.result()] == [False, True, b"small"]

    asyncio.run(main())
