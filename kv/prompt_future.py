"""A future whose waiter goes on at once, inside the call that ends it.

asyncio wakes whoever awaits a future in a later turn of the event loop, by a callback with a context of its own. For a
request that waits for one answer this costs more than what is done with the answer. Knows no requests: whoever makes a
coroutine go on without a task (kv/http/exchange.py) registers with `resume`; a task awaits it as any other future.
"""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

_T = TypeVar("_T")


class PromptFuture(asyncio.Future[_T]):
    """It may have one waiter of the prompt kind, beside any number of the usual ones.

    Whoever ends it has to be ready for whatever the waiter does. What the waiter raises goes to the loop's exception
    handler, never to whoever ends it.
    """

    __slots__ = ("resume",)

    resume: Callable[[], None]
    """To be called when it ends, once; not set when nobody waits in this way."""

    def set_result(self, result: _T) -> None:
        """End it with a result. Raises InvalidStateError when it has ended."""
        asyncio.Future.set_result(self, result)
        self._resume()

    def set_exception(self, exception: type[BaseException] | BaseException) -> None:
        """End it with a failure. Raises InvalidStateError when it has ended."""
        super().set_exception(exception)
        self._resume()

    def cancel(self, msg: Any = None) -> bool:  # noqa: ANN401 - as in the class above
        """End it without an outcome. False when it has ended."""
        is_cancelled = super().cancel(msg)
        if is_cancelled:
            self._resume()
        return is_cancelled

    def _resume(self) -> None:
        resume = getattr(self, "resume", None)
        if not resume:
            return
        del self.resume
        try:
            resume()
        except Exception as error:
            context = {"message": "what waited for a future failed", "exception": error, "future": self}
            self.get_loop().call_exception_handler(context)
