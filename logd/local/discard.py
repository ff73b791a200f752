"""Lets go of a large table without a pause of the thread that has no more use for it.

To free a million keys and values takes a tenth of a second, in calls that hold the interpreter: all at once, nobody
would be answered meanwhile. So another thread does it, part by part.
"""

import threading
import time
from typing import Final

from logd.local.table import Table

_FEW_KEYS: Final = 1000
_PAUSE_SECONDS: Final = 0.002


def discard(table: Table) -> None:
    """Free what is in a table, which nothing else refers to, in the background."""
    if len(table) > _FEW_KEYS:
        try:
            threading.Thread(target=_empty, args=(table,), name="discard", daemon=True).start()
        except RuntimeError:  # there is no thread to be had: the pause is the lesser evil
            return


def _empty(table: Table) -> None:
    while table.parts:
        table.parts.pop()
        time.sleep(_PAUSE_SECONDS)
