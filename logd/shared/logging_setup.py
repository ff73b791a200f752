"""How every process of the server logs: lines on stderr, for people or, as JSON, for machines.

Owns the two formats and their set-up, for both sides: gunicorn and its workers too. Knows nothing of who logs what.

The role of a process is its name in the sense of `multiprocessing`, because every log record carries that by itself,
also one that gunicorn or uvicorn makes, and because a fork inherits it until the child gets a name of its own.
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


_FORMATTERS: Final[dict[str, dict[str, Any]]] = {
    "text": {"format": "%(asctime)s %(name)s[%(process)d] %(levelname)s %(message)s"},
    "json": {"()": JsonLines},
}


def configuration(level: str, form: str) -> dict[str, Any]:
    """What `logging.config.dictConfig` takes."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": _FORMATTERS[form]},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"level": level.upper(), "handlers": ["stderr"]},
    }


def set_up(role: str, level: str, form: str) -> None:
    """Log from now on as told, as the process that has this role.

    Whoever has set up logging before, as a test runner does, keeps it.
    """
    if logging.getLogger().handlers:
        return
    logging.config.dictConfig(configuration(level, form))
    name_process(role)
    sys.excepthook = _on_uncaught
    threading.excepthook = lambda caught: _on_uncaught(caught.exc_type, caught.exc_value, caught.exc_traceback)


def name_process(role: str) -> None:
    """Say which role this process has in the tree."""
    multiprocessing.current_process().name = role


def _on_uncaught(kind: type[BaseException], error: BaseException | None, traceback: TracebackType | None) -> None:
    """A defect is logged like all else: in JSON mode a bare traceback would be no JSON."""
    if error is None or issubclass(kind, KeyboardInterrupt | SystemExit):
        return
    log.critical("ended by a defect: %r", error, exc_info=(kind, error, traceback))


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Let a command line say how to log."""
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--log-format", default="text", choices=FORMATS)


def flags() -> list[str]:
    """The flags that have a child log as this process does."""
    root = logging.getLogger()
    is_json = any(isinstance(handler.formatter, JsonLines) for handler in root.handlers)
    return ["--log-level", logging.getLevelName(root.level).lower(), "--log-format", "json" if is_json else "text"]
