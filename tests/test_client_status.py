"""Requests for status and stats against a scripted logd."""

import asyncio

from kv.log_client.outcomes import Unavailable
from logd.shared.protocol import StatsRequest, Status, StatusRequest
from tests.support.builders import stats
from tests.support.scripted_logd import SHORT_SECONDS, outcome, scenario, turn


@scenario()
async def test_unavailable_reason_is_what_logd_says(client, logd):
    for reason in ("no space left on device", ""):
        (status,) = await turn(client.unavailable_reason())
        request = await logd.receive(StatusRequest)
        logd.reply(Status(request.number + 100, "no such request"), Status(request.number, reason))
        assert await status == reason


@scenario(request_timeout_s=SHORT_SECONDS)
async def test_unavailable_reason_is_unavailable_when_logd_is_silent(client, logd):
    (status,) = await turn(client.unavailable_reason())
    request = await logd.receive(StatusRequest)
    assert await outcome(status) is Unavailable
    await logd.vanish(client)
    logd.appear()
    await logd.sends_nothing_more(client)
    logd.reply(Status(request.number, "late"))
    await logd.sends_nothing_more(client)


@scenario()
async def test_unavailable_reason_is_unavailable_at_once_when_logd_is_away(client, logd):
    await logd.vanish(client)
    for _ in range(2):  # the first finds out that the connection is lost
        (status,) = await turn(client.unavailable_reason())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert status.done()
        assert await outcome(status) is Unavailable


@scenario(connected=False, session=False)
async def test_a_status_request_of_a_worker_that_has_just_started_waits_for_its_first_connection(client, logd):
    (status,) = await turn(client.unavailable_reason())
    assert not status.done()
    logd.appear()
    request = await logd.receive(StatusRequest)
    logd.reply(Status(request.number, ""))
    assert await status == ""


@scenario()
async def test_stats_are_what_logd_says(client, logd):
    (answer,) = await turn(client.stats())
    reply = stats((await logd.receive(StatsRequest)).number)
    logd.reply(reply)
    assert await answer == reply


@scenario(request_timeout_s=SHORT_SECONDS)
async def test_stats_are_unavailable_when_logd_is_silent(client, logd):
    (answer,) = await turn(client.stats())
    await logd.receive(StatsRequest)
    assert await outcome(answer) is Unavailable


@scenario()
async def test_a_status_request_is_sent_again_after_a_restart(client, logd):
    (status,) = await turn(client.unavailable_reason())
    request = await logd.receive(StatusRequest)
    await logd.vanish(client)
    logd.appear()
    assert await logd.receive(StatusRequest) == request
    logd.reply(Status(request.number, ""))
    assert await status == ""
