"""What an error of etcd says about the fate of the request that it answers.

Only what is known to be said before a request takes its place in the log, or by the member that applied it, is
certain. Everything else, also what is not known here, is not: the request may have been applied, may be applied later,
or never.
"""

import enum
from typing import Final

import grpc


class Verdict(enum.Enum):
    """The kinds of errors. The names are those of the metrics, in lower case."""

    UNANSWERED = enum.auto()
    """Not certain."""
    BUSY = enum.auto()
    """Not applied; the same request may succeed in a moment."""
    NO_SPACE = enum.auto()
    """Not certain: etcd checks its quota a second time after it has applied a transaction, and says the same."""
    TOO_LARGE = enum.auto()
    """Not applied, and never will be."""
    UNAUTHENTICATED = enum.auto()
    """Not applied: the token is not known (any more)."""
    DENIED = enum.auto()
    """Not applied, for as long as nobody changes the cluster."""
    NO_SUCH_REVISION = enum.auto()
    """A read of a revision that is compacted, or not there yet."""


_BY_TEXT: Final = (
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many requests", Verdict.BUSY),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "database space exceeded", Verdict.NO_SPACE),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "message larger than max", Verdict.TOO_LARGE),
    (grpc.StatusCode.INVALID_ARGUMENT, "request is too large", Verdict.TOO_LARGE),
    (grpc.StatusCode.INVALID_ARGUMENT, "too many operations", Verdict.TOO_LARGE),
    (grpc.StatusCode.INVALID_ARGUMENT, "user name is empty", Verdict.UNAUTHENTICATED),
    (grpc.StatusCode.INVALID_ARGUMENT, "revision of auth store is old", Verdict.UNAUTHENTICATED),
)
_BY_CODE: Final = {
    grpc.StatusCode.UNAUTHENTICATED: Verdict.UNAUTHENTICATED,
    grpc.StatusCode.INVALID_ARGUMENT: Verdict.DENIED,
    grpc.StatusCode.PERMISSION_DENIED: Verdict.DENIED,
    grpc.StatusCode.FAILED_PRECONDITION: Verdict.DENIED,
    grpc.StatusCode.UNIMPLEMENTED: Verdict.DENIED,
    grpc.StatusCode.DATA_LOSS: Verdict.DENIED,
    grpc.StatusCode.OUT_OF_RANGE: Verdict.NO_SUCH_REVISION,
}


def judge(code: grpc.StatusCode, text: str) -> Verdict:
    """The kind of an error with this code and text."""
    for known_code, part, verdict in _BY_TEXT:
        if code is known_code and part in text:
            return verdict
    return _BY_CODE.get(code, Verdict.UNANSWERED)
