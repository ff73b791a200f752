"""Every row of the table of recovery, from real files; damage anywhere; recovery that is cut short itself."""

import os

import pytest

from logd.local import frame, recovery, snapshot, wal
from logd.local.disk import LocalDisk
from logd.local.publish import NoSpace
from logd.local.recovery import Damaged, Finding
from logd.shared import protocol
from tests.support.builders import (
    A,
    Crash,
    WatchedDisk,
    contents,
    crash_at,
    encode_payload,
    failing,
    file_name,
    file_names,
    flipped,
    framed,
    group,
    lay_out,
    of_other_version,
    offsets,
    operations,
    payload_of,
    same,
    segment,
    state,
)
from tests.support.simdisk import SimDisk

# What is done to files: each of these makes a function of the directory. Files are named as in a layout --------


def change(token, function):
    return lambda directory: (directory / file_name(token)).write_bytes(
        function((directory / file_name(token)).read_bytes())
    )


def cut(token, size):
    return change(token, lambda data: data[:size])


def add(token, tail):
    return change(token, lambda data: data + tail)


def flip(token, offset):
    return change(token, lambda data: flipped(data, offset % len(data) * 8))


def flip_frame(token, index):
    """Changes the payload of the frame with that index."""
    return change(token, lambda data: flipped(data, 8 * (offsets(data)[index] + frame.FRAME_HEADER_BYTES)))


def become(token, data):
    return change(token, lambda _: data)


def remove(token):
    return lambda directory: (directory / file_name(token)).unlink()


def litter(name):
    return lambda directory: (directory / name).write_bytes(b"half of it")


def damaged_directory(directory, layout, damages):
    lay_out(directory, layout)
    for damage in damages:
        damage(directory)
    return WatchedDisk(directory)


# Served: layout, damage, finding, the last frame of the state, and the snapshot that it is from ----------------

UNFINISHED = payload_of(group(9))
SERVED = {
    "nothing": ("", [], Finding.NEW, 0, None),
    "only what is not data": ("", [litter("LOCK"), litter("notes.txt")], Finding.NEW, 0, None),
    "only temporary files": ("", [litter(file_name("1-1") + ".tmp")], Finding.NEW, 0, None),
    "one empty segment": ("1-0", [], Finding.CLEAN, 0, None),
    "one segment": ("1-5", [], Finding.CLEAN, 5, None),
    "several segments": ("1-3 4-4 5-8", [], Finding.CLEAN, 8, None),
    "an empty last segment": ("1-5 6-5", [], Finding.CLEAN, 5, None),
    "a snapshot and the log after it": ("6-8 @5", [], Finding.CLEAN, 8, "@5"),
    "a snapshot and an empty log after it": ("6-5 @5", [], Finding.CLEAN, 5, "@5"),
    "a snapshot and the log that it covers": ("1-5 6-5 @5", [], Finding.CLEAN, 5, "@5"),
    "covered and needed segments": ("1-3 4-5 6-8 @5", [], Finding.CLEAN, 8, "@5"),
    "two snapshots": ("4-5 6-8 @3 @5", [], Finding.CLEAN, 8, "@5"),
    "three snapshots, as a crash while removing leaves them": ("6-8 @1 @3 @5", [], Finding.CLEAN, 8, "@5"),
    "an older snapshot that is bad": ("4-5 6-8 @3 @5", [flip("@3", 40)], Finding.CLEAN, 8, "@5"),
    "a covered segment that is damaged": ("1-3 4-5 6-8 @5", [flip_frame("1-3", 1)], Finding.CLEAN, 8, "@5"),
    "a covered segment that is missing": ("1-3 4-5 6-8 @5", [remove("4-5")], Finding.CLEAN, 8, "@5"),
    "temporary files": ("1-5", [litter(file_name(of) + ".tmp") for of in ("@5", "6-6")], Finding.CLEAN, 5, None),
    "snapshots set aside earlier": ("1-5", [litter(file_name("@5") + ".damaged")], Finding.CLEAN, 5, None),
    "a torn frame": ("1-3 4-8", [cut("4-8", -1)], Finding.TORN_TAIL, 7, None),
    "a frame torn in its header": ("1-8", [add("1-8", framed(UNFINISHED, 9)[:19])], Finding.TORN_TAIL, 8, None),
    "a last frame that is damaged": ("6-8 @5", [flip_frame("6-8", 2)], Finding.TORN_TAIL, 7, "@5"),
    "unused space": ("6-8 @5", [add("6-8", bytes(4096))], Finding.CLEAN, 8, "@5"),
    "unused space in a segment that is not the last": ("1-3 4-5", [add("1-3", bytes(99))], Finding.CLEAN, 5, None),
    "a byte in unused space": ("1-8", [add("1-8", bytes(999) + b"x" + bytes(99))], Finding.TORN_TAIL, 8, None),
    "a torn frame and unused space": ("1-3 4-8", [cut("4-8", -1), add("4-8", bytes(99))], Finding.TORN_TAIL, 7, None),
    "garbage after the last frame": ("1-8", [add("1-8", os.urandom(300))], Finding.TORN_TAIL, 8, None),
    "a stale frame after the last one": ("1-8", [add("1-8", framed(UNFINISHED, 3))], Finding.TORN_TAIL, 8, None),
    "the only frame torn": ("6-6 @5", [cut("6-6", -1)], Finding.TORN_TAIL, 5, "@5"),
    "a bad snapshot, and the log reaches back to the older one": (
        "1-3 4-5 6-8 @3 @5",
        [flip("@5", -1), remove("1-3")],
        Finding.OLDER_SNAPSHOT,
        8,
        "@3",
    ),
    "a bad snapshot, and the log reaches back to the beginning": (
        "1-3 4-5 6-8 @5",
        [flip("@5", 40)],
        Finding.OLDER_SNAPSHOT,
        8,
        None,
    ),
    "an empty file for a snapshot": ("1-5 6-8 @5", [cut("@5", 0)], Finding.OLDER_SNAPSHOT, 8, None),
    "two bad snapshots, and the log reaches back to the third": (
        "3-3 4-5 6-8 @2 @3 @5",
        [flip("@5", 40), cut("@3", -1)],
        Finding.OLDER_SNAPSHOT,
        8,
        "@2",
    ),
    "two bad snapshots, and the log reaches back to the beginning": (
        "1-3 4-5 6-8 @3 @5",
        [flip("@5", 40), flip("@3", 40)],
        Finding.OLDER_SNAPSHOT,
        8,
        None,
    ),
    "a bad snapshot and a torn tail": (
        "4-5 6-8 @3 @5",
        [flip("@5", 40), cut("6-8", -1)],
        Finding.TORN_TAIL,
        7,
        "@3",
    ),
}

# Refused: layout, damage, finding, the file, and the index of the frame in it, None for the file as a whole ----

HEADER_OF_ANOTHER = segment([payload_of(group(6))], first=7)
REFUSED = {
    "the only snapshot is bad": ("6-8 @5", [flip("@5", 40)], Finding.BAD_SNAPSHOT, "@5", None),
    "the only snapshot is cut": ("6-8 @5", [cut("@5", -1)], Finding.BAD_SNAPSHOT, "@5", None),
    "the only snapshot, and no log": ("@5", [flip("@5", 40)], Finding.BAD_SNAPSHOT, "@5", None),
    "the newest is bad, and the log does not continue the older": (
        "6-8 @3 @5",
        [flip("@5", 40)],
        Finding.BAD_SNAPSHOT,
        "@5",
        None,
    ),
    "both are bad": ("4-5 6-8 @3 @5", [flip("@5", 40), flip("@3", 40)], Finding.BAD_SNAPSHOT, "@5", None),
    "a snapshot without any log": ("@5", [], Finding.MISSING_SEGMENT, "6-8", None),
    "the first segment after the snapshot": ("6-7 8-8 @5", [remove("6-7")], Finding.MISSING_SEGMENT, "6-7", None),
    "the log ends before the snapshot": ("1-3 @5", [], Finding.MISSING_SEGMENT, "6-8", None),
    "the log ends where the snapshot does": ("1-5 @5", [], Finding.MISSING_SEGMENT, "6-8", None),
    "no segment begins after the snapshot": ("1-8 @5", [], Finding.MISSING_SEGMENT, "6-8", None),
    "the log ends before the snapshot that is bad": (
        "1-3 4-5 @2 @5",
        [flip("@5", 40), remove("4-5")],
        Finding.BAD_SNAPSHOT,
        "@5",
        None,
    ),
    "the first segment of all": ("1-3 4-5 6-8", [remove("1-3")], Finding.MISSING_SEGMENT, "1-3", None),
    "a segment in the middle": ("1-3 4-5 6-8", [remove("4-5")], Finding.MISSING_SEGMENT, "6-8", None),
    "a segment after the older snapshot": (
        "4-4 5-5 6-8 @3 @5",
        [flip("@5", 40), remove("5-5")],
        Finding.MISSING_SEGMENT,
        "6-8",
        None,
    ),
    "the last frame of a sealed segment": (
        "1-3 4-5",
        [change("1-3", lambda data: data[: offsets(data)[2]])],
        Finding.MISSING_SEGMENT,
        "4-5",
        None,
    ),
    "two segments that overlap": ("1-5 5-8", [], Finding.MISSING_SEGMENT, "5-8", None),
    "an empty segment": ("1-5", [cut("1-5", 0)], Finding.BAD_SEGMENT, "1-5", None),
    "a header cut short": ("1-5 6-5", [cut("6-5", 31)], Finding.BAD_SEGMENT, "6-5", None),
    "a header damaged": ("1-5 6-8", [flip("1-5", 20)], Finding.BAD_SEGMENT, "1-5", None),
    "a header of zeros": ("1-5", [become("1-5", bytes(100))], Finding.BAD_SEGMENT, "1-5", None),
    "a segment of another name": ("1-5 6-6", [become("6-6", HEADER_OF_ANOTHER)], Finding.BAD_SEGMENT, "6-6", None),
    "a segment of another version": ("1-5", [change("1-5", of_other_version)], Finding.OTHER_VERSION, "1-5", None),
    "a snapshot of another version, and an older one": (
        "4-5 6-8 @3 @5",
        [change("@5", of_other_version)],
        Finding.OTHER_VERSION,
        "@5",
        None,
    ),
    "the first of several frames": ("1-5", [flip_frame("1-5", 0)], Finding.DAMAGED_FRAME, "1-5", 0),
    "the frame before the last": ("6-8 @5", [flip_frame("6-8", 1)], Finding.DAMAGED_FRAME, "6-8", 1),
    "a length": ("1-5", [flip("1-5", 32 + 4)], Finding.DAMAGED_FRAME, "1-5", 0),
    "a marker": ("1-5", [flip("1-5", 32)], Finding.DAMAGED_FRAME, "1-5", 0),
    "the last frame of a segment that is not the last": (
        "1-3 4-5",
        [flip_frame("1-3", 2)],
        Finding.DAMAGED_FRAME,
        "1-3",
        2,
    ),
    "a torn frame in a segment that is not the last": ("1-3 4-3", [cut("1-3", -1)], Finding.DAMAGED_FRAME, "1-3", 2),
    "garbage after a segment that is not the last": ("1-3 4-5", [add("1-3", b"\0x")], Finding.DAMAGED_FRAME, "1-3", 3),
    "zeros in place of a frame and a later segment": (
        "1-3 4-5",
        [cut("1-3", -20), add("1-3", bytes(20))],
        Finding.DAMAGED_FRAME,
        "1-3",
        2,
    ),
    "a frame is missing": ("1-3", [add("1-3", framed(payload_of(group(5)), 5))], Finding.DAMAGED_FRAME, "1-3", 3),
    "a payload of noise": ("1-3", [add("1-3", framed(b"noise", 4))], Finding.UNREADABLE_FRAME, "1-3", 3),
    "a payload of nothing": ("1-3", [add("1-3", framed(b"", 4))], Finding.UNREADABLE_FRAME, "1-3", 3),
    "a payload of other messages": (
        "6-6 @5",
        [add("6-6", framed(encode_payload([protocol.encode(protocol.StatusRequest(1))]), 7))],
        Finding.UNREADABLE_FRAME,
        "6-6",
        1,
    ),
    "a payload with a key that is not UTF-8": (
        "1-3",
        [add("1-3", framed(payload_of(group(4)).replace(b"last", b"\xff\xff\xff\xff"), 4))],
        Finding.UNREADABLE_FRAME,
        "1-3",
        3,
    ),
}


def cases(table):
    return [pytest.param(case, id=name) for name, case in table.items()]


@pytest.mark.parametrize("case", cases(SERVED))
def test_these_are_served(tmp_path, case):
    layout, damages, finding, sequence, base = case
    disk = damaged_directory(tmp_path, layout, damages)
    before = contents(tmp_path)

    recovered = recovery.load(disk)
    assert (recovered.finding, recovered.sequence) == (finding, sequence)
    assert recovered.snapshot == (base and file_name(base))
    assert same(recovered.store, state(sequence))
    assert disk.calls == []
    assert contents(tmp_path) == before

    dropped = recovered.tail.dropped_bytes if recovered.tail else 0
    recovery.make_durable(disk, recovered)
    again = recovery.load(disk)
    assert again.finding is (Finding.NEW if finding is Finding.NEW else Finding.CLEAN)
    assert (again.sequence, again.snapshot) == (sequence, recovered.snapshot)
    assert same(again.store, state(sequence))
    assert (dropped > 0) == (finding is Finding.TORN_TAIL)

    kept = {name: data for name, data in before.items() if not name.endswith(".tmp")}
    for name in recovered.bad_snapshots:
        kept[f"{name}.damaged"] = kept.pop(name)
    if recovered.tail:
        name = recovered.tail.segment.name
        kept[name] = kept[name][: len(recovered.tail.whole)]
    assert contents(tmp_path) == kept


@pytest.mark.parametrize("case", cases(REFUSED))
def test_these_are_refused_by_file_and_offset(tmp_path, case):
    layout, damages, finding, token, index = case
    disk = damaged_directory(tmp_path, layout, damages)
    before = contents(tmp_path)
    with pytest.raises(Damaged) as caught:
        recovery.load(disk)
    offset = 0 if index is None else offsets(before[file_name(token)])[index]
    assert (caught.value.finding, caught.value.name, caught.value.offset) == (finding, file_name(token), offset)
    for part in (f"[{finding.name}]", file_name(token), f"offset {offset}:"):
        assert part in str(caught.value)
    assert disk.calls == []
    assert contents(tmp_path) == before


def test_the_tables_walk_every_label():
    walked = {case[2] for table in (SERVED, REFUSED) for case in table.values()}
    assert walked == set(Finding)
    for finding in Finding:
        assert f"| {finding.name} " in recovery.__doc__


def test_a_refusal_says_what_follows_the_damage(tmp_path):
    disk = damaged_directory(tmp_path, "1-5", [flip_frame("1-5", 1)])
    follows = offsets(contents(tmp_path)[file_name("1-5")])[2]
    with pytest.raises(Damaged, match=f"frame 2 .*frame 3 at offset {follows}"):
        recovery.load(disk)
    disk = damaged_directory(tmp_path, "1-5 6-8", [cut("1-5", -1)])
    with pytest.raises(Damaged, match=r"frame 5 .*a later segment"):
        recovery.load(disk)


def test_a_deleted_last_segment_is_not_noticed_when_no_snapshot_knows_of_it(tmp_path):
    """The one loss of a file that looks like a clean end. Right after a snapshot it is noticed: see REFUSED."""
    disk = damaged_directory(tmp_path, "1-3 4-5 6-8", [remove("6-8")])
    assert recovery.load(disk).sequence == 5


# Damage anywhere -----------------------------------------------------------------------------------------

WHOLE = "1-3 4-5 6-8 @3 @5"


@pytest.fixture(scope="module")
def whole(module_path):
    lay_out(module_path, WHOLE)
    return contents(module_path)


def load_changed(files, name, data):
    """What becomes of a directory with one file changed: the sequence that is served, or what refuses it."""
    try:
        recovered = recovery.load(SimDisk({**files, name: data}))
    except Damaged as error:
        return error
    assert same(recovered.store, state(recovered.sequence))
    return recovered


@pytest.mark.parametrize("token", WHOLE.split())
def test_any_flipped_bit_is_harmless_or_named_or_in_the_last_group(whole, token):
    name = file_name(token)
    data = whole[name]
    for bit in range(8 * len(data)):
        result = load_changed(whole, name, flipped(data, bit))
        if token == "6-8":
            in_header, in_last = bit < 8 * frame.HEADER_BYTES, bit >= 8 * offsets(data)[2]
            if in_last:
                assert (result.finding, result.sequence) == (Finding.TORN_TAIL, 7)
            else:
                assert result.finding is (Finding.BAD_SEGMENT if in_header else Finding.DAMAGED_FRAME)
                assert result.name == name
        else:
            assert result.sequence == 8
            assert result.finding is (Finding.OLDER_SNAPSHOT if token == "@5" else Finding.CLEAN)


@pytest.mark.parametrize("token", WHOLE.split())
def test_a_file_cut_anywhere_is_harmless_or_named_or_the_last_of_the_log(whole, token):
    name = file_name(token)
    data = whole[name]
    for size in range(len(data)):
        result = load_changed(whole, name, data[:size])
        if token == "6-8":
            if size < frame.HEADER_BYTES:
                assert (result.finding, result.name) == (Finding.BAD_SEGMENT, name)
                continue
            frames = sum(end <= size for end in offsets(data)[1:])
            assert result.sequence == 5 + frames
            assert result.finding is (Finding.CLEAN if size in offsets(data) else Finding.TORN_TAIL)
            assert result.tail.dropped_bytes == len(data[offsets(data)[frames] : size].rstrip(b"\0"))
        else:
            assert result.sequence == 8


@pytest.mark.parametrize("token", ["1-3", "4-5"])
def test_a_needed_segment_cut_anywhere_is_refused_unless_it_is_the_last(tmp_path, token):
    lay_out(tmp_path, "1-3 4-5 6-8")
    files = contents(tmp_path)
    data = files[file_name(token)]
    for size in range(len(data)):
        result = load_changed(files, file_name(token), data[:size])
        if size < frame.HEADER_BYTES:
            assert result.finding is Finding.BAD_SEGMENT
        else:
            assert result.finding is (Finding.MISSING_SEGMENT if size in offsets(data) else Finding.DAMAGED_FRAME)


# What is loaded ------------------------------------------------------------------------------------------


def test_the_accounting_counts_what_the_snapshot_does_not_hold(tmp_path):
    disk = damaged_directory(tmp_path, "1-3 4-5 6-7 8-8 @5", [add("8-8", b"x" * 100)])
    recovered = recovery.load(disk)
    assert recovered.segments == [file_name("6-7"), file_name("8-8")]
    assert recovered.log_bytes == sum(map(disk.size, recovered.segments)) - 100
    assert recovered.snapshot_bytes == disk.size(file_name("@5"))
    assert recovered.tail.segment == (file_name("8-8"), 8)
    assert recovered.tail.whole == contents(tmp_path)[file_name("8-8")][:-100]
    assert recovered.tail.dropped_bytes == 100


def test_a_group_of_many_sessions_and_batches_is_applied_in_order(tmp_path):
    sessions = [number.to_bytes(16, "big") for number in range(3)]
    opens = [protocol.WriteBatch(session, 0, 0, False, {}, []) for session in sessions]
    writes = [
        protocol.WriteBatch(session, 1 + turn, 0, False, {"k": b"%d %d" % (turn, at)}, [])
        for turn in range(3)
        for at, session in enumerate(sessions)
    ]
    repeat = protocol.WriteBatch(sessions[0], 1, 0, False, {"k": b"again"}, [])
    unknown = protocol.WriteBatch(A, 1, 0, False, {"k": b"unknown"}, [])
    data = segment([payload_of(*opens), payload_of(*writes, repeat, unknown)])
    store = recovery.load(SimDisk({wal.segment_name(1): data})).store
    assert store.data == {"k": b"2 2"}
    assert list(store.sessions.items()) == [(sessions[1], 3), (sessions[2], 3), (sessions[0], 3)]


@pytest.mark.parametrize(("upto", "needed"), [(3, "1-3"), (5, "1-3 4-5"), (8, "1-3 4-5 6-8")])
def test_a_part_of_the_log_can_be_loaded_up_to_the_end_of_a_segment(tmp_path, upto, needed):
    recovered = recovery.load_sealed(lay_out(tmp_path, "1-3 4-5 6-8 9-9"), upto)
    assert recovered.sequence == upto
    assert same(recovered.store, state(upto))
    assert set(recovered.segments) == file_names(needed)
    assert recovered.tail is None  # the bytes of a segment, which nobody asks for


def test_a_part_of_the_log_stands_on_the_newest_snapshot(tmp_path):
    recovered = recovery.load_sealed(lay_out(tmp_path, "1-3 4-5 6-8 9-9 @3 @5"), 8)
    assert (recovered.snapshot, recovered.segments) == (file_name("@5"), [file_name("6-8")])
    assert same(recovered.store, state(8))


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        (cut("4-5", -1), Finding.DAMAGED_FRAME),
        (remove("4-5"), Finding.MISSING_SEGMENT),
        (add("4-5", framed(payload_of(group(6)), 6)), Finding.MISSING_SEGMENT),
    ],
    ids=["torn", "deleted", "longer than that"],
)
def test_a_part_of_the_log_has_to_be_whole(tmp_path, damage, finding):
    disk = damaged_directory(tmp_path, "1-3 4-5 6-8", [damage])
    with pytest.raises(Damaged) as caught:
        recovery.load_sealed(disk, 5)
    assert caught.value.finding is finding


def test_a_part_of_a_log_that_is_gone_is_missing(tmp_path):
    """All files were removed between the decision to make a checkpoint and its start."""
    with pytest.raises(Damaged) as caught:
        recovery.load_sealed(LocalDisk(tmp_path), 5)
    assert caught.value.finding is Finding.MISSING_SEGMENT


# Made durable --------------------------------------------------------------------------------------------

MESS = ("4-5 6-8 @3 @5", [cut("6-8", -1), flip("@5", 40), litter(file_name("@8") + ".tmp")])


def test_the_last_segment_is_written_anew_and_the_others_are_not_touched(tmp_path):
    disk = damaged_directory(tmp_path, "1-3 4-5 6-8 @5", [add("6-8", b"torn")])
    inodes = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
    with (tmp_path / file_name("6-8")).open("rb") as old:
        recovery.make_durable(disk, recovery.load(disk))
        assert old.read().endswith(b"torn")
    now = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
    assert {name for name in inodes if now[name] != inodes[name]} == {file_name("6-8")}
    assert disk.open_files == []


def test_what_is_written_anew_is_durable_before_it_replaces_anything(tmp_path):
    disk = damaged_directory(tmp_path, "1-5", [])
    recovery.make_durable(disk, recovery.load(disk))
    name, temporary = file_name("1-5"), file_name("1-5") + ".tmp"
    calls = operations(disk.calls)
    calls = calls[calls.index(f"create {temporary}") :]
    assert calls == [
        f"create {temporary}",
        f"append {temporary}",
        f"sync {temporary}",
        f"rename {temporary} {name}",
        "sync_directory",
    ]


def test_recovery_may_be_cut_short_at_any_call_and_done_again(tmp_path):
    for count in range(100):
        directory = tmp_path / str(count)
        disk = damaged_directory(directory, *MESS)
        disk.before = crash_at(count)
        finished = True
        try:
            recovery.make_durable(disk, recovery.load(disk))
        except Crash:
            finished = False
        again = LocalDisk(directory)
        recovered = recovery.load(again)
        assert recovered.sequence == 7
        assert same(recovered.store, state(7))
        recovery.make_durable(again, recovered)
        assert set(contents(directory)) == {*file_names("4-5 6-8 @3"), file_name("@5") + ".damaged"}
        assert recovery.load(again).finding is Finding.CLEAN
        if finished:
            assert count == len(disk.calls) >= 8
            return
    raise AssertionError("never finished")


def test_making_durable_may_be_done_again_with_the_same_findings(tmp_path):
    disk = damaged_directory(tmp_path, *MESS)
    recovered = recovery.load(disk)
    recovery.make_durable(disk, recovered)
    once = contents(tmp_path)
    recovery.make_durable(disk, recovered)
    assert contents(tmp_path) == once


def test_a_bad_snapshot_is_set_aside_as_it_was(tmp_path):
    disk = damaged_directory(tmp_path, *MESS)
    bad = (tmp_path / file_name("@5")).read_bytes()
    recovery.make_durable(disk, recovery.load(disk))
    assert (tmp_path / (file_name("@5") + ".damaged")).read_bytes() == bad
    assert [found.sequence for found in snapshot.list_snapshots(disk.names())] == [3]


def test_without_room_to_write_anew_nothing_is_lost(tmp_path):
    disk = damaged_directory(tmp_path, "1-3 4-8", [cut("4-8", -1)])
    before = contents(tmp_path)
    disk.room = 40
    with pytest.raises(NoSpace):
        recovery.make_durable(disk, recovery.load(disk))
    assert contents(tmp_path) == before
    assert disk.open_files == []


@pytest.mark.parametrize("operation", ["create", "append", "sync", "rename", "sync_directory"])
def test_an_error_while_writing_anew_comes_through_and_loses_nothing(tmp_path, operation):
    disk = damaged_directory(tmp_path, "1-3 4-8", [cut("4-8", -1)])
    disk.before = failing(operation)
    with pytest.raises(OSError, match="Input/output error"):
        recovery.make_durable(disk, recovery.load(disk))
    assert same(recovery.load(LocalDisk(tmp_path)).store, state(7))


def test_a_file_that_cannot_be_read_is_no_damage_but_an_error(tmp_path, monkeypatch):
    disk = lay_out(tmp_path, "1-3 4-5")

    def unreadable(name):
        raise PermissionError(name)

    monkeypatch.setattr(disk, "open", unreadable)
    with pytest.raises(PermissionError):
        recovery.load(disk)
