"""How every process of the server logs: lines on stderr, for people or, as JSON, for machines.

Owns the two formats and their set-up, for every process of the server, gunicorn and its workers included, and that
warnings are also kept for people who ask later (logd/shared/recent_warnings.py). Knows nothing of who logs what.

The role of a process is its name in the sense of `multiprocessing`, because every log record carries that by itself,
also one that gunicorn makes, and because a fork inherits it until the child gets a name of its own.
"""

import argparse
import datetime
import json
import logging
import logging.config
import multiprocessing
import sys
import threading
from types import TracebackType
from typing import Any, Final

from logd.shared import recent_warnings
from logd.shared.stderr import StderrHandler
from logd.shared.text import printable

FORMATS: Final = ("text", "json")

log = logging.getLogger("logd.shared.logging_setup")


class JsonLines(logging.Formatter):
    """One JSON object a line. Whatever is in a message, a line stays one line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "role": record.processName,
            "pid": record.process,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class TextLines(logging.Formatter):
    """Lines for people. Whatever is in a message, a line stays one line; only a traceback has more."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        record.message = printable(record.message)
        return super().formatMessage(record)


_FORMATTERS: Final[dict[str, dict[str, Any]]] = {
    "text": {"()": TextLines, "fmt": "%(asctime)s %(name)s[%(process)d] %(levelname)s %(message)s"},
    "json": {"()": JsonLines},
}


def configuration(level: str, form: str, warnings_fd: int | None = None) -> dict[str, Any]:
    """What `logging.config.dictConfig` takes. With a descriptor, warnings are kept there too."""
    handlers: dict[str, dict[str, Any]] = {"stderr": {"()": StderrHandler, "formatter": "line"}}
    if warnings_fd is not None:
        handlers["warnings"] = {"()": recent_warnings.RecentWarnings, "fd": warnings_fd}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": _FORMATTERS[form]},
        "handlers": handlers,
        "root": {"level": level.upper(), "handlers": [*handlers]},
    }


def set_up(role: str, level: str, form: str, warnings_fd: int | None = None) -> None:
    """Log at this level and in this format from now on, as the process that has this role.

    Does nothing when logging is set up already, as in a test runner.
    """
    if logging.getLogger().handlers:
        return
    logging.config.dictConfig(configuration(level, form, warnings_fd))
    name_process(role)
    sys.excepthook = _on_uncaught
    threading.excepthook = lambda caught: _on_uncaught(caught.exc_type, caught.exc_value, caught.exc_traceback)


def name_process(role: str) -> None:
    """Give this process its role: supervisor, logd, checkpoint, gunicorn, worker, or the name of a tool."""
    multiprocessing.current_process().name = role


def _on_uncaught(kind: type[BaseException], error: BaseException | None, traceback: TracebackType | None) -> None:
    """A defect is logged like everything else: a bare traceback would not be JSON."""
    if error is None or issubclass(kind, KeyboardInterrupt | SystemExit):
        return
    log.critical("ended by a defect: %r", error, exc_info=(kind, error, traceback))


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The options of a command line that say how to log."""
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--log-format", default="text", choices=FORMATS)
    parser.add_argument("--warnings-fd", type=int, help="where the last warnings of all processes are kept")


def flags() -> list[str]:
    """The options that make a child log as this process does. It has to inherit `descriptors()`."""
    root = logging.getLogger()
    is_json = any(isinstance(handler.formatter, JsonLines) for handler in root.handlers)
    form = ["--log-level", logging.getLevelName(root.level).lower(), "--log-format", "json" if is_json else "text"]
    return form + [word for fd in descriptors() for word in ("--warnings-fd", str(fd))]


def descriptors() -> tuple[int, ...]:
    """What a child has to inherit to log as this process does."""
    kept = recent_warnings.installed()
    return (kept.fd,) if kept else ()
