"""Lets go of a large table, and of lists of its keys, without a pause of the thread that has no more use for them.

To free a million keys and values takes a tenth of a second, in calls that hold the interpreter: all at once, nobody
would be answered meanwhile. So another thread does it, part by part.
"""

import threading
import time
from typing import Final

from logd.local.table import Table

_FEW_KEYS: Final = 1000
_PAUSE_SECONDS: Final = 0.002


def discard(table: Table, keys: list[list[str]]) -> None:
    """Free what is in a table and in lists, which nothing else refers to, in the background."""
    if len(table) > _FEW_KEYS:
        try:
            threading.Thread(target=_empty, args=(table.parts, keys), name="discard", daemon=True).start()
        except RuntimeError:  # there is no thread to be had: the pause is the lesser evil
            return


def _empty(parts: list[dict[str, bytes]], keys: list[list[str]]) -> None:
    while parts:
        if keys:
            del keys[-max(1, len(keys) // len(parts)) :]
        parts.pop()
        time.sleep(_PAUSE_SECONDS)
