"""Every option of the server: its flag, environment variable, default, meaning, and what it may be.

Knows nothing of who uses an option. The supervisor reads the command line once and hands the result to its children in
their environment, so that all of them see the same values.
"""

import argparse
import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn, Self, TypeVar

from logd.protocol import VALUE_BYTES_CEILING

_MIB: Final = 1 << 20
_ENVIRONMENT_PREFIX: Final = "KV_"


class ConfigError(ValueError):
    """An option has a value that it cannot have; the message names both."""


T = TypeVar("T")


def _option(default: T, meaning: str) -> T:
    return dataclasses.field(default=default, metadata={"meaning": meaning})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The options. Units are the last word of a name."""

    host: str = _option("127.0.0.1", "address to listen on; there is no authentication, so think before opening it")
    port: int = _option(8080, "TCP port to listen on")
    working_dir: Path = _option(Path("data"), "directory of the log and the snapshots; made when missing")
    workers: int = _option(max(2, min(os.cpu_count() or 2, 16)), "HTTP worker processes")
    value_bytes_max: int = _option(16 * _MIB, "largest value; a larger one is answered 413")
    header_bytes_max: int = _option(64 * 1024, "largest request line and headers; more is answered 431")
    header_timeout_s: float = _option(10.0, "time for a request's headers to arrive")
    body_timeout_s: float = _option(30.0, "time without any progress of a body, or of a client that reads its answer")
    keep_alive_s: float = _option(60.0, "time that an idle connection is kept open")
    request_timeout_s: float = _option(10.0, "time to wait for the log writer, then 503 or 504")
    queue_bytes_max: int = _option(256 * _MIB, "bytes of writes a worker may have waiting; beyond it 503")
    stop_timeout_s: float = _option(12.0, "time for requests in flight when stopping")
    segment_bytes: int = _option(32 * _MIB, "size at which a log segment is sealed")
    checkpoint_log_bytes: int = _option(64 * _MIB, "least size of the sealed log that makes a checkpoint due")
    checkpoint_ratio: float = _option(1.0, "least size of the sealed log relative to the snapshot, too")
    log_level: str = _option("info", "least severe messages that are logged: debug, info, warning, error")

    def __post_init__(self) -> None:
        """Check each value, and how they relate. Raises ConfigError."""
        for name, least in _LEAST.items():
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{_flag(name)} must be a finite number, not {getattr(self, name)}")
            if getattr(self, name) < least:
                raise ConfigError(f"{_flag(name)} must be at least {least}, not {getattr(self, name)}")
        if self.port > 65535:
            raise ConfigError(f"--port must be at most 65535, not {self.port}")
        if self.value_bytes_max > VALUE_BYTES_CEILING:
            raise ConfigError(f"--value-bytes-max must be at most {VALUE_BYTES_CEILING}, not {self.value_bytes_max}")
        if self.queue_bytes_max < self.value_bytes_max:
            raise ConfigError("--queue-bytes-max must be at least --value-bytes-max, or the largest value never fits")
        if self.log_level not in _LOG_LEVELS:
            raise ConfigError(f"--log-level must be one of {', '.join(_LOG_LEVELS)}, not {self.log_level!r}")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read KV_* variables; what is not there has its default. Raises ConfigError."""
        values = {}
        for field in dataclasses.fields(cls):
            text = environment.get(_variable(field.name))
            if text is not None:
                values[field.name] = _parse(field, text, _variable(field.name))
        return cls(**values)

    @classmethod
    def from_command_line(cls, argv: list[str] | None, environment: Mapping[str, str]) -> Self:
        """Flags over environment variables over defaults. Exits with a clear line when they make no sense."""
        parser = _parser()
        given = {name: text for name, text in vars(parser.parse_args(argv)).items() if text is not None}
        merged = {**environment, **{_variable(name): text for name, text in given.items()}}
        try:
            return cls.from_environment(merged)
        except ConfigError as error:
            parser.error(str(error))

    def to_environment(self) -> dict[str, str]:
        """The variables that make `from_environment` give an equal Config."""
        return {_variable(field.name): str(getattr(self, field.name)) for field in dataclasses.fields(self)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inherited:
    """What the supervisor hands to gunicorn and its workers beside the options."""

    listen_fd: int
    """The listening socket."""
    lifeline_fd: int
    """The read end of a pipe that only the supervisor can close: its end means that the supervisor is gone."""
    logd_address: str
    """Where logd listens, as ipc://PATH."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read what `to_environment` wrote. Raises KeyError outside of a supervisor's tree."""
        return cls(
            listen_fd=int(environment["KV_INHERITED_LISTEN_FD"]),
            lifeline_fd=int(environment["KV_INHERITED_LIFELINE_FD"]),
            logd_address=environment["KV_INHERITED_LOGD_ADDRESS"],
        )

    def to_environment(self) -> dict[str, str]:
        """The variables that make `from_environment` give an equal object."""
        return {
            "KV_INHERITED_LISTEN_FD": str(self.listen_fd),
            "KV_INHERITED_LIFELINE_FD": str(self.lifeline_fd),
            "KV_INHERITED_LOGD_ADDRESS": self.logd_address,
        }


_LOG_LEVELS: Final = ("debug", "info", "warning", "error")
_LEAST: Final[Mapping[str, float]] = {
    "port": 1,
    "workers": 1,
    "value_bytes_max": 1,
    "header_bytes_max": 1024,
    "header_timeout_s": 0.1,
    "body_timeout_s": 0.1,
    "keep_alive_s": 0.1,
    "request_timeout_s": 0.1,
    "stop_timeout_s": 0.0,
    "segment_bytes": 1024,
    "checkpoint_log_bytes": 1024,
    "checkpoint_ratio": 0.0,
}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(name: str) -> str:
    return _ENVIRONMENT_PREFIX + name.upper()


def _parse(field: dataclasses.Field[Any], text: str, said: str) -> Any:  # noqa: ANN401
    if not text:
        raise ConfigError(f"{_flag(field.name)} (or {said}) must not be empty")
    kind: type[Any] = Path if isinstance(field.default, Path) else type(field.default)
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f"{_flag(field.name)} (or {said}) must be a number, not {text!r}") from None


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help lists the options)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="./run.sh",
        description="A crash-safe key-value server. Every option can also be given in the environment.",
        allow_abbrev=False,
    )
    for field in dataclasses.fields(Config):
        meaning = f"{field.metadata['meaning']} [{_variable(field.name)}; default {field.default}]"
        metavar = type(field.default).__name__.removeprefix("Posix").upper()
        parser.add_argument(_flag(field.name), metavar=metavar, help=meaning)
    return parser
