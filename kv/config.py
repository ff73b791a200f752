"""The options of the server: flag, environment variable, default, help text, and the values that are allowed.

An option is declared once, as a field of `Config`. Knows nothing of who uses it. The supervisor reads the command line
once and passes the result on, to gunicorn and its workers in their environment and to logd as flags, so that all
processes have the same values.
"""

import argparse
import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn, Self, TypeVar

from kv import __version__, cpus
from logd.shared import logging_setup
from logd.shared.protocol import BATCH_BYTES_SOFT_MAX, VALUE_BYTES_CEILING
from logd.shared.text import printable

_MIB: Final = 1 << 20
_ENVIRONMENT_PREFIX: Final = "KV_"
_HELP_COLUMNS: Final = 100
_NONE: Final = "none"  # a file with this name can be given as ./none
_SIZE_UNITS: Final = {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10}
_HTTP: Final = "HTTP"
_LIMITS: Final = "Limits and time-outs"
_STORAGE: Final = "Storage"
_ENGINE: Final = "Engine"
_PROCESSES: Final = "Processes and logs"
_ETCD_VALUE_BYTES_MAX: Final = _MIB  # etcd takes requests of 1.5 MiB, if nothing else is said
_ETCD_BATCH_BYTES: Final = 256 << 10
_ETCD_BATCH_CHECKS: Final = 48
_ETCD_CHECKED_BYTES: Final = 64 << 10
_ETCD_RESERVED_BYTES: Final = _ETCD_BATCH_BYTES + _ETCD_CHECKED_BYTES + (128 << 10)
"""Beside the largest value, or batch: others, its checked keys a second time, what each entry adds, and the record."""
_OF_LOCAL_ENGINE: Final = ("data_bytes_max", "segment_bytes", "checkpoint_log_bytes", "checkpoint_ratio")

_ENDPOINT: Final = re.compile(r"https?://[^/,\s]+:[0-9]{1,5}")
_PREFIX: Final = re.compile(r"[A-Za-z0-9_.-]+")


class ConfigError(ValueError):
    """An option has a value that it cannot have; the message names both."""


class UnusableFile(ConfigError):
    """A file that an option names cannot be used as it is; the message says why."""


T = TypeVar("T")


def _option(
    default: T,
    help_: str,
    group: str = _LIMITS,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    choices: Sequence[str] = (),
) -> T:
    """Declare an option. The unit of a number is a word of its name."""
    metadata = {"help": help_, "group": group, "least": least, "most": most, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchLimits:
    """What a batch of a worker may hold before it gets no further write; one write may be larger by itself."""

    bytes_soft_max: int = BATCH_BYTES_SOFT_MAX
    checks_max: int | None = None
    """No write may have more by itself either. None: no limit."""
    checked_bytes_max: int | None = None
    """Of the keys that the checks of one write name. None: no limit."""


UNLIMITED: Final = BatchLimits()
"""As an engine asks for that has no limits of its own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The options."""

    host: str = _option(
        "127.0.0.1",
        "address, or name of addresses, to listen on; consider --token-file before others can reach it",
        _HTTP,
    )
    port: int = _option(8080, "TCP port to listen on", _HTTP, least=1, most=65535)
    token_file: Path | None = _option(
        None,
        "file with the token that every request must carry, as Authorization: Bearer, but those for /health, /live and"
        " the files of /console",
        _HTTP,
    )
    console: str = _option(
        "on", "whether /console is served, the page for people: on or off", _HTTP, choices=("on", "off")
    )
    tls_cert_file: Path | None = _option(None, "certificate chain in PEM; with it the server speaks HTTPS", _HTTP)
    tls_key_file: Path | None = _option(None, "private key of the certificate, in PEM", _HTTP)
    working_dir: Path = _option(
        Path("data"), "directory of the log and the snapshots; created if it does not exist", _STORAGE
    )
    workers: int = _option(max(2, min(cpus.usable(), 16)), "number of HTTP worker processes", _PROCESSES, least=1)
    value_bytes_max: int = _option(
        16 * _MIB,
        "largest value; a larger one is answered 413. With --engine etcd the default is 1 MiB",
        least=1,
        most=VALUE_BYTES_CEILING,
    )
    header_bytes_max: int = _option(
        64 * 1024, "largest request line with headers; a larger one is answered 431", least=1024
    )
    header_timeout_s: float = _option(
        10.0, "time for the headers of a request, or for a TLS handshake, to arrive", least=0.1
    )
    body_timeout_s: float = _option(
        30.0, "time that a body may make no progress, or that a client may read nothing of its answer", least=0.1
    )
    keep_alive_s: float = _option(75.0, "time that an idle connection is kept open", least=0.1)
    linger_timeout_s: float = _option(30.0, "time that a client may go on sending after its answer", least=0.1)
    linger_idle_s: float = _option(5.0, "time that such a client may be silent before it is cut off", least=0.1)
    linger_bytes_max: int = _option(
        256 * _MIB, "bytes of such a client that are discarded before it is cut off", least=0
    )
    request_timeout_s: float = _option(
        10.0, "time to wait for the log writer; then the answer is 503 or 504", least=0.1
    )
    queue_bytes_max: int = _option(
        256 * _MIB, "bytes of waiting writes per worker; further writes are answered 503", least=1
    )
    data_bytes_max: int = _option(
        0, "bytes of all keys and values; a write that would exceed them is answered 507; 0 means no limit", least=0
    )
    body_bytes_in_flight_max: int = _option(
        256 * _MIB,
        "bytes of unanswered requests per worker; beyond them, the largest request that is still arriving is answered"
        " 503. The same limit holds, separately, for large values that are being read; beyond it, further reads wait",
        least=1,
    )
    stop_timeout_s: float = _option(12.0, "time for requests in flight to be answered when the server stops", least=0.0)
    segment_bytes: int = _option(32 * _MIB, "size at which a segment of the log is sealed", _STORAGE, least=1024)
    checkpoint_log_bytes: int = _option(
        64 * _MIB, "a checkpoint is due when the sealed log has at least this size", _STORAGE, least=1024
    )
    checkpoint_ratio: float = _option(1.0, "and at least this size relative to the snapshot", _STORAGE, least=0.0)
    engine: str = _option(
        "local",
        "where data is kept: local, in --working-dir, or etcd, in a cluster of etcd",
        _ENGINE,
        choices=("local", "etcd"),
    )
    etcd_endpoints: str = _option(
        "http://127.0.0.1:2379", "URLs of the members of the cluster, separated by commas, the nearest first", _ENGINE
    )
    etcd_prefix: str = _option("kv", "what the keys in etcd begin with; servers with the same one share data", _ENGINE)
    etcd_reads: str = _option(
        "auto",
        "log: reads go through the log of etcd; index: they do not, which needs etcd 3.4.42, 3.5.28 or 3.6.9; auto: as"
        " the versions of the members allow",
        _ENGINE,
        choices=("auto", "index", "log"),
    )
    etcd_compact_s: float = _option(
        60.0, "time after which etcd may forget replaced values; 0 leaves that to others", _ENGINE, least=0.0
    )
    etcd_request_bytes_max: int = _option(
        _MIB + _MIB // 2, "largest request that the members take, their --max-request-bytes", _ENGINE, least=_MIB // 2
    )
    etcd_ca_file: Path | None = _option(None, "certificates, in PEM, that those of the members are signed by", _ENGINE)
    etcd_cert_file: Path | None = _option(None, "certificate, in PEM, that the members know this server by", _ENGINE)
    etcd_key_file: Path | None = _option(None, "private key of that certificate, in PEM", _ENGINE)
    etcd_user_file: Path | None = _option(None, "file with a line NAME:PASSWORD, a user of etcd", _ENGINE)
    log_level: str = _option(
        "info",
        "least severe level that is logged: debug, info, warning, error",
        _PROCESSES,
        choices=("debug", "info", "warning", "error"),
    )
    log_format: str = _option(
        "text", "text for people, or json for machines: one object per line", _PROCESSES, choices=logging_setup.FORMATS
    )

    def __post_init__(self) -> None:
        """Check each value, then how they relate. Raises ConfigError."""
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))
        self._check_relations()

    def _check_relations(self) -> None:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ConfigError("--tls-cert-file and --tls-key-file must be given together")
        for name in ("queue_bytes_max", "body_bytes_in_flight_max"):
            if getattr(self, name) < self.value_bytes_max:
                raise ConfigError(
                    f"{_flag(name)} must be at least --value-bytes-max, or the largest value is always refused"
                )
        if self.engine == "etcd":
            self._check_etcd()
        for field in dataclasses.fields(self):
            is_of_other = field.name.startswith("etcd_") if self.engine == "local" else field.name in _OF_LOCAL_ENGINE
            if is_of_other and getattr(self, field.name) != field.default:
                raise ConfigError(f"{_flag(field.name)} means nothing with --engine {self.engine}")

    def _check_etcd(self) -> None:
        for url in self.etcd_endpoints.split(","):
            if not _ENDPOINT.fullmatch(url):
                raise ConfigError(f"--etcd-endpoints must be URLs like https://HOST:2379, not {url!r}")
        if not _PREFIX.fullmatch(self.etcd_prefix):
            raise ConfigError(
                f"--etcd-prefix must be made of letters, digits and _ . -, not {self.etcd_prefix!r}; with a / in it,"
                " the keys of one server could be among those of another"
            )
        if (self.etcd_cert_file is None) != (self.etcd_key_file is None):
            raise ConfigError("--etcd-cert-file and --etcd-key-file must be given together")
        if self.value_bytes_max + _ETCD_RESERVED_BYTES > self.etcd_request_bytes_max:
            raise ConfigError(
                f"--value-bytes-max must be at most {self.etcd_request_bytes_max - _ETCD_RESERVED_BYTES}, so that a"
                " value fits into --etcd-request-bytes-max with what is sent beside it"
            )

    def batch_limits(self) -> BatchLimits:
        """How workers have to cut their batches for the engine."""
        if self.engine == "etcd":
            return BatchLimits(
                bytes_soft_max=_ETCD_BATCH_BYTES, checks_max=_ETCD_BATCH_CHECKS, checked_bytes_max=_ETCD_CHECKED_BYTES
            )
        return UNLIMITED

    def etcd_hosts(self) -> list[tuple[str, str]]:
        """The scheme and the host of each endpoint; none when it is not etcd that keeps the data."""
        urls = self.etcd_endpoints.split(",") if self.engine == "etcd" else []
        parts = [url.partition("://") for url in urls]
        return [(scheme, rest.rpartition(":")[0].strip("[]")) for scheme, _, rest in parts]

    def place(self) -> str:
        """Where data is kept, for people."""
        return f"etcd at {self.etcd_endpoints}" if self.engine == "etcd" else str(self.working_dir)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read the KV_* variables; an option without one has its default. Raises ConfigError."""
        values = {}
        for field in dataclasses.fields(cls):
            text = environment.get(_variable(field.name))
            if text is not None:
                values[field.name] = _parse(field, text, _variable(field.name))
        if values.get("engine") == "etcd":
            values.setdefault("value_bytes_max", _ETCD_VALUE_BYTES_MAX)
        return cls(**values)

    @classmethod
    def from_command_line(
        cls,
        argv: Sequence[str] | None,
        environment: Mapping[str, str],
        check: Callable[[Self], None] = lambda _: None,
    ) -> Self:
        """Read flags over environment variables over defaults.

        Exits with one line and status 2 when they make no sense; with status 0 after --help, --version or
        --check-config, which first calls `check`. That may raise ConfigError.
        """
        parser = _parser()
        arguments = vars(parser.parse_args(argv))
        is_check = arguments.pop("check_config")
        flags = {_variable(name): text for name, text in arguments.items() if text is not None}
        try:
            config = cls.from_environment({**environment, **flags})
            if is_check:
                check(config)
        except ConfigError as error:
            parser.error(str(error))
        if is_check:
            print(*map(printable, config._describe(flags, environment)), sep="\n")
            parser.exit()
        return config

    def _describe(self, flags: Mapping[str, str], environment: Mapping[str, str]) -> list[str]:
        """Each option, its value, and where that came from."""
        lines = []
        for field in dataclasses.fields(self):
            variable = _variable(field.name)
            source = "flag" if variable in flags else variable if variable in environment else "default"
            lines.append(f"{field.name} = {_format(field, getattr(self, field.name))}  # {source}")
        return lines

    def to_environment(self) -> dict[str, str]:
        """The variables that make `from_environment` give an equal Config."""
        values = {_variable(field.name): getattr(self, field.name) for field in dataclasses.fields(self)}
        return {variable: _NONE if value is None else str(value) for variable, value in values.items()}

    def with_absolute_paths(self) -> Self:
        """The same options for a process that runs in another directory.

        Raises UnusableFile for a relative path when the current directory was deleted.
        """
        paths: dict[str, Any] = {
            name: _absolute(value, name) for name, value in vars(self).items() if isinstance(value, Path)
        }
        return dataclasses.replace(self, **paths)


def _absolute(path: Path, name: str) -> Path:
    try:
        return path.absolute()
    except FileNotFoundError:
        reason = "the current directory was deleted; give an absolute path"
        raise UnusableFile(f"{_flag(name)} {path}: {reason}") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inherited:
    """What gunicorn and its workers get from the supervisor beside the options."""

    listen_fds: tuple[int, ...]
    """The listening sockets."""
    lifeline_fd: int
    """The read end of a pipe whose write end only the supervisor has: end of file means that the supervisor is gone."""
    logd_address: str
    """Where logd listens, as ipc://…."""
    scoreboard_fd: int
    """The memory of kv/scoreboard.py."""
    warnings_fd: int
    """That of logd/shared/recent_warnings.py."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read what `to_environment` wrote. Raises KeyError in a process that no supervisor has started."""
        return cls(
            listen_fds=tuple(map(int, environment["KV_INHERITED_LISTEN_FDS"].split(","))),
            lifeline_fd=int(environment["KV_INHERITED_LIFELINE_FD"]),
            logd_address=environment["KV_INHERITED_LOGD_ADDRESS"],
            scoreboard_fd=int(environment["KV_INHERITED_SCOREBOARD_FD"]),
            warnings_fd=int(environment["KV_INHERITED_WARNINGS_FD"]),
        )

    def to_environment(self) -> dict[str, str]:
        """The variables that make `from_environment` give an equal object."""
        return {
            "KV_INHERITED_LISTEN_FDS": ",".join(map(str, self.listen_fds)),
            "KV_INHERITED_LIFELINE_FD": str(self.lifeline_fd),
            "KV_INHERITED_LOGD_ADDRESS": self.logd_address,
            "KV_INHERITED_SCOREBOARD_FD": str(self.scoreboard_fd),
            "KV_INHERITED_WARNINGS_FD": str(self.warnings_fd),
        }


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(name: str) -> str:
    return _ENVIRONMENT_PREFIX + name.upper()


def _is_path(field: dataclasses.Field[Any]) -> bool:
    return field.default is None or isinstance(field.default, Path)


def _is_size(field: dataclasses.Field[Any]) -> bool:
    return "bytes" in field.name.split("_")


def _parse(field: dataclasses.Field[Any], text: str, variable: str) -> Any:  # noqa: ANN401
    if not text:
        raise ConfigError(f"{_flag(field.name)} (or {variable}) must not be empty")
    if field.default is None and text == _NONE:
        return None
    type_: type[Any] = Path if _is_path(field) else type(field.default)
    try:
        return _parse_size(text) if _is_size(field) else type_(text)
    except ValueError:
        expected = f"a number of bytes, {', '.join(_SIZE_UNITS)}" if _is_size(field) else "a number"
        raise ConfigError(f"{_flag(field.name)} (or {variable}) must be {expected}, not {text!r}") from None


def _check(field: dataclasses.Field[Any], value: Any) -> None:  # noqa: ANN401
    """Check one value by itself. Raises ConfigError."""
    flag, least, most, choices = _flag(field.name), *(field.metadata[name] for name in ("least", "most", "choices"))
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{flag} must be a finite number, not {value}")
    if isinstance(value, int | float) and value < least:
        raise ConfigError(f"{flag} must be at least {least}, not {value}")
    if isinstance(value, int | float) and value > most:
        raise ConfigError(f"{flag} must be at most {most}, not {value}")
    if choices and value not in choices:
        raise ConfigError(f"{flag} must be one of {', '.join(choices)}, not {value!r}")


def _parse_size(text: str) -> int:
    for unit, factor in _SIZE_UNITS.items():
        if text.endswith(unit):
            return int(text.removesuffix(unit)) * factor
    return int(text)


def _format(field: dataclasses.Field[Any], value: object) -> str:
    """A value for people; `_parse` reads it too."""
    if _is_size(field) and isinstance(value, int):
        for unit, factor in _SIZE_UNITS.items():
            if value and value % factor == 0:
                return f"{value // factor} {unit}"
    if isinstance(value, float):
        return str(value).removesuffix(".0")
    return _NONE if value is None else str(value)


class _HelpFormatter(argparse.HelpFormatter):
    """Wraps at the same column on every terminal, and keeps line breaks."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=_HELP_COLUMNS)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return [
            wrapped for line in text.splitlines() for wrapped in super(_HelpFormatter, self)._split_lines(line, width)
        ]


class _Parser(argparse.ArgumentParser):
    """Reports an error in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {printable(message)} (--help lists the options)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="./run.sh",
        usage="%(prog)s [--port PORT] [--working-dir DIR] [OPTION ...]",
        description="A crash-safe HTTP key-value server. A flag (--port 8080 or --port=8080) wins over its environment"
        " variable, and the variable over the default. A SIZE is in bytes, or has a unit (KiB, MiB, GiB): 32MiB.",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    groups = {name: parser.add_argument_group(name) for name in (_HTTP, _LIMITS, _STORAGE, _ENGINE, _PROCESSES)}
    for field in dataclasses.fields(Config):
        help_ = f"{field.metadata['help']}\n[{_variable(field.name)}; default {_format(field, field.default)}]"
        groups[field.metadata["group"]].add_argument(_flag(field.name), metavar=_metavar(field), help=help_)
    others = parser.add_argument_group("Instead of serving")
    others.add_argument("--check-config", action="store_true", help="check the options and their files, and print them")
    others.add_argument("--version", action="version", version=f"kv {__version__}", help="print the version")
    others.add_argument("-h", "--help", action="help", help="print this")
    return parser


def _metavar(field: dataclasses.Field[Any]) -> str:
    last = field.name.rpartition("_")[2]
    return "SIZE" if _is_size(field) else "SECONDS" if last == "s" else last.upper()
