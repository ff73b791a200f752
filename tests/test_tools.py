"""The commands for people: what they show, what `repair` cuts off and what it keeps, and import after export."""

import errno
import itertools
import json
import os
import random
import re
import shutil

import pytest

from logd.__main__ import main
from logd.local import group as groups
from logd.local import recovery, wal
from logd.local.disk import DirectoryLock, LocalDisk
from logd.shared import protocol
from logd.shared.protocol import Check, Exit, Transaction
from logd.tools import export, import_
from logd.tools.commands import COMMANDS
from tests.support.builders import (
    A,
    WatchedDisk,
    batch,
    contents,
    encode_payload,
    file_name,
    group,
    lay_out,
    of_other_version,
    offsets,
    payload_of,
    segment,
    state,
)


def damage(directory, token, offset, size=1):
    """Overwrite bytes of a file of a layout with others."""
    path = directory / file_name(token)
    data = bytearray(path.read_bytes())
    data[offset : offset + size] = bytes(byte ^ 0xFF for byte in data[offset : offset + size])
    path.write_bytes(data)


def frame_offset(directory, token, index):
    return offsets((directory / file_name(token)).read_bytes())[index]


def run(capsys, *arguments):
    """A command in this process: its exit status and what it printed."""
    status = main([str(argument) for argument in arguments])
    return status, capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_describes_a_command_and_each_of_its_arguments(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main([command.name, "--help"])
    own = capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help"])
    assert f"{command.name} " in capsys.readouterr().out
    assert command.description in " ".join(own.split())
    for argument in command.arguments:
        assert argument.options["help"] in " ".join(own.split())


def test_inspect_says_what_is_in_each_file_and_what_recovery_would_do(tmp_path, capsys):
    lay_out(tmp_path, "1-3 @3 4-6")
    status, out = run(capsys, "inspect", tmp_path)
    assert status == Exit.STOPPED
    lines = out.splitlines()
    assert file_name("@3") in lines[0]
    assert f"{len(state(3).data)} keys as of frame 3; ends clean" in lines[0]
    assert "frames 4 to 6, 3 batches: 6 puts, 3 deletes, 1 clears; ends clean" in lines[2]
    assert lines[3] == "recovery would: serve [CLEAN]"
    assert lines[4] == f"and have {len(state(6).data)} keys as of frame 6"


def test_inspect_speaks_json(tmp_path, capsys):
    lay_out(tmp_path, "1-3")
    _, out = run(capsys, "inspect", "--json", tmp_path)
    report = json.loads(out)
    assert [file["frames"] for file in report["files"]] == [3]
    assert report["sequence"] == 3


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_whole_files_and_a_torn_tail_are_no_damage(tmp_path, capsys, command):
    lay_out(tmp_path, "1-3 @3 4-6")
    assert run(capsys, command, tmp_path)[0] == Exit.STOPPED
    path = tmp_path / file_name("4-6")
    path.write_bytes(path.read_bytes()[:-3])
    assert run(capsys, command, tmp_path)[0] == Exit.STOPPED


def test_a_missing_segment_is_damage(tmp_path, capsys):
    lay_out(tmp_path, "1-3 4-6 7-9")
    (tmp_path / file_name("4-6")).unlink()
    assert [run(capsys, command, tmp_path)[0] for command in ("verify", "inspect")] == [Exit.DAMAGED] * 2


@pytest.mark.parametrize("command", [["verify"], ["inspect"], ["inspect", "--json"]])
@pytest.mark.parametrize("token", ["1-3", "@3", "4-6"])
def test_a_flipped_byte_is_found_in_every_file_also_in_one_that_is_not_needed(tmp_path, capsys, token, command):
    lay_out(tmp_path, "1-3 @3 4-6")
    damage(tmp_path, token, 60)
    status, out = run(capsys, *command, tmp_path)
    assert status == Exit.DAMAGED
    assert file_name(token) in out


def test_dump_writes_the_operations_in_order(tmp_path, capsys):
    lay_out(tmp_path, "1-4")
    status, out = run(capsys, "dump", tmp_path)
    lines = [json.loads(line) for line in out.splitlines()]
    assert status == Exit.STOPPED
    assert [line["sequence"] for line in lines] == sorted(line["sequence"] for line in lines)
    assert [line["operation"] for line in lines if line["sequence"] == 4] == ["clear", "put", "put", "delete"]
    assert {"key": "last", "value": "4"}.items() <= lines[-2].items()


def test_dump_and_inspect_show_transactions(tmp_path, capsys):
    transaction = Transaction(
        [Check("a", ["t"], negated=False), Check("b", None, negated=True)], {"b": "ü".encode()}, ["a"]
    )
    raws = [protocol.encode(batch(A, 0, transactions=[transaction]))]
    payload = encode_payload(groups.elements(raws, 1000))
    (tmp_path / wal.segment_name(1)).write_bytes(segment([payload]))
    _, out = run(capsys, "dump", tmp_path)
    assert json.loads(out) == {
        "sequence": 1,
        "session": A.hex(),
        "batch": 0,
        "operation": "transaction",
        "checks": [{"key": "a", "etags": ["t"], "negated": False}, {"key": "b", "etags": "*", "negated": True}],
        "writes": [{"operation": "put", "key": "b", "value": "ü"}, {"operation": "delete", "key": "a"}],
    }
    assert "1 batches: 0 puts, 0 deletes, 0 clears, 1 transactions; ends clean" in run(capsys, "inspect", tmp_path)[1]


def test_dump_stops_at_damage_and_says_so(tmp_path, capsys):
    lay_out(tmp_path, "1-4")
    damage(tmp_path, "1-4", frame_offset(tmp_path, "1-4", 2) + 30)
    status, out = run(capsys, "dump", tmp_path)
    assert status == Exit.DAMAGED
    assert {json.loads(line)["sequence"] for line in out.splitlines()} == {1, 2}


def test_dump_stops_at_a_whole_frame_that_it_cannot_read_and_says_so(tmp_path, capsys, caplog):
    (tmp_path / file_name("1-2")).write_bytes(segment([payload_of(group(1)), b"\x91\x01"]))
    status, out = run(capsys, "dump", tmp_path)
    assert status == Exit.DAMAGED
    assert {json.loads(line)["sequence"] for line in out.splitlines()} == {1}
    assert "[UNREADABLE_FRAME]" in caplog.text


def test_dump_judges_the_header_of_a_segment_as_recovery_does(tmp_path, capsys, caplog):
    lay_out(tmp_path, "1-2")
    (tmp_path / file_name("3-3")).write_bytes(segment([payload_of(group(3))], first=4))
    status, out = run(capsys, "dump", tmp_path)
    assert status == Exit.DAMAGED
    assert {json.loads(line)["sequence"] for line in out.splitlines()} == {1, 2}
    assert "[BAD_SEGMENT]" in caplog.text


def test_export_and_import_move_the_state_unchanged(tmp_path, capsys):
    lay_out(tmp_path / "from", "1-3 @3 4-6")
    run(capsys, "export", tmp_path / "from", tmp_path / "state.jsonl")
    assert run(capsys, "import", tmp_path / "to", tmp_path / "state.jsonl")[0] == Exit.STOPPED
    assert recovery.load(LocalDisk(tmp_path / "to")).store.data == state(6).data


def test_any_text_goes_through_export_and_import(tmp_path):
    lay_out(tmp_path / "from", "1-1")
    text = '"\\\n\t\0 \u2028 é 𝄞 {}'
    lines = [json.dumps({"key": "k", "value": text}).encode()]
    (tmp_path / "to").mkdir()
    disk = LocalDisk(tmp_path / "to")
    import_.write(disk, import_.decode(lines))
    out = b"".join(export.encode(export.read_state(disk).store))
    assert [json.loads(line) for line in out.split(b"\n")[:-1]] == [{"key": "k", "value": text}]


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ('{"key": "a", "value": "1"}\nnonsense\n', "line 2"),
        ('{"key": "a"}\n', "line 1"),
        ('{"key": "", "value": "1"}\n', r"line 1: .*\.key"),
        ('{"key": "a/b", "value": "1"}\n', r"line 1: .*\.key"),
        ('{"key": "a", "value": ""}\n', r"line 1: .*\.value"),
        ('{"key": "a", "value": 1}\n', "line 1"),
    ],
)
def test_import_refuses_what_export_does_not_write(lines, complaint):
    with pytest.raises(import_.BadLine, match=complaint):
        import_.decode(lines.encode().splitlines())


def test_an_import_that_fails_leaves_a_directory_into_which_it_can_be_tried_again(tmp_path):
    whole = WatchedDisk(tmp_path)
    import_.write(whole, state(3))
    for failing_call in range(len(whole.calls)):
        directory = tmp_path / str(failing_call)
        directory.mkdir()
        disk = WatchedDisk(directory, full_once_at(failing_call))
        with pytest.raises(OSError, match="No space left"):
            import_.write(disk, state(3))
        assert os.listdir(directory) == []
        import_.write(disk, state(3))
        assert recovery.load(disk).store.data == state(3).data


def full_once_at(index):
    """A `before` that finds the disk full at the call with this index."""
    calls = itertools.count()

    def before(_):
        if next(calls) == index:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return before


REPAIRS = [
    # what is there, what is damaged (file, frame or None for the header), which state is left
    ("1-6", ("1-6", 2), 2),
    ("1-6", ("1-6", 0), 0),
    ("1-6", ("1-6", None), 0),
    ("1-3 4-6 7-9", ("4-6", 1), 4),
    ("1-3 4-6 7-9", ("4-6", 0), 3),
    ("1-3 4-6 7-9", ("4-6", None), 3),
    ("1-3 @3 4-6 7-9", ("4-6", 2), 5),
    ("1-3 @3 4-6 7-9", ("4-6", None), 3),
    ("4-6 @3", ("@3", None), 0),
    ("4-6 @3 @6 7-9", ("@6", None), 9),
]


@pytest.mark.parametrize(("layout", "place", "left"), REPAIRS)
def test_repair_leaves_what_is_before_the_damage_and_keeps_what_it_cuts(tmp_path, capsys, layout, place, left):
    lay_out(tmp_path, layout)
    token, index = place
    damage(tmp_path, token, 4 if index is None else frame_offset(tmp_path, token, index) + 25)
    damaged = contents(tmp_path)

    shown = run(capsys, "repair", tmp_path)
    assert {name: data for name, data in contents(tmp_path).items() if name != "LOCK"} == damaged

    done = run(capsys, "repair", "--yes", tmp_path)
    assert done[0] == Exit.STOPPED
    assert done[1].splitlines()[:-1] == shown[1].splitlines()[:-1]
    recovered = recovery.load(LocalDisk(tmp_path))
    assert recovered.store.data == state(left).data
    assert recovered.sequence == left
    assert _kept(contents(tmp_path), damaged)


def _kept(files, before):
    """True when every byte of what was there is still in its file, or in one that was cut off from it."""
    for old, data in before.items():
        cut_off = b"".join(files[name] for name in files if name.startswith(f"{old}.damaged"))
        if data not in (cut_off, files.get(old, b"") + cut_off):
            return False
    return True


@pytest.mark.parametrize("gone", ["1-3", "4-6", "7-9"])
@pytest.mark.parametrize("layout", ["1-3 4-6 7-9", "1-3 @3 4-6 7-9"])
def test_repair_goes_as_far_as_a_missing_segment(tmp_path, capsys, layout, gone):
    lay_out(tmp_path, layout)
    (tmp_path / file_name(gone)).unlink()
    left = int(gone[0]) - 1
    if "@3" in layout and gone == "1-3":
        left = 9  # the snapshot has it
    run(capsys, "repair", "--yes", tmp_path)
    assert recovery.load(LocalDisk(tmp_path)).sequence == left


@pytest.mark.parametrize("token", ["1-3", "@3", "4-6"])
def test_repair_cuts_nothing_off_that_another_version_wrote(tmp_path, capsys, token):
    lay_out(tmp_path, "1-3 @3 4-6" if token != "1-3" else "1-3")
    path = tmp_path / file_name(token)
    path.write_bytes(of_other_version(path.read_bytes()))
    before = contents(tmp_path)
    assert run(capsys, "repair", "--yes", tmp_path)[0] == Exit.DAMAGED
    assert run(capsys, "verify", tmp_path)[0] == Exit.DAMAGED
    assert contents(tmp_path) == before | {"LOCK": b"process %d" % os.getpid()}


def test_a_second_repair_does_not_overwrite_what_the_first_has_cut_off(tmp_path, capsys):
    for _ in range(2):
        lay_out(tmp_path, "1-3")
        damage(tmp_path, "1-3", 4)
        run(capsys, "repair", "--yes", tmp_path)
    assert len(cut_off_files(tmp_path)) == 2


def cut_off_files(directory):
    return sorted(directory.glob("*.damaged*"))


def test_repair_ends_with_something_that_recovery_serves_whatever_the_damage(tmp_path, capsys):
    chance = random.Random(7)
    for number in range(150):
        directory = tmp_path / str(number)
        tokens = ["1-3", "@3", "4-6", "7-9", "@9", "10-12"]
        lay_out(directory, " ".join(tokens))
        for _ in range(chance.randint(1, 3)):
            path = directory / file_name(chance.choice(tokens))
            if path.exists():
                _hurt(path, chance)
        assert run(capsys, "repair", "--yes", directory)[0] == Exit.STOPPED
        recovered = recovery.load(LocalDisk(directory))
        assert recovered.store.data == state(recovered.sequence).data
        shutil.rmtree(directory)


def _hurt(path, chance):
    data = bytearray(path.read_bytes())
    way = chance.randrange(3)
    if way == 0:
        path.unlink()
    elif way == 1:
        path.write_bytes(data[: chance.randrange(len(data))])
    else:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)


# Files that are named ------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["1-4", "@4"])
def test_dump_shows_a_whole_file_under_any_name(tmp_path, capsys, caplog, token):
    lay_out(tmp_path, token)
    path = (tmp_path / file_name(token)).rename(tmp_path / "moved away")
    status, out = run(capsys, "dump", path)
    lines = [json.loads(line) for line in out.splitlines()]
    assert status == Exit.STOPPED
    assert {line["file"] for line in lines} == {str(path)}
    values = {line["key"]: line["value"].encode() for line in lines if line["operation"] == "put"}
    assert state(4).data.items() <= values.items()
    assert re.search(r"moved away: \d+ bytes, (\d+) whole frames, \1 of them readable", caplog.text)


def test_dump_shows_the_same_operations_of_a_directory_and_of_its_files(tmp_path, capsys):
    lay_out(tmp_path, "1-3 4-6")
    of_directory = run(capsys, "dump", tmp_path)[1].splitlines()
    of_files = run(capsys, "dump", tmp_path / file_name("1-3"), tmp_path / file_name("4-6"))[1].splitlines()
    assert [json.loads(line) for line in of_directory] == [
        {name: value for name, value in json.loads(line).items() if name != "file"} for line in of_files
    ]


CUT_OFF = [
    # what is there, what is damaged (as in REPAIRS), which frames can be read of what is cut off
    ("1-6", ("1-6", 2), {4, 5, 6}),
    ("1-6", ("1-6", 0), {2, 3, 4, 5, 6}),
    ("1-6", ("1-6", None), {1, 2, 3, 4, 5, 6}),
    ("1-3 4-6 7-9", ("4-6", 1), {6, 7, 8, 9}),
    ("1-3 4-6 7-9", ("4-6", None), {4, 5, 6, 7, 8, 9}),
]


@pytest.mark.parametrize("case", CUT_OFF)
@pytest.mark.parametrize("where", [0, 25], ids=["its marker", "its payload"])
def test_dump_shows_what_is_whole_in_the_files_that_repair_has_cut_off(tmp_path, capsys, caplog, case, where):
    layout, place, seen = case
    lay_out(tmp_path, layout)
    token, index = place
    damage(tmp_path, token, 4 if index is None else frame_offset(tmp_path, token, index) + where, size=4)
    run(capsys, "repair", "--yes", tmp_path)
    status, out = run(capsys, "dump", *cut_off_files(tmp_path))
    assert status == Exit.STOPPED
    lines = [json.loads(line) for line in out.splitlines()]
    assert {line["sequence"] for line in lines} == seen
    assert {line["file"] for line in lines} <= set(map(str, cut_off_files(tmp_path)))
    for sequence in seen:
        keys = [line["key"] for line in lines if line["sequence"] == sequence and line["operation"] == "put"]
        assert keys == list(group(sequence).puts)
    assert sum(map(int, re.findall(r"(\d+) of them readable", caplog.text))) == len(seen)


def test_dump_shows_what_was_cut_off_when_the_rest_of_the_file_is_gone_and_while_a_server_runs(tmp_path, capsys):
    lay_out(tmp_path, "1-6")
    damage(tmp_path, "1-6", frame_offset(tmp_path, "1-6", 2) + 25)
    run(capsys, "repair", "--yes", tmp_path)
    (tmp_path / file_name("1-6")).unlink()
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    status, out = run(capsys, "dump", *cut_off_files(tmp_path))
    lock.release()
    assert status == Exit.STOPPED
    assert {json.loads(line)["sequence"] for line in out.splitlines()} == {4, 5, 6}


def test_dump_shows_the_keys_of_a_snapshot_that_repair_has_cut_off(tmp_path, capsys):
    lay_out(tmp_path, "4-6 @3")
    damage(tmp_path, "@3", 4)
    run(capsys, "repair", "--yes", tmp_path)
    _, out = run(capsys, "dump", *cut_off_files(tmp_path))
    lines = [json.loads(line) for line in out.splitlines() if "/snapshot-" in line]
    assert {line["key"]: line["value"].encode() for line in lines} == state(3).data


def test_dump_counts_a_whole_frame_that_it_cannot_read(tmp_path, capsys, caplog):
    path = tmp_path / f"{file_name('1-3')}.damaged-0"
    path.write_bytes(segment([b"\x91\x01"]))
    assert run(capsys, "dump", path) == (Exit.STOPPED, "")
    assert f"{path}: 54 bytes, 1 whole frames, 0 of them readable" in caplog.text


@pytest.mark.parametrize("data", [b"", b"x", b"no file of ours\n" * 9, bytes(5000)])
def test_dump_finds_nothing_in_a_file_that_is_not_of_the_server(tmp_path, capsys, caplog, data):
    (tmp_path / "file").write_bytes(data)
    assert run(capsys, "dump", tmp_path / "file") == (Exit.STOPPED, "")
    assert f"{len(data)} bytes, 0 whole frames, 0 of them readable" in caplog.text
