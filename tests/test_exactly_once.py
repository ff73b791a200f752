"""Clients against the real group commit, over a network and a disk that do their worst, simulated from a seed.

The network keeps the order of one connection and nothing else: it may be cut at any point, each direction loses a
suffix, and a client goes on sending into the void until it notices. The disk may be full, the data may have reached its
limit, and logd and workers may be killed, at any point.
"""

import asyncio
import queue
import random
import select
from collections import deque
from pathlib import Path

import pytest
import zmq

from kv.log_client.client import Client
from kv.log_client.outcomes import (
    DataLimitReached,
    NoSpace,
    OutcomeUnknown,
    PreconditionFailed,
    RequestFailed,
    Unavailable,
)
from logd import intake, server
from logd.local import commit, publish, store, wal
from logd.local.checkpointer import Checkpointer, Newest, Policy
from logd.local.engine import LocalEngine
from logd.local.group import decode as decode_group
from logd.local.recovery import Finding, Recovered
from logd.shared import protocol
from logd.shared.etag import etag
from logd.shared.protocol import Check, Transaction
from tests.support.builders import encode_payload
from tests.support.history import ABSENT, Fault, History, Kind, Operation, Outcome, check
from tests.support.history import Transaction as Recorded

COUNTER = "counter"
PAIR = ("left", "right")
WATCHED = ("a", "b", "c", "d")
"""Keys whose history is recorded as clients see it, and judged. Batches are of the first two, or of the others."""
WATCHERS = 16


OUTCOMES = {
    None: Outcome.OK,
    OutcomeUnknown: Outcome.UNKNOWN,
    **dict.fromkeys((DataLimitReached, NoSpace, Unavailable), Outcome.REFUSED),
}


class Connection:
    def __init__(self):
        self.up, self.down, self.arrived, self.is_whole = deque([b""]), deque(), deque(), True

    def arrive(self, count):
        while self.down and count > 0:
            self.arrived.append(self.down.popleft())
            count -= 1


class Socket:
    """A worker's socket; `connection` is what it believes to have."""

    connection = None

    def send(self, raw, _):
        if not self.connection:
            raise zmq.Again
        self.connection.up.append(raw)

    def getsockopt(self, option):
        assert option == zmq.EVENTS
        return zmq.POLLOUT | (zmq.POLLIN if self.connection and self.connection.arrived else 0)

    def recv(self):
        return self.connection.arrived.popleft()


class Worker(Client):
    """A client over a simulated socket."""

    def __init__(self, loop, timeout_s=10.0):
        super().__init__("", request_timeout_s=timeout_s, queue_bytes_max=200_000, large_bytes_max=1)
        self.loop, self.socket, self.timeout_s = loop, Socket(), timeout_s
        self._socket = self.socket
        self._sweeper = loop.create_task(self._sweep_forever())

    def be_patient(self):
        """From now on, wait for every answer."""
        self.timeout_s = self._writes._timeout_s = 1000.0

    def receive(self):
        self._receive()

    def die(self):
        self._expire(float("inf"))
        self._sweeper.cancel()


def replay(log):
    """The state that a log gives, and the keys in the order in which it puts them."""
    state, keys = store.Store(), []
    write = state._write

    def watched_write(batch, bytes_max):
        outcomes = write(batch, bytes_max)
        keys.extend(key for key in batch.puts if not outcomes or key not in outcomes.over_limit)
        return outcomes

    state._write = watched_write
    for payload in log:
        batches, data_bytes_max = decode_group(payload)
        for batch in batches:
            state.apply(batch, data_bytes_max)
    return state, keys


class World:
    """Everything there is, and what may happen next. To logd it is the socket, the disk and the log."""

    def __init__(self, seed, workers=3, data_bytes_max=0):
        self.data_bytes_max = data_bytes_max
        self.random, self.now, self.loop = random.Random(seed), 0.0, asyncio.new_event_loop()
        self.loop.time = lambda: self.now
        self.log, self.verdicts, self.writes, self.deletes, self.connections = [], queue.SimpleQueue(), [], [], {}
        self.increments, self.pairs, self.watched = [], [], []
        self.history, self.tags = History(WATCHED), {}
        self.storage = self.server = None
        self.workers = [Worker(self.loop) for _ in range(workers)]
        good = [self.logd_starts, self.logd_receives, self.disk_syncs, self.logd_collects]
        good += [self.worker_connects, self.worker_notices, self.worker_reads]
        self.good = [each for each in good for _ in range(self.random.choice([1, 2, 5]))]  # some are slow

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.loop.set_exception_handler(lambda *_: None)  # what a test has not looked at when it fails, nobody will
        self.logd_dies()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.turn()
        self.loop.close()

    def turn(self):
        self.now += self.random.random() / 50
        for _ in range(3):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()

    def step(self, *happenings):
        self.random.choice(happenings)(self.random.choice(self.workers))
        self.turn()

    def settle(self, requests=()):
        """Without faults and new requests, everything is answered in the end."""
        for _ in range(5000):
            self.step(*self.good)
            is_answered = all(request.done() for request in requests)
            if is_answered and not any(worker.gauges()["queued_bytes"] for worker in self.workers):
                break

    def free_bytes(self):
        return 0

    def append(self, raws):
        if failure := self.verdicts.get():
            raise failure
        self.log.append(encode_payload(raws))
        return 0

    sync = close = lambda self: None
    sealed = wal.Sealed(0, 0)

    def getsockopt(self, option):
        """Whether a message is there; if so, it is the one that is received next."""
        if option == zmq.RCVMORE:
            return len(self.received)
        waiting = [peer for peer, connection in self.connections.items() if connection.up]
        if not waiting or self.random.random() < 0.5:
            return zmq.POLLOUT
        peer = self.random.choice(waiting)
        self.received = [peer, self.connections[peer].up.popleft()]
        return zmq.POLLIN

    def recv(self):
        return self.received.pop(0)

    def send(self, part, flags):
        if flags & zmq.SNDMORE:
            if part not in self.connections:
                raise zmq.ZMQError(zmq.EHOSTUNREACH)
            self.addressee = part
        else:
            self.connections[self.addressee].down.append(part)

    # What may happen

    def write(self, worker):
        self.writes.append(self.loop.create_task(self._write(worker, str(len(self.writes)))))

    async def _write(self, worker, key):
        outcome = await self._outcome(worker, worker.put(key, b"v" * self.random.choice([1, 500])))
        assert outcome or key in replay(self.log)[1], "acknowledged and not durable"
        return worker, key, outcome

    def delete(self, worker):
        # Of keys that are put once, so that no write undoes another.
        if self.storage and (keys := [key for key in self.storage._store.data if key.isdecimal()]):
            key = self.random.choice(keys)
            self.deletes.append(self.loop.create_task(self._outcome(worker, worker.delete(key))))

    def increment(self, worker):
        self.increments.append(self.loop.create_task(self._increment(worker)))

    async def _increment(self, worker):
        """Read a counter, and replace it if nobody else has; Unavailable when it could not be read."""
        try:
            value = await worker.get(COUNTER)
        except RequestFailed:
            return Unavailable
        check = Check(COUNTER, None, negated=True) if value is None else Check(COUNTER, [etag(value)], negated=False)
        successor = Transaction([check], {COUNTER: b"%d" % (int(value or 0) + 1)}, [])
        return await self._outcome(worker, worker.execute(successor))

    def write_pair(self, worker):
        """Both of a pair are written or deleted by one transaction."""
        value = self.random.randbytes(8).hex().encode()
        pair = ({}, list(PAIR)) if self.random.random() < 0.3 else (dict.fromkeys(PAIR, value), [])
        self.pairs.append(self.loop.create_task(self._outcome(worker, worker.execute(Transaction([], *pair)))))

    def watch(self, worker):
        """One request for watched keys, or a read and then a write on the condition that nothing has changed."""
        if sum(not each.done() for each in self.watched) >= WATCHERS:
            return
        kind = self.random.choice([Kind.GET, Kind.PUT, Kind.DELETE, Kind.CAS, Kind.CAS, Kind.BATCH, Kind.BATCH])
        key = self.random.randrange(len(WATCHED))
        self.watched.append(self.loop.create_task(self._watch(worker, kind, key)))

    async def _watch(self, worker, kind, key):
        if kind == Kind.GET:
            await self._look(worker, key)
        elif kind in (Kind.PUT, Kind.DELETE):
            value = self.new_value() if kind == Kind.PUT else ABSENT
            request = worker.put(WATCHED[key], b"%d" % value) if value else worker.delete(WATCHED[key])
            start = self.nanoseconds()
            outcome = OUTCOMES[await self._outcome(worker, request)]
            self.history.add(key, Operation(0, kind, value, start, self.nanoseconds(), outcome))
        else:
            reads = {}
            for each in [key] if kind == Kind.CAS else [key, key ^ 1]:
                if (found := await self._look(worker, each)) is None:
                    return
                reads[each] = found
            await self._transact(worker, kind, reads, dict.fromkeys(reads, self.new_value()))

    async def _look(self, worker, key):
        """The number of the value of a key; None when it could not be read."""
        start = self.nanoseconds()
        try:
            value = int(await worker.get(WATCHED[key]) or ABSENT)
        except RequestFailed:
            return None
        self.history.add(key, Operation(0, Kind.GET, value, start, self.nanoseconds(), Outcome.OK))
        return value

    async def _transact(self, worker, kind, reads, writes):
        checks = [
            Check(WATCHED[key], [etag(b"%d" % value)] if value else None, negated=not value)
            for key, value in reads.items()
        ]
        if self.random.random() < 0.3:
            writes[min(writes)] = ABSENT
        puts = {WATCHED[key]: b"%d" % value for key, value in writes.items() if value}
        deletes = [WATCHED[key] for key, value in writes.items() if not value]
        start = self.nanoseconds()
        try:
            await worker.execute(Transaction(checks, puts, deletes))
            outcome = Outcome.OK
        except PreconditionFailed as failure:
            outcome, keys = Outcome.NOT_MET, list(reads)
            reads |= {keys[index]: self.tags[tag] if tag else ABSENT for index, tag in failure.failed}
        except RequestFailed as failure:
            outcome = OUTCOMES[type(failure)]
        self.history.add_transaction(Recorded(0, kind, reads, writes, start, self.nanoseconds(), outcome))

    def new_value(self):
        value = len(self.tags) + 1
        self.tags[etag(b"%d" % value)] = value
        return value

    def nanoseconds(self):
        return int(self.now * 1e9)

    async def _outcome(self, worker, request):
        deadline, outcome = self.now + worker.timeout_s + 0.3, None
        try:
            await request
        except RequestFailed as failure:
            outcome = type(failure)
        assert self.now <= deadline, "it hung"
        return outcome

    def worker_connects(self, worker):
        if self.storage and not worker.socket.connection:
            worker.socket.connection = self.connections[self.random.randbytes(5)] = Connection()

    def worker_notices(self, worker):
        if worker.socket.connection and not worker.socket.connection.is_whole:
            worker.socket.connection = None  # with ZMQ_IMMEDIATE what had arrived on it and was not read is gone

    def worker_reads(self, worker):
        if worker.socket.connection:
            worker.socket.connection.arrive(self.random.randint(0, 5))
            worker.receive()

    def worker_dies(self, worker):
        self.connection_breaks(worker)
        worker.die()
        self.workers[self.workers.index(worker)] = Worker(self.loop)

    def connection_breaks(self, worker):
        connection = worker.socket.connection
        if connection and connection.is_whole:
            connection.arrive(self.random.randint(0, 5))
            connection.down.clear()
            connection.is_whole = False
            self.connections = {peer: each for peer, each in self.connections.items() if each.is_whole}

    def logd_starts(self, _):
        if not self.storage:
            state = replay(self.log)[0]
            recovered = Recovered(state, 0, Finding.CLEAN, None, [], [], None, 0, 0, 0.0)
            never = Checkpointer(Path(), Policy(1 << 60, 0.0), Newest(0, 0))
            self.storage = LocalEngine(self, self, recovered, never, data_bytes_max=self.data_bytes_max)
            self.synced = False
            self.server = server.Server(self, self.storage, -1)

    def logd_dies(self, _=None):
        if self.storage:
            if not self.storage.idle() and not self.synced:
                self.verdicts.put(self.random.choice([None, OSError("killed")]))
            self.storage.stop()
            self.storage = None
            for worker in self.workers:
                self.connection_breaks(worker)

    def logd_receives(self, _=None):
        if self.storage:
            self.server._receive()
            self.storage.commit()

    def disk_syncs(self, _=None, failure=None):
        if self.storage and not self.storage.idle() and not self.synced:
            self.verdicts.put(failure)
            select.select([self.storage.fileno()], [], [])
            self.synced = True

    def disk_is_full(self, _=None):
        self.disk_syncs(failure=publish.NoSpace())

    def logd_collects(self, _=None):
        if self.storage and self.synced:
            self.synced = False
            self.server._collect()
            self.storage.commit()


@pytest.fixture(autouse=True)
def few_sessions(monkeypatch):
    monkeypatch.setattr(store, "SESSIONS_MAX", 3)
    monkeypatch.setattr(intake, "FOLLOWED_MAX", 6)


@pytest.mark.parametrize("seed", range(45))
def test_acknowledged_writes_are_applied_once_and_in_order_and_refused_ones_never(seed):
    with World(seed, data_bytes_max=3000 if seed % 3 == 0 else 0) as world:
        faults = [world.logd_dies, world.connection_breaks, world.worker_dies, world.disk_is_full]
        faults, rate = world.random.sample(faults, world.random.randint(1, 4)), world.random.choice([0.05, 0.2, 0.8])
        for _ in range(1000):
            rare = faults if world.random.random() < rate else []
            world.step(*world.good, world.write, world.write, world.delete, *rare)
        world.data_bytes_max = 0  # with the next life of logd
        world.logd_dies()
        for _ in range(4):  # sessions that were dropped meanwhile are opened anew
            world.settle()
            for worker in world.workers:
                worker.be_patient()
                world.write(worker)
        world.settle()
        order = {key: position for position, key in enumerate(replay(world.log)[1])}
        assert len(order) == len(replay(world.log)[1])
        latest = {}
        for worker, key, outcome in (write.result() for write in world.writes):
            assert outcome is OutcomeUnknown or (key in order) == (outcome is None)
            assert latest.get(worker, -1) < order.get(key, 1 << 60)
            latest[worker] = order.get(key, latest.get(worker, -1))
        assert DataLimitReached not in [delete.result() for delete in world.deletes]
        assert [write.result()[2] for write in world.writes[-3:]] == [None] * 3


@pytest.mark.parametrize("seed", range(10))
def test_the_data_never_exceeds_its_limit_and_deletes_go_on_beside_writes_that_do_not_fit(seed):
    limit = 3000
    with World(seed, data_bytes_max=limit) as world:
        for worker in world.workers:
            worker.be_patient()
        for _ in range(1000):
            world.step(*world.good, world.write, world.write, world.delete)
            assert world.storage is None or world.storage._store.data_bytes <= limit
        world.settle()
        outcomes = [write.result()[2] for write in world.writes]
        assert set(outcomes) == {None, DataLimitReached}
        assert {delete.result() for delete in world.deletes} == {None}
        assert outcomes[-100:].count(None) > 5  # the room that deletes make is used


def live_with_transactions(seed):
    """A life with faults in which a counter and a pair of keys are written by transactions alone."""
    with World(seed, data_bytes_max=3000 if seed % 3 == 0 else 0) as world:
        faults = [world.logd_dies, world.connection_breaks, world.worker_dies, world.disk_is_full]
        faults, rate = world.random.sample(faults, world.random.randint(1, 4)), world.random.choice([0.05, 0.2, 0.8])
        for _ in range(1000):
            rare = faults if world.random.random() < rate else []
            world.step(
                *world.good, world.increment, world.increment, world.write_pair, world.write, world.delete, *rare
            )
            if world.storage:
                assert world.storage._store.data.get(PAIR[0]) == world.storage._store.data.get(PAIR[1])
        world.logd_dies()
        for _ in range(4):
            world.settle()
            for worker in world.workers:
                worker.be_patient()
                world.write(worker)
        world.settle()
        outcomes = [each.result() for each in world.increments]
        counter = int(replay(world.log)[0].data.get(COUNTER, b"0"))
        assert outcomes.count(None) <= counter <= outcomes.count(None) + outcomes.count(OutcomeUnknown)
        return set(outcomes), {each.result() for each in world.pairs}


@pytest.mark.parametrize("seed", range(30))
def test_a_counter_counts_its_successful_increments_and_a_pair_stays_one_whatever_dies(seed):
    assert live_with_transactions(seed)[0] <= {
        *(None, PreconditionFailed, Unavailable, OutcomeUnknown, NoSpace, DataLimitReached),
    }


def verdict_on_a_life(seed):
    """A life with faults, in which clients read and write watched keys in every way: what they saw is judged."""
    with World(seed) as world:
        faults = [world.logd_dies, world.connection_breaks, world.worker_dies, world.disk_is_full]
        faults, rate = world.random.sample(faults, world.random.randint(1, 4)), world.random.choice([0.05, 0.2])
        for _ in range(2000):
            rare = faults if world.random.random() < rate else []
            world.step(*world.good, world.watch, world.watch, *rare)
        world.logd_dies()
        world.settle(world.watched)
        for worker in world.workers:
            worker.be_patient()
        world.watched += [world.loop.create_task(world._look(world.workers[0], key)) for key in range(len(WATCHED))]
        world.settle(world.watched)
        for each in world.watched:
            each.result()
        return check(world.history)


@pytest.mark.parametrize("seed", range(20))
def test_one_order_explains_all_that_clients_saw_whatever_dies(seed):
    verdict = verdict_on_a_life(seed)
    assert [str(violation) for violation in verdict.violations] == []
    assert verdict.operations > 40


def forget_outcomes_of_repeats(monkeypatch):
    monkeypatch.setattr(intake.Intake, "submit", forgetting(intake.Intake.submit))


def forgetting(submit):
    def forgetful(self, raw, batch):
        reply = submit(self, raw, batch)
        return protocol.Committed(batch.session, [batch.number]) if isinstance(reply, protocol.Committed) else reply

    return forgetful


def forget_outcomes_over_a_restart(monkeypatch):
    def start_without(world, _=None, start=World.logd_starts):
        before = world.storage
        start(world, _)
        if world.storage is not before:
            world.storage._store.outcomes.clear()

    monkeypatch.setattr(World, "logd_starts", start_without)


def evaluate_at_acceptance(monkeypatch):
    def hasty(self, raw, batch, submit=commit.GroupCommit.submit):
        decided = [
            each if self._store._failed(each.checks) else Transaction([], each.puts, each.deletes)
            for each in batch.transactions
        ]
        batch = protocol.WriteBatch(batch.session, batch.number, batch.base, False, batch.puts, batch.deletes, decided)
        return submit(self, protocol.encode(batch), batch)

    monkeypatch.setattr(commit.GroupCommit, "submit", hasty)


def apply_half_a_transaction(monkeypatch):
    def half(self, transaction, bytes_max, execute=store.Store._execute):
        puts = dict(list(transaction.puts.items())[:1])
        return execute(self, Transaction(transaction.checks, puts, transaction.deletes[:1]), bytes_max)

    monkeypatch.setattr(store.Store, "_execute", half)


def answer_412_from_what_is_not_durable(monkeypatch):
    def hasty(self, raw, batch, submit=commit.GroupCommit.submit):
        if reply := submit(self, raw, batch):
            return reply
        if not hasattr(self, "ahead"):
            self.ahead, real = store.Store(), self._store
            self.ahead.load(dict(real.data))
            self.ahead.sessions = dict(real.sessions)
        self.ahead.apply(batch)
        outcomes = self.ahead.outcomes_of(batch.session, batch.number)
        if not outcomes or len(outcomes[batch.number].failed) < len(batch.transactions) or batch.puts or batch.deletes:
            return None
        rest = protocol.WriteBatch(batch.session, batch.number, batch.base, False, {}, [])
        self._intake.waiting[-1] = intake.Accepted(protocol.encode(rest), rest)
        return protocol.Committed(batch.session, [batch.number], outcomes)

    monkeypatch.setattr(commit.GroupCommit, "submit", hasty)


def report_no_outcome(monkeypatch):
    monkeypatch.setattr(store.Store, "outcomes_of", lambda *_: {})


MISTAKES = [
    forget_outcomes_of_repeats,
    forget_outcomes_over_a_restart,
    evaluate_at_acceptance,
    apply_half_a_transaction,
    report_no_outcome,
]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_with_transactions_is_found(mistake, monkeypatch):
    mistake(monkeypatch)
    with pytest.raises(AssertionError):
        any(not live_with_transactions(seed) for seed in range(30))


@pytest.mark.parametrize("mistake", [*MISTAKES, answer_412_from_what_is_not_durable])
def test_a_mistake_with_transactions_shows_in_what_clients_see(mistake, monkeypatch):
    mistake(monkeypatch)
    faults = (violation.fault for seed in range(40) for violation in verdict_on_a_life(seed).violations)
    assert any(fault != Fault.UNDECIDED for fault in faults)


def test_while_nothing_dies_a_full_disk_is_told_as_such_and_forgotten_when_there_is_room():
    with World(1, workers=1) as world:
        (worker,) = world.workers
        for number in range(200):
            world.write(worker)
            world.turn()  # sent before the answer to the one before is read
            if number == 0:
                world.logd_starts(worker)
                world.worker_connects(worker)
            worker.socket.connection.arrive(99)
            worker.receive()
            while any(connection.up for connection in world.connections.values()):
                world.logd_receives()
            (world.disk_is_full if number == 100 else world.disk_syncs)()
            world.logd_collects()
        outcomes = [write.result()[2] for write in world.writes[:-5]]
        assert outcomes[:90] == [None] * 90
        assert {None, NoSpace}.issuperset(outcomes)
        assert outcomes[-50:] == [None] * 50


def test_logd_remembers_no_more_sessions_than_it_has_while_none_can_be_opened():
    with World(1) as world:
        while len(world.writes) < 300:
            world.step(*(each for each in world.good if each != world.disk_syncs), world.write, world.disk_is_full)
        parts = world.server, world.storage, world.storage._commit, world.storage._commit._intake
        tables = [each for part in parts for each in vars(part).values() if isinstance(each, dict)]
        assert max(map(len, tables)) <= 3 * store.SESSIONS_MAX


def test_a_session_that_made_room_for_others_before_its_worker_heard_that_it_was_open_is_not_left_without_an_answer():
    def open_session(session):
        batch = protocol.WriteBatch(session, 0, 0, False, {}, [])
        if reply := world.storage.submit(protocol.encode(batch), batch):
            return [reply]
        world.storage.commit()
        world.disk_syncs()
        world.synced = False
        return world.storage.collect().replies

    with World(1) as world:
        world.logd_starts(None)
        sessions = [bytes([number]) * 16 for number in range(store.SESSIONS_MAX + 1)]
        assert all(open_session(session) for session in [*sessions, sessions[0]])
