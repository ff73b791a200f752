"""Lets go of a large dictionary, and of lists of its keys, without a pause of the thread that has no more use for them.

To free a million keys and values takes a tenth of a second, in one call that holds the interpreter: all at once, nobody
would be answered meanwhile. So another thread removes them, a few at a time.
"""

import threading
import time
from collections.abc import Callable
from typing import Final

_SLICE: Final = 1000
_PAUSE_SECONDS: Final = 0.001


def discard(data: dict[str, bytes], keys: list[list[str]]) -> None:
    """Free what is in `data` and in `keys`, which nothing else refers to, in the background."""
    if len(data) > _SLICE:
        try:
            threading.Thread(target=_empty, args=(data, keys), name="discard", daemon=True).start()
        except RuntimeError:  # there is no thread to be had: the pause is the lesser evil
            return


def _empty(data: dict[str, bytes], keys: list[list[str]]) -> None:
    while keys:
        keys.pop()
        time.sleep(_PAUSE_SECONDS)
    remove: Callable[[], object] = data.popitem
    while len(data) > _SLICE:
        for _ in range(_SLICE):
            remove()
        time.sleep(_PAUSE_SECONDS)
