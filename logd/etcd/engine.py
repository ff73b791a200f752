"""The etcd engine: what `logd.engine` promises, by transactions of a cluster that other servers use too.

Owns the way its parts go together, on the main thread: a batch goes to the lane of its session, a read to the reads,
and what their threads and the keeper hand back comes through one mailbox. None of its methods waits for the network.

    submit ─> Lane ─queue─> thread of the lane: fold, Writer ─┐
    read ───> Reads ─queue─> threads: Reader ─────────────────┼─> Link ─> etcd
    Keeper: thread ───────────────────────────────────────────┘
                                        results ─> Mailbox ─> collect
"""

import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import grpc

from logd import counters
from logd.counters import Counters
from logd.engine import Collected, Found, Origin
from logd.etcd.generation import Generation
from logd.etcd.keeper import Keeper
from logd.etcd.lane import Ended, Lane, Replies
from logd.etcd.layout import Layout
from logd.etcd.link import Endpoint, Expired, Link, Rejected, User
from logd.etcd.mailbox import Mailbox
from logd.etcd.pages import page
from logd.etcd.reads import Answered, Job, PageOf, Reader, Reads, look_up_all
from logd.etcd.records import Table
from logd.etcd.verdict import Verdict
from logd.etcd.writer import Refusal, Writer
from logd.intake import FOLLOWED_MAX, Accepted
from logd.shared import process_stats
from logd.shared.protocol import (
    ClusterStats,
    Committed,
    LargeEntry,
    Page,
    PageRequest,
    Reason,
    Refused,
    Reply,
    Stats,
    WriteBatch,
)

LANES: Final = 4
"""Groups in flight at the same time, at most. More bring nothing (8 as many writes as 4)."""
_SESSIONS_A_LANE: Final = 4
"""One lane for few workers: of 64 connections' writes in one lane, etcd pays two thirds of what it pays in two."""
_RECORD_BYTES: Final = 64 << 10
"""Of a request: the record, the conditions, and what encoding adds."""
_NO_SPACE: Final = "no space left in etcd"
_SILENT_SECONDS: Final = 3.0
_OWNER_BYTES: Final = 16
_GIVE_UP_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 0.5

log = logging.getLogger("logd.etcd.engine")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the cluster is used."""

    endpoints: Sequence[str]
    """URLs, the nearest first."""
    prefix: str
    gateway: str
    """Random; that of the logd whose workers this one serves now."""
    reads: str
    """auto, index or log."""
    compact_s: float
    """0: never."""
    request_bytes_max: int
    request_timeout_s: float
    """How long workers wait for an answer."""
    credentials: grpc.ChannelCredentials | None = None
    user: User | None = None


class EtcdEngine:
    """Satisfies `logd.engine.Engine`. `collect` raises writer.Fenced, checks.Unusable."""

    def __init__(self, settings: Settings) -> None:
        self._results: Mailbox[Ended | Answered | Exception] = Mailbox()
        self._link = Link(
            [Endpoint(url, settings.credentials) for url in settings.endpoints],
            user=settings.user,
            on_unanswered=self._results.wake,  # a lane may be stalled now
        )
        self._generation = Generation()
        layout = Layout(settings.prefix, settings.gateway)
        reader = Reader(self._link, layout, self._generation, value_bytes_max=settings.request_bytes_max)
        self._keeper = Keeper(
            self._link,
            layout,
            self._generation,
            reader,
            reads=settings.reads,
            compact_s=settings.compact_s,
            request_bytes_max=settings.request_bytes_max,
            on_failed=self._results.put,
            on_turn=self._results.wake,
        )
        self._reads = Reads(partial(carry_out, reader, settings.request_timeout_s), self._results)
        owner, turn_lock = os.urandom(_OWNER_BYTES), threading.Lock()
        self._lanes = [
            Lane(
                Writer(self._link, layout, self._generation, number, owner, turn_lock),
                self._results,
                group_bytes_max=settings.request_bytes_max - _RECORD_BYTES,
                stall_s=settings.request_timeout_s / 3,
                may_begin=self._keeper.is_checked,
            )
            for number in range(LANES)
        ]
        self._lane_by_session: dict[bytes, Lane] = {}
        self._held: list[Accepted] = []
        """What came while nobody knew yet what a predecessor has applied."""
        self._refused = ""
        """Why the last group was refused; empty when it was not."""
        self.counters = Counters()
        self._pages = 0
        self._read_seconds = counters.empty(counters.SECONDS)

    def fileno(self) -> int:
        return self._results.fileno()

    def is_ready(self) -> bool:
        """True when writes are not held any more: every lane is ours."""
        return all(lane.is_ours for lane in self._lanes)

    def submit(self, raw: bytes, batch: WriteBatch) -> Reply | None:
        if not self.is_ready():
            self._held.append(Accepted(raw, batch))
            return None
        lane = self._lane_of(batch.session)
        reply = lane.submit(raw, batch)
        if reply:
            self.counters.count_reply(reply)
        elif lane.is_stalled():
            self._results.wake()  # `collect` refuses it, with what others have waiting there
        return reply

    def read(self, keys: Sequence[str], origin: Origin) -> Found | None:
        self._reads.add(keys, origin)
        return None

    def page(self, request: PageRequest, peer: bytes) -> Page | LargeEntry | None:
        self._reads.add_page(request, peer)
        return None

    def commit(self, *, is_quiet: bool = False) -> None:
        for lane in self._lanes:
            lane.begin()
        self._reads.begin()

    def collect(self) -> Collected:
        replies: Replies = []
        reads: list[tuple[Origin, Found]] = []
        pages: list[tuple[bytes, Page | LargeEntry]] = []
        for result in self._results.take():
            if isinstance(result, Exception):
                raise result
            if isinstance(result, Ended):
                replies += self._end(result)
            else:
                reads += result.reads
                pages += result.pages
                self._pages += len(result.pages)
                if result.reads:
                    counters.observe(self._read_seconds, result.seconds)
                self._reads.end()
        for lane in self._lanes:
            replies += lane.refuse_if_stalled()
        if self._held and self._is_kept_out():
            replies += self._refuse_openings()
        for _, reply in replies:
            self._count(reply)
        return Collected(replies, reads, pages)

    def idle(self) -> bool:
        return self._reads.is_idle() and all(lane.is_idle() for lane in self._lanes)

    def unavailable_reason(self) -> str:
        if self._link.silent_s() > _SILENT_SECONDS:
            return f"etcd has not answered for {self._link.silent_s():.1f} s"
        if self._keeper.trouble:
            return f"etcd refuses what the server needs: {self._keeper.trouble}"
        if self._is_kept_out():
            return _NO_SPACE
        if not self.is_ready():
            return "the server does not have its record in etcd yet"
        return self._refused

    def stats(self, number: int) -> Stats:
        counted, link = self.counters, self._link
        status = self._keeper.members.get(link.current_url)
        return Stats(
            number=number,
            unavailable_reason=self.unavailable_reason(),
            sessions=sum(len(lane.table.sessions) for lane in self._lanes),
            groups=counted.groups,
            batches=counted.batches,
            refused=dict(counted.refused),
            writes_not_made=dict(counted.not_made),
            group_writes=counted.group_writes,
            sync_seconds=counted.sync_seconds,
            pages=self._pages,
            cpu_seconds=time.process_time(),
            resident_bytes=process_stats.resident_bytes(),
            cluster=ClusterStats(
                endpoint=link.current_url,
                version=status.version if status else "",
                calls=dict(link.tally.calls),
                retries=link.tally.repeated,
                applied_by_earlier_try=sum(lane.writer.found_applied for lane in self._lanes),
                endpoint_switches=link.tally.switches,
                read_seconds=self._read_seconds,
                generation=self._generation.value,
                db_bytes=status.db_bytes if status else 0,
                db_bytes_in_use=status.db_bytes_in_use if status else 0,
                raft_term=link.raft_term,
                no_answer_seconds=0.0 if self.idle() else link.silent_s(),
            ),
        )

    def give_up_records(self) -> None:
        """Leave nothing of this server in etcd but the data. For a stop in order: a successor needs the records."""
        deadline = time.monotonic() + _GIVE_UP_SECONDS
        for lane in self._lanes:
            lane.give_up()
        for lane in self._lanes:
            lane.join(max(0.0, deadline - time.monotonic()))

    def stop(self) -> None:
        self._link.close()
        self._keeper.is_checked.set()  # no lane waits for that any more
        for lane in self._lanes:
            lane.stop()
        self._reads.stop()
        self._keeper.stop()
        self._results.close()

    def _lane_of(self, session: bytes) -> Lane:
        """The lane of a session: always the same. New ones are dealt out some at a time."""
        lane = self._lane_by_session.get(session)
        if lane is None:
            if len(self._lane_by_session) > FOLLOWED_MAX:
                self._forget_dropped_sessions()
            lane = self._lanes[len(self._lane_by_session) // _SESSIONS_A_LANE % LANES]
            self._lane_by_session[session] = lane
        return lane

    def _forget_dropped_sessions(self) -> None:
        self._lane_by_session = {
            session: lane
            for session, lane in self._lane_by_session.items()
            if session in lane.table.sessions or not lane.is_idle()
        }

    def _release(self) -> Replies:
        """Submit what was held. Replies to those batches that need not wait for a group."""
        self._lane_by_session = {session: lane for lane in self._lanes for session in lane.table.sessions}
        held, self._held = self._held, []
        replies = [
            (accepted.batch.session, self._lane_of(accepted.batch.session).submit(*accepted)) for accepted in held
        ]
        return [(session, reply) for session, reply in replies if reply]

    def _is_kept_out(self) -> bool:
        """True when there is no space for the records of this server."""
        return any(lane.writer.is_full and not lane.is_ours for lane in self._lanes)

    def _refuse_openings(self) -> Replies:
        """Refuse what only opens sessions: no matter what a predecessor has made of it, it writes nothing.

        Workers fail the writes that wait for the session. What else is held may still be applied by a predecessor.
        """
        openings = [batch for _, batch in self._held if _is_opening(batch)]
        self._held = [accepted for accepted in self._held if not _is_opening(accepted.batch)]
        return [(each.session, Refused(each.session, [each.number], Reason.NO_SPACE)) for each in openings]

    def _end(self, ended: Ended) -> Replies:
        lane, result = self._lanes[ended.lane], ended.result
        if isinstance(result, Table):
            lane.taken_over(result)
            return self._release() if self.is_ready() else []
        group = lane.in_flight or []
        replies = lane.end(result)
        if not isinstance(result, Refusal):
            self._refused = ""
            self.counters.count_group([batch for _, batch in group], 0, ended.seconds)
        elif not result.is_too_large:
            is_full = result.reason is Reason.NO_SPACE
            self._refused = _NO_SPACE if is_full else f"etcd refuses writes: {result.text}"
        return replies

    def _count(self, reply: Reply) -> None:
        self.counters.count_reply(reply)
        if isinstance(reply, Committed):
            for outcomes in reply.outcomes.values():
                self.counters.count_outcomes(outcomes)


def _is_opening(batch: WriteBatch) -> bool:
    return not (batch.number or batch.clear or batch.puts or batch.deletes or batch.transactions)


def carry_out(reader: Reader, timeout_s: float, job: Job) -> Answered:
    """What a thread of the reads does. A job that takes too long is given up: its workers do not wait any more.

    Raises link.Closed, writer.Fenced.
    """
    until = time.monotonic() + timeout_s
    while True:
        try:
            if isinstance(job, PageOf):
                return Answered(pages=[(job.peer, page(reader, job.request, until))])
            return Answered(reads=look_up_all(reader, job, until))
        except Expired:
            return Answered()
        except Rejected as error:
            if error.verdict is Verdict.TOO_LARGE:
                log.error("etcd refuses a read, which is given up: %s", error)
                return Answered()
            # A revision that is compacted since, or a cluster that denies all for now: begin again.
            reader.link.pause(_RETRY_SECONDS)
