"""The commands for people: look, verify, mend, move in and out."""

import json
import os
import random
import re
import shutil
import subprocess
import sys

import pytest

from logd.__main__ import main
from logd.local import recovery
from logd.local.disk import DirectoryLock, LocalDisk
from logd.shared.protocol import Exit
from logd.tools import commands as tools
from tests.support.builders import contents, file_name, group, lay_out, of_other_version, offsets, segment, state
from tests.support.harness import ROOT


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


def shell(command):
    return subprocess.run(
        command, shell=True, check=False, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


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


def test_dump_stops_at_damage_and_says_so(tmp_path, capsys):
    lay_out(tmp_path, "1-4")
    damage(tmp_path, "1-4", frame_offset(tmp_path, "1-4", 2) + 30)
    status, out = run(capsys, "dump", tmp_path)
    assert status == Exit.DAMAGED
    assert {json.loads(line)["sequence"] for line in out.splitlines()} == {1, 2}


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
    assert tools.import_(disk, lines) == 1
    out = b"".join(tools.export(tools.read_state(disk).store))
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
def test_import_refuses_what_export_does_not_write_and_leaves_the_directory_empty(tmp_path, lines, complaint):
    with pytest.raises(tools.CannotImport, match=complaint):
        tools.import_(LocalDisk(tmp_path), lines.encode().splitlines())
    assert not os.listdir(tmp_path)


def test_import_refuses_a_directory_with_data(tmp_path, capsys):
    lay_out(tmp_path, "1-3")
    before = contents(tmp_path)
    (tmp_path / "in.jsonl").write_text('{"key": "a", "value": "1"}\n')
    assert run(capsys, "import", tmp_path, tmp_path / "in.jsonl")[0] == Exit.USAGE
    assert before.items() <= contents(tmp_path).items()


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
    """True when every byte of what was there is still in its file, or set aside from it."""
    for old, data in before.items():
        aside = b"".join(files[name] for name in files if name.startswith(f"{old}.damaged"))
        if data not in (aside, files.get(old, b"") + aside):
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
def test_repair_sets_nothing_aside_that_another_version_wrote(tmp_path, capsys, token):
    lay_out(tmp_path, "1-3 @3 4-6" if token != "1-3" else "1-3")
    path = tmp_path / file_name(token)
    path.write_bytes(of_other_version(path.read_bytes()))
    before = contents(tmp_path)
    assert run(capsys, "repair", "--yes", tmp_path)[0] == Exit.DAMAGED
    assert run(capsys, "verify", tmp_path)[0] == Exit.DAMAGED
    assert contents(tmp_path) == before | {"LOCK": b""}


def test_a_second_repair_does_not_overwrite_what_the_first_has_set_aside(tmp_path, capsys):
    for _ in range(2):
        lay_out(tmp_path, "1-3")
        damage(tmp_path, "1-3", 4)
        run(capsys, "repair", "--yes", tmp_path)
    assert len([name for name in os.listdir(tmp_path) if ".damaged" in name]) == 2


CUT_OFF = [
    # what is there, what is damaged (as in REPAIRS), what is to be seen of what is cut off
    ("1-6", ("1-6", 2), {4, 5, 6}),
    ("1-6", ("1-6", 0), {2, 3, 4, 5, 6}),
    ("1-6", ("1-6", None), {1, 2, 3, 4, 5, 6}),
    ("1-3 4-6 7-9", ("4-6", 1), {6, 7, 8, 9}),
    ("1-3 4-6 7-9", ("4-6", None), {4, 5, 6, 7, 8, 9}),
]


@pytest.mark.parametrize("case", CUT_OFF)
@pytest.mark.parametrize("where", [0, 25], ids=["its marker", "its payload"])
def test_what_repair_has_cut_off_can_be_seen_as_far_as_it_is_whole(tmp_path, capsys, caplog, case, where):
    layout, place, seen = case
    lay_out(tmp_path, layout)
    token, index = place
    damage(tmp_path, token, 4 if index is None else frame_offset(tmp_path, token, index) + where, size=4)
    run(capsys, "repair", "--yes", tmp_path)
    status, out = run(capsys, "dump", "--set-aside", tmp_path)
    assert status == Exit.STOPPED
    lines = [json.loads(line) for line in out.splitlines()]
    assert {line["sequence"] for line in lines} == seen
    assert all(line["file"].startswith("wal-") and ".damaged-" in line["file"] for line in lines)
    for sequence in seen:
        keys = [line["key"] for line in lines if line["sequence"] == sequence and line["operation"] == "put"]
        assert keys == list(group(sequence).puts)
    assert sum(map(int, re.findall(r"(\d+) of them readable", caplog.text))) == len(seen)


def test_what_was_set_aside_can_be_seen_when_the_rest_of_the_file_is_gone_and_while_a_server_runs(tmp_path, capsys):
    lay_out(tmp_path, "1-6")
    damage(tmp_path, "1-6", frame_offset(tmp_path, "1-6", 2) + 25)
    run(capsys, "repair", "--yes", tmp_path)
    (tmp_path / file_name("1-6")).unlink()
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    status, out = run(capsys, "dump", "--set-aside", tmp_path)
    lock.release()
    assert status == Exit.STOPPED
    assert {json.loads(line)["sequence"] for line in out.splitlines()} == {4, 5, 6}


def test_the_keys_of_a_snapshot_that_was_set_aside_can_be_seen(tmp_path, capsys):
    lay_out(tmp_path, "4-6 @3")
    damage(tmp_path, "@3", 4)
    run(capsys, "repair", "--yes", tmp_path)
    _, out = run(capsys, "dump", "--set-aside", tmp_path)
    lines = [json.loads(line) for line in out.splitlines() if '"snapshot' in line]
    assert {line["key"]: line["value"].encode() for line in lines} == state(3).data


def test_a_frame_that_was_set_aside_because_nobody_understands_it_is_counted(tmp_path, capsys, caplog):
    name = f"{file_name('1-3')}.damaged-0"
    (tmp_path / name).write_bytes(segment([b"\x91\x01"]))
    assert run(capsys, "dump", "--set-aside", tmp_path) == (Exit.STOPPED, "")
    assert f"{name}: 54 bytes, 1 whole frames, 0 of them readable" in caplog.text


def test_where_nothing_was_set_aside_that_is_said(tmp_path, capsys, caplog):
    lay_out(tmp_path, "1-3")
    assert run(capsys, "dump", "--set-aside", tmp_path) == (Exit.STOPPED, "")
    assert "nothing is set aside in" in caplog.text


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


def test_a_directory_in_use_is_left_alone(tmp_path, capsys, caplog):
    lay_out(tmp_path, "1-3")
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    lock.write_note("ipc:///somewhere")
    for command in (["inspect"], ["verify"], ["dump"], ["repair", "--yes"], ["import"]):
        done = shell(f"{sys.executable} -m logd {' '.join(command)} {tmp_path}")
        assert done.returncode == Exit.LOCKED
        assert "is in use by a living server, on ipc:///somewhere" in done.stderr


def test_a_directory_that_is_not_there_is_named(tmp_path, caplog):
    assert main(["inspect", str(tmp_path / "nowhere")]) == Exit.UNUSABLE
    assert "nowhere" in caplog.text
    assert not (tmp_path / "nowhere").exists()


def test_a_reader_that_has_seen_enough_gets_no_traceback(tmp_path):
    lay_out(tmp_path, "1-9")
    assert "Traceback" not in shell(f"{sys.executable} -m logd dump {tmp_path} | true").stderr
