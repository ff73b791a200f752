"""The worker's side of the socket, against a scripted logd: what is sent, when it is sent again, and what errors mean.

Every test runs in an event loop with a client and a `Logd` that does only what the test tells it to.
"""

import asyncio
import contextlib
import copy
import functools

import pytest
import uvloop
import zmq

from kv.log_client.client import (
    Client,
    DataLimitReached,
    LargeValue,
    NoSpace,
    OutcomeUnknown,
    RequestFailed,
    Unavailable,
)
from logd.shared import protocol
from logd.shared.protocol import (
    BATCH_BYTES_SOFT_MAX,
    Committed,
    Dropped,
    Gap,
    Hello,
    Large,
    ReadBatch,
    ReadLarge,
    Reason,
    Refused,
    StatsRequest,
    Status,
    StatusRequest,
    Values,
    WriteBatch,
)
from tests.support.builders import stats

GUARD_SECONDS = 20.0
SHORT_SECONDS = 0.25
ADDRESS = "ipc://logd"  # relative to a fresh directory, because a path may have about 100 bytes only
OPTIONS = {"request_timeout_s": 15.0, "queue_bytes_max": 64 << 20, "large_bytes_max": 64 << 20}
MESSAGE_BYTES_MAX = 20 << 20  # what logd accepts by default
BOTH_LOOPS = (asyncio.run, uvloop.run)


class Logd:
    """A ROUTER that greets whoever connects and otherwise answers only when told to."""

    def __init__(self) -> None:
        self.context = zmq.Context()
        self.socket = None
        self.greets = True
        self.peer = b""
        self.session = b""
        self.raw = b""

    def appear(self):
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.bind(ADDRESS)

    async def vanish(self, client):
        """Like SIGKILL, seen through to where the client has lost the connection."""
        self.socket.close(linger=0)
        while client._socket.getsockopt(zmq.EVENTS) & zmq.POLLOUT:
            await asyncio.sleep(0.001)

    async def receive(self, kind):
        """The next request, which has to be of this kind. Leaves its bytes in `raw`."""
        while True:
            try:
                self.peer, self.raw = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                await asyncio.sleep(0.001)
                continue
            if self.raw:
                request = protocol.decode_request(self.raw)
                assert isinstance(request, kind), request
                return request
            if self.greets:
                with contextlib.suppress(zmq.ZMQError):  # it may be gone again
                    self.reply(Hello(1))

    def reply(self, *replies):
        for reply in replies:
            self.socket.send_multipart((self.peer, protocol.encode(reply)), zmq.NOBLOCK)

    async def batch(self, number):
        """The next request, which has to be this batch of the session; its bytes."""
        batch = await self.receive(WriteBatch)
        assert (batch.session, batch.number) == (self.session, number)
        return self.raw

    async def open_session(self):
        """Take batch 0 of a session that is new."""
        batch = await self.receive(WriteBatch)
        assert batch.session != self.session
        assert batch == WriteBatch(batch.session, 0, 0, False, {}, [])
        self.session = batch.session
        self.commit(0)

    def commit(self, *numbers):
        self.reply(Committed(self.session, list(numbers)))

    def refuse(self, *numbers):
        self.reply(Refused(self.session, list(numbers), Reason.NO_SPACE))

    def refuse_for_memory(self, number, *too_large):
        self.reply(Refused(self.session, [number], Reason.DATA_LIMIT, list(too_large)))

    async def sends_nothing_more(self, client):
        """Whatever the client had to send would come before the answer to this."""
        read = start(client.get("marker"))
        question = await self.receive(ReadBatch)
        assert question.keys == ["marker"]
        self.reply(Values(question.number, 0, [None]))
        assert await read is None

    async def serve(self, data):
        """From now on, answer everything."""
        while True:
            request = await self.receive(protocol.Request)
            if isinstance(request, WriteBatch):
                data.update(request.puts)
                self.reply(Committed(request.session, [request.number]))
            else:
                self.reply(Values(request.number, 0, [data.get(key) for key in request.keys]))


def start(request):
    """Make a request go on by itself."""
    return asyncio.ensure_future(request)


async def turn(*requests):
    """Start requests in one turn of the event loop."""
    tasks = [start(request) for request in requests]
    await asyncio.sleep(0)
    return tasks


async def outcome(task):
    """The class of its failure, or its result."""
    try:
        return await task
    except RequestFailed as failure:
        return type(failure)


async def outcomes(tasks):
    return [await outcome(task) for task in tasks]


async def sent(client, logd, *numbers):
    """One put for each of these numbers, each a batch of its own: the tasks, and the bytes of the batches."""
    tasks, raws = [], []
    for number in numbers:
        tasks += await turn(client.put(f"key{number}", b"value"))
        raws.append(await logd.batch(number))
    return tasks, raws


def scenario(*, loops=(asyncio.run,), connected=True, session=True, **options):
    """Run a test in an event loop; nothing may be left to the loop's exception handler."""

    def decorate(test):
        async def main():
            stray = []
            asyncio.get_running_loop().set_exception_handler(lambda _, context: stray.append(context))
            logd, client = Logd(), Client(ADDRESS, **(OPTIONS | options))
            try:
                async with asyncio.timeout(GUARD_SECONDS):
                    if connected:
                        logd.appear()
                    client.open()
                    if session:
                        (first,) = await turn(client.put("first", b"of the session"))
                        await logd.open_session()
                        await logd.batch(1)
                        logd.commit(1)
                        await first
                    await test(client, logd)
            finally:
                if not client._socket.closed:
                    client.close()
                logd.context.destroy(linger=0)
            await asyncio.sleep(0)
            assert not stray

        @pytest.mark.parametrize("run", loops, ids=lambda run: run.__module__.partition(".")[0])
        def wrapper(run, tmp_path, monkeypatch):
            monkeypatch.chdir(tmp_path)
            run(main())

        wrapper.__name__ = test.__name__
        return wrapper

    return decorate


# Batches -------------------------------------------------------------------------------------------------


@scenario(loops=BOTH_LOOPS)
async def test_requests_of_one_turn_are_one_write_batch_and_one_read_batch(client, logd):
    tasks = await turn(
        client.put("a", b"1"), client.get("x"), client.delete("b"), client.put("c", b"2"), client.get("y")
    )
    question = await logd.receive(ReadBatch)
    assert question.keys == ["x", "y"]
    batch = await logd.receive(WriteBatch)
    assert batch == WriteBatch(logd.session, 2, 2, False, {"a": b"1", "c": b"2"}, ["b"])
    logd.commit(2)
    logd.reply(Values(question.number, 0, [b"3", None]))
    assert await outcomes(tasks) == [None, b"3", None, None, None]
    await logd.sends_nothing_more(client)


@scenario(session=False)
async def test_nothing_is_written_before_the_session_is_open(client, logd):
    tasks = await turn(client.put("a", b"1"))
    opening = await logd.receive(WriteBatch)
    assert (opening.number, opening.puts, len(opening.session)) == (0, {}, protocol.SESSION_ID_BYTES)
    tasks += await turn(client.put("b", b"2"))
    await logd.sends_nothing_more(client)
    logd.reply(Committed(opening.session, [0]))
    assert await logd.receive(WriteBatch) == WriteBatch(opening.session, 1, 1, False, {"a": b"1", "b": b"2"}, [])
    logd.reply(Committed(opening.session, [1]))
    assert await outcomes(tasks) == [None, None]


@scenario(session=False)
async def test_reads_do_not_wait_for_a_session(client, logd):
    await logd.sends_nothing_more(client)


@scenario()
async def test_base_is_the_lowest_number_without_an_answer(client, logd):
    tasks, bases = [], []
    for number, answered in ((2, []), (3, []), (4, [3]), (5, [2]), (6, [4, 5, 6]), (7, [7])):
        tasks += await turn(client.put("key", b"value"))
        batch = await logd.receive(WriteBatch)
        assert batch.number == number
        bases.append(batch.base)
        logd.commit(*answered)
        await outcomes(tasks[answer - 2] for answer in answered)
    assert bases == [2, 2, 2, 2, 4, 7]


@scenario()
async def test_writes_of_one_turn_count_in_the_order_in_which_they_came(client, logd):
    def request(text):
        key, _, value = text.partition("=")
        if value:
            return client.put(key, value.encode())
        return client.clear() if text == "clear" else client.delete(text[1:])

    expected = {
        "a=1 a=2": (False, {"a": b"2"}, []),
        "a=1 -a": (False, {}, ["a"]),
        "-a a=1": (False, {"a": b"1"}, []),
        "a=1 -a a=2 -b": (False, {"a": b"2"}, ["b"]),
        "a=1 -b clear": (True, {}, []),
        "clear a=1 -b": (True, {"a": b"1"}, ["b"]),
        "a=1 b=1 clear b=2 -c clear d=3 -a": (True, {"d": b"3"}, ["a"]),
    }
    for number, (requests, effect) in enumerate(expected.items(), start=2):
        tasks = await turn(*map(request, requests.split()))
        batch = await logd.receive(WriteBatch)
        assert (batch.clear, batch.puts, batch.deletes) == effect, requests
        logd.commit(number)
        assert await outcomes(tasks) == [None] * len(tasks)


@scenario(loops=BOTH_LOOPS)
async def test_20000_writes_of_one_turn_are_split_at_the_soft_maximum(client, logd):
    value = b"v" * 100
    tasks = await turn(*(client.put(f"key{number}", value) for number in range(20_000)))
    stored = {}
    largest, batches = 0, 0
    while len(stored) < 20_000:
        batch = await logd.receive(WriteBatch)
        largest, batches = max(largest, len(logd.raw)), batches + 1
        assert not stored.keys() & batch.puts.keys()
        stored |= batch.puts
        logd.commit(batch.number)
    assert await outcomes(tasks) == [None] * 20_000
    assert largest <= BATCH_BYTES_SOFT_MAX + 1000
    assert batches <= 20_000 * (len(value) + 1000) // BATCH_BYTES_SOFT_MAX + 1
    assert client._queue_bytes == 0


@scenario()
async def test_reads_of_one_turn_are_split_so_that_no_message_is_larger_than_logd_accepts(client, logd):
    keys = [f"{number:05}" * 12_000 for number in range(400)]  # what 400 HTTP connections may ask for at once
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
    """A send takes in what the descriptor of the socket was about to tell; after that it tells nothing more."""
    loop = asyncio.get_running_loop()

    def answer():
        logd.reply(Values(question.number, 0, [None]))
        assert client._socket.poll(GUARD_SECONDS * 1000, zmq.POLLIN)

    (first,) = await turn(client.get("first"))
    question = await logd.receive(ReadBatch)
    loop.call_soon(loop.call_soon, answer)  # in the turn of the next question, just before it is sent
    second = start(client.get("second"))
    for _ in range(5):
        await asyncio.sleep(0)
    assert first.done()
    question = await logd.receive(ReadBatch)
    loop.call_soon(answer)
    third = start(client.unavailable_reason())
    for _ in range(3):
        await asyncio.sleep(0)
    assert second.done()
    logd.reply(Status((await logd.receive(StatusRequest)).number, ""))
    assert await outcomes([first, second, third]) == [None, None, ""]


# Replies -------------------------------------------------------------------------------------------------


@scenario()
async def test_replies_are_matched_by_number_not_by_order(client, logd):
    reads, questions = [], []
    for key in "ab":
        reads += await turn(client.get(key))
        questions.append((await logd.receive(ReadBatch)).number)
    writes, _ = await sent(client, logd, 2, 3)
    logd.reply(Values(questions[1] + 100, 0, [b"nobody asked"]), Values(questions[1], 0, [b"of b"]))
    assert await reads[1] == b"of b"
    logd.commit(3)
    assert await writes[1] is None
    assert not reads[0].done()
    assert not writes[0].done()
    logd.reply(Values(questions[0], 0, [b"of a"]))
    logd.commit(2)
    assert await reads[0] == b"of a"
    assert await writes[0] is None


@scenario()
async def test_values_may_come_in_several_parts(client, logd):
    tasks = await turn(*map(client.get, "abcde"))
    question = await logd.receive(ReadBatch)
    logd.reply(Values(question.number, 0, [b"1", None]), Values(question.number, 2, [b"3"]))
    assert await outcomes(tasks[:3]) == [b"1", None, b"3"]
    assert not any(task.done() for task in tasks[3:])
    logd.reply(Values(question.number, 3, [None, b"5"]))
    assert await outcomes(tasks[3:]) == [None, b"5"]
    assert not client._sent_reads


@scenario()
async def test_parts_of_values_from_before_and_after_a_restart_are_one_answer(client, logd):
    tasks = await turn(*map(client.get, "abc"))
    question = await logd.receive(ReadBatch)
    logd.reply(Values(question.number, 0, [b"1"]))
    await tasks[0]
    await logd.vanish(client)
    logd.appear()
    assert await logd.receive(ReadBatch) == question
    logd.reply(Values(question.number, 0, [b"1", b"2"]), Values(question.number, 2, [b"3"]))
    assert await outcomes(tasks) == [b"1", b"2", b"3"]


@scenario()
async def test_a_value_larger_than_may_be_stored_now_can_be_read(client, logd):
    """It was stored when the limit was higher. An answer over MAXMSGSIZE ends a connection for good."""
    value = b"v" * (MESSAGE_BYTES_MAX + 1)
    (read,) = await turn(client.get("stored under a higher limit"))
    question = await logd.receive(ReadBatch)
    logd.reply(Values(question.number, 0, [value]))
    async with asyncio.timeout(5):
        assert await read == value
    await logd.sends_nothing_more(client)


@scenario()
async def test_a_cancelled_request_disturbs_nobody(client, logd):
    waiting, *others = await turn(client.put("a", b"1"), client.put("b", b"2"), client.get("c"))
    waiting.cancel()
    question = await logd.receive(ReadBatch)
    await logd.batch(2)
    others[1].cancel()
    logd.reply(Values(question.number, 0, [None]))
    logd.commit(2)
    assert await others[0] is None
    assert waiting.cancelled()
    await logd.sends_nothing_more(client)
    assert client._queue_bytes == 0


# logd goes and comes back --------------------------------------------------------------------------------


@scenario(loops=BOTH_LOOPS)
async def test_what_was_unanswered_is_sent_again_in_order_before_anything_new(client, logd):
    writes, raws = await sent(client, logd, 2, 3, 4)
    reads = await turn(client.get("old"))
    question = await logd.receive(ReadBatch)
    logd.commit(2)
    await writes[0]
    await logd.vanish(client)
    (parted,) = await turn(client.put("while away", b"1"))
    while client._connected:  # until sending it has told that there is no connection
        await asyncio.sleep(0)
    writes += [parted, *await turn(client.put("while away", b"2")), *await turn(client.delete("b"))]
    reads += await turn(client.get("new"))
    logd.appear()
    assert [await logd.batch(3), await logd.batch(4)] == raws[1:]
    await logd.batch(5)
    assert await logd.receive(ReadBatch) == question
    new_question = await logd.receive(ReadBatch)
    assert new_question.keys == ["new"]
    assert await logd.receive(WriteBatch) == WriteBatch(logd.session, 6, 3, False, {"while away": b"2"}, ["b"])
    logd.commit(3, 4, 5, 6)
    logd.reply(Values(question.number, 0, [b"old"]), Values(new_question.number, 0, [b"new"]))
    assert await outcomes(writes) == [None] * len(writes)
    assert await outcomes(reads) == [b"old", b"new"]
    await logd.sends_nothing_more(client)


@scenario(connected=False, session=False)
async def test_requests_made_before_there_is_a_logd_wait_for_it(client, logd):
    tasks = await turn(client.get("a"), client.put("b", b"1"))
    logd.appear()
    question = await logd.receive(ReadBatch)
    await logd.open_session()
    await logd.batch(1)
    logd.commit(1)
    logd.reply(Values(question.number, 0, [None]))
    assert await outcomes(tasks) == [None, None]


@scenario(session=False)
async def test_batch_0_is_sent_again_too(client, logd):
    (write,) = await turn(client.put("a", b"1"))
    await logd.receive(WriteBatch)
    raw = logd.raw
    await logd.vanish(client)
    logd.appear()
    await logd.open_session()
    assert logd.raw == raw
    await logd.batch(1)
    logd.commit(1)
    assert await write is None


@scenario()
async def test_a_batch_sent_on_a_new_connection_before_its_greeting_is_sent_again_after_it(client, logd):
    writes, raws = await sent(client, logd, 2, 3)
    await logd.vanish(client)
    logd.greets = False
    logd.appear()
    while not client._socket.getsockopt(zmq.EVENTS) & zmq.POLLOUT:
        await asyncio.sleep(0.001)
    early, early_raws = await sent(client, logd, 4)  # the client does not know yet that this is another connection
    logd.reply(Hello(2), Gap(logd.session, 4, 2))
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


# Deadlines -----------------------------------------------------------------------------------------------


@scenario(connected=False, session=False, request_timeout_s=SHORT_SECONDS)
async def test_requests_whose_deadline_passes_unsent_are_unavailable_and_never_sent(client, logd):
    tasks = await turn(client.put("a", b"1"), client.delete("b"), client.clear(), client.get("c"))
    assert await outcomes(tasks) == [Unavailable] * 4
    assert client._queue_bytes == 0
    logd.appear()
    (later,) = await turn(client.put("later", b"1"))
    await logd.open_session()
    assert (await logd.receive(WriteBatch)).puts == {"later": b"1"}
    logd.commit(1)
    assert await later is None


@scenario(session=False, request_timeout_s=SHORT_SECONDS)
async def test_a_write_whose_deadline_passes_while_the_session_is_not_open_is_unavailable_and_never_sent(client, logd):
    (write,) = await turn(client.put("a", b"1"))
    logd.session = (await logd.receive(WriteBatch)).session
    assert await outcome(write) is Unavailable
    logd.commit(0)
    await logd.sends_nothing_more(client)
    (later,) = await turn(client.put("later", b"1"))
    batch = await logd.receive(WriteBatch)
    assert (batch.number, batch.puts) == (1, {"later": b"1"})
    logd.commit(1)
    assert await later is None


@scenario(request_timeout_s=SHORT_SECONDS)
async def test_a_write_whose_deadline_passes_after_it_was_sent_is_unknown_and_its_batch_is_sent_again(client, logd):
    writes, raws = await sent(client, logd, 2, 3)
    assert await outcomes(writes) == [OutcomeUnknown] * 2
    await logd.vanish(client)
    logd.appear()
    assert [await logd.batch(2), await logd.batch(3)] == raws
    (later,) = await turn(client.put("later", b"1"))
    batch = await logd.receive(WriteBatch)
    assert (batch.number, batch.base) == (4, 2)
    logd.commit(2, 3, 4)
    assert await later is None
    assert client._queue_bytes == 0
    (last,) = await turn(client.put("last", b"1"))
    assert (await logd.receive(WriteBatch)).base == 5
    logd.commit(5)
    assert await last is None


@scenario(request_timeout_s=SHORT_SECONDS)
async def test_reads_that_nobody_answers_are_unavailable_and_late_answers_go_nowhere(client, logd):
    tasks = await turn(client.get("a"), client.get("b"))
    question = await logd.receive(ReadBatch)
    logd.reply(Values(question.number, 0, [b"in time"]))
    assert await outcomes(tasks) == [b"in time", Unavailable]
    logd.reply(Values(question.number, 1, [b"late"]))
    await logd.sends_nothing_more(client)
    await logd.vanish(client)
    logd.appear()
    await logd.sends_nothing_more(client)


@scenario(request_timeout_s=SHORT_SECONDS)
async def test_only_those_of_a_turn_whose_deadline_has_passed_fail(client, logd):
    await logd.vanish(client)
    await outcome(client.get("finds out that there is no connection"))
    old = await turn(client.put("old", b"1"))
    await asyncio.wait(old)
    young = await turn(client.put("young", b"1"))
    logd.appear()
    assert (await logd.receive(WriteBatch)).puts == {"young": b"1"}
    logd.commit(2)
    assert await outcomes(old + young) == [Unavailable, None]


# Refused, gaps, lost sessions ----------------------------------------------------------------------------


@scenario()
async def test_refused_writes_fail_with_no_space_and_their_numbers_are_not_used_again(client, logd):
    writes, _ = await sent(client, logd, 2, 3, 4)
    logd.refuse(2, 3)
    logd.commit(4)
    assert await outcomes(writes) == [NoSpace, NoSpace, None]
    await logd.vanish(client)
    logd.appear()
    (later,) = await turn(client.put("later", b"1"))
    assert await logd.receive(WriteBatch) == WriteBatch(logd.session, 5, 5, False, {"later": b"1"}, [])
    logd.commit(5)
    assert await later is None
    assert client._queue_bytes == 0


@scenario(session=False)
async def test_when_no_session_can_be_opened_waiting_writes_fail_and_a_later_one_tries_again(client, logd):
    for _ in range(2):
        writes = await turn(client.put("a", b"1"))
        opening = await logd.receive(WriteBatch)
        assert opening.number == 0
        assert opening.session != logd.session
        logd.session = opening.session
        writes += await turn(client.delete("b"))
        logd.refuse(0)
        assert await outcomes(writes) == [NoSpace, NoSpace]
        assert client._queue_bytes == 0
    (write,) = await turn(client.put("c", b"1"))
    await logd.open_session()
    assert (await logd.receive(WriteBatch)).puts == {"c": b"1"}
    logd.commit(1)
    assert await write is None


@scenario()
async def test_after_a_refusal_new_writes_wait_until_those_sent_before_it_are_answered(client, logd):
    writes, _ = await sent(client, logd, 2, 3, 4)
    logd.refuse(2)
    assert await outcome(writes[0]) is NoSpace
    writes += await turn(client.put("new", b"1"))
    await logd.sends_nothing_more(client)
    logd.refuse(3)
    await logd.sends_nothing_more(client)
    logd.refuse(4)
    assert await logd.receive(WriteBatch) == WriteBatch(logd.session, 5, 5, False, {"new": b"1"}, [])
    logd.commit(5)
    assert await outcomes(writes[1:]) == [NoSpace, NoSpace, None]


@scenario(session=False)
async def test_a_session_dropped_before_it_is_known_to_be_open_is_replaced_and_nothing_of_it_is_lost(client, logd):
    (write,) = await turn(client.put("a", b"1"))
    logd.session = (await logd.receive(WriteBatch)).session
    logd.reply(Dropped(logd.session, 0))
    await logd.open_session()
    await logd.batch(1)
    logd.commit(1)
    assert await write is None


@scenario()
async def test_writes_that_wait_when_their_session_is_dropped_go_into_the_next(client, logd):
    writes, _ = await sent(client, logd, 2, 3)
    logd.refuse(2)
    assert await outcome(writes[0]) is NoSpace
    writes += await turn(client.put("waits for batch 3", b"1"))
    logd.reply(Dropped(logd.session, 3))
    await logd.open_session()
    assert (await logd.receive(WriteBatch)).puts == {"waits for batch 3": b"1"}
    logd.commit(1)
    assert await outcomes(writes[1:]) == [OutcomeUnknown, None]


@scenario()
async def test_a_gap_has_everything_from_the_expected_batch_sent_again_once_per_connection(client, logd):
    writes, raws = await sent(client, logd, 2, 3, 4)
    for _ in range(2):
        logd.reply(Gap(logd.session, 4, 3), Gap(logd.session, 4, 3))
        assert [await logd.batch(3), await logd.batch(4)] == raws[1:]
        await logd.sends_nothing_more(client)
        await logd.vanish(client)
        logd.appear()
        assert [await logd.batch(2), await logd.batch(3), await logd.batch(4)] == raws
    logd.commit(2, 3, 4)
    assert await outcomes(writes) == [None] * 3


@scenario()
async def test_a_gap_that_cannot_be_filled_means_that_the_batch_was_not_written_and_it_gets_another_number(
    client, logd
):
    writes, _ = await sent(client, logd, 2, 3)
    logd.refuse(2)
    logd.reply(Gap(logd.session, 3, 2))
    assert await logd.receive(WriteBatch) == WriteBatch(logd.session, 4, 4, False, {"key3": b"value"}, [])
    await logd.vanish(client)
    logd.appear()
    await logd.batch(4)
    logd.commit(4)
    assert await outcomes(writes) == [NoSpace, None]
    assert client._queue_bytes == 0


@scenario()
async def test_a_dropped_session_leaves_unknown_what_was_in_flight_and_another_one_is_opened(client, logd):
    writes, _ = await sent(client, logd, 2, 3)
    (read,) = await turn(client.get("a"))
    question = await logd.receive(ReadBatch)
    logd.reply(Dropped(logd.session, 3), Dropped(logd.session, 2))
    assert await outcomes(writes) == [OutcomeUnknown] * 2
    assert client._queue_bytes == 0
    later = await turn(client.put("later", b"1"))
    await logd.open_session()
    assert await logd.receive(WriteBatch) == WriteBatch(logd.session, 1, 1, False, {"later": b"1"}, [])
    logd.commit(1)
    logd.reply(Values(question.number, 0, [b"1"]))
    assert await outcomes([*later, read]) == [None, b"1"]
    await logd.sends_nothing_more(client)


@scenario()
async def test_replies_to_an_old_session_mean_nothing(client, logd):
    old = logd.session
    lost, _ = await sent(client, logd, 2)
    logd.reply(Dropped(old, 2))
    assert await outcomes(lost) == [OutcomeUnknown]

    def reply_to_old_session():
        for number in (0, 1):
            refused = Refused(old, [number], Reason.NO_SPACE)
            logd.reply(
                Committed(old, [number]), refused, Gap(old, number, 0), Gap(old, number, 7), Dropped(old, number)
            )

    (write,) = await turn(client.put("a", b"1"))
    opening = await logd.receive(WriteBatch)
    reply_to_old_session()
    await logd.sends_nothing_more(client)
    logd.session = opening.session
    logd.commit(0)
    await logd.batch(1)
    reply_to_old_session()
    await logd.sends_nothing_more(client)
    assert not write.done()
    logd.commit(1)
    assert await write is None


@scenario(session=False)
async def test_clients_that_a_fork_made_of_one_have_sessions_of_their_own(client, logd):
    client.close()
    template = Client(ADDRESS, **OPTIONS)
    sessions = []
    for twin in (copy.deepcopy(template), copy.deepcopy(template)):  # as fork copies it before it is open
        twin.open()
        (write,) = await turn(twin.put("a", b"1"))
        sessions.append((await logd.receive(WriteBatch)).session)
        twin.close()
        await outcome(write)
    assert sessions[0] != sessions[1]


# A limit on the data -------------------------------------------------------------------------------------


@scenario()
async def test_only_the_values_that_do_not_fit_fail_and_the_rest_of_their_batch_is_sent_again(client, logd):
    writes = await turn(
        client.put("large", b"1"), client.put("small", b"2"), client.delete("a"), client.put("grows", b"3")
    )
    await logd.batch(2)
    logd.refuse_for_memory(2, "large", "grows")
    again = await logd.receive(WriteBatch)
    assert again == WriteBatch(logd.session, 3, 3, False, {"small": b"2"}, ["a"])
    logd.commit(3)
    assert await outcomes(writes) == [DataLimitReached, None, None, DataLimitReached]
    assert client._queue_bytes == 0


@scenario()
async def test_of_the_writes_to_a_key_only_those_fail_that_are_as_large_as_the_one_that_does_not_fit(client, logd):
    values = (b"22", None, b"55555", b"1", b"4444")
    writes = await turn(*(client.delete("k") if value is None else client.put("k", value) for value in values))
    await logd.batch(2)
    logd.refuse_for_memory(2, "k")
    assert (await logd.receive(WriteBatch)).puts == {"k": b"1"}
    logd.refuse_for_memory(3, "k")
    assert await logd.receive(WriteBatch) == WriteBatch(logd.session, 4, 4, False, {}, ["k"])
    logd.commit(4)
    assert await outcomes(writes) == [DataLimitReached, None, DataLimitReached, DataLimitReached, DataLimitReached]


@scenario()
async def test_a_clear_outlives_the_refusal_of_what_came_behind_it(client, logd):
    writes = await turn(client.put("before", b"1"), client.clear(), client.put("behind", b"2"))
    await logd.batch(2)
    logd.refuse_for_memory(2, "behind")
    assert await logd.receive(WriteBatch) == WriteBatch(logd.session, 3, 3, True, {}, [])
    logd.commit(3)
    assert await outcomes(writes) == [None, None, DataLimitReached]


@scenario()
async def test_batches_that_were_not_looked_at_go_again_as_a_whole_in_order_once_all_is_answered(client, logd):
    writes, _ = await sent(client, logd, 2, 3, 4, 5)
    logd.refuse_for_memory(3, "key3")
    logd.refuse_for_memory(4)
    logd.refuse_for_memory(5)
    assert await outcome(writes[1]) is DataLimitReached
    await logd.sends_nothing_more(client)
    logd.commit(2)
    assert list((await logd.receive(WriteBatch)).puts) == ["key4", "key5"]
    logd.commit(6)
    assert await outcomes(writes) == [None, DataLimitReached, None, None]


@scenario()
async def test_what_is_sent_again_has_nothing_new_beside_it_or_behind_it_until_it_is_answered(client, logd):
    writes = await turn(client.put("large", b"1"), client.delete("a"))
    await logd.batch(2)
    new = await turn(client.put("new", b"1"))
    await logd.batch(3)
    logd.refuse_for_memory(2, "large")
    assert await outcome(writes[0]) is DataLimitReached
    newer = await turn(client.put("newer", b"1"))
    await logd.sends_nothing_more(client)
    logd.refuse_for_memory(3)
    assert await logd.receive(WriteBatch) == WriteBatch(logd.session, 4, 4, False, {"new": b"1"}, ["a"])
    await logd.sends_nothing_more(client)
    logd.refuse_for_memory(4, "new")
    assert await logd.receive(WriteBatch) == WriteBatch(logd.session, 5, 5, False, {}, ["a"])
    await logd.sends_nothing_more(client)
    logd.commit(5)
    assert await logd.receive(WriteBatch) == WriteBatch(logd.session, 6, 6, False, {"newer": b"1"}, [])
    logd.commit(6)
    assert await outcomes(writes + new + newer) == [DataLimitReached, None, DataLimitReached, None]


@scenario(request_timeout_s=SHORT_SECONDS)
async def test_what_waits_to_be_sent_again_is_certainly_not_written_when_its_deadline_passes(client, logd):
    writes, _ = await sent(client, logd, 2, 3, 4)
    logd.refuse_for_memory(3, "key3")
    logd.refuse_for_memory(4)
    assert await outcomes(writes) == [OutcomeUnknown, DataLimitReached, Unavailable]
    logd.commit(2)
    await logd.sends_nothing_more(client)
    assert client._queue_bytes == 0


@scenario(request_timeout_s=SHORT_SECONDS)
async def test_what_nobody_waits_for_any_more_is_not_sent_again(client, logd):
    writes = await turn(client.put("large", b"1"), client.delete("a"))
    await logd.batch(2)
    assert await outcomes(writes) == [OutcomeUnknown] * 2
    logd.refuse_for_memory(2, "large")
    await logd.sends_nothing_more(client)
    assert client._queue_bytes == 0


@scenario()
async def test_what_is_sent_again_survives_a_restart_of_logd(client, logd):
    writes = await turn(client.put("large", b"1"), client.put("small", b"2"))
    await logd.batch(2)
    logd.refuse_for_memory(2, "large")
    raw = await logd.batch(3)
    await logd.vanish(client)
    logd.appear()
    assert await logd.batch(3) == raw
    logd.commit(3)
    assert await outcomes(writes) == [DataLimitReached, None]


@scenario()
async def test_what_waits_to_be_sent_again_goes_into_the_next_session_when_its_own_is_lost(client, logd):
    writes, _ = await sent(client, logd, 2, 3)
    logd.refuse_for_memory(3)
    logd.reply(Dropped(logd.session, 2))
    await logd.open_session()
    assert (await logd.receive(WriteBatch)).puts == {"key3": b"value"}
    logd.commit(1)
    assert await outcomes(writes) == [OutcomeUnknown, None]


# Large values --------------------------------------------------------------------------------------------

LARGE = protocol.LARGE_VALUE_BYTES + 1
HALF_MIB = 1 << 19


async def told_large(client, logd, *keys, size=LARGE):
    """Reads of values that logd has said to be large."""
    tasks = await turn(*map(client.get, keys))
    question = await logd.receive(ReadBatch)
    assert question.keys == list(keys)
    logd.reply(*(Large(question.number, index, size) for index in range(len(keys))))
    return tasks


async def answer_large(logd, key, value, *, size=LARGE):
    """Answer the next question, which has to be for this large value."""
    question = await logd.receive(ReadLarge)
    assert (question.key, question.bytes_max) == (key, size)
    logd.reply(Values(question.number, 0, [value]))


async def data_of(task):
    """What a read of a large value has found; it is not held any more then."""
    found = await task
    assert isinstance(found, LargeValue)
    data = found.data
    del found, task
    await asyncio.sleep(0)  # the event loop has it until then, too
    return data


def is_all_given_back(client):
    return client._large_bytes == 0 and not client._sent_large and not client._large


@scenario(loops=BOTH_LOOPS)
async def test_a_large_value_is_asked_for_again_alone_and_small_ones_do_not_wait_for_it(client, logd):
    tasks = await turn(*map(client.get, "abc"))
    number = (await logd.receive(ReadBatch)).number
    logd.reply(Values(number, 0, [b"1"]), Large(number, 1, LARGE), Values(number, 2, [None]))
    assert await outcomes([tasks[0], tasks[2]]) == [b"1", None]
    assert not client._sent_reads
    await answer_large(logd, "b", b"v" * LARGE)
    assert await data_of(tasks.pop(1)) == b"v" * LARGE
    assert is_all_given_back(client)
    await logd.sends_nothing_more(client)


@scenario(large_bytes_max=2 * LARGE)
async def test_large_values_that_find_no_room_wait_in_order_until_nobody_refers_to_others(client, logd):
    tasks = await told_large(client, logd, *"abcd")
    for key in "ab":
        await answer_large(logd, key, b"v" * LARGE)
    held = [await tasks.pop(0), await tasks.pop(0)]
    await logd.sends_nothing_more(client)
    for key in "cd":
        held.pop()
        await answer_large(logd, key, b"v" * LARGE)
        assert await data_of(tasks.pop(0)) == b"v" * LARGE
    held.clear()
    assert is_all_given_back(client)


@scenario(large_bytes_max=1)
async def test_one_large_value_may_always_be_read(client, logd):
    for _ in range(2):
        (task,) = await told_large(client, logd, "a")
        await answer_large(logd, "a", b"v" * LARGE)
        assert await data_of(task) == b"v" * LARGE
        del task
    assert is_all_given_back(client)


@scenario()
async def test_not_much_more_is_asked_for_than_has_come(client, logd):
    tasks = await told_large(client, logd, *"abcd", size=HALF_MIB)
    questions = [await logd.receive(ReadLarge) for _ in "ab"]
    await logd.sends_nothing_more(client)
    for question in questions:
        logd.reply(Values(question.number, 0, [b"v" * HALF_MIB]))
    for key in "cd":
        await answer_large(logd, key, b"v" * HALF_MIB, size=HALF_MIB)
    assert [len(await data_of(task)) for task in tasks] == [HALF_MIB] * 4
    del tasks
    assert is_all_given_back(client)


@scenario(large_bytes_max=1)
async def test_a_large_value_may_be_gone_or_small_when_it_is_asked_for_again(client, logd):
    for value in (None, b"small", b""):
        (task,) = await told_large(client, logd, "a")
        await answer_large(logd, "a", value)
        assert await task == value
        assert is_all_given_back(client)


@scenario(large_bytes_max=3 * LARGE)
async def test_a_large_value_that_has_grown_waits_for_the_room_that_it_takes_now_before_all_others(client, logd):
    tasks = await told_large(client, logd, "a")
    await answer_large(logd, "a", b"v" * LARGE)
    held = [await tasks.pop()]
    tasks = await told_large(client, logd, "b")
    question = await logd.receive(ReadLarge)
    tasks += await told_large(client, logd, "c", size=3 * LARGE)
    logd.reply(Large(question.number, 0, 3 * LARGE))
    await logd.sends_nothing_more(client)
    held.clear()
    for key in "bc":
        await answer_large(logd, key, b"v" * 3 * LARGE, size=3 * LARGE)
        assert await data_of(tasks.pop(0)) == b"v" * 3 * LARGE
    assert is_all_given_back(client)


@scenario(large_bytes_max=1, request_timeout_s=SHORT_SECONDS)
async def test_large_values_that_find_no_room_in_time_are_unavailable_and_never_asked_for(client, logd):
    tasks = await told_large(client, logd, *"abc")
    await answer_large(logd, "a", b"v" * LARGE)
    held = await tasks[0]
    assert await outcomes(tasks[1:]) == [Unavailable] * 2
    await logd.sends_nothing_more(client)
    del held, tasks
    assert is_all_given_back(client)
    await logd.sends_nothing_more(client)


@scenario(large_bytes_max=1, request_timeout_s=SHORT_SECONDS)
async def test_a_large_value_that_comes_too_late_takes_room_until_it_has_come(client, logd):
    tasks = await told_large(client, logd, "late")
    question = await logd.receive(ReadLarge)
    assert await outcome(tasks[0]) is Unavailable
    tasks += await told_large(client, logd, "waits")
    await logd.sends_nothing_more(client)
    logd.reply(Values(question.number, 0, [b"v" * LARGE]))
    await answer_large(logd, "waits", b"v" * LARGE)
    assert await data_of(tasks.pop()) == b"v" * LARGE
    assert is_all_given_back(client)


@scenario(large_bytes_max=1, request_timeout_s=SHORT_SECONDS)
async def test_a_large_value_that_nobody_waits_for_is_not_asked_for_on_a_new_connection_and_takes_no_room(client, logd):
    tasks = await told_large(client, logd, "late")
    await logd.receive(ReadLarge)
    assert await outcome(tasks[0]) is Unavailable
    await logd.vanish(client)
    logd.appear()
    await logd.sends_nothing_more(client)
    assert is_all_given_back(client)


@scenario(large_bytes_max=1)
async def test_large_values_are_asked_for_again_after_a_restart_and_each_only_once(client, logd):
    tasks = await turn(*map(client.get, "abc"))
    number = (await logd.receive(ReadBatch)).number
    logd.reply(Large(number, 0, LARGE), Large(number, 1, LARGE))
    question = await logd.receive(ReadLarge)
    await logd.vanish(client)
    logd.appear()
    assert (await logd.receive(ReadBatch)).number == number
    assert await logd.receive(ReadLarge) == question
    logd.reply(Large(number, 0, LARGE), Values(number, 1, [b"small now", b"3"]))
    assert await tasks.pop() == b"3"
    logd.reply(Values(question.number, 0, [b"v" * LARGE]))
    assert await data_of(tasks.pop(0)) == b"v" * LARGE
    await answer_large(logd, "b", b"small now")
    assert await tasks.pop() == b"small now"
    await logd.sends_nothing_more(client)
    assert is_all_given_back(client)


@scenario(large_bytes_max=1)
async def test_closing_ends_reads_of_large_values_and_those_who_have_one_may_keep_it(client, logd):
    tasks = await told_large(client, logd, *"abc")
    await answer_large(logd, "a", b"v" * LARGE)
    held = await tasks.pop(0)
    client.close()
    assert await outcomes(tasks) == [Unavailable] * 2
    assert held.data == b"v" * LARGE


# Bounds, health, the end ---------------------------------------------------------------------------------


@scenario(queue_bytes_max=10_000)
async def test_writes_beyond_the_queue_bound_are_unavailable_until_others_are_answered(client, logd):
    for number in (2, 3):
        fitting = await turn(*(client.put(f"key{n}", b"v" * 1000) for n in range(6)))
        (refused,) = await turn(client.put("one too many", b"v" * 1000))
        assert await outcome(refused) is Unavailable
        assert len((await logd.receive(WriteBatch)).puts) == 6
        logd.commit(number)
        assert await outcomes(fitting) == [None] * 6
    assert client._queue_bytes == 0


@scenario(queue_bytes_max=1000)
async def test_one_write_as_large_as_the_whole_queue_fits(client, logd):
    serving = start(logd.serve({}))
    assert await outcome(client.put("key", b"v" * 1000)) is None  # a configuration with equal limits is accepted
    serving.cancel()


@scenario()
async def test_unavailable_reason_is_what_logd_says(client, logd):
    for reason in ("no space left on device", ""):
        (status,) = await turn(client.unavailable_reason())
        request = await logd.receive(StatusRequest)
        logd.reply(Status(request.number + 100, "nobody asked"), Status(request.number, reason))
        assert await status == reason


@scenario(request_timeout_s=SHORT_SECONDS)
async def test_unavailable_reason_is_unavailable_when_logd_is_silent_or_away(client, logd):
    (status,) = await turn(client.unavailable_reason())
    request = await logd.receive(StatusRequest)
    assert await outcome(status) is Unavailable
    await logd.vanish(client)
    logd.appear()
    await logd.sends_nothing_more(client)
    logd.reply(Status(request.number, "late"))
    await logd.sends_nothing_more(client)
    await logd.vanish(client)
    await outcome(client.get("finds out that there is no connection"))
    (status,) = await turn(client.unavailable_reason())
    assert status.done()  # at once
    assert await outcome(status) is Unavailable


@scenario(connected=False, session=False)
async def test_a_question_of_a_worker_that_has_just_started_waits_for_its_first_connection(client, logd):
    (status,) = await turn(client.unavailable_reason())
    assert not status.done()
    logd.appear()
    request = await logd.receive(StatusRequest)
    logd.reply(Status(request.number, ""))
    assert await status == ""


@scenario()
async def test_stats_are_what_logd_tells(client, logd):
    (asked,) = await turn(client.stats())
    request = await logd.receive(StatsRequest)
    told = stats(request.number)
    logd.reply(told)
    assert await asked == told


@scenario(request_timeout_s=SHORT_SECONDS)
async def test_stats_are_unavailable_when_logd_is_silent(client, logd):
    (asked,) = await turn(client.stats())
    await logd.receive(StatsRequest)
    assert await outcome(asked) is Unavailable


@scenario()
async def test_a_question_about_unavailable_reason_is_asked_again_after_a_restart(client, logd):
    (status,) = await turn(client.unavailable_reason())
    request = await logd.receive(StatusRequest)
    await logd.vanish(client)
    logd.appear()
    assert await logd.receive(StatusRequest) == request
    logd.reply(Status(request.number, ""))
    assert await status == ""


@scenario(loops=BOTH_LOOPS)
async def test_closing_ends_every_request_with_what_is_known_of_it(client, logd):
    in_flight, _ = await sent(client, logd, 2)
    in_flight += await turn(client.get("sent"), client.unavailable_reason())
    await logd.receive(StatusRequest)
    await logd.receive(ReadBatch)
    unsent = [start(client.put("unsent", b"1")), start(client.get("unsent"))]
    asyncio.get_running_loop().call_soon(client.close)  # in the turn in which these two begin
    assert await outcomes(in_flight + unsent) == [OutcomeUnknown, Unavailable, Unavailable, Unavailable, Unavailable]


@scenario()
async def test_a_request_made_after_closing_is_unavailable(client, logd):
    client.close()
    async with asyncio.timeout(5):
        assert await outcomes(await turn(client.put("a", b"1"), client.get("a"))) == [Unavailable, Unavailable]
