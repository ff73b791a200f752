"""Bytes: messages, headers, frames, segments and snapshots, whole, cut at every point, and with every bit flipped."""

import functools
import io
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logd.local import ballast, frame, group, publish, snapshot, wal
from logd.local.disk import LocalDisk
from logd.local.frame import BadHeader, End, Header
from logd.local.group import decode as decode_group
from logd.local.store import Store
from logd.shared import protocol
from logd.shared.protocol import (
    DECODE_ERRORS,
    Check,
    ClusterStats,
    Committed,
    Dropped,
    Gap,
    Hello,
    Histogram,
    Large,
    LargeEntry,
    Outcomes,
    Page,
    PageQuery,
    PageRequest,
    ReadBatch,
    ReadLarge,
    Reason,
    Refused,
    Stats,
    StatsRequest,
    Status,
    StatusRequest,
    Transaction,
    Values,
    WriteBatch,
)
from tests.support.builders import (
    GARBAGE,
    MARKER,
    OTHER_MARKER,
    A,
    B,
    batch,
    encode_payload,
    flipped,
    framed,
    of_other_version,
    payload_of,
    read_segment,
    segment,
    stats,
)
from tests.support.harness import ROOT

MIB = 1 << 20
SIZES = pytest.mark.parametrize("size", [MIB // 10, MIB, 16 * MIB], ids=["0.1 MiB", "1 MiB", "16 MiB"])

# Messages ------------------------------------------------------------------------------------------------

_A = "c410" + "61" * 16
REQUESTS = [
    (
        batch(A, 3, base=2, clear=True, puts={"k": b"v", "e": b""}, deletes=["d"]),
        f"98 01 {_A} 03 02 c3 82 a16b c40176 a165 c400 91 a164 90",
    ),
    (
        batch(A, 3, transactions=[Transaction([Check("c", ["t"], negated=False)], {"k": b"v"}, ["d"])]),
        f"98 01 {_A} 03 00 c2 80 90 91 93 91 93 a163 91 a174 c2 81 a16b c40176 91 a164",
    ),
    (
        batch(A, 3, transactions=[Transaction([Check("c", None, negated=True)], {}, [])]),
        f"98 01 {_A} 03 00 c2 80 90 91 93 91 93 a163 c0 c3 80 90",
    ),
    (ReadBatch(300, ["a", "b"]), "93 02 cd012c 92 a161 a162"),
    (StatusRequest(1), "92 03 01"),
    (StatsRequest(1), "92 04 01"),
    (ReadLarge(1, "k", 65537), "94 05 01 a16b ce00010001"),
    (PageRequest(1, PageQuery("p", "a", 300), 65537), "94 06 01 95 a170 a161 cd012c c0 c2 ce00010001"),
    (PageRequest(1, PageQuery(keys=["k"], with_values=True), 2), "94 06 01 95 a0 a0 cd2710 91 a16b c3 02"),
]
REPLIES = [
    (Hello(4711, 2), "93 0a cd1267 02"),
    (Committed(A, [1, 2]), f"94 0b {_A} 92 01 02 80"),
    (
        Committed(A, [1], {1: Outcomes(["k"], {0: [(1, "t"), (2, None)], 2: []})}),
        f"94 0b {_A} 91 01 81 01 92 91 a16b 82 00 92 92 01 a174 92 02 c0 02 90",
    ),
    (Refused(A, [3], Reason.NO_SPACE), f"94 0c {_A} 91 03 01"),
    (Gap(A, 5, 3), f"94 0d {_A} 05 03"),
    (Dropped(A, 9), f"93 0e {_A} 09"),
    (Values(2, 1, [b"v", None]), "94 0f 02 01 92 c40176 c0"),
    (Large(2, 1, 65537), "94 12 02 01 ce00010001"),
    (Page(2, ["k"], [b"v"], 1), "95 13 02 91 a16b 91 c40176 01"),
    (LargeEntry(2, 65537), "93 14 02 ce00010001"),
    (Status(1, "full"), "93 10 01 a466756c6c"),
    (
        stats(1),
        "dc001d 11 01 a0 03 04 05 81a367617006 81aa646174615f6c696d697413"
        "93 91cb3ff0000000000000 920708 cb3fe0000000000000"
        "93 90 9109 cb0000000000000000 14 cb3fe0000000000000 12 02 cd012c"
        "0a 0b 0c 0d 0e 0f 81a4646f6e6510 cb3ff0000000000000 cb4000000000000000"
        "a34e4557 cb0000000000000000 11 15 c0",
    ),
]
MESSAGES = [
    pytest.param(message, bytes.fromhex(golden), decode, id=type(message).__name__)
    for table, decode in ((REQUESTS, protocol.decode_request), (REPLIES, protocol.decode_reply))
    for message, golden in table
]


@pytest.mark.parametrize(
    ("raw", "version"), [("92 0a cd1267", 1), ("93 0a cd1267 09", 9), ("95 0a cd1267 09 a3616e64 c0", 9)]
)
def test_a_hello_is_understood_whatever_its_version(raw, version):
    assert protocol.decode_reply(bytes.fromhex(raw)) == Hello(4711, version)


@pytest.mark.parametrize(("message", "golden", "decode"), MESSAGES)
def test_a_message_is_these_bytes_and_only_when_it_is_whole(message, golden, decode):
    assert protocol.encode(message) == golden
    assert decode(golden) == message
    for size in range(len(golden)):
        with pytest.raises(DECODE_ERRORS):
            decode(golden[:size])
    with pytest.raises(DECODE_ERRORS):
        decode(golden + b"\0")


@pytest.mark.parametrize("raw", [pytest.param(raw, id=name) for name, raw in GARBAGE.items()])
def test_garbage_is_a_decode_error(raw):
    for decode in (protocol.decode_request, protocol.decode_reply):
        with pytest.raises(DECODE_ERRORS):
            decode(raw)
    with pytest.raises(DECODE_ERRORS):
        decode_group(b"\x91" + raw)


def test_each_side_refuses_the_messages_of_the_other():
    for message, _ in REQUESTS:
        with pytest.raises(DECODE_ERRORS):
            protocol.decode_reply(protocol.encode(message))
    for message, _ in REPLIES:
        with pytest.raises(DECODE_ERRORS):
            protocol.decode_request(protocol.encode(message))


_number = st.integers(0, 2**64 - 1)
_numbers = st.lists(_number, max_size=5)
_session = st.binary(min_size=protocol.SESSION_ID_BYTES, max_size=protocol.SESSION_ID_BYTES)
_write_batch = st.builds(
    WriteBatch,
    _session,
    _number,
    _number,
    st.booleans(),
    st.dictionaries(st.text(), st.binary(), max_size=5),
    st.lists(st.text(), max_size=5),
)
_float = st.floats(allow_nan=False)
_of_type = {
    int: _number,
    float: _float,
    str: st.text(),
    dict[str, int]: st.dictionaries(st.text(), _number, max_size=3),
    Histogram: st.builds(Histogram, st.lists(_float, max_size=3), st.lists(_number, max_size=3), _float),
}
_of_type |= {type_ | None: st.none() | of_type for type_, of_type in _of_type.items()}
_of_type[ClusterStats | None] = st.none() | st.builds(
    ClusterStats, **{field.name: _of_type[field.type] for field in msgspec.structs.fields(ClusterStats)}
)
_query = st.builds(PageQuery, st.text(), st.text(), _number, st.none() | st.lists(st.text(), max_size=3), st.booleans())
_request = st.one_of(
    _write_batch,
    st.builds(ReadBatch, _number, st.lists(st.text(), max_size=5)),
    st.builds(StatusRequest, _number),
    st.builds(StatsRequest, _number),
    st.builds(ReadLarge, _number, st.text(), _number),
    st.builds(PageRequest, _number, _query, _number),
)
_failed = st.lists(st.tuples(_number, st.none() | st.text()), max_size=3)
_outcomes = st.builds(Outcomes, st.lists(st.text(), max_size=3), st.dictionaries(_number, _failed, max_size=3))
_reply = st.one_of(
    st.builds(Hello, _number, _number),
    st.builds(Committed, _session, _numbers, st.dictionaries(_number, _outcomes, max_size=3)),
    st.builds(Refused, _session, _numbers, st.sampled_from(Reason)),
    st.builds(Gap, _session, _number, _number),
    st.builds(Dropped, _session, _number),
    st.builds(Values, _number, _number, st.lists(st.none() | st.binary(), max_size=5)),
    st.builds(Large, _number, _number, _number),
    st.builds(Page, _number, st.lists(st.text(), max_size=3), st.lists(st.binary(), max_size=3), _number),
    st.builds(LargeEntry, _number, _number),
    st.builds(Status, _number, st.text()),
    st.builds(Stats, **{field.name: _of_type[field.type] for field in msgspec.structs.fields(Stats)}),
)


@settings(max_examples=100, deadline=None)
@given(_request, _reply)
def test_any_message_survives_encoding(request, reply):
    assert protocol.decode_request(protocol.encode(request)) == request
    assert protocol.decode_reply(protocol.encode(reply)) == reply


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(REQUESTS), st.data())
def test_a_message_with_changed_bytes_is_another_message_or_a_decode_error(case, data):
    raw = bytearray(bytes.fromhex(case[1]))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=4))
    try:
        decoded = protocol.decode_request(bytes(raw))
    except DECODE_ERRORS:
        return
    assert isinstance(decoded, protocol.Request)


# Headers and single frames -------------------------------------------------------------------------------

HEADER = bytes.fromhex("4b564c4f47534547 02000000 a1b2c3d4 0700000000000000 00000000 b3e3119f")
FRAME = bytes.fromhex("a1b2c3d4 05000000 8127ed1c 0700000000000000 68656c6c6f")


def test_a_header_is_these_bytes():
    assert frame.encode_header(wal.MAGIC, Header(MARKER, 7)) == HEADER
    assert len(HEADER) == frame.HEADER_BYTES
    assert frame.decode_header(wal.MAGIC, HEADER) == Header(MARKER, 7)
    assert frame.decode_header(wal.MAGIC, HEADER + b"more") == Header(MARKER, 7)


def test_a_frame_is_these_bytes():
    assert frame.encode_frame(MARKER, 7, [b"he", b"", b"llo"]) == FRAME
    assert framed(b"hello", 7) == FRAME
    found = frame.frame_at(memoryview(b"xx" + FRAME + b"xx"), 2, MARKER)
    assert found is not None
    assert (found.offset, found.sequence, bytes(found.payload)) == (2, 7, b"hello")
    assert frame.read_frame(io.BytesIO(FRAME), MARKER, 7) == b"hello"


BAD_HEADERS = {
    "foreign magic": (frame.encode_header(snapshot.MAGIC, Header(MARKER, 7)), "not a file of this kind"),
    "newer version": (
        of_other_version(HEADER),
        f"version {frame.VERSION + 1}, and this program reads versions 1 and 2",
    ),
    "cut short": (HEADER[:31], "cut short at 31 of 32 bytes"),
    "empty": (b"", "cut short at 0 of 32 bytes"),
    "all zeros": (bytes(32), "not a file of this kind"),
    "a bit of the crc": (flipped(HEADER, 8 * 28), "damaged"),
    "a bit of the reserved bytes": (flipped(HEADER, 8 * 24), "damaged"),
}


@pytest.mark.parametrize(("data", "message"), BAD_HEADERS.values(), ids=BAD_HEADERS.keys())
def test_a_bad_header_says_in_what_way(data, message):
    with pytest.raises(BadHeader, match=message):
        wal.decode_segment_header(data)


def test_empty_space_never_verifies():
    with pytest.raises(BadHeader, match="damaged"):
        frame.decode_header(bytes(8), bytes(32))
    for size in (20, 21, 4096):
        assert frame.frame_at(memoryview(bytes(size)), 0, bytes(4)) is None
        assert frame.read_frame(io.BytesIO(bytes(size)), bytes(4), 0) is None


def test_a_marker_has_no_zero_bytes(monkeypatch):
    monkeypatch.setattr(frame.os, "urandom", lambda count: b"\0\x01\0\xff"[:count])
    assert frame.new_marker() == b"\xa5\x01\xa5\xff"


def test_a_frame_with_any_bit_flipped_is_none():
    for bit in range(8 * len(FRAME)):
        damaged = flipped(FRAME, bit)
        assert frame.frame_at(memoryview(damaged), 0, MARKER) is None
        assert frame.read_frame(io.BytesIO(damaged), MARKER, 7) is None


def test_a_frame_of_another_file_or_place_is_none():
    assert frame.frame_at(memoryview(FRAME), 0, OTHER_MARKER) is None
    assert frame.read_frame(io.BytesIO(FRAME), OTHER_MARKER, 7) is None
    assert frame.read_frame(io.BytesIO(FRAME), MARKER, 8) is None
    for size in range(len(FRAME)):
        assert frame.frame_at(memoryview(FRAME)[:size], 0, MARKER) is None
        assert frame.read_frame(io.BytesIO(FRAME[:size]), MARKER, 7) is None


# Segments ------------------------------------------------------------------------------------------------

PAYLOADS = [b"one", b"", b"three: the longest", b"4"]
SEGMENT = segment(PAYLOADS, first=5)
BORDERS = [32, 55, 75, 113, 134]
"""Where the frames of SEGMENT begin, and where the last one ends."""


def _read(data: bytes) -> tuple[list[tuple[int, bytes]], frame.FrameReader]:
    frames, reader = read_segment(data)
    return [(each.sequence, bytes(each.payload)) for each in frames], reader


def test_a_segment_cut_at_any_byte_gives_all_whole_frames_before_the_cut():
    assert len(SEGMENT) == BORDERS[-1]
    for size in range(len(SEGMENT) + 1):
        if size < frame.HEADER_BYTES:
            with pytest.raises(BadHeader):
                _read(SEGMENT[:size])
            continue
        found, reader = _read(SEGMENT[:size])
        whole = sum(end <= size for end in BORDERS[1:])
        assert found == list(enumerate(PAYLOADS[:whole], 5))
        assert (reader.offset, reader.sequence, reader.follows) == (BORDERS[whole], 4 + whole, None)
        assert reader.end is (End.CLEAN if size in BORDERS else End.TORN)


def test_any_flipped_bit_in_a_segment_is_seen_and_named():
    for bit in range(8 * len(SEGMENT)):
        damaged = flipped(SEGMENT, bit)
        if bit < 8 * frame.HEADER_BYTES:
            with pytest.raises(BadHeader):
                _read(damaged)
            continue
        found, reader = _read(damaged)
        hit = sum(end <= bit // 8 for end in BORDERS[1:])  # how many frames are before the one that was hit
        assert found == list(enumerate(PAYLOADS[:hit], 5))
        assert reader.offset == BORDERS[hit]
        if hit == len(PAYLOADS) - 1:
            assert (reader.end, reader.follows) == (End.TORN, None)
        else:
            assert reader.end is End.CORRUPT
            assert reader.follows is not None
            assert (reader.follows.offset, reader.follows.sequence) == (BORDERS[hit + 1], 6 + hit)


_noise = random.Random(1).randbytes(5000)
TAILS = {
    "one zero": (bytes(1), End.CLEAN),
    "a sector of zeros": (bytes(4096), End.CLEAN),
    "a byte in unused space": (bytes(100) + b"x" + bytes(100), End.TORN),
    "a marker in unused space": (MARKER + bytes(4096), End.TORN),
    "garbage": (_noise, End.TORN),
    "markers alone": (MARKER * 100, End.TORN),
    "a marker cut short": (MARKER[:3], End.TORN),
    "a stale frame": (framed(b"old", 5), End.TORN),
    "the last frame again": (framed(PAYLOADS[-1], 8), End.TORN),
    "the rest of a stale file": (SEGMENT[BORDERS[1] :], End.TORN),
    "the next frame with another file's marker": (framed(b"next", 9, OTHER_MARKER), End.TORN),
    "another file": (segment([b"x"] * 9, 1, OTHER_MARKER), End.TORN),
    "the next frame, a byte short": (framed(b"next", 9)[:-1], End.TORN),
    "the next frame after a zero": (b"\0" + framed(b"next", 9), End.CORRUPT),
    "the frame after the next": (framed(b"later", 10), End.CORRUPT),
    "stale, then newer": (framed(b"old", 5) + framed(b"later", 10), End.CORRUPT),
    "a torn frame, then a newer one": (framed(b"torn", 9)[:-1] + framed(b"later", 10), End.CORRUPT),
}


@pytest.mark.parametrize(("tail", "end"), TAILS.values(), ids=TAILS.keys())
def test_what_follows_the_last_frame_is_torn_unless_it_is_unused_space_or_has_a_newer_frame_in_it(tail, end):
    found, reader = _read(SEGMENT + tail)
    assert found == list(enumerate(PAYLOADS, 5))
    assert (reader.end, reader.offset) == (end, len(SEGMENT))
    assert reader.rest_bytes == len(tail.rstrip(b"\0"))
    assert (reader.follows is not None) == (end is End.CORRUPT)


def test_a_value_that_holds_a_log_of_its_own_is_only_a_value():
    impostor = segment([b"forged"] * 50, first=1, marker=OTHER_MARKER)
    real = segment([b"before", impostor, b"after"])
    assert _read(real)[0] == [(1, b"before"), (2, impostor), (3, b"after")]
    torn = segment([b"before", impostor])[:-1]
    found, reader = _read(torn)
    assert found == [(1, b"before")]
    assert reader.end is End.TORN


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=6), st.integers(1, 2**63), st.binary(max_size=100))
def test_any_payloads_are_read_back_and_what_follows_them_is_never_read_as_one(payloads, first, tail):
    marker = frame.new_marker()
    found, reader = _read(segment(payloads, first, marker) + tail)
    assert found == list(enumerate(payloads, first))
    assert reader.end is (End.TORN if any(tail) else End.CLEAN)


@SIZES
def test_a_segment_holds_values_of_any_size_and_knows_a_torn_one(size):
    big = payload_of(batch(A, 1, puts={"k": bytes([255]) * size}))
    data = segment([b"small", big])
    assert _read(data)[0] == [(1, b"small"), (2, big)]
    found, reader = _read(data[: -size // 2])
    assert found == [(1, b"small")]
    assert reader.end is End.TORN
    assert decode_group(big).batches[0].puts["k"] == bytes([255]) * size


def test_a_payload_is_an_array_of_batches_as_they_were_sent():
    batches = [protocol.encode(batch(A, number)) for number in range(3)]
    assert encode_payload(batches) == bytes.fromhex("dd 00000003") + b"".join(batches)
    assert decode_group(encode_payload(batches)).batches == [batch(A, number) for number in range(3)]
    assert decode_group(encode_payload([])).batches == []


def test_a_payload_of_version_1_is_read_in_which_a_batch_had_no_transactions():
    raw = bytes.fromhex(f"91 97 01 {_A} 03 02 c3 81 a16b c40176 91 a164")
    assert decode_group(raw) == ([batch(A, 3, base=2, clear=True, puts={"k": b"v"}, deletes=["d"])], 0)


def test_a_limit_on_the_data_is_the_first_element_of_a_payload():
    raws = [protocol.encode(batch(A, number)) for number in range(2)]
    limited = encode_payload(group.elements(raws, 300))
    assert limited == bytes.fromhex("dd 00000003 cd012c") + b"".join(raws)
    assert decode_group(limited) == ([batch(A, 0), batch(A, 1)], 300)
    for senseless in ([b"\x01"], [b"\x00", *raws], [b"\xff", *raws], [*raws, b"\x01"], [b"\x01", b"\x01", *raws]):
        with pytest.raises(DECODE_ERRORS):
            decode_group(encode_payload(senseless))


def test_file_names_say_what_a_file_begins_with_and_anything_else_is_not_listed():
    names = [wal.segment_name(100), "wal-1.log", "wal-00000000000000000002.log.tmp", wal.segment_name(2), "LOCK"]
    names += [snapshot.snapshot_name(3), snapshot.snapshot_name(20), snapshot.snapshot_name(1) + ".damaged"]
    assert names[0] == "wal-00000000000000000100.log"
    assert names[-3] == "snapshot-00000000000000000003.snap"
    assert wal.list_segments(names) == [(wal.segment_name(2), 2), (wal.segment_name(100), 100)]
    assert snapshot.list_snapshots(names) == [(snapshot.snapshot_name(3), 3), (snapshot.snapshot_name(20), 20)]


# Snapshots -----------------------------------------------------------------------------------------------

SNAPSHOT = bytes.fromhex(
    "4b564c4f47534e50 02000000 a1b2c3d4 0900000000000000 00000000 592f18d4"
    f"a1b2c3d4 4b000000 1a3a4677 0100000000000000 93 01 92 92 {_A} 03 92 c410 {'62' * 16} 00"
    f"81 {_A} 81 03 92 91 a178 81 01 91 92 00 a174"
    "a1b2c3d4 08000000 fe4d9cf5 0200000000000000 92 02 81 a16b c40176"
    "a1b2c3d4 05000000 505991e2 0300000000000000 94 03 09 01 02"
)


class _OneFile:
    """A disk for reading: every file on it holds these bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def open(self, name: str) -> io.BytesIO:
        return io.BytesIO(self.data)


_read_snapshot = functools.partial(snapshot.read, name="snapshot")


def _golden_store() -> Store:
    store = Store()
    store.load({"k": b"v"})
    store.sessions = {A: 3, B: 0}
    store.outcomes = {A: {3: Outcomes(["x"], {1: [(0, "t")]})}}
    return store


def test_a_snapshot_is_these_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(frame, "new_marker", lambda: MARKER)
    assert snapshot.write(LocalDisk(tmp_path), _golden_store(), 9) == len(SNAPSHOT)
    assert (tmp_path / snapshot.snapshot_name(9)).read_bytes() == SNAPSHOT
    store, sequence = _read_snapshot(_OneFile(SNAPSHOT))
    assert (store.data, list(store.sessions.items()), sequence) == ({"k": b"v"}, [(A, 3), (B, 0)], 9)
    assert store.outcomes == _golden_store().outcomes


def test_a_snapshot_of_version_1_is_read_in_which_there_were_no_outcomes():
    header = bytes.fromhex("4b564c4f47534e50 01000000 a1b2c3d4 0900000000000000 00000000 9362b17b")
    sessions = bytes.fromhex(f"92 01 92 92 {_A} 03 92 c410 {'62' * 16} 00")
    chunks = [framed(chunk, number) for number, chunk in enumerate((sessions, _entries, _footer), 1)]
    store, _ = _read_snapshot(_OneFile(b"".join([header, *chunks])))
    assert (store.data, store.sessions, store.outcomes) == ({"k": b"v"}, {A: 3, B: 0}, {})


def test_a_snapshot_cut_at_any_byte_is_bad():
    for size in range(len(SNAPSHOT)):
        with pytest.raises(snapshot.BadSnapshot):
            _read_snapshot(_OneFile(SNAPSHOT[:size]))


def test_a_snapshot_with_any_bit_flipped_is_bad():
    for bit in range(8 * len(SNAPSHOT)):
        with pytest.raises(snapshot.BadSnapshot):
            _read_snapshot(_OneFile(flipped(SNAPSHOT, bit)))


def _snapshot_of(*chunks: bytes, sequence: int = 9) -> bytes:
    header = frame.encode_header(snapshot.MAGIC, Header(MARKER, sequence))
    return header + b"".join(framed(chunk, number) for number, chunk in enumerate(chunks, 1))


_sessions, _entries, _footer = SNAPSHOT[52:127], SNAPSHOT[147:155], SNAPSHOT[175:]
BAD_SNAPSHOTS = {
    "a byte after the footer": SNAPSHOT + b"\0",
    "a frame after the footer": _snapshot_of(_sessions, _entries, _footer, _entries),
    "no footer": _snapshot_of(_sessions, _entries),
    "no sessions": _snapshot_of(_entries, _footer),
    "no entries": _snapshot_of(_sessions, _footer),
    "the footer of another sequence": _snapshot_of(_sessions, _entries, _footer, sequence=8),
    "a chunk that is not one": _snapshot_of(_sessions, b"\x01", _footer),
    "a key that is not UTF-8": _snapshot_of(_sessions, bytes.fromhex("92 02 81 a1ff c40176"), _footer),
    "a segment": segment([_sessions, _entries, _footer]),
    "chunks in another order": SNAPSHOT[:32] + framed(_entries, 2) + framed(_sessions, 1) + framed(_footer, 3),
}


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in BAD_SNAPSHOTS.items()])
def test_a_snapshot_with_too_much_or_too_little_is_bad(data):
    assert _snapshot_of(_sessions, _entries, _footer) == SNAPSHOT
    with pytest.raises(snapshot.BadSnapshot):
        _read_snapshot(_OneFile(data))


@SIZES
def test_a_snapshot_holds_values_of_any_size(tmp_path, size):
    store = Store()
    store.load({"small": b"s", "big": bytes(size), "last": b"l"})
    snapshot.write(LocalDisk(tmp_path), store, 1)
    assert snapshot.read(LocalDisk(tmp_path), snapshot.snapshot_name(1))[0].data == store.data


# The description -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["LOCK", "wal-<sequence>.log", "snapshot-<sequence>.snap", ballast.NAME, "<file>" + publish.TEMPORARY_SUFFIX],
)
def test_every_kind_of_file_in_a_directory_has_a_row_in_the_description(name):
    assert f"\n| `{name}` |" in (ROOT / "logd" / "FORMAT.md").read_text()


def test_the_example_in_the_description_is_a_segment_with_the_content_that_is_described():
    text = (ROOT / "logd" / "FORMAT.md").read_text()
    lines = text.partition("```hex\n")[2].partition("```")[0].splitlines()
    data = bytes.fromhex("".join(line[4:] for line in lines))
    assert [int(line[:4], 16) for line in lines] == list(range(0, len(data), 16))
    frames, reader = read_segment(data)
    assert reader.end is End.CLEAN
    session = bytes(range(16))
    assert [decode_group(each.payload).batches for each in frames] == [
        [batch(session, 0)],
        [batch(session, 1, base=1, puts={"city": "Zürich".encode()}, deletes=["town"])],
    ]
    assert segment([bytes(each.payload) for each in frames], 1, data[12:16]) == data
