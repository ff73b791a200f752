"""The log writer as a process: started as the supervisor starts it, and talked to over its socket."""

import contextlib
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import zmq

from logd.local import recovery, wal
from logd.local.disk import LocalDisk, directory_id
from logd.shared import protocol
from logd.shared.local_socket import LocalSocket
from logd.shared.protocol import (
    BATCH_BYTES_SOFT_MAX,
    LARGE_VALUE_BYTES,
    PROTOCOL_VERSION,
    Committed,
    Dropped,
    Exit,
    Gap,
    Hello,
    Large,
    LargeEntry,
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
    Values,
)
from tests.support.builders import (
    GARBAGE,
    A,
    B,
    PipedSegment,
    batch,
    contents,
    file_name,
    file_names,
    flipped,
    framed,
    lay_out,
    offsets,
    payload_of,
    read_log,
    segment,
)
from tests.support.harness import ROOT, await_true

PATIENCE_SECONDS = 30
MIB = 1 << 20
OPTIONS = {
    "message-bytes-max": MIB,
    "segment-bytes": MIB,
    "checkpoint-log-bytes": 1 << 40,
    "checkpoint-ratio": 1.0,
    "log-level": "warning",
}


class Logd:
    """The process on a directory, with a lifeline of its own. `start` may be called again after it ended."""

    def __init__(self, directory, *flags, file_bytes_max=None, **options):
        self.directory = directory
        self.runtime = Path(tempfile.mkdtemp(prefix="kvt-"))
        self.socket = LocalSocket()
        given = OPTIONS | {name.replace("_", "-"): value for name, value in options.items()}
        self.flags = [*flags, *(text for name, value in given.items() for text in (f"--{name}", str(value)))]
        self.file_bytes_max = file_bytes_max
        self.log_path = self.runtime / "stderr"
        self.process = None
        self.lifeline = None

    def start(self):
        """Start it, and wait until it serves."""
        self.spawn()
        assert self.await_ready_or_end(), self.log
        return self

    def spawn(self):
        self.cut_lifeline()
        read, self.lifeline = os.pipe()
        self.ready, said = os.pipe()
        command = [sys.executable, "-m", "logd", "serve", str(self.directory), "--socket-fd", str(self.socket.fileno())]
        command += ["--lifeline-fd", str(read), "--ready-fd", str(said), *self.flags]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                pass_fds=(read, said, self.socket.fileno()),
                stderr=log,
                preexec_fn=self._limit,  # noqa: PLW1509 - it makes one system call
            )
        os.close(read)
        os.close(said)

    def _limit(self):
        if self.file_bytes_max:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.file_bytes_max, self.file_bytes_max))

    def await_ready_or_end(self):
        """True when it says that it serves, False when it ends without."""
        try:
            assert select.select([self.ready], [], [], PATIENCE_SECONDS)[0], "neither ready nor ended"
            return os.read(self.ready, 1) != b""
        finally:
            os.close(self.ready)

    @property
    def log(self):
        return self.log_path.read_text()

    def cut_lifeline(self):
        if self.lifeline is not None:
            os.close(self.lifeline)
            self.lifeline = None

    def wait(self):
        """The exit status."""
        return self.process.wait(PATIENCE_SECONDS)

    def stop(self):
        self.cut_lifeline()
        return self.wait()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def close(self):
        if self.process:
            self.kill()
        self.cut_lifeline()
        self.socket.close()
        shutil.rmtree(self.runtime, ignore_errors=True)


class Peer:
    """One connection, as a worker makes it."""

    def __init__(self, socket, logd, immediate):
        self.socket = socket
        self.logd = logd
        for option in (zmq.SNDHWM, zmq.RCVHWM, zmq.LINGER):
            socket.setsockopt(option, 0)
        socket.setsockopt(zmq.IMMEDIATE, immediate)
        socket.setsockopt(zmq.PROBE_ROUTER, 1)
        socket.setsockopt(zmq.RECONNECT_IVL, 10)
        self.socket.connect(logd.socket.address)
        self.hello = self.receive()
        assert isinstance(self.hello, Hello)

    def send(self, message):
        self.socket.send(protocol.encode(message))

    def receive(self):
        await_true(self._is_answered_or_alone, PATIENCE_SECONDS, "an answer")
        return self.maybe_receive()

    def maybe_receive(self):
        """The next message that is here, if any."""
        return protocol.decode_reply(self.socket.recv()) if self.socket.poll(0) else None

    def _is_answered_or_alone(self):
        return self.socket.poll(100) or (self.logd.process.poll() is not None and not self.socket.poll(1000))

    def ask(self, message):
        self.send(message)
        return self.receive()

    def open(self, *sessions):
        for session in sessions:
            assert self.ask(batch(session, 0)) == Committed(session, [0])

    def await_committed(self, numbers):
        """Wait until all of these batches of A are answered; the set of all that were."""
        answered = set()
        while not answered >= set(numbers):
            reply = self.receive()
            assert isinstance(reply, Committed)
            answered |= set(reply.numbers)
        return answered

    def look_up(self, *keys):
        """The values of keys, in as many answers as they come."""
        self.send(ReadBatch(7, list(keys)))
        values = []
        while len(values) < len(keys):
            reply = self.receive()
            assert isinstance(reply, Values)
            assert (reply.number, reply.first) == (7, len(values))
            values += reply.values
        return values

    def is_healthy(self):
        """True when a question that came after all else is answered."""
        return self.ask(StatusRequest(42)) == Status(42, "")


@pytest.fixture
def make():
    """Makes Logds, and ends them."""
    with contextlib.ExitStack() as stack:

        def make(directory, *flags, **options):
            logd = Logd(directory, *flags, **options)
            stack.callback(logd.close)
            return logd

        yield make


@pytest.fixture
def connect():
    """Makes connections, and closes them."""
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(zmq.Context())

        def connect(logd, *, immediate=True):
            """Not immediate: it is greeted once, and loses no answer that reached it when the connection ends."""
            return Peer(stack.enter_context(context.socket(zmq.DEALER)), logd, immediate)

        yield connect


@pytest.fixture
def logd(make, tmp_path):
    return make(tmp_path / "data").start()


@pytest.fixture
def peer(logd, connect):
    """A connection with session A open."""
    peer = connect(logd)
    peer.open(A)
    return peer


# Messages ------------------------------------------------------------------------------------------------


def test_every_connection_is_greeted_first(logd, connect):
    for _ in range(3):
        assert connect(logd).hello == Hello(logd.process.pid, PROTOCOL_VERSION)


def test_writes_are_answered_and_read_by_any_connection(logd, peer, connect):
    other = connect(logd)
    assert peer.look_up("k", "x") == [None, None]
    assert peer.ask(batch(A, 1, base=1, puts={"k": b"1", "x": bytes(range(256))})) == Committed(A, [1])
    assert other.look_up("k", "nothing", "x") == [b"1", None, bytes(range(256))]
    other.open(B)
    assert other.ask(batch(B, 1, base=1, puts={"k": b"2"}, deletes=["x"])) == Committed(B, [1])
    assert peer.look_up("x", "k", "k") == [None, b"2", b"2"]
    assert peer.ask(batch(A, 2, base=2, clear=True)) == Committed(A, [2])
    assert other.look_up("k") == [None]
    assert other.is_healthy()


def test_repeats_gaps_and_strangers_are_answered(peer):
    assert peer.ask(batch(A, 2, base=1)) == Gap(A, 2, 1)
    for _ in range(3):
        assert peer.ask(batch(A, 1, base=1, puts={"k": b"v"})) == Committed(A, [1])
    assert peer.ask(batch(A, 0)) == Committed(A, [0])
    assert peer.ask(batch(B, 1, base=1)) == Dropped(B, 1)


def test_answers_go_where_the_session_last_wrote_from(logd, peer, connect):
    other = connect(logd)
    assert other.ask(batch(A, 1, base=1)) == Committed(A, [1])
    assert peer.is_healthy()


def test_a_large_answer_comes_in_parts_of_about_the_soft_maximum(peer):
    size = LARGE_VALUE_BYTES
    count = BATCH_BYTES_SOFT_MAX // size
    values = {f"k{number}": bytes([number]) * size for number in range(2 * count + 1)}
    for number, (key, value) in enumerate(values.items(), 1):
        assert peer.ask(batch(A, number, base=number, puts={key: value})) == Committed(A, [number])
    keys = ["none", *values, "none"]
    peer.send(ReadBatch(9, keys))
    parts = [peer.receive() for _ in range(3)]
    assert [(part.number, part.first, len(part.values)) for part in parts] == [
        (9, 0, count + 1),
        (9, count + 1, count),
        (9, 2 * count + 1, 2),
    ]
    assert [value for part in parts for value in part.values] == [values.get(key) for key in keys]
    assert peer.is_healthy()  # and that was all of it


@pytest.mark.parametrize(
    ("keys", "answers"),
    [
        ("L", [Large(9, 0, LARGE_VALUE_BYTES + 1)]),
        ("sLs", [Values(9, 0, [b"s"]), Large(9, 1, LARGE_VALUE_BYTES + 1), Values(9, 2, [b"s"])]),
        ("LLx", [Large(9, 0, LARGE_VALUE_BYTES + 1), Large(9, 1, LARGE_VALUE_BYTES + 1), Values(9, 2, [None])]),
        ("sxL", [Values(9, 0, [b"s", None]), Large(9, 2, LARGE_VALUE_BYTES + 1)]),
    ],
)
def test_of_a_large_value_only_the_size_is_sent(peer, keys, answers):
    peer.ask(batch(A, 1, base=1, puts={"L": b"v" * (LARGE_VALUE_BYTES + 1), "s": b"s"}))
    peer.send(ReadBatch(9, list(keys)))
    assert [peer.receive() for _ in answers] == answers
    assert peer.is_healthy()


def test_a_large_value_is_sent_to_a_worker_that_has_room_for_it(make, tmp_path, connect):
    peer = connect(make(tmp_path, message_bytes_max=20 * MIB).start())
    peer.open(A)
    value = os.urandom(16 * MIB)
    assert peer.ask(batch(A, 1, base=1, puts={"big": value, "small": b"s"})) == Committed(A, [1])
    assert peer.ask(ReadLarge(7, "big", 16 * MIB)) == Values(7, 0, [value])
    assert peer.ask(ReadLarge(8, "big", 16 * MIB - 1)) == Large(8, 0, 16 * MIB)
    assert peer.ask(ReadLarge(9, "small", LARGE_VALUE_BYTES)) == Values(9, 0, [b"s"])
    assert peer.ask(ReadLarge(10, "none", LARGE_VALUE_BYTES)) == Values(10, 0, [None])
    assert peer.is_healthy()


def test_a_page_of_keys_is_as_large_as_there_is_room_for(peer):
    peer.ask(batch(A, 1, base=1, puts={"b": b"22", "a": b"1", "ab": b"33"}))
    assert peer.ask(PageRequest(7, PageQuery("a"), MIB)) == Page(7, ["a", "ab"], [], 0)
    assert peer.ask(PageRequest(8, PageQuery(with_values=True), 6)) == Page(8, ["a", "ab"], [b"1", b"33"], 1)
    assert peer.ask(PageRequest(9, PageQuery(after="a", with_values=True), 3)) == LargeEntry(9, 4)
    assert peer.ask(PageRequest(10, PageQuery(keys=["x", "b"]), MIB)) == Page(10, ["b"], [], 0)


def test_a_page_has_every_write_that_was_acknowledged_before_it_was_asked_for(peer):
    for number in range(1, 50):
        assert peer.ask(batch(A, number, base=number, puts={f"{number:02}": b"v"}, deletes=[f"{number - 3:02}"]))
        keys = [f"{n:02}" for n in range(max(1, number - 2), number + 1)]
        assert peer.ask(PageRequest(number, PageQuery(), MIB)) == Page(number, keys, [], 0)


def test_pages_are_right_from_the_start_on_also_when_no_key_was_in_order(make, tmp_path, connect):
    keys = [f"{n * 7919 % 50_021:06}" for n in range(50_021)]  # each number once
    batches = [batch(A, 0), batch(A, 1, base=1, puts=dict.fromkeys(keys, b"v"))]
    (tmp_path / wal.segment_name(1)).write_bytes(segment([payload_of(*batches)]))
    peer = connect(make(tmp_path).start())
    page = peer.ask(PageRequest(7, PageQuery(limit=10_000, after="045003"), MIB))
    assert (page.keys, page.left) == ([f"{n:06}" for n in range(45_004, 50_021)], 0)
    assert peer.ask(batch(A, 2, base=2, puts={"000000:new": b"v"})) == Committed(A, [2])
    assert peer.ask(PageRequest(8, PageQuery(limit=2), MIB)) == Page(8, ["000000", "000000:new"], [], 1)
    stats = peer.ask(StatsRequest(9))
    assert (stats.unsorted_keys, stats.pages) == (0, 2)


def test_a_read_without_keys_is_answered(peer):
    peer.send(ReadBatch(5, []))
    peer.send(StatusRequest(6))
    assert peer.receive() == Values(5, 0, [])
    assert peer.receive() == Status(6, "")


def test_its_stats_say_what_it_holds_and_what_it_refused(logd, peer):
    assert peer.ask(batch(A, 1, base=1, puts={"k": b"v", "key": b"value"})) == Committed(A, [1])
    assert isinstance(peer.ask(batch(A, 3, base=2)), Gap)
    assert isinstance(peer.ask(batch(B, 1, base=1)), Dropped)
    stats = peer.ask(StatsRequest(8))
    assert isinstance(stats, Stats)
    assert (stats.number, stats.unavailable_reason, stats.finding) == (8, "", "NEW")
    assert (stats.keys, stats.data_bytes, stats.sessions) == (2, 10, 1)
    assert (stats.groups, stats.batches, stats.group_writes.total) == (2, 2, 2)
    assert stats.refused == {"out_of_order": 1, "session_dropped": 1, "no_space": 0, "scarce": 0, "unreachable": 0}
    assert stats.writes_not_made == {"data_limit": 0, "precondition_failed": 0}
    assert (stats.segments, stats.checkpoint_at, stats.dropped_bytes) == (1, 0, 0)


def test_a_directory_that_is_gone_does_not_keep_it_from_sending_stats(logd, peer):
    shutil.rmtree(logd.directory)
    stats = peer.ask(StatsRequest(8))
    assert (stats.number, stats.segments) == (8, 0)


@pytest.mark.parametrize("raw", [pytest.param(raw, id=name) for name, raw in GARBAGE.items() if raw])
def test_garbage_does_not_end_it(logd, peer, raw):
    peer.socket.send(raw)
    assert peer.is_healthy()
    assert peer.ask(batch(A, 1, base=1)) == Committed(A, [1])
    assert logd.log.count("\n") == 1


@pytest.mark.parametrize("parts", [(b"", b"x"), (b"a", b"b", b"c"), (b"", b"")], ids=["two", "three", "empty"])
def test_messages_of_several_parts_do_not_end_it(peer, parts):
    peer.socket.send_multipart(parts)
    assert peer.is_healthy()


def test_a_message_over_the_limit_costs_its_sender_the_connection_and_nobody_else(logd, peer, connect):
    stranger = connect(logd)
    stranger.socket.send(bytes(2 * MIB))
    assert stranger.receive() == Hello(logd.process.pid, PROTOCOL_VERSION)  # it is connected anew
    assert peer.ask(batch(A, 1, base=1)) == Committed(A, [1])


def test_writes_are_accepted_while_a_sync_runs(logd, peer):
    count = 300
    logd.process.send_signal(signal.SIGSTOP)  # so that they are all there when it goes on
    for number in range(1, count + 1):
        peer.send(batch(A, number, base=1, puts={"k": b"%d" % number}))
    logd.process.send_signal(signal.SIGCONT)
    assert peer.await_committed(range(1, count + 1)) == set(range(1, count + 1))
    assert peer.look_up("k") == [b"%d" % count]
    groups = list(read_log(logd.directory).values())
    assert [each.number for batches in groups for each in batches] == list(range(count + 1))
    assert len(groups) < count / 2


# Ends and beginnings -------------------------------------------------------------------------------------


def test_the_end_of_the_lifeline_ends_it_in_order(logd, peer):
    assert logd.stop() == Exit.STOPPED
    assert logd.log == ""


def test_what_was_accepted_is_answered_before_it_ends(logd, connect):
    peer = connect(logd, immediate=False)
    peer.open(A)
    for number in range(1, 501):
        peer.send(batch(A, number, base=1, puts={"k": b"%d" % number}))
    answered = {0} | peer.await_committed([1])
    assert logd.stop() == Exit.STOPPED
    written = {each.number for batches in read_log(logd.directory).values() for each in batches}
    answered |= peer.await_committed(written - answered)
    assert answered == written
    assert peer.maybe_receive() is None


def test_after_a_kill_every_acknowledged_batch_is_there_and_repeats_are_answered(make, logd, peer):
    count = 400
    batches = {n: batch(A, n, base=1, puts={f"k{n % 50}": b"%d" % n, "last": b"%d" % n}) for n in range(1, count + 1)}
    for each in batches.values():
        peer.send(each)
    answered = peer.await_committed([50])
    logd.kill()

    logd.start()
    while not isinstance(reply := peer.receive(), Hello):  # answers that were on their way
        answered |= set(reply.numbers)
    assert reply.pid == logd.process.pid
    last = int(peer.look_up("last")[0])
    assert max(answered) <= last <= count
    newest = {f"k{n % 50}": b"%d" % n for n in range(1, last + 1)}
    assert peer.look_up(*newest) == list(newest.values())

    for number, each in batches.items():
        if number not in answered or number == 50:
            peer.send(each)
    again = peer.await_committed({50} | set(batches) - answered)
    assert 50 in again
    newest = {f"k{n % 50}": b"%d" % n for n in range(1, count + 1)}
    assert peer.look_up("last", *newest) == [b"%d" % count, *newest.values()]
    logged = [each.number for batches in read_log(logd.directory).values() for each in batches]
    assert logged == list(range(count + 1))


def test_after_a_kill_a_gap_is_not_accepted(logd, peer):
    assert peer.ask(batch(A, 1, base=1)) == Committed(A, [1])
    logd.kill()
    logd.start()
    assert isinstance(peer.receive(), Hello)
    assert peer.ask(batch(A, 3, base=2)) == Gap(A, 3, 2)
    assert peer.ask(batch(A, 2, base=2)) == Committed(A, [2])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_signals_for_the_group_are_not_for_it(logd, peer, number):
    for _ in range(3):
        logd.process.send_signal(number)
        assert peer.is_healthy()
    assert logd.process.poll() is None
    assert logd.stop() == Exit.STOPPED


def test_the_end_of_the_lifeline_ends_it_at_once_while_it_reads_its_files(make, tmp_path):
    held = PipedSegment(tmp_path, "1-3 4-5 6-8", "4-5")
    logd = make(tmp_path)
    logd.spawn()
    with held.reader():
        assert logd.stop() == Exit.STOPPED
    assert not logd.await_ready_or_end()
    assert logd.log == ""
    assert set(os.listdir(tmp_path)) == {"LOCK", *file_names("1-3 4-5 6-8")}


def test_a_torn_tail_is_dropped_with_one_line(make, tmp_path, connect):
    lay_out(tmp_path, "1-5")
    with (tmp_path / file_name("1-5")).open("ab") as file:
        file.write(framed(b"never acknowledged", 6)[:-1])
    logd = make(tmp_path).start()
    assert connect(logd).look_up("last") == [b"5"]
    assert logd.log.count("\n") == 1
    for part in ("TORN_TAIL", file_name("1-5"), "dropped 37 bytes"):
        assert part in logd.log


def test_what_is_in_use_is_refused_with_one_line(make, logd, peer):
    second = make(logd.directory)
    second.spawn()
    assert not second.await_ready_or_end()
    assert second.wait() == Exit.LOCKED
    assert second.log.count("\n") == 1
    for part in (str(logd.directory), "in use", f"process {logd.process.pid}"):
        assert part in second.log
    assert peer.ask(batch(A, 1, base=1)) == Committed(A, [1])


def test_a_damaged_directory_is_refused_by_label_file_and_offset_and_nothing_changes(make, tmp_path):
    lay_out(tmp_path, "1-3 4-8 @3")
    path = tmp_path / file_name("4-8")
    offset = offsets(path.read_bytes())[2]
    path.write_bytes(flipped(path.read_bytes(), 8 * (offset + 30)))
    before = contents(tmp_path)
    logd = make(tmp_path)
    logd.spawn()
    assert not logd.await_ready_or_end()
    assert logd.wait() == Exit.DAMAGED
    line, *more = logd.log.splitlines()
    for part in ("DAMAGED_FRAME", path.name, f"offset {offset}:", "frame 7 at offset"):
        assert part in line
    assert "inspect" in "".join(more)
    assert "repair" in "".join(more)
    assert "Traceback" not in logd.log
    assert {name: data for name, data in contents(tmp_path).items() if name != "LOCK"} == before


def test_a_directory_that_cannot_be_made_is_refused_with_one_line(make, tmp_path):
    (tmp_path / "file").write_text("")
    logd = make(tmp_path / "file" / "data")
    logd.spawn()
    assert not logd.await_ready_or_end()
    assert logd.wait() == Exit.UNUSABLE
    assert logd.log.count("\n") == 1
    assert str(logd.directory) in logd.log


def test_a_directory_that_has_to_exist_is_not_begun_anew(make, tmp_path):
    for directory in (tmp_path / "missing", tmp_path):
        logd = make(directory, "--served", directory_id(tmp_path))
        logd.spawn()
        assert not logd.await_ready_or_end()
        assert logd.wait() == Exit.UNUSABLE
        assert logd.log.count("\n") == 1
    assert not (tmp_path / "missing").exists()
    assert wal.list_segments(os.listdir(tmp_path)) == []
    lay_out(tmp_path, "1-5")
    assert make(tmp_path, "--served", directory_id(tmp_path)).start().stop() == Exit.STOPPED


def test_the_directory_and_its_files_are_for_the_user_alone(logd, peer):
    assert logd.directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o077 for path in logd.directory.iterdir()} == {0}


# A disk that fails ---------------------------------------------------------------------------------------


def test_a_write_beyond_the_limit_on_file_sizes_is_refused_and_the_next_goes_on(make, tmp_path, connect):
    logd = make(tmp_path, file_bytes_max=4096).start()
    peer = connect(logd)
    peer.open(A)
    assert peer.ask(batch(A, 1, base=1, puts={"k": b"before"})) == Committed(A, [1])
    assert peer.ask(batch(A, 2, base=2, puts={"k": bytes(5000)})) == Refused(A, [2], Reason.NO_SPACE)
    assert peer.look_up("k") == [b"before"]
    assert peer.ask(batch(A, 3, base=3, puts={"k": b"after"})) == Committed(A, [3])
    assert logd.log.count("File too large: writes are refused until there is room") == 1
    logd.kill()
    logd.start()
    assert isinstance(peer.receive(), Hello)
    assert peer.look_up("k") == [b"after"]


def test_when_its_files_are_removed_nothing_more_is_acknowledged(logd, peer):
    for path in logd.directory.iterdir():
        path.unlink()
    peer.send(batch(A, 1, base=1, puts={"k": b"v"}))
    assert logd.wait() == Exit.DISK_FAILED
    assert not peer.socket.poll(0)


def test_in_another_directory_that_took_its_place_nothing_is_changed_and_all_answered_writes_are_in_its_own(
    make, tmp_path, connect
):
    place, moved = tmp_path / "data", tmp_path / "moved"
    logd = make(place, segment_bytes=1024).start()
    served = directory_id(place)
    peer = connect(logd)
    peer.open(A)
    place.rename(moved)
    shutil.copytree(moved, place)
    before = contents(place)
    answered = 0
    while logd.process.poll() is None:  # until the next segment is to be made
        number = answered + 1
        peer.send(batch(A, number, base=number, puts={f"k{number}": bytes(100)}))
        if peer.socket.poll(500):
            assert peer.receive() == Committed(A, [number])
            answered = number
    assert logd.wait() == Exit.DISK_FAILED
    assert contents(place) == before
    assert len(recovery.load(LocalDisk(moved)).store.data) == answered > 3
    successor = make(place, "--served", served)
    successor.spawn()
    assert not successor.await_ready_or_end()
    assert successor.wait() == Exit.UNUSABLE
    assert "another directory has taken the place" in successor.log
    assert contents(place).keys() == before.keys()


# Checkpoints ---------------------------------------------------------------------------------------------


def test_the_log_does_not_grow_without_bound_and_nothing_is_lost(make, tmp_path, connect):
    logd = make(tmp_path, segment_bytes=4096, checkpoint_log_bytes=16_384).start()
    peer = connect(logd)
    peer.open(A)

    def write(numbers):
        for number in numbers:
            peer.ask(batch(A, number, base=number, puts={f"k{number % 10}": b"%d" % number * 100}))

    def snapshots():
        return [name for name in os.listdir(tmp_path) if name.endswith(".snap")]

    last = 0
    while len(snapshots()) < 2 or file_name("1-1") in os.listdir(tmp_path):
        write(range(last + 1, last + 101))
        last += 100
        assert last < 20_000, "no checkpoint"
    await_true(lambda: len(snapshots()) == 2, PATIENCE_SECONDS)
    logd.kill()

    logd.start()
    assert isinstance(peer.receive(), Hello)
    newest = {f"k{number % 10}": b"%d" % number * 100 for number in range(last - 9, last + 1)}
    assert peer.look_up(*newest) == list(newest.values())
    assert peer.ask(batch(A, last, base=last)) == Committed(A, [last])
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]
    assert "ERROR" not in logd.log
