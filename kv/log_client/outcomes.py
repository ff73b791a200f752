"""How a request may fail, and what each failure means for a write.

Knows no messages and no HTTP: which reply causes which failure is decided in the parts, which status it gets in
kv/request.py.
"""

from collections.abc import Sequence
from typing import Final

from logd.shared.protocol import FailedCheck


class RequestFailed(Exception):
    """A request could not be answered; the class says what that means for its outcome."""


class Unavailable(RequestFailed):
    """The request was never sent, or it was a read. A write was not applied and will not be. It may be tried again."""


class NoSpace(RequestFailed):
    """The device of the log is full. The write was not applied and will not be."""


class DataLimitReached(RequestFailed):
    """With the value the data would exceed its limit. The write was not applied and will not be."""


class PreconditionFailed(RequestFailed):
    """Checks of a transaction did not hold, and none of its writes was applied."""

    def __init__(self, failed: Sequence[FailedCheck]) -> None:
        super().__init__(failed)
        self.failed = failed

    def __str__(self) -> str:
        return "precondition failed"


class OutcomeUnknown(RequestFailed):
    """The write was sent and not answered. It may have been applied, may be applied later, or never."""


NOT_REACHABLE: Final = "the log writer is not reachable; nothing was written"
NO_ANSWER: Final = "the log writer did not answer in time"
