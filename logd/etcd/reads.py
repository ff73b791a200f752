"""Reads: those that wait are looked up together, in up to four transactions at a time.

A read of etcd is linearizable without the log (ReadIndex) from versions 3.4.42, 3.5.28 and 3.6.9 on; before, it could
be stale (etcd #20418), and goes through the log. It takes about twice the processor time there.

All keys of one request are seen at one revision. When they do not fit into one transaction, the others are read as they
were at the revision of the first: etcd keeps old revisions until they are compacted.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from logd.engine import Found, Origin
from logd.etcd import kv_pb2 as pb
from logd.etcd import transactions
from logd.etcd.generation import Generation
from logd.etcd.layout import Layout
from logd.etcd.link import Closed, Link, Rejected
from logd.etcd.mailbox import Inbox

_THREADS: Final = 4
_RETRY_SECONDS: Final = 0.5


class Request(NamedTuple):
    """Keys to look up, and whose they are."""

    keys: Sequence[str]
    origin: Origin


class Answered(NamedTuple):
    """Requests that were looked up together, or an error that no request survives."""

    requests: Sequence[tuple[Origin, Found]]
    seconds: float
    failure: Exception | None = None


class Reader:
    """Looks keys up, and blocks until etcd has answered. Used by several threads."""

    def __init__(self, link: Link, layout: Layout, generation: Generation) -> None:
        self._link = link
        self._layout = layout
        self._generation = generation
        self.through_log = True

    def look_up(self, keys: Sequence[str]) -> Found:
        """Their values, all as of one revision. Raises Closed."""
        while True:
            try:
                return self._look_up(keys)
            except Rejected:
                # A revision that is compacted since, or a cluster that denies all: the worker's deadline decides.
                self._link.pause(_RETRY_SECONDS)

    def _look_up(self, keys: Sequence[str]) -> Found:
        size = transactions.READS_MAX
        generation, first = self._first(keys[:size])
        found = transactions.values(first)
        for start in range(size, len(keys), size):
            chunk = keys[start : start + size]
            request = transactions.read_at(self._layout, generation, chunk, first.header.revision)
            found += transactions.values(self._link.txn(request))
        return found

    def _first(self, keys: Sequence[str]) -> tuple[int, pb.TxnResponse]:
        while True:
            generation = self._generation.value
            request = transactions.read(self._layout, generation, keys, through_log=self.through_log)
            response = self._link.txn(request)
            if response.succeeded:
                return generation, response
            self._generation.saw(transactions.generation_in(response))


class Reads:
    """The reads that wait and those that are under way. Used by the main thread."""

    def __init__(self, reader: Reader, answered: Inbox[Answered]) -> None:
        self._waiting: deque[Request] = deque()
        self._free = _THREADS
        self._jobs: queue.SimpleQueue[list[Request] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=_run, args=(reader, self._jobs, answered), name=f"reads {number}", daemon=True)
            for number in range(_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def add(self, keys: Sequence[str], origin: Origin) -> None:
        """Have keys looked up, after the next `begin`."""
        self._waiting.append(Request(keys, origin))

    def begin(self) -> None:
        """Send what waits, as far as threads are free."""
        while self._waiting and self._free:
            self._free -= 1
            self._jobs.put(self._take())

    def end(self) -> None:
        """A transaction has been answered."""
        self._free += 1
        self.begin()

    def is_idle(self) -> bool:
        """True when nothing waits and nothing is under way."""
        return not self._waiting and self._free == _THREADS

    def stop(self) -> None:
        """End the threads. The link has to be closed by then."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _take(self) -> list[Request]:
        """The requests that have waited longest, as many as one transaction has room for, and at least one."""
        requests = [self._waiting.popleft()]
        count = len(requests[0].keys)
        while self._waiting and (count := count + len(self._waiting[0].keys)) <= transactions.READS_MAX:
            requests.append(self._waiting.popleft())
        return requests


def _run(reader: Reader, jobs: "queue.SimpleQueue[list[Request] | None]", answered: Inbox[Answered]) -> None:
    """A thread that reads."""
    while (requests := jobs.get()) is not None:
        began = time.perf_counter()
        try:
            found = reader.look_up([key for request in requests for key in request.keys])
        except Closed:
            return
        except Exception as error:  # whatever it is, the main thread has to learn of it
            answered.put(Answered((), 0.0, error))
            return
        answered.put(Answered(_split(requests, found), time.perf_counter() - began))


def _split(requests: Sequence[Request], found: Found) -> list[tuple[Origin, Found]]:
    ends, start = [], 0
    for request in requests:
        ends.append((request.origin, found[start : start + len(request.keys)]))
        start += len(request.keys)
    return ends
