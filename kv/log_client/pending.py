"""A request that waits for its outcome. It is what its maker awaits, so that nothing else has to be made for it.

Knows no messages; which outcome a request gets is for the parts to decide.
"""

from collections.abc import Iterable
from typing import Any, TypeVar

from kv.log_client.outcomes import RequestFailed
from kv.prompt_future import PromptFuture

_T = TypeVar("_T")


class Pending(PromptFuture[_T]):
    """A request with a deadline. Its maker may have cancelled it: ask `done` before an outcome is set."""

    __slots__ = ("deadline",)

    deadline: float
    """In seconds, on the clock of the event loop."""


def fail(pending: Pending[Any], failure: RequestFailed) -> None:
    """End a request with a failure, unless it has ended."""
    if not pending.done():
        pending.set_exception(type(failure)(*failure.args))  # one for each: raising it adds to its traceback


def fail_overdue(pending: Iterable[Pending[Any]], now: float, failure: RequestFailed) -> bool:
    """Fail the requests whose deadline has passed; they have to come first. True when all have failed."""
    for each in pending:
        if each.deadline > now:
            return False
        fail(each, failure)
    return True
