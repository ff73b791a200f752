"""Writes against a scripted logd: batches and their session, what a refusal, a gap and a lost session mean."""

import copy

from kv.config import BatchLimits
from kv.log_client.client import Client
from kv.log_client.outcomes import DataLimitReached, NoSpace, OutcomeUnknown, PreconditionFailed, Unavailable
from logd.shared import protocol
from logd.shared.protocol import (
    BATCH_BYTES_SOFT_MAX,
    Check,
    Committed,
    Dropped,
    Gap,
    Outcomes,
    ReadBatch,
    Reason,
    Refused,
    Transaction,
    Values,
    WriteBatch,
)
from tests.support.scripted_logd import (
    ADDRESS,
    BOTH_LOOPS,
    OPTIONS,
    SHORT_SECONDS,
    outcome,
    outcomes,
    queued_bytes,
    scenario,
    sent,
    start,
    turn,
)

# Batches ------------------------------------------------------------------------------------------------


def writes(client, text):
    """The writes that a text such as "a=1 -a clear" names, in that order."""
    for word in text.split():
        key, _, value = word.partition("=")
        if value:
            yield client.put(key, value.encode())
        else:
            yield client.clear() if word == "clear" else client.delete(word[1:])


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
        tasks = await turn(*writes(client, requests))
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
    assert queued_bytes(client) == 0


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


# Bounds -------------------------------------------------------------------------------------------------


@scenario(queue_bytes_max=10_000)
async def test_writes_beyond_the_queue_bound_are_unavailable_until_others_are_answered(client, logd):
    for number in (2, 3):
        fitting = await turn(*(client.put(f"key{n}", b"v" * 1000) for n in range(6)))
        (refused,) = await turn(client.put("one too many", b"v" * 1000))
        assert await outcome(refused) is Unavailable
        assert len((await logd.receive(WriteBatch)).puts) == 6
        logd.commit(number)
        assert await outcomes(fitting) == [None] * 6
    assert queued_bytes(client) == 0


@scenario(queue_bytes_max=1000)
async def test_one_write_as_large_as_the_whole_queue_fits(client, logd):
    serving = start(logd.serve({}))
    assert await outcome(client.put("key", b"v" * 1000)) is None  # a configuration with equal limits is accepted
    serving.cancel()


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
    assert queued_bytes(client) == 0
    (last,) = await turn(client.put("last", b"1"))
    assert (await logd.receive(WriteBatch)).base == 5
    logd.commit(5)
    assert await last is None


# Refusals, gaps, lost sessions --------------------------------------------------------------------------


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
    assert queued_bytes(client) == 0


@scenario()
async def test_writes_that_are_refused_for_want_of_memory_are_unavailable_also_where_only_a_gap_tells(client, logd):
    writes, _ = await sent(client, logd, 2, 3)
    logd.refuse(2, reason=Reason.SCARCE)
    logd.reply(Gap(logd.session, 3, 2))  # of a logd that was started since, and knows of no refusal
    assert await outcomes(writes) == [Unavailable, Unavailable]
    assert queued_bytes(client) == 0


@scenario()
async def test_writes_that_are_refused_because_the_data_cannot_be_reached_are_unavailable(client, logd):
    writes, _ = await sent(client, logd, 2)
    logd.refuse(2, reason=Reason.UNREACHABLE)
    assert await outcomes(writes) == [Unavailable]


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
        assert queued_bytes(client) == 0
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
async def test_a_gap_that_cannot_be_filled_means_that_the_batch_fails_as_the_one_that_is_missing(client, logd):
    writes, _ = await sent(client, logd, 2, 3)
    logd.refuse(2)
    logd.reply(Gap(logd.session, 3, 2))
    assert await outcomes(writes) == [NoSpace, NoSpace]
    (later,) = await turn(client.put("later", b"1"))
    assert await logd.receive(WriteBatch) == WriteBatch(logd.session, 4, 4, False, {"later": b"1"}, [])
    logd.commit(4)
    assert await later is None
    assert queued_bytes(client) == 0


@scenario()
async def test_a_dropped_session_leaves_unknown_what_was_in_flight_and_another_one_is_opened(client, logd):
    writes, _ = await sent(client, logd, 2, 3)
    (read,) = await turn(client.get("a"))
    request = await logd.receive(ReadBatch)
    logd.reply(Dropped(logd.session, 3), Dropped(logd.session, 2))
    assert await outcomes(writes) == [OutcomeUnknown] * 2
    assert queued_bytes(client) == 0
    later = await turn(client.put("later", b"1"))
    await logd.open_session()
    assert await logd.receive(WriteBatch) == WriteBatch(logd.session, 1, 1, False, {"later": b"1"}, [])
    logd.commit(1)
    logd.reply(Values(request.number, 0, [b"1"]))
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


# Transactions -------------------------------------------------------------------------------------------

IF_ABSENT = Check("k", None, negated=True)


@scenario()
async def test_transactions_go_with_other_writes_after_them_and_in_the_order_in_which_they_came(client, logd):
    one, two = Transaction([IF_ABSENT], {"k": b"1"}, []), Transaction([], {}, ["k"])
    tasks = await turn(client.execute(one), client.put("k", b"2"), client.execute(two), client.delete("a"))
    assert await logd.receive(WriteBatch) == WriteBatch(logd.session, 2, 2, False, {"k": b"2"}, ["a"], [one, two])
    logd.commit(2)
    assert await outcomes(tasks) == [None] * 4
    assert queued_bytes(client) == 0


@scenario()
async def test_only_those_transactions_fail_that_the_answer_names_and_they_say_which_checks_did_not_hold(client, logd):
    tasks = [*await turn(*(client.execute(Transaction([IF_ABSENT], {"k": b"v"}, [])) for _ in range(3)))]
    tasks += await turn(client.put("plain", b"1"))
    await logd.batch(2)
    logd.reply(Committed(logd.session, [2], {2: Outcomes([], {1: [(0, "tag")], 2: []})}))
    assert await outcomes(tasks) == [None, PreconditionFailed, DataLimitReached, None]
    assert tasks[1].exception().failed == [(0, "tag")]
    assert queued_bytes(client) == 0


@scenario(request_timeout_s=SHORT_SECONDS)
async def test_the_outcome_of_a_transaction_that_was_given_up_interests_nobody(client, logd):
    (task,) = await turn(client.execute(Transaction([IF_ABSENT], {"k": b"v"}, [])))
    await logd.batch(2)
    assert await outcome(task) is OutcomeUnknown
    logd.reply(Committed(logd.session, [2], {2: Outcomes(["x"], {0: [(0, None)]})}))
    await logd.sends_nothing_more(client)
    assert queued_bytes(client) == 0


@scenario(queue_bytes_max=10_000)
async def test_a_transaction_counts_with_all_that_it_holds(client, logd):
    large = Transaction([Check("k" * 1000, ["t" * 1000], negated=False)], {"p" * 1000: bytes(5000)}, ["d" * 1000])
    tasks = await turn(client.execute(large), client.execute(large))
    assert queued_bytes(client) > 9000
    assert await outcome(tasks[1]) is Unavailable
    await logd.batch(2)
    logd.commit(2)
    assert await outcome(tasks[0]) is None


@scenario(batch_limits=BatchLimits(bytes_soft_max=1 << 20, checks_max=3))
async def test_where_an_engine_takes_few_checks_a_batch_has_no_more(client, logd):
    transaction = Transaction([IF_ABSENT, IF_ABSENT], {}, [])
    tasks = await turn(client.put("a", b"1"), *(client.execute(transaction) for _ in range(3)), client.put("b", b"1"))
    for number, checks in ((2, 2), (3, 2), (4, 2)):
        batch = await logd.receive(WriteBatch)
        assert sum(len(each.checks) for each in batch.transactions) == checks
        logd.commit(number)
    assert await outcomes(tasks) == [None] * 5


@scenario(batch_limits=BatchLimits(bytes_soft_max=2000))
async def test_where_an_engine_takes_small_batches_they_are_small(client, logd):
    tasks = await turn(*(client.put(f"k{n}", bytes(1000)) for n in range(4)))
    for number in (2, 3):
        assert len((await logd.receive(WriteBatch)).puts) == 2
        logd.commit(number)
    assert await outcomes(tasks) == [None] * 4


# A limit on the data ------------------------------------------------------------------------------------


@scenario(has_data_limit=True)
async def test_only_the_values_that_do_not_fit_fail_and_the_rest_of_their_batch_is_made(client, logd):
    writes = await turn(
        client.put("large", b"1"), client.put("small", b"2"), client.delete("a"), client.put("grows", b"3")
    )
    await logd.batch(2)
    logd.reply(Committed(logd.session, [2], {2: Outcomes(["large", "grows"], {})}))
    assert await outcomes(writes) == [DataLimitReached, None, None, DataLimitReached]
    assert queued_bytes(client) == 0


@scenario(has_data_limit=True)
async def test_at_a_limit_a_write_never_takes_the_place_of_one_that_may_fit_where_it_does_not(client, logd):
    """So each outcome of a key is that of all its writes in the batch: none is larger than the one before it."""

    expected = {
        "a=22 a=11 a=3": [{"a": b"3"}],
        "a=1 a=22 b=1": [{"a": b"1"}, {"a": b"22", "b": b"1"}],
        "-a a=1": [{}, {"a": b"1"}],
        "a=1 -a": [{}],
        "a=1 clear b=1": [{"a": b"1"}, {"b": b"1"}],
        "clear a=1": [{"a": b"1"}],
    }
    number = 1
    for requests, puts in expected.items():
        tasks = await turn(*writes(client, requests))
        for each in puts:
            number += 1
            batch = await logd.receive(WriteBatch)
            assert (batch.number, batch.puts) == (number, each), requests
            logd.commit(number)
        assert await outcomes(tasks) == [None] * len(tasks)


@scenario(has_data_limit=True)
async def test_all_writes_of_a_key_fail_that_have_one_outcome(client, logd):
    writes = await turn(client.put("k", b"22"), client.put("k", b"11"), client.put("other", b"1"))
    await logd.batch(2)
    logd.reply(Committed(logd.session, [2], {2: Outcomes(["k"], {})}))
    assert await outcomes(writes) == [DataLimitReached, DataLimitReached, None]
