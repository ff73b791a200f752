"""Why a command cannot do its work, in words for the person who gave it."""

import contextlib
import errno
from collections.abc import Iterator, Mapping
from typing import Final

from logd.shared.protocol import Exit

_ADVICE: Final[Mapping[int | None, str]] = {
    errno.ENOSPC: "make room there and try again",
    errno.EDQUOT: "make room there and try again",
    errno.EACCES: "run this as the user who runs the server",
    errno.EPERM: "run this as the user who runs the server",
}


class CannotRun(Exception):
    """The message says what failed and, where that is not plain, what to do."""

    def __init__(self, status: Exit, message: str) -> None:
        super().__init__(message)
        self.status = status


def because_of(error: OSError, what: object) -> CannotRun:
    """What to raise when the system refuses something with `what`, a file or a stream."""
    reason = error.strerror or str(error)
    return CannotRun(Exit.UNUSABLE, "; ".join(filter(None, [f"{what}: {reason}", _ADVICE.get(error.errno)])))


@contextlib.contextmanager
def naming(what: object, *, unless_named: bool = False) -> Iterator[None]:
    """Make an OSError in here a CannotRun about `what` or, with `unless_named`, about the file that the error names."""
    try:
        yield
    except OSError as error:
        raise because_of(error, (unless_named and error.filename) or what) from error
