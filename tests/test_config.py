"""The options: where a value comes from, which values are allowed, and what is printed."""

import contextlib
import dataclasses
import io
import re
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kv
from kv.config import Config, ConfigError, Inherited, UnusableFile

NAMES = [field.name for field in dataclasses.fields(Config)]
DEFAULTS = Config()
OTHER_WORDS = {
    "console": "off",
    "log_level": "debug",
    "log_format": "json",
    "engine": "etcd",
    "etcd_endpoints": "https://other:2379",
    "etcd_reads": "log",
}
MIB = 1 << 20


def flag(name):
    return "--" + name.replace("_", "-")


def variable(name):
    return "KV_" + name.upper()


def read(*argv, **environment):
    return Config.from_command_line(list(argv), environment)


def refusal(capsys, *argv, **environment):
    """The one line on stderr of a command line that is refused."""
    with pytest.raises(SystemExit) as end:
        read(*argv, **environment)
    output = capsys.readouterr()
    assert (end.value.code, output.out) == (2, "")
    assert output.err.count("\n") == 1, output.err
    assert output.err.endswith("\n")
    return output.err


def changed(name):
    """Another value that the option may have."""
    default = getattr(DEFAULTS, name)
    if name in OTHER_WORDS:
        return OTHER_WORDS[name]
    if default is None or isinstance(default, Path):
        return (default or Path()) / "x"
    return default + ("x" if isinstance(default, str) else 1)


def companions(name):
    """The options that must be given together with an option, with their values."""
    pairs = [("tls_cert_file", "tls_key_file"), ("etcd_cert_file", "etcd_key_file")]
    same = {other: changed(other) for pair in pairs if name in pair for other in pair if other != name}
    return same | ({"engine": "etcd"} if name.startswith("etcd_") else {})


# Where a value comes from --------------------------------------------------------------------------------


def test_an_empty_command_line_and_environment_give_the_defaults():
    assert read() == Config.from_environment({}) == DEFAULTS


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_a_flag_in_two_forms_and_a_variable(name):
    together = {name: changed(name)} | companions(name)
    defaults = {"value_bytes_max": MIB} if together.get("engine") == "etcd" else {}
    expected = dataclasses.replace(DEFAULTS, **defaults, **together)
    text = str(changed(name))
    beside = {variable(other): str(value) for other, value in companions(name).items()}
    assert read(flag(name), text, **beside) == expected
    assert read(f"{flag(name)}={text}", **beside) == expected
    assert read(**{variable(name): text}, **beside) == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_flag_wins_over_a_variable_even_when_the_variable_is_bad(name):
    text = str(changed(name))
    beside = {variable(other): str(value) for other, value in companions(name).items()}
    default = DEFAULTS.to_environment()[variable(name)]
    assert getattr(read(flag(name), text, **{variable(name): default}, **beside), name) == changed(name)
    assert getattr(read(flag(name), text, **{variable(name): "?"}, **beside), name) == changed(name)


def test_the_command_line_of_the_public_harness_is_understood():
    assert read("--port=9000", "--working-dir=/tmp/a b") == Config(port=9000, working_dir=Path("/tmp/a b"))


def test_other_variables_are_ignored():
    assert read(PORT="9000", KV_NOPE="1", kv_port="9000", PATH="/bin") == DEFAULTS


# Which values are allowed --------------------------------------------------------------------------------

NUMBERS = [name for name in NAMES if isinstance(getattr(DEFAULTS, name), int | float)]
MAY_BE_0 = ("stop_timeout_s", "linger_bytes_max", "checkpoint_ratio", "data_bytes_max", "etcd_compact_s")
FLOATS = [name for name in NUMBERS if isinstance(getattr(DEFAULTS, name), float)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((name, text) for name in NUMBERS for text in ("", "x", "1x", "0x10", "-1")),
        *((name, "1.5") for name in NUMBERS if name not in FLOATS),
        *((name, text) for name in FLOATS for text in ("nan", "inf", "-inf")),
        *((name, "0") for name in NUMBERS if name not in MAY_BE_0),
        ("port", "65536"),
        ("port", "99999999999999999999"),
        ("value_bytes_max", str(1 << 40)),
        ("header_bytes_max", "1023"),
        ("segment_bytes", "1023"),
        ("checkpoint_log_bytes", "1023"),
        ("header_timeout_s", "0.09"),
        ("queue_bytes_max", str(DEFAULTS.value_bytes_max - 1)),
        ("body_bytes_in_flight_max", str(DEFAULTS.value_bytes_max - 1)),
        ("log_level", "loud"),
        ("log_level", ""),
        ("log_format", "yaml"),
        ("log_format", ""),
        ("host", ""),
        ("working_dir", ""),
    ],
)
def test_a_bad_value_is_refused_with_one_line_that_names_the_option(capsys, name, text):
    assert flag(name) in refusal(capsys, f"{flag(name)}={text}")
    line = refusal(capsys, **{variable(name): text})
    assert flag(name) in line or variable(name) in line


@pytest.mark.parametrize("name", ["queue_bytes_max", "body_bytes_in_flight_max"])
def test_a_limit_below_the_largest_value_is_refused(capsys, name):
    line = refusal(capsys, "--value-bytes-max=2000", f"{flag(name)}=1999")
    assert "--value-bytes-max" in line
    assert flag(name) in line
    assert getattr(read("--value-bytes-max=2000", f"{flag(name)}=2000"), name) == 2000


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--nope"], "--nope"),
        (["--nope=1"], "--nope"),
        (["--nope", "1"], "--nope"),
        (["--por", "1"], "--por"),
        (["--PORT=1"], "--PORT"),
        (["-p", "1"], "-p"),
        (["stray"], "stray"),
        (["--port"], "--port"),
        (["--port", "--host"], "--port"),
    ],
)
def test_an_unknown_option_is_refused_with_one_line_that_names_it(capsys, argv, named):
    assert named in refusal(capsys, *argv)


@pytest.mark.parametrize(
    ("name", "text"),
    [("port", "1"), ("port", "65535"), ("stop_timeout_s", "0"), ("checkpoint_ratio", "0"), ("keep_alive_s", "0.1")],
)
def test_the_bounds_themselves_are_allowed(name, text):
    assert getattr(read(f"{flag(name)}={text}"), name) == float(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("33554432", 32 * MIB), ("32MiB", 32 * MIB), ("32 MiB", 32 * MIB), ("4KiB", 4096), ("1GiB", 1024 * MIB)],
)
def test_a_size_may_have_a_unit(text, size):
    assert read(f"--segment-bytes={text}") == read(KV_SEGMENT_BYTES=text) == Config(segment_bytes=size)


@pytest.mark.parametrize("text", ["32MB", "32mib", "32M", "MiB", "1.5MiB", "1MiB KiB", "-1KiB"])
def test_a_size_in_another_unit_is_refused(capsys, text):
    assert "--segment-bytes" in refusal(capsys, f"--segment-bytes={text}")


@pytest.mark.parametrize("text", ["8080KiB", "1 MiB"])
def test_a_number_that_is_no_size_has_no_unit(capsys, text):
    assert "--port" in refusal(capsys, f"--port={text}")


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--etcd-endpoints=localhost:2379"], "--etcd-endpoints"),
        (["--etcd-endpoints=http://a:2379,"], "--etcd-endpoints"),
        (["--etcd-endpoints=http://a"], "--etcd-endpoints"),
        (["--etcd-prefix=a/"], "--etcd-prefix"),
        (["--etcd-prefix=a/d"], "--etcd-prefix"),
        (["--etcd-prefix=a b"], "--etcd-prefix"),
        (["--etcd-reads=never"], "--etcd-reads"),
        (["--etcd-cert-file=x"], "--etcd-key-file"),
        (["--value-bytes-max=2MiB"], "--value-bytes-max"),
        (["--segment-bytes=4MiB"], "--segment-bytes"),
        (["--checkpoint-ratio=2"], "--checkpoint-ratio"),
        (["--data-bytes-max=1GiB"], "--data-bytes-max"),
    ],
)
def test_what_makes_no_sense_with_etcd_is_refused(capsys, argv, named):
    assert named in refusal(capsys, "--engine=etcd", *argv)


def test_what_is_for_etcd_is_refused_without_it(capsys):
    assert "--engine local" in refusal(capsys, "--etcd-endpoints=http://a:2379")


def test_with_etcd_values_are_as_large_as_its_requests_allow():
    assert read("--engine=etcd").value_bytes_max == MIB
    more = read("--engine=etcd", "--value-bytes-max=2MiB", "--etcd-request-bytes-max=3MiB")
    assert more.value_bytes_max == 2 * MIB
    assert read("--engine=etcd").batch_limits().checks_max is not None
    assert read().batch_limits().checks_max is None


# Passing on to children ----------------------------------------------------------------------------------

SECONDS = st.floats(0.1, 1e6)
SIZES = st.integers(1024, 1 << 40)
TEXTS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1)
DESCRIPTORS = st.integers(0, 1 << 20)
CONFIGS = st.builds(
    Config,
    host=TEXTS,
    port=st.integers(1, 65535),
    working_dir=TEXTS.map(Path),
    workers=st.integers(1, 100),
    value_bytes_max=st.integers(1, 1 << 24),
    header_bytes_max=SIZES,
    header_timeout_s=SECONDS,
    body_timeout_s=SECONDS,
    keep_alive_s=SECONDS,
    request_timeout_s=SECONDS,
    queue_bytes_max=st.integers(1 << 24, 1 << 40),
    body_bytes_in_flight_max=st.integers(1 << 24, 1 << 40),
    stop_timeout_s=st.floats(0, 1e6),
    segment_bytes=SIZES,
    checkpoint_log_bytes=SIZES,
    checkpoint_ratio=st.floats(0, 1e6),
    console=st.sampled_from(["on", "off"]),
    log_level=st.sampled_from(["debug", "info", "warning", "error"]),
    log_format=st.sampled_from(["text", "json"]),
)


@given(CONFIGS)
def test_options_survive_the_environment_unchanged(config):
    environment = config.to_environment()
    assert Config.from_environment(environment) == config
    assert set(environment) == {variable(name) for name in NAMES}


@given(st.lists(DESCRIPTORS, min_size=1), TEXTS, st.tuples(DESCRIPTORS, DESCRIPTORS, DESCRIPTORS))
def test_what_is_inherited_survives_the_environment_beside_the_options(listen_fds, address, fds):
    lifeline_fd, scoreboard_fd, warnings_fd = fds
    inherited = Inherited(
        listen_fds=tuple(listen_fds),
        lifeline_fd=lifeline_fd,
        logd_address=address,
        scoreboard_fd=scoreboard_fd,
        warnings_fd=warnings_fd,
    )
    environment = DEFAULTS.to_environment() | inherited.to_environment()
    assert Inherited.from_environment(environment) == inherited
    assert Config.from_environment(environment) == DEFAULTS


def test_a_process_without_a_supervisor_inherits_nothing():
    with pytest.raises(KeyError):
        Inherited.from_environment({})


def test_a_config_with_a_bad_value_cannot_be_made():
    with pytest.raises(ConfigError, match="--port"):
        Config(port=0)


# What is printed instead of serving ----------------------------------------------------------------------


def printed(capsys, *argv, **environment):
    """What goes to standard output; the exit status is 0."""
    with pytest.raises(SystemExit) as end:
        read(*argv, **environment)
    output = capsys.readouterr()
    assert (end.value.code or 0, output.err) == (0, "")
    return output.out


def shown(name):
    """A default as --help shows it."""
    default = getattr(DEFAULTS, name)
    sizes = {
        size << shift: f"{size} {unit}"
        for size in (16, 32, 64, 256, 1536)
        for shift, unit in ((10, "KiB"), (20, "MiB"))
    }
    return "none" if default is None else sizes.get(default, str(default).removesuffix(".0"))


def test_help_lists_every_option_with_its_variable_default_and_text_within_100_columns(capsys):
    out = printed(capsys, "--help")
    assert max(map(len, out.splitlines())) <= 100
    entries = re.split(r"\n  (?=--)", out)
    for field in dataclasses.fields(Config):
        (entry,) = (entry for entry in entries if entry.startswith(flag(field.name) + " "))
        assert f"[{variable(field.name)}; default {shown(field.name)}]" in entry
        assert field.metadata["help"] in " ".join(entry.split())


@pytest.mark.parametrize(
    ("name", "unit"), [(name, "SIZE") for name in NAMES if "bytes" in name] + [("keep_alive_s", "SECONDS")]
)
def test_help_gives_the_unit_of_a_number(capsys, name, unit):
    assert re.search(rf"^  {flag(name)} {unit}\b", printed(capsys, "--help"), re.MULTILINE)


def test_the_version_is_that_of_the_project(capsys):
    assert printed(capsys, "--version") == f"kv {kv.__version__}\n"


def test_a_check_prints_each_option_and_its_source(capsys):
    environment = {"KV_PORT": "1", "KV_WORKERS": "3", "KV_SEGMENT_BYTES": "1500", "KV_NOPE": "x"}
    lines = printed(capsys, "--port=9000", "--check-config", **environment).splitlines()
    assert [line.partition(" = ")[0] for line in lines] == NAMES
    assert {line for line in lines if not line.endswith("  # default")} == {
        "port = 9000  # flag",
        "workers = 3  # KV_WORKERS",
        "segment_bytes = 1500  # KV_SEGMENT_BYTES",
    }
    assert "value_bytes_max = 16 MiB  # default" in lines


@given(CONFIGS.map(lambda config: dataclasses.replace(config, host="here", working_dir=Path("a b"))))
def test_the_values_that_a_check_prints_can_be_given_as_flags(config):
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit):
        read("--check-config", **config.to_environment())
    lines = [line.rpartition("  # ")[0].split(" = ") for line in out.getvalue().splitlines()]
    assert read(*(f"{flag(name)}={value}" for name, value in lines)) == config


def test_a_check_shows_names_as_they_are(capsys):
    lines = printed(capsys, "--host=0.0.0.0", "--working-dir=/srv/kv-1.0", "--check-config").splitlines()
    shown = dict(line.split("  # ")[0].split(" = ") for line in lines if " = " in line)
    assert (shown["host"], shown["working_dir"]) == ("0.0.0.0", "/srv/kv-1.0")


def test_a_check_of_the_caller_is_made_before_anything_is_printed_and_only_for_check_config(capsys):
    checked = []

    def refuse(config):
        checked.append(config)
        raise UnusableFile("--token-file x cannot be used")

    assert Config.from_command_line([], {}, refuse) == DEFAULTS
    assert checked == []
    with pytest.raises(SystemExit) as end:
        Config.from_command_line(["--check-config"], {}, refuse)
    output = capsys.readouterr()
    assert (checked, end.value.code, output.out) == ([DEFAULTS], 2, "")
    assert "--token-file x cannot be used" in output.err


def test_a_check_refuses_the_same_values_as_a_start(capsys):
    assert "--port" in refusal(capsys, "--check-config", "--port=0")
    assert "KV_WORKERS" in refusal(capsys, "--check-config", KV_WORKERS="many")


def test_a_check_touches_neither_the_directory_nor_the_port(capsys, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        printed(capsys, "--check-config", f"--port={taken.getsockname()[1]}", f"--working-dir={tmp_path / 'data'}")
    assert list(tmp_path.iterdir()) == []


def test_a_relative_path_in_a_current_directory_that_was_deleted_is_refused_and_others_are_used(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    assert Config(working_dir=Path("data")).with_absolute_paths().working_dir == tmp_path / "gone" / "data"
    (tmp_path / "gone").rmdir()
    assert Config(working_dir=tmp_path / "data").with_absolute_paths().working_dir == tmp_path / "data"
    with pytest.raises(UnusableFile, match="--working-dir data: the current directory was deleted"):
        Config(working_dir=Path("data")).with_absolute_paths()
