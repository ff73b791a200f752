"""The client as a whole, against a scripted logd: when requests are sent, and when again; bounds, versions, the end."""

import asyncio
from typing import get_args

import zmq

from kv.log_client.outcomes import OutcomeUnknown, Unavailable
from logd.shared import protocol
from logd.shared.protocol import (
    PROTOCOL_VERSION,
    Committed,
    Dropped,
    Gap,
    Hello,
    ReadBatch,
    Reply,
    StatsRequest,
    Status,
    StatusRequest,
    Values,
    WriteBatch,
)
from tests.support.scripted_logd import (
    BOTH_LOOPS,
    GUARD_SECONDS,
    SHORT_SECONDS,
    outcome,
    outcomes,
    queued_bytes,
    scenario,
    sent,
    start,
    turn,
)

# When requests are sent ---------------------------------------------------------------------------------


@scenario(loops=BOTH_LOOPS)
async def test_requests_of_one_turn_are_one_write_batch_and_one_read_batch(client, logd):
    tasks = await turn(
        client.put("a", b"1"), client.get("x"), client.delete("b"), client.put("c", b"2"), client.get("y")
    )
    request = await logd.receive(ReadBatch)
    assert request.keys == ["x", "y"]
    batch = await logd.receive(WriteBatch)
    assert batch == WriteBatch(logd.session, 2, 2, False, {"a": b"1", "c": b"2"}, ["b"])
    logd.commit(2)
    logd.reply(Values(request.number, 0, [b"3", None]))
    assert await outcomes(tasks) == [None, b"3", None, None, None]
    await logd.sends_nothing_more(client)


@scenario(loops=BOTH_LOOPS, session=False)
async def test_sequential_requests_do_not_stall(client, logd):
    data = {}
    serving = start(logd.serve(data))
    began = asyncio.get_running_loop().time()
    for number in range(500):
        await client.put(f"key{number}", b"%d" % number)
    for number in range(500):
        assert await client.get(f"key{number}") == b"%d" % number
    serving.cancel()
    assert asyncio.get_running_loop().time() - began < GUARD_SECONDS / 2  # each stall lasts until the next sweep


@scenario(loops=BOTH_LOOPS)
async def test_a_reply_that_comes_just_before_a_send_is_seen_at_once(client, logd):
    """A send processes the event that the descriptor was about to signal; it is not signalled again."""
    loop = asyncio.get_running_loop()

    def answer():
        logd.reply(Values(request.number, 0, [None]))
        assert client._socket.poll(GUARD_SECONDS * 1000, zmq.POLLIN)

    (first,) = await turn(client.get("first"))
    request = await logd.receive(ReadBatch)
    loop.call_soon(loop.call_soon, answer)  # in the turn of the next request, just before it is sent
    second = start(client.get("second"))
    for _ in range(5):
        await asyncio.sleep(0)
    assert first.done()
    request = await logd.receive(ReadBatch)
    loop.call_soon(answer)
    third = start(client.unavailable_reason())
    for _ in range(3):
        await asyncio.sleep(0)
    assert second.done()
    logd.reply(Status((await logd.receive(StatusRequest)).number, ""))
    assert await outcomes([first, second, third]) == [None, None, ""]


@scenario()
async def test_replies_are_matched_by_number_not_by_order(client, logd):
    reads, requests = [], []
    for key in "ab":
        reads += await turn(client.get(key))
        requests.append((await logd.receive(ReadBatch)).number)
    writes, _ = await sent(client, logd, 2, 3)
    logd.reply(Values(requests[1] + 100, 0, [b"no such request"]), Values(requests[1], 0, [b"of b"]))
    assert await reads[1] == b"of b"
    logd.commit(3)
    assert await writes[1] is None
    assert not reads[0].done()
    assert not writes[0].done()
    logd.reply(Values(requests[0], 0, [b"of a"]))
    logd.commit(2)
    assert await reads[0] == b"of a"
    assert await writes[0] is None


@scenario()
async def test_a_cancelled_request_leaves_others_alone(client, logd):
    waiting, *others = await turn(client.put("a", b"1"), client.put("b", b"2"), client.get("c"))
    waiting.cancel()
    request = await logd.receive(ReadBatch)
    await logd.batch(2)
    others[1].cancel()
    logd.reply(Values(request.number, 0, [None]))
    logd.commit(2)
    assert await others[0] is None
    assert waiting.cancelled()
    await logd.sends_nothing_more(client)
    assert queued_bytes(client) == 0


# logd goes and comes back -------------------------------------------------------------------------------


@scenario(loops=BOTH_LOOPS)
async def test_what_was_unanswered_is_sent_again_in_order_before_anything_new(client, logd):
    writes, raws = await sent(client, logd, 2, 3, 4)
    reads = await turn(client.get("old"))
    request = await logd.receive(ReadBatch)
    logd.commit(2)
    await writes[0]
    await logd.vanish(client)
    (parted,) = await turn(client.put("while away", b"1"))
    while client.is_connected:  # until sending it has shown that there is no connection
        await asyncio.sleep(0)
    writes += [parted, *await turn(client.put("while away", b"2")), *await turn(client.delete("b"))]
    reads += await turn(client.get("new"))
    logd.appear()
    assert await logd.receive(ReadBatch) == request
    assert [await logd.batch(3), await logd.batch(4)] == raws[1:]
    await logd.batch(5)
    new_request = await logd.receive(ReadBatch)
    assert new_request.keys == ["new"]
    assert await logd.receive(WriteBatch) == WriteBatch(logd.session, 6, 3, False, {"while away": b"2"}, ["b"])
    logd.commit(3, 4, 5, 6)
    logd.reply(Values(request.number, 0, [b"old"]), Values(new_request.number, 0, [b"new"]))
    assert await outcomes(writes) == [None] * len(writes)
    assert await outcomes(reads) == [b"old", b"new"]
    await logd.sends_nothing_more(client)


@scenario(connected=False, session=False)
async def test_requests_made_before_there_is_a_logd_wait_for_it(client, logd):
    tasks = await turn(client.get("a"), client.put("b", b"1"))
    logd.appear()
    request = await logd.receive(ReadBatch)
    await logd.open_session()
    await logd.batch(1)
    logd.commit(1)
    logd.reply(Values(request.number, 0, [None]))
    assert await outcomes(tasks) == [None, None]


@scenario()
async def test_a_batch_sent_on_a_new_connection_before_its_greeting_is_sent_again_after_it(client, logd):
    writes, raws = await sent(client, logd, 2, 3)
    await logd.vanish(client)
    logd.greets = False
    logd.appear()
    while not client._socket.getsockopt(zmq.EVENTS) & zmq.POLLOUT:
        await asyncio.sleep(0.001)
    early, early_raws = await sent(client, logd, 4)  # the client does not know yet that this is another connection
    logd.reply(Hello(2, PROTOCOL_VERSION), Gap(logd.session, 4, 2))
    assert [await logd.batch(2), await logd.batch(3), await logd.batch(4)] == raws + early_raws
    logd.commit(2, 3, 4)
    assert await outcomes(writes + early) == [None] * 3


@scenario()
async def test_every_restart_of_logd_has_everything_unanswered_sent_again(client, logd):
    writes, raws = await sent(client, logd, 2, 3)
    for _ in range(3):
        await logd.vanish(client)
        logd.appear()
        assert [await logd.batch(2), await logd.batch(3)] == raws
    logd.commit(2, 3)
    assert await outcomes(writes) == [None, None]
    await logd.vanish(client)
    logd.appear()
    await logd.sends_nothing_more(client)


@scenario(connected=False, session=False, request_timeout_s=SHORT_SECONDS)
async def test_requests_whose_deadline_passes_unsent_are_unavailable_and_never_sent(client, logd):
    tasks = await turn(client.put("a", b"1"), client.delete("b"), client.clear(), client.get("c"))
    assert await outcomes(tasks) == [Unavailable] * 4
    assert queued_bytes(client) == 0
    logd.appear()
    (later,) = await turn(client.put("later", b"1"))
    await logd.open_session()
    assert (await logd.receive(WriteBatch)).puts == {"later": b"1"}
    logd.commit(1)
    assert await later is None


@scenario(request_timeout_s=SHORT_SECONDS)
async def test_only_those_of_a_turn_whose_deadline_has_passed_fail(client, logd):
    await logd.vanish(client)
    await outcome(client.get("finds that there is no connection"))
    old = await turn(client.put("old", b"1"))
    await asyncio.wait(old)
    young = await turn(client.put("young", b"1"))
    logd.appear()
    assert (await logd.receive(WriteBatch)).puts == {"young": b"1"}
    logd.commit(2)
    assert await outcomes(old + young) == [Unavailable, None]


# Another version of the protocol -------------------------------------------------------------------------


def speaks(version):
    """The line about a logd of this version."""
    versions = f"the log writer speaks version {version} of the protocol, this worker {PROTOCOL_VERSION}"
    return f"{versions}; both have to be started from the same code"


OTHER_VERSION = PROTOCOL_VERSION + 1
OTHER_HELLO = protocol.encode(Hello(1, OTHER_VERSION))


def one_of_each(client):
    """Requests of all kinds: three reads, three writes."""
    reads = [client.get("a"), client.unavailable_reason(), client.stats()]
    return turn(*reads, client.put("a", b"1"), client.delete("a"), client.clear())


async def failures(tasks):
    """Class and text of the failures of requests that fail at once."""
    async with asyncio.timeout(SHORT_SECONDS):
        failures = await asyncio.gather(*tasks, return_exceptions=True)
    return [(type(failure), str(failure)) for failure in failures]


@scenario(connected=False, session=False)
async def test_requests_that_wait_when_another_version_appears_fail_at_once_and_are_not_sent(client, logd):
    tasks = await one_of_each(client)
    logd.appear()
    await logd.greet(OTHER_HELLO)
    assert await failures(tasks) == [(Unavailable, speaks(OTHER_VERSION))] * 6
    assert queued_bytes(client) == 0
    assert not logd.socket.poll(50)
    assert [record.message for record in logd.log] == [speaks(OTHER_VERSION)]


@scenario(connected=False, session=False)
async def test_requests_made_while_logd_is_of_another_version_fail_at_once_and_are_not_sent(client, logd):
    logd.appear()
    await logd.greet(OTHER_HELLO)
    await failures(await one_of_each(client))
    for _ in range(2):
        assert await failures(await one_of_each(client)) == [(Unavailable, speaks(OTHER_VERSION))] * 6
    assert not logd.socket.poll(50)


@scenario()
async def test_of_another_version_only_the_hello_is_understood(client, logd):
    (write,), raws = await sent(client, logd, 2)
    await logd.vanish(client)
    logd.appear()
    await logd.greet(OTHER_HELLO)
    logd.reply(Committed(logd.session, [2]), Gap(logd.session, 2, 2), Dropped(logd.session, 2))
    assert await outcome(write) is OutcomeUnknown
    assert not logd.socket.poll(50)
    await logd.vanish(client)
    logd.appear()
    assert await logd.batch(2) == raws[0]


@scenario(connected=False, session=False)
async def test_a_hello_without_a_version_is_of_version_1(client, logd):
    tasks = await one_of_each(client)
    logd.appear()
    await logd.greet(bytes.fromhex("92 0a cd1267"))
    assert await failures(tasks) == [(Unavailable, speaks(1))] * 6


@scenario()
async def test_requests_that_were_sent_before_another_version_appears_fail_with_what_is_known_of_them(client, logd):
    (write,), _ = await sent(client, logd, 2)
    reads = await turn(client.get("a"), client.stats())
    await logd.receive(ReadBatch)
    await logd.receive(StatsRequest)
    await logd.vanish(client)
    logd.appear()
    await logd.greet(OTHER_HELLO)
    unknown = f"{speaks(OTHER_VERSION)}; whether the write was applied is not known"
    assert await failures([write, *reads]) == [(OutcomeUnknown, unknown), *[(Unavailable, speaks(OTHER_VERSION))] * 2]


@scenario()
async def test_when_logd_is_back_in_the_right_version_what_was_sent_is_sent_again_and_all_goes_on(client, logd):
    (write,), raws = await sent(client, logd, 2)
    await logd.vanish(client)
    logd.appear()
    await logd.greet(OTHER_HELLO)
    assert await outcome(write) is OutcomeUnknown
    await failures(await one_of_each(client))
    await logd.vanish(client)
    logd.appear()
    assert await logd.batch(2) == raws[0]
    later = await turn(client.put("later", b"1"), client.unavailable_reason())
    assert await logd.receive(WriteBatch) == WriteBatch(logd.session, 3, 2, False, {"later": b"1"}, [])
    status = await logd.receive(StatusRequest)
    logd.commit(2, 3)
    logd.reply(Status(status.number, ""))
    assert await outcomes(later) == [None, ""]
    await logd.sends_nothing_more(client)


@scenario(session=False)
async def test_every_message_of_logd_belongs_to_a_part(client, logd):
    assert set(client._replies) == set(get_args(Reply))


# The end ------------------------------------------------------------------------------------------------


@scenario(loops=BOTH_LOOPS)
async def test_closing_ends_every_request_with_what_is_known_of_it(client, logd):
    in_flight, _ = await sent(client, logd, 2)
    in_flight += await turn(client.get("sent"), client.unavailable_reason())
    await logd.receive(ReadBatch)
    await logd.receive(StatusRequest)
    unsent = [start(client.put("unsent", b"1")), start(client.get("unsent"))]
    asyncio.get_running_loop().call_soon(client.close)  # in the turn in which these two begin
    assert await outcomes(in_flight + unsent) == [OutcomeUnknown, Unavailable, Unavailable, Unavailable, Unavailable]


@scenario()
async def test_a_request_made_after_closing_is_unavailable(client, logd):
    client.close()
    async with asyncio.timeout(5):
        assert await outcomes(await turn(client.put("a", b"1"), client.get("a"))) == [Unavailable, Unavailable]
