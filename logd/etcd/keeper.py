"""What has to be done for a cluster beside reads and writes, by one thread in the background:

* check it before it is used, and wait until it answers;
* ask something every few seconds, so that /health knows;
* look at its members: versions decide how reads are made, sizes are for /metrics;
* compact it: etcd keeps every old revision until it is told not to;
* remove what earlier generations have left, and the records of servers that are no more.

Never defragments: that blocks a member, and is for its operator.
"""

import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from logd.etcd import checks, records, transactions
from logd.etcd import kv_pb2 as pb
from logd.etcd.generation import Generation
from logd.etcd.layout import Layout, Span, span_of
from logd.etcd.link import Closed, Link, Rejected
from logd.etcd.reads import Reader

_PROBE_SECONDS: Final = 2.0
_MEMBERS_SECONDS: Final = 10.0
_RECORDS_SECONDS: Final = 3600.0
_SWEEP_SECONDS: Final = 5.0
_WAIT_SECONDS: Final = 0.5
_DEAD_SECONDS: Final = 7 * 24 * 3600.0
_SWEPT_KEYS: Final = 1000
_SWEEP_PAUSE_SECONDS: Final = 0.05  # deleting blocks every other write of the cluster, some 12 µs a key

log = logging.getLogger("logd.etcd.keeper")


class Keeper:
    """The thread, and what it has found out."""

    def __init__(
        self,
        link: Link,
        layout: Layout,
        generation: Generation,
        reader: Reader,
        *,
        reads: str,
        compact_s: float,
        request_bytes_max: int,
        on_failed: Callable[[Exception], None],
        on_turn: Callable[[], None],
    ) -> None:
        """`on_turn` is called every few seconds, for what is due on the main thread."""
        self._link = link
        self._layout = layout
        self._generation = generation
        self._reader = reader
        self._reads = reads
        self._compact_s = compact_s
        self._request_bytes_max = request_bytes_max
        self._on_failed = on_failed
        self._on_turn = on_turn
        self.is_checked = threading.Event()
        """Set when the cluster was found usable."""
        self.members: Mapping[str, pb.StatusResponse] = {}
        """Those that answered when they were last looked at, by endpoint."""
        self.trouble = ""
        """Why the cluster does not serve us; empty when it does."""
        self._problems: dict[Callable[[], object], str] = {}
        """What has kept each chore from being done the last time; empty when nothing has."""
        self._swept = -1
        self._strange: set[bytes] = set()
        """Keys among the records that hold something else, and were reported."""
        self._compact_to = 0
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Wait for the end of the thread. The link has to be closed by then."""
        self._thread.join()

    def _run(self) -> None:
        try:
            self._check()
            self.is_checked.set()
            self._keep()
        except Closed:
            return
        except Exception as error:  # whatever it is, the main thread has to learn of it
            self._on_failed(error)

    # The start -------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """Wait until the cluster answers, and check it. Raises checks.Unusable."""
        is_reported = False
        while not self._look_at_members():
            if not is_reported:
                log.warning("no endpoint of etcd answers: %s; waiting", ", ".join(self._link.urls))
                is_reported = True
            self._link.pause(_WAIT_SECONDS)
        while True:
            try:
                checks.check_request_size(self._link, self._layout, self._request_bytes_max)
            except Rejected as error:
                self._report(str(error))
                self._link.pause(_WAIT_SECONDS)
            else:
                self._report("")
                return

    def _look_at_members(self) -> bool:
        """Ask all members; False when none answers. Raises checks.Unusable."""
        found = {url: status for url in self._link.urls if (status := self._link.status(url))}
        self.members = found
        is_sound = len(found) == len(self._link.urls) and checks.reads_index_is_sound(
            [status.version for status in found.values()]
        )
        through_log = self._reads == "log" or (self._reads == "auto" and not is_sound)
        if found and through_log != self._reader.through_log:
            log.info("reads go %s", "through the log of etcd" if through_log else "past the log of etcd (ReadIndex)")
            self._reader.through_log = through_log
        checks.check_members(found)
        return bool(found)

    def _report(self, trouble: str) -> None:
        if trouble != self.trouble:
            if trouble:
                log.error("etcd refuses what the server needs: %s", trouble)
            else:
                log.info("etcd serves again")
        self.trouble = trouble

    # From then on ----------------------------------------------------------------------------------------

    def _keep(self) -> None:
        """Do each of the chores when it is due."""
        chores: list[tuple[float, Callable[[], object]]] = [
            (_PROBE_SECONDS, self._probe),
            (_MEMBERS_SECONDS, self._look_at_members),
            (_SWEEP_SECONDS, self._sweep),
            (_RECORDS_SECONDS, self._remove_dead_records),
        ]
        if self._compact_s:
            chores.append((self._compact_s, self._compact))
        due = [0.0] * len(chores)
        while True:
            for index, (period_s, chore) in enumerate(chores):
                if time.monotonic() >= due[index]:
                    due[index] = time.monotonic() + period_s
                    self._do(chore)
            self._link.pause(_PROBE_SECONDS / 4)

    def _do(self, chore: Callable[[], object]) -> None:
        """Do a chore, or log once why it is left for later."""
        problem = ""
        try:
            chore()
        except Rejected as error:
            problem = f"left for later, as etcd refuses it: {error}"
        except checks.Unusable as error:  # what is wrong with a member by now ends no server
            problem = f"{error}; the next start will be refused"
        if problem and problem != self._problems.get(chore):
            log.error("%s", problem)
        self._problems[chore] = problem

    def _probe(self) -> None:
        """Ask for something that only a cluster with a leader can answer, and that we must be allowed to ask.

        Also when others ask: an error is an answer too, and tells nobody but who has asked.
        """
        self._on_turn()
        generation, through_log = self._generation.value, self._reader.through_log
        try:
            self._link.txn(transactions.read(self._layout, generation, ["probe"], through_log=through_log))
        except Rejected as error:
            self._report(str(error))
        else:
            self._report("")

    def _compact(self) -> None:
        """Have the revisions forgotten that were old a round ago; never the newest one (etcd #17780)."""
        revision, self._compact_to = self._compact_to, self._link.revision
        if 0 < revision < self._link.revision:
            try:
                self._link.compact(revision)
            except Rejected as error:
                log.debug("not compacted to revision %d: %s", revision, error)  # another server was first

    def _sweep(self) -> None:
        """Remove the keys of all generations but the present one."""
        generation = self._generation.value
        if generation == self._swept:
            return
        for span in self._layout.data_of_others(generation):
            self._sweep_span(generation, span)
        if generation == self._generation.value:
            self._swept = generation

    def _sweep_span(self, generation: int, span: Span) -> None:
        """Remove the data in a span, as long as the generation is the present one. The keys of strangers stay."""
        rest = span
        while found := self._first_in(rest, _SWEPT_KEYS, keys_only=True):
            is_data, alike = next(itertools.groupby((each.key for each in found), self._layout.is_data))
            run = list(alike)
            rest = Span(run[-1] + b"\0", span.end)
            if is_data:
                removal = transactions.remove(self._layout, generation, Span(run[0], rest.first))
                if not self._link.txn(removal).succeeded:
                    return
                log.info("removed %d keys of earlier generations", len(run))
                self._link.pause(_SWEEP_PAUSE_SECONDS)

    def _remove_dead_records(self) -> None:
        """Remove the records that nobody has written for a week: their server is gone, and its workers with it."""
        for each in self._first_in(span_of(self._layout.records)):
            is_dead = self._written_at(each) < time.time() - _DEAD_SECONDS
            if is_dead and self._link.txn(transactions.remove_record(each.key, each.mod_revision)).succeeded:
                log.info("removed the record %s of a server that is gone", each.key.decode(errors="replace"))

    def _first_in(self, span: Span, limit: int = 0, *, keys_only: bool = False) -> Sequence[pb.KeyValue]:
        request = transactions.first_in(span, limit, keys_only=keys_only)
        return self._link.txn(request).responses[0].response_range.kvs

    def _written_at(self, found: pb.KeyValue) -> float:
        """When a record was written; without end if it is none, which is reported once."""
        try:
            return records.decode(found.value).written_at
        except (msgspec.DecodeError, UnicodeDecodeError):
            if found.key not in self._strange:
                self._strange.add(found.key)
                log.warning("%s holds no record; it is left alone", found.key.decode(errors="replace"))
            return math.inf
