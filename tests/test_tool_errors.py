"""Whatever a person gives to a command: an exit status, a line that names what failed, and never a traceback."""

import errno
import os
import signal
import socket
import subprocess
import sys

import pytest

from logd.__main__ import main
from logd.local.disk import DirectoryLock
from logd.shared.protocol import Exit
from tests.support.builders import PipedSegment, WatchedDisk, contents, failing, file_name, flipped, lay_out, offsets
from tests.support.harness import ROOT

ON_A_DIRECTORY = ["inspect", "verify", "dump", "repair", "repair --yes", "export"]
LOCKING = ["inspect", "verify", "dump", "repair", "repair --yes"]
ENTRY = b'{"key": "a", "value": "1"}\n'


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current directory: with some data, and much that is none."""
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path / "data", "1-3")
    lay_out(tmp_path / "damaged", "1-1 3-3")
    path = tmp_path / "damaged" / file_name("1-1")
    path.write_bytes(path.read_bytes() + b"x")
    for name in ("empty", "strange", "strange/" + file_name("1-3"), "no-lock", "no-lock/LOCK"):
        (tmp_path / name).mkdir()
    (tmp_path / "no-lock" / file_name("1-3")).write_bytes((tmp_path / "data" / file_name("1-3")).read_bytes())
    (tmp_path / "file").write_bytes(ENTRY)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "into-data").symlink_to("data/backup")
    (tmp_path / "full").symlink_to("/dev/full")
    return tmp_path


def refused(caplog, arguments):
    """The exit status of a command, and the one line that it logs."""
    status = main(arguments)
    (line,) = caplog.messages
    return status, line


LONG = "x" * 300
BAD_DIRECTORIES = {
    "nowhere": "nowhere: No such file or directory",
    "file/below": "file/below: Not a directory",
    "loop": "loop: Too many levels of symbolic links",
    LONG: f"{LONG}: File name too long",
    "empty": "there is no data in empty; look whether it is the right directory",
    "strange": f"strange/{file_name('1-3')}: Is a directory",
}


@pytest.mark.parametrize("command", ON_A_DIRECTORY)
@pytest.mark.parametrize("directory", BAD_DIRECTORIES, ids=lambda name: name[:9])
def test_a_directory_that_cannot_be_used_is_named_and_left_alone(place, caplog, command, directory):
    before = sorted(place.rglob("*"))
    assert refused(caplog, [*command.split(), directory]) == (Exit.UNUSABLE, BAD_DIRECTORIES[directory])
    assert [path for path in sorted(place.rglob("*")) if path not in before] in ([], [place / "strange" / "LOCK"])


@pytest.mark.parametrize("command", [each for each in ON_A_DIRECTORY if each != "dump"])
def test_a_file_for_a_directory_is_named(place, caplog, command):
    assert refused(caplog, [*command.split(), "file"]) == (Exit.UNUSABLE, "file: Not a directory")


@pytest.mark.parametrize("command", LOCKING)
def test_a_lock_that_cannot_be_made_is_named(place, caplog, command):
    assert refused(caplog, [*command.split(), "no-lock"]) == (Exit.UNUSABLE, "no-lock/LOCK: Is a directory")


@pytest.mark.parametrize("command", [*LOCKING, "import"])
def test_a_directory_in_use_is_left_alone(place, caplog, command):
    before = contents(place / "data")
    lock = DirectoryLock(place / "data")
    lock.acquire()
    arguments = [*command.split(), "data", *(["file"] if command == "import" else [])]
    holder = f"process {os.getpid()}"
    line = f"data is in use by a living server, {holder}; stop that first"
    assert refused(caplog, arguments) == (Exit.LOCKED, line)
    lock.release()
    assert contents(place / "data") == before | {"LOCK": holder.encode()}


@pytest.mark.parametrize(
    ("directory", "status", "line"),
    [
        ("data", Exit.USAGE, "data holds data; name a new directory, or an empty one"),
        ("file", Exit.UNUSABLE, "file: Not a directory"),
        ("file/below", Exit.UNUSABLE, "file: Not a directory"),
        ("loop", Exit.UNUSABLE, "loop: Not a directory"),
        (LONG, Exit.UNUSABLE, f"{LONG}: File name too long"),
    ],
    ids=lambda value: str(value)[:9],
)
def test_a_directory_into_which_nothing_can_be_imported_is_named(place, caplog, directory, status, line):
    before = contents(place / "data")
    assert refused(caplog, ["import", directory, "file"]) == (status, line)
    assert contents(place / "data") in (before, before | {"LOCK": b"process %d" % os.getpid()})


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("nowhere", "nowhere: No such file or directory"),
        ("empty", "empty: Is a directory"),
        ("file/below", "file/below: Not a directory"),
        ("loop", "loop: Too many levels of symbolic links"),
        (LONG, f"{LONG}: File name too long"),
    ],
    ids=lambda value: value[:9],
)
def test_a_file_that_cannot_be_imported_is_named_and_no_directory_is_made(place, caplog, file, line):
    assert refused(caplog, ["import", "new", file]) == (Exit.UNUSABLE, line)
    assert not (place / "new").exists()


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"",
        b"{}",
        b'{"key": "a"}',
        b'{"key": "a", "value": 1}',
        b'{"key": "a", "value": "\xff"}',
        b'{"key": "a", "value": "\\ud800"}',
        b'{"key": "a", "value": "1"} {}',
        b'{"key": "a", "value": "1", "more": ' + b"[" * 100_000,
        b'{"key": "a", "val',
        b"\x1f\x8b\x08\x00",
    ],
    ids=lambda line: line.decode(errors="replace")[:40],
)
def test_a_line_that_is_not_of_an_export_is_named_and_no_directory_is_made(place, caplog, line):
    (place / "in").write_bytes(ENTRY + line + b"\n")
    status, message = refused(caplog, ["import", "new", "in"])
    assert status == Exit.USAGE
    assert message.startswith("in: line 2: ")
    assert message.endswith("; nothing was imported")
    assert not (place / "new").exists()


@pytest.mark.parametrize(
    ("file", "status", "line"),
    [
        ("nowhere/out", Exit.UNUSABLE, "nowhere/out: No such file or directory"),
        ("file/below", Exit.UNUSABLE, "file/below: Not a directory"),
        ("empty", Exit.UNUSABLE, "empty: Is a directory"),
        (LONG, Exit.UNUSABLE, f"{LONG}: File name too long"),
        ("full", Exit.UNUSABLE, "full: No space left on device; make room there and try again"),
        ("data/backup", Exit.USAGE, "data/backup is in data, where only the server may write; name another place"),
        ("data/LOCK", Exit.USAGE, "data/LOCK is in data, where only the server may write; name another place"),
        ("into-data", Exit.USAGE, "into-data is in data, where only the server may write; name another place"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_a_file_to_which_nothing_can_be_exported_is_named(place, caplog, file, status, line):
    before = sorted(place.rglob("*"))
    assert refused(caplog, ["export", "data", file]) == (status, line)
    assert sorted(place.rglob("*")) == before


def test_a_socket_to_which_nothing_can_be_exported_is_named(place, caplog):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        line = f"socket: {os.strerror(errno.ENXIO)}"
        assert refused(caplog, ["export", "data", "socket"]) == (Exit.UNUSABLE, line)


@pytest.mark.parametrize(
    ("paths", "refusal"),
    [
        (["file", "nowhere"], (Exit.UNUSABLE, "nowhere: No such file or directory")),
        (["nowhere", "file"], (Exit.UNUSABLE, "nowhere: No such file or directory")),
        (["file", "data"], (Exit.USAGE, "data is not a file; name one directory, or files")),
        (["data", "data"], (Exit.USAGE, "data is not a file; name one directory, or files")),
        (["file", "/dev/zero"], (Exit.USAGE, "/dev/zero is not a file; name one directory, or files")),
        (["/dev/zero"], (Exit.UNUSABLE, "/dev/zero: Not a directory")),
        (["file", LONG], (Exit.UNUSABLE, f"{LONG}: File name too long")),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_dump_cannot_show_is_named_before_it_shows_anything(place, caplog, capsys, paths, refusal):
    assert refused(caplog, ["dump", *paths]) == refusal
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("arguments", [["repair", "--yes", "data"], ["import", "new", "file"]], ids=" ".join)
def test_a_full_disk_is_named(place, caplog, monkeypatch, arguments):
    def full(path):
        return WatchedDisk(path, failing("append", errno.ENOSPC))

    monkeypatch.setattr("logd.tools.directory.LocalDisk", full)
    path = place / "data" / file_name("1-3")
    path.write_bytes(flipped(path.read_bytes(), 8 * offsets(path.read_bytes())[1]))
    name = "new" if "new" in arguments else "data"
    line = f"{name}: No space left on device; make room there and try again"
    assert refused(caplog, arguments) == (Exit.UNUSABLE, line)
    assert sorted(os.listdir(name)) == (["LOCK"] if name == "new" else sorted([file_name("1-3"), "LOCK"]))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        *([name] for name in ("inspect", "verify", "dump", "repair", "export", "import", "serve")),
        *([name, ""] for name in ("inspect", "verify", "dump", "repair", "export", "import")),
        ["dump", "data", ""],
        ["dump", "--set-aside", "data"],
        ["export", "data", ""],
        ["import", "new", ""],
        ["verify", "data", "data"],
        ["export", "data", "out", "out"],
        ["inspect", "--nonsense", "data"],
        ["verify", "--yes", "data"],
    ],
    ids=" ".join,
)
def test_a_command_line_that_makes_no_sense_is_refused(place, capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == Exit.USAGE
    assert "error: " in capsys.readouterr().err
    assert not (place / "data" / "LOCK").exists()


# What only a process of its own can meet -----------------------------------------------------------------


def shell(command, cwd, **environment):
    """A command line in which $logd stands for the program: how it ended."""
    done = subprocess.run(
        command.replace("$logd", f"{sys.executable} -m logd"),
        shell=True,
        check=False,
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    assert b"Exception" not in done.stderr, done.stderr.decode()
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.mark.parametrize(
    "command", ["inspect data", "verify data", "dump data", "dump damaged", "repair data", "export data"]
)
def test_standard_output_that_cannot_be_written_is_named(place, command):
    status, _, err = shell(f"$logd {command} >/dev/full", place)
    assert status == Exit.UNUSABLE
    assert err.endswith("standard output: No space left on device; make room there and try again\n")
    status, _, err = shell(f"$logd {command} >&-", place)
    assert status == Exit.USAGE
    assert err.endswith("standard output is closed\n")


def test_standard_input_that_is_no_export_is_named(place):
    status, _, err = shell("echo nonsense | $logd import new", place)
    assert status == Exit.USAGE
    assert "standard input: line 1: " in err
    assert not (place / "new").exists()


def test_standard_input_that_is_closed_is_named(place):
    status, _, err = shell("$logd import new <&-", place)
    assert status == Exit.USAGE
    assert err.endswith("standard input is closed; name a FILE\n")
    assert not (place / "new").exists()


def test_without_standard_error_the_status_still_says_it(place):
    assert shell("$logd verify data 2>&-", place)[0] == Exit.STOPPED
    assert shell("$logd export data out 2>&-", place)[0] == Exit.STOPPED
    assert shell("$logd verify nowhere 2>&-", place)[0] == Exit.UNUSABLE


@pytest.mark.parametrize("command", ["inspect data", "verify data", "dump data", "repair data", "export data"])
def test_a_reader_that_has_seen_enough_is_no_error(place, command):
    pipe = os.pipe()
    os.close(pipe[0])
    tool = [sys.executable, "-m", "logd", *command.split()]
    done = subprocess.run(tool, cwd=place, env={"PYTHONPATH": str(ROOT)}, stdout=pipe[1], stderr=-1, check=False)
    os.close(pipe[1])
    assert (done.returncode, done.stderr) == (Exit.CRASHED, b"")


def test_any_text_and_any_file_name_is_shown_whatever_the_locale(place):
    (place / "in").write_bytes('{"key": "a", "value": "Zürich 𝄞"}\n'.encode())
    assert shell("$logd import new in", place)[0] == Exit.STOPPED
    name = os.fsencode(place) + b"/\xff\n"
    (place / "new" / "snapshot-00000000000000000000.snap").rename(os.fsdecode(name))
    status, out, err = shell("$logd dump *$(printf '\\377')*", place, LC_ALL="C", PYTHONIOENCODING="ascii")
    assert (status, "1 of them readable" in err) == (Exit.STOPPED, False)
    assert "Zürich 𝄞".encode() in out


@pytest.mark.parametrize("command", ["inspect", "verify", "dump", "repair", "export", "import"])
def test_in_a_current_directory_that_was_deleted_what_is_named_fully_is_used_and_all_else_is_named(place, command):
    directory = "new" if command == "import" else "data"
    file = " file" if command == "import" else ""
    full_file = f" {place / 'file'}" if command == "import" else ""
    gone = 'mkdir gone; cd gone; rmdir "$PWD"; '
    assert shell(f"{gone} $logd {command} {place / directory}{full_file}", place)[0] == Exit.STOPPED
    status, _, err = shell(f"{gone} $logd {command} {directory}{file}", place)
    assert status == Exit.UNUSABLE
    assert err.endswith(f"{file.strip() or directory}: No such file or directory\n")


def test_a_file_in_a_current_directory_that_was_deleted_is_named(place):
    status, _, err = shell(f'mkdir gone; cd gone; rmdir "$PWD"; $logd export {place / "data"} out', place)
    assert status == Exit.UNUSABLE
    assert err.endswith("out: No such file or directory\n")


def test_an_interrupt_ends_a_command_with_one_line(place):
    held = PipedSegment(place / "held", "1-3 4-6", "4-6")
    command = [sys.executable, "-m", "logd", "verify", held.directory]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as tool:
        try:
            with held.reader():  # no longer: a signal just before a read would not end that
                tool.send_signal(signal.SIGINT)
            _, err = tool.communicate(timeout=30)
        finally:
            tool.kill()
    assert tool.returncode == 128 + signal.SIGINT
    assert err.endswith("CRITICAL interrupted\n")
    assert err.count("\n") == 1


def test_damage_is_followed_by_commands_that_can_be_pasted(place):
    path = place / "data" / file_name("1-3")
    path.write_bytes(b"x" + path.read_bytes()[1:])
    (place / "data").rename(place / "it's data")
    err = shell('$logd export "it\'s data"', place)[2]
    commands = dict(line.partition("CRITICAL ")[2].split(": ", 1) for line in err.splitlines()[1:])
    status, out, _ = shell(commands["to see more"], "/", PYTHONPATH="")
    assert (status, b"DAMAGED" in out) == (Exit.DAMAGED, True)
    assert shell(commands["to repair"] + " --yes", "/", PYTHONPATH="")[0] == Exit.STOPPED
    assert shell('$logd verify "it\'s data"', place)[0] == Exit.STOPPED
