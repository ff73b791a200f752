"""Power cuts at every call that changes the disk, and every disk that could be left.

The method is that of LevelDB's fault_injection_test.cc and redb's crash_consistency.rs: run a workload on a disk that
forgets, stop it at each call in turn, recover from each disk that may be left, and compare with a model: all that was
acknowledged or read is found, nothing that was not attempted is, groups are whole and in order. Then the same with
known mistakes planted in the code, each of which has to be seen.
"""

import copy
import errno
import itertools
import select
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from logd.local import checkpoint, publish, recovery, wal
from logd.local.commit import DiskFailed, GroupCommit
from logd.local.store import Store
from logd.shared.etag import etag
from logd.shared.protocol import Check, Committed, Outcomes, Transaction, WriteBatch, encode
from tests.support.simdisk import PowerCut, SimDisk

SEGMENT_BYTES = 240
WRITES = 14


class Broken(AssertionError):
    """A promise was broken. Raised by the checks here alone, to tell a mistake that was seen from a defect."""


class Model:
    """What the client knows. Its batches are numbered from 0, which opens the session; one group holds one batch."""

    def __init__(self) -> None:
        self.session = b"s" * 16
        self.attempted = -1
        self.certain = -1
        """The last one that was acknowledged, or seen by a read."""
        self.refused: set[int] = set()

    def copy(self) -> "Model":
        return copy.deepcopy(self)

    def refuse(self, number: int) -> None:
        self.refused.add(number)
        if number == 0:  # a session that was not opened is given up
            self.__init__()
            self.session = b"t" * 16

    def state(self, last: int) -> dict[str, bytes]:
        """The keys after a batch."""
        state: dict[str, bytes] = {}
        for number in range(1, last + 1):
            if number not in self.refused:
                _write_to(state, number)
        return state

    def check(self, store: Store) -> int:
        """The last batch that a store has. Raises Broken when it is not one that the client can accept."""
        last = store.sessions.get(self.session, -1)
        if not self.certain <= last <= self.attempted or last in self.refused:
            raise Broken(f"batch {last} found; {self.certain} certain, {self.attempted} attempted, not {self.refused}")
        if store.data != self.state(last):
            raise Broken(f"after batch {last} the keys are {store.data}")
        if store.outcomes != ({self.session: {last: _outcomes(last)}} if last > 0 else {}):
            raise Broken(f"after batch {last} the outcomes are {store.outcomes}")
        return last


def _puts(number: int) -> dict[str, bytes]:
    return {"n": b"%d" % number, f"k{number % 5}": b"v" * (number * 7 % 40 + 1)}


def _transactions(number: int) -> list[Transaction]:
    """One whose check holds once the puts of the same batch are made, and one that fails."""
    value = b"%d" % number
    return [
        Transaction([Check("n", [etag(value)], negated=False)], {"left": value, "right": value}, []),
        Transaction([Check("n", None, negated=True)], {"never": value}, ["n"]),
    ]


def _outcomes(number: int) -> Outcomes:
    return Outcomes([], {1: [(0, etag(b"%d" % number))]})


def _write_to(state: dict[str, bytes], number: int) -> None:
    if number % 7 == 6:
        state.clear()
    state.update(_puts(number) | dict.fromkeys(("left", "right"), b"%d" % number))
    state.pop(f"k{(number + 2) % 5}", None)


class Process:
    """One life of the log writer on a disk, driven step by step."""

    def __init__(self, disk: SimDisk, model: Model) -> None:
        self._disk = disk
        self._model = model
        recovered = recovery.load(disk)
        recovery.make_durable(disk, recovered)
        self._wal = wal.Wal(disk, recovered.sequence + 1, SEGMENT_BYTES)
        model.certain = max(model.certain, model.check(recovered.store))  # it is served from here on
        self._covered = 0
        self._next = max([recovered.store.sessions.get(model.session, -1), *model.refused]) + 1
        self._store = recovered.store
        self._storage = GroupCommit(disk, self._wal, recovered.store)
        self._storage._sync_thread._lately_seconds = 0.0

    def write(self) -> None:
        """One group. Refused for lack of space, it is given up."""
        number, model = self._next, self._model
        batch = WriteBatch(model.session, number, number, False, {}, [])
        if number:
            deletes = [f"k{(number + 2) % 5}"]
            batch = WriteBatch(
                model.session, number, number, number % 7 == 6, _puts(number), deletes, _transactions(number)
            )
        model.attempted = max(model.attempted, number)
        assert self._storage.submit(encode(batch), batch) is None
        self._storage.commit(is_quiet=number % 2 == 1)  # by one thread and by the other
        self._read()
        for _, reply in self._replies():
            self._next = number + 1
            if isinstance(reply, Committed):
                model.certain = max(model.certain, number)
            else:
                model.refuse(number)
                self._next *= number > 0
        self._read()

    def _replies(self) -> list:
        while not (replies := self._storage.collect()):
            select.select([self._storage.fileno()], [], [])  # not busily: the sync thread needs the interpreter
        return replies

    def _read(self) -> None:
        """What can be read must not be taken back."""
        if value := self._store.data.get("n"):
            self._model.certain = max(self._model.certain, int(value))

    def make_checkpoint(self) -> None:
        """A checkpoint of what is sealed, as the child process does it."""
        if self._wal.sealed.sequence > self._covered:
            self._covered = self._wal.sealed.sequence
            checkpoint.make(self._disk, self._covered)

    def end(self) -> None:
        self._storage.stop()


def workload(disk: SimDisk, model: Model) -> None:
    """Three lives with writes and checkpoints in each; the process dies between them, the power stays."""
    for _ in range(3):
        process = Process(disk, model)
        try:
            for number in range(WRITES):
                process.write()
                if number % 5 == 4:
                    process.make_checkpoint()
        finally:
            process.end()


def run_until_cut(cut_at: int | None = None, fail_at: dict[int, int] | None = None) -> tuple[SimDisk, Model]:
    """The workload on a fresh disk, up to a power cut; with calls that fail, up to the end of that process."""
    disk, model = SimDisk(), Model()
    disk.cut_at = cut_at
    disk.fail_at = fail_at or {}
    with suppress(PowerCut, DiskFailed, OSError, publish.NoSpace):
        workload(disk, model)
    return disk, model


def check_survivors(disk: SimDisk, model: Model) -> int:
    """Recover from every disk that may be left. Returns how many there were. Raises Broken."""
    seen = set()
    for survivor in disk.survivors():
        content = frozenset(survivor.content().items())
        if content not in seen:
            seen.add(content)
            model.check(_recover(survivor).store)
    return len(seen)


def _recover(disk: SimDisk) -> recovery.Recovered:
    try:
        return recovery.load(disk)
    except recovery.Damaged as error:
        raise Broken(f"refused after a power cut: {error}") from error


def count_calls() -> int:
    disk, model = run_until_cut()
    assert model.certain == model.attempted == 3 * WRITES - 1
    return disk.calls


def crash_everywhere(step: int = 1) -> int:
    """A power cut at every call of the workload. Returns how many disks were checked."""
    return sum(check_survivors(*run_until_cut(cut_at)) for cut_at in range(1, count_calls() + 1, step))


def test_a_power_cut_at_any_call_loses_nothing_acknowledged_and_shows_nothing_else(record_property):
    disks = crash_everywhere()
    record_property("disks", disks)
    assert disks > 1000


def test_a_power_cut_during_recovery_changes_nothing_and_recovery_serves_only_what_is_durable(record_property):
    disks = 0
    for cut_at in range(1, count_calls() + 1, 5):
        disk, model = run_until_cut(cut_at)
        for survivor in itertools.islice(disk.survivors(), 12):
            disks += sum(check_survivors(*left) for left in _recover_with_cuts(survivor.content(), model))
    record_property("disks", disks)
    assert disks > 1000


def _recover_with_cuts(files: dict[str, bytes], model: Model) -> Iterator[tuple[SimDisk, Model]]:
    """The disk after a recovery from these files that was cut at each of its calls, and after one that was not."""
    for cut_at in itertools.count(1):
        disk, again = SimDisk(files), model.copy()
        disk.cut_at = cut_at
        with suppress(PowerCut):
            Process(disk, again).end()
        yield disk, again
        if not disk.is_cut:
            return


def fail_everywhere(number: int) -> int:
    """One call after the other fails; the process ends or goes on, a successor serves, then the power goes."""
    disks = 0
    for call in range(1, count_calls() + 1):
        disk, model = run_until_cut(fail_at={call: number})
        disk.fail_at = {}
        with suppress(DiskFailed):
            process = Process(disk, model)  # a successor, which sees the page cache as it was left
            process.write()
            process.end()
        disks += check_survivors(disk, model)
    return disks


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS], ids=errno.errorcode.get)
def test_a_call_that_fails_loses_nothing_acknowledged(number):
    assert fail_everywhere(number) > 100


def crash_then_go_on() -> int:
    """A power cut, a successor that drops what was torn and writes, and a power cut again."""
    disks = 0
    for cut_at in range(1, count_calls() + 1):
        disk, model = run_until_cut(cut_at)
        for survivor in disk.survivors():
            again = model.copy()
            process = Process(survivor, again)
            process.write()
            process.end()
            disks += check_survivors(survivor, again)
    return disks


def test_what_is_written_after_a_torn_tail_was_dropped_survives_the_next_power_cut():
    assert crash_then_go_on() > 1000


def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wal.Wal, "sync", lambda self: None)


def _no_directory_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimDisk, "sync_directory", lambda self: None)


def _rename_without_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_sync(disk, name, parts):
        file = disk.create(name + publish.TEMPORARY_SUFFIX)
        for part in parts:
            file.append(part)
        disk.rename(name + publish.TEMPORARY_SUFFIX, name)
        disk.sync_directory()
        return file

    for module in (wal, recovery):
        monkeypatch.setattr(module, "publish", without_sync)


def _remove_before_the_snapshot_is_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    write = checkpoint.snapshot.write

    def remove_then_write(disk, store, sequence):
        for segment, successor in itertools.pairwise(wal.list_segments(disk.names())):
            if successor.first <= sequence + 1:
                disk.remove(segment.name)
        return write(disk, store, sequence)

    monkeypatch.setattr(checkpoint.snapshot, "write", remove_then_write)


def _apply_before_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    submit = GroupCommit.submit

    def apply_then_submit(self, raw, batch):
        reply = submit(self, raw, batch)
        self._store.data.update(batch.puts)
        return reply

    monkeypatch.setattr(GroupCommit, "submit", apply_then_submit)


def _trust_the_page_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "make_durable", lambda disk, recovered: None)


def _keep_the_torn_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last segment is written anew, whole, and with what was torn; the next one follows it."""
    make_durable = recovery.make_durable

    def with_tail(disk, recovered):
        tail = recovered.tail
        if tail and tail.dropped_bytes:
            with disk.open(tail.segment.name) as file:
                recovered = recovered._replace(tail=tail._replace(whole=file.read()))
        make_durable(disk, recovered)

    monkeypatch.setattr(recovery, "make_durable", with_tail)


def _apply_half_a_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    execute = Store._execute

    def half(self, transaction, bytes_max):
        puts = dict(list(transaction.puts.items())[:1])
        return execute(self, Transaction(transaction.checks, puts, transaction.deletes), bytes_max)

    monkeypatch.setattr(Store, "_execute", half)


MISTAKES: list[tuple[Callable[[pytest.MonkeyPatch], None], Callable[[], object]]] = [
    (_no_sync, crash_everywhere),
    (_no_directory_sync, crash_everywhere),
    (_rename_without_sync, crash_everywhere),
    (_remove_before_the_snapshot_is_durable, crash_everywhere),
    (_apply_before_sync, crash_everywhere),
    (_apply_half_a_transaction, crash_everywhere),
    (_trust_the_page_cache, lambda: fail_everywhere(errno.EIO)),
    (_keep_the_torn_tail, crash_then_go_on),
]


@pytest.mark.parametrize(("plant", "suite"), MISTAKES, ids=[plant.__name__.strip("_") for plant, _ in MISTAKES])
def test_a_planted_mistake_is_seen(plant, suite, monkeypatch):
    plant(monkeypatch)
    with pytest.raises(Broken):
        suite()
