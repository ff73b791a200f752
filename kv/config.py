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

from kv import __version__
from logd.shared import logging_setup
from logd.shared.protocol import VALUE_BYTES_CEILING

_MIB: Final = 1 << 20
_ENVIRONMENT_PREFIX: Final = "KV_"
_HELP_COLUMNS: Final = 100
_NONE: Final = "none"  # a file of that name is ./none
_SIZE_UNITS: Final = {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10}
_HTTP: Final = "HTTP"
_LIMITS: Final = "Limits and time-outs"
_STORAGE: Final = "Storage"
_PROCESSES: Final = "Processes and logs"


class ConfigError(ValueError):
    """An option has a value that it cannot have; the message names both."""


T = TypeVar("T")


def _option(default: T, meaning: str, group: str = _LIMITS) -> T:
    return dataclasses.field(default=default, metadata={"group": group, "meaning": meaning})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The options. Units are the last word of a name."""

    host: str = _option("127.0.0.1", "address to listen on; think of --token-file before opening it to others", _HTTP)
    port: int = _option(8080, "TCP port to listen on", _HTTP)
    token_file: Path | None = _option(
        None,
        "file with the token that every request but /health and /live has to carry, as Authorization: Bearer",
        _HTTP,
    )
    tls_cert_file: Path | None = _option(None, "certificate chain, as PEM: serve HTTPS", _HTTP)
    tls_key_file: Path | None = _option(None, "its private key, as PEM", _HTTP)
    working_dir: Path = _option(Path("data"), "directory of the log and the snapshots; made when missing", _STORAGE)
    workers: int = _option(max(2, min(os.cpu_count() or 2, 16)), "HTTP worker processes", _PROCESSES)
    value_bytes_max: int = _option(16 * _MIB, "largest value; a larger one is answered 413")
    header_bytes_max: int = _option(64 * 1024, "largest request line and headers; more is answered 431")
    header_timeout_s: float = _option(10.0, "time for a request's headers to arrive, or for a TLS handshake")
    body_timeout_s: float = _option(30.0, "time without any progress of a body, or of a client that reads its answer")
    keep_alive_s: float = _option(75.0, "time that an idle connection is kept open")
    linger_timeout_s: float = _option(30.0, "time for which a client may go on sending after its answer")
    linger_idle_s: float = _option(5.0, "time without a byte after which such a client is cut off")
    linger_bytes_max: int = _option(256 * _MIB, "bytes of such a client that are discarded before it is cut off")
    request_timeout_s: float = _option(10.0, "time to wait for the log writer, then 503 or 504")
    queue_bytes_max: int = _option(256 * _MIB, "bytes of writes a worker may have waiting; beyond it 503")
    data_bytes_max: int = _option(0, "bytes of keys and values; growth beyond it is answered 507; 0 for no limit")
    body_bytes_in_flight_max: int = _option(
        256 * _MIB,
        "bytes of unanswered requests a worker may hold; beyond it the largest that arrives gets 503;"
        " and, beside them, of large values that are being read; beyond it others wait",
    )
    stop_timeout_s: float = _option(12.0, "time for requests in flight when stopping")
    segment_bytes: int = _option(32 * _MIB, "size at which a log segment is sealed", _STORAGE)
    checkpoint_log_bytes: int = _option(64 * _MIB, "least size of the sealed log that makes a checkpoint due", _STORAGE)
    checkpoint_ratio: float = _option(1.0, "least size of the sealed log relative to the snapshot, too", _STORAGE)
    log_level: str = _option("info", "least severe messages that are logged: debug, info, warning, error", _PROCESSES)
    log_format: str = _option("text", "text for people, or json for machines: one object a line", _PROCESSES)

    def __post_init__(self) -> None:
        """Check each value, and how they relate. Raises ConfigError."""
        for name, least in _LEAST.items():
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{_flag(name)} must be a finite number, not {getattr(self, name)}")
            if getattr(self, name) < least:
                raise ConfigError(f"{_flag(name)} must be at least {least}, not {getattr(self, name)}")
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ConfigError("--tls-cert-file and --tls-key-file go together")
        if self.port > 65535:
            raise ConfigError(f"--port must be at most 65535, not {self.port}")
        if self.value_bytes_max > VALUE_BYTES_CEILING:
            raise ConfigError(f"--value-bytes-max must be at most {VALUE_BYTES_CEILING}, not {self.value_bytes_max}")
        if self.queue_bytes_max < self.value_bytes_max:
            raise ConfigError("--queue-bytes-max must be at least --value-bytes-max, or the largest value never fits")
        if self.body_bytes_in_flight_max < self.value_bytes_max:
            raise ConfigError(
                "--body-bytes-in-flight-max must be at least --value-bytes-max, or the largest value never fits"
            )
        if self.log_level not in _LOG_LEVELS:
            raise ConfigError(f"--log-level must be one of {', '.join(_LOG_LEVELS)}, not {self.log_level!r}")
        if self.log_format not in logging_setup.FORMATS:
            raise ConfigError(
                f"--log-format must be one of {', '.join(logging_setup.FORMATS)}, not {self.log_format!r}"
            )

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
        """Flags over environment variables over defaults.

        Exits with a clear line when they make no sense, and when the user asked for no more than to be told something.
        """
        parser = _parser()
        arguments = vars(parser.parse_args(argv))
        only_check = arguments.pop("check_config")
        flags = {_variable(name): text for name, text in arguments.items() if text is not None}
        try:
            config = cls.from_environment({**environment, **flags})
        except ConfigError as error:
            parser.error(str(error))
        if only_check:
            print(*config._told(flags, environment), sep="\n")
            parser.exit()
        return config

    def _told(self, flags: Mapping[str, str], environment: Mapping[str, str]) -> list[str]:
        """Each option, its value, and where that came from."""
        lines = []
        for field in dataclasses.fields(self):
            variable = _variable(field.name)
            source = "flag" if variable in flags else variable if variable in environment else "default"
            lines.append(f"{field.name} = {_shown(field, getattr(self, field.name))}  # {source}")
        return lines

    def to_environment(self) -> dict[str, str]:
        """The variables that make `from_environment` give an equal Config."""
        values = {_variable(field.name): getattr(self, field.name) for field in dataclasses.fields(self)}
        return {variable: _NONE if value is None else str(value) for variable, value in values.items()}

    def with_absolute_paths(self) -> Self:
        """The same, for processes that run in another directory."""
        paths: dict[str, Any] = {
            name: value.absolute() for name, value in vars(self).items() if isinstance(value, Path)
        }
        return dataclasses.replace(self, **paths)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inherited:
    """What the supervisor hands to gunicorn and its workers beside the options."""

    listen_fd: int
    """The listening socket."""
    lifeline_fd: int
    """The read end of a pipe that only the supervisor can close: its end means that the supervisor is gone."""
    logd_address: str
    """Where logd listens, as ipc://PATH."""
    board_fd: int
    """The memory in which all processes count (kv/scoreboard.py)."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read what `to_environment` wrote. Raises KeyError outside of a supervisor's tree."""
        return cls(
            listen_fd=int(environment["KV_INHERITED_LISTEN_FD"]),
            lifeline_fd=int(environment["KV_INHERITED_LIFELINE_FD"]),
            logd_address=environment["KV_INHERITED_LOGD_ADDRESS"],
            board_fd=int(environment["KV_INHERITED_BOARD_FD"]),
        )

    def to_environment(self) -> dict[str, str]:
        """The variables that make `from_environment` give an equal object."""
        return {
            "KV_INHERITED_LISTEN_FD": str(self.listen_fd),
            "KV_INHERITED_LIFELINE_FD": str(self.lifeline_fd),
            "KV_INHERITED_LOGD_ADDRESS": self.logd_address,
            "KV_INHERITED_BOARD_FD": str(self.board_fd),
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
    "linger_timeout_s": 0.1,
    "linger_idle_s": 0.1,
    "linger_bytes_max": 0,
    "request_timeout_s": 0.1,
    "data_bytes_max": 0,
    "stop_timeout_s": 0.0,
    "segment_bytes": 1024,
    "checkpoint_log_bytes": 1024,
    "checkpoint_ratio": 0.0,
}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(name: str) -> str:
    return _ENVIRONMENT_PREFIX + name.upper()


def _is_path(field: dataclasses.Field[Any]) -> bool:
    return field.default is None or isinstance(field.default, Path)


def _is_size(field: dataclasses.Field[Any]) -> bool:
    return "bytes" in field.name.split("_")


def _parse(field: dataclasses.Field[Any], text: str, said: str) -> Any:  # noqa: ANN401
    if not text:
        raise ConfigError(f"{_flag(field.name)} (or {said}) must not be empty")
    if field.default is None and text == _NONE:
        return None
    kind: type[Any] = Path if _is_path(field) else type(field.default)
    try:
        return _parse_size(text) if _is_size(field) else kind(text)
    except ValueError:
        what = f"a number of bytes, {', '.join(_SIZE_UNITS)}" if _is_size(field) else "a number"
        raise ConfigError(f"{_flag(field.name)} (or {said}) must be {what}, not {text!r}") from None


def _parse_size(text: str) -> int:
    for unit, factor in _SIZE_UNITS.items():
        if text.endswith(unit):
            return int(text.removesuffix(unit)) * factor
    return int(text)


def _shown(field: dataclasses.Field[Any], value: object) -> str:
    """A value as people read it, and as `_parse` reads it too."""
    if _is_size(field) and isinstance(value, int):
        for unit, factor in _SIZE_UNITS.items():
            if value and value % factor == 0:
                return f"{value // factor} {unit}"
    return _NONE if value is None else str(value).removesuffix(".0")


class _HelpFormatter(argparse.HelpFormatter):
    """Wraps at the same column everywhere, and leaves line breaks as they are."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=_HELP_COLUMNS)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return [
            wrapped for line in text.splitlines() for wrapped in super(_HelpFormatter, self)._split_lines(line, width)
        ]


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help lists the options)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="./run.sh",
        usage="%(prog)s [--port PORT] [--working-dir DIR] [OPTION ...]",
        description="A crash-safe HTTP key-value server. A flag (--port 8080 or --port=8080) wins over its environment"
        " variable, and that over the default. A SIZE is a number of bytes, or of KiB, MiB or GiB: 32MiB.",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    groups = {name: parser.add_argument_group(name) for name in (_HTTP, _LIMITS, _STORAGE, _PROCESSES)}
    for field in dataclasses.fields(Config):
        meaning = f"{field.metadata['meaning']}\n[{_variable(field.name)}; default {_shown(field, field.default)}]"
        groups[field.metadata["group"]].add_argument(_flag(field.name), metavar=_metavar(field), help=meaning)
    told = parser.add_argument_group("Instead of serving")
    told.add_argument("--check-config", action="store_true", help="whether the options make sense, and what they are")
    told.add_argument("--version", action="version", version=f"kv {__version__}", help="the version")
    told.add_argument("-h", "--help", action="help", help="this")
    return parser


def _metavar(field: dataclasses.Field[Any]) -> str:
    last = field.name.rpartition("_")[2]
    return "SIZE" if _is_size(field) else "SECONDS" if last == "s" else last.upper()
