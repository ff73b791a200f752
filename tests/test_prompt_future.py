"""A future whose waiter goes on inside the call that ends it."""

import asyncio

import pytest

from kv.prompt_future import PromptFuture


def waits(future, seen):
    """Have something wait for the future in the prompt way, and note how it ended."""

    def resume():
        seen.append("cancelled" if future.cancelled() else future.exception() or future.result())

    future.resume = resume


FAILURE = ValueError("y")
ENDS = {
    "result": (lambda future: future.set_result("x"), "x"),
    "failure": (lambda future: future.set_exception(FAILURE), FAILURE),
    "cancellation": (lambda future: future.cancel(), "cancelled"),
}


def run(test):
    """Run a test in an event loop, with a future of its own."""

    async def main():
        await test(PromptFuture(loop=asyncio.get_running_loop()))

    asyncio.run(main())


@pytest.mark.parametrize("how", ENDS)
def test_its_waiter_goes_on_before_the_call_that_ends_it_returns(how):
    async def check(future):
        seen = []
        waits(future, seen)
        end, outcome = ENDS[how]
        end(future)
        assert seen == [outcome]

    run(check)


@pytest.mark.parametrize("second", ENDS)
@pytest.mark.parametrize("first", ENDS)
def test_its_waiter_goes_on_once_and_sees_the_first_end(first, second):
    async def check(future):
        seen = []
        waits(future, seen)
        ENDS[first][0](future)
        if second == "cancellation":
            assert not future.cancel()
        else:
            with pytest.raises(asyncio.InvalidStateError):
                ENDS[second][0](future)
        assert seen == [ENDS[first][1]]

    run(check)


def test_without_a_prompt_waiter_it_is_as_any_other_future():
    async def check(future):
        task = asyncio.ensure_future(asyncio.wait_for(future, 10))
        await asyncio.sleep(0)
        future.set_result("x")
        assert not task.done()
        assert await task == "x"

    run(check)


def test_a_task_that_is_cancelled_cancels_it():
    async def check(future):
        async def wait():
            await future

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert future.cancelled()

    run(check)


def test_what_its_waiter_raises_never_reaches_whoever_ends_it():
    async def check(future):
        reported = []
        future.get_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
        failure = ValueError("of the waiter")

        def resume():
            raise failure

        future.resume = resume
        future.set_result("x")
        assert reported == [failure]

    run(check)
