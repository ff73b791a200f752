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
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeAlias

from logd.engine import Found, Origin
from logd.etcd import kv_pb2 as pb
from logd.etcd import transactions
from logd.etcd.generation import Generation
from logd.etcd.layout import Layout
from logd.etcd.link import Closed, Link, Rejected
from logd.etcd.mailbox import Inbox
from logd.shared.protocol import LargeEntry, Page, PageRequest

_THREADS: Final = 4
RETRY_SECONDS: Final = 0.5


class Request(NamedTuple):
    """Keys to look up, and whose they are."""

    keys: Sequence[str]
    origin: Origin


class PageOf(NamedTuple):
    """A page that is asked for, and the connection that it is for."""

    request: PageRequest
    peer: bytes


Job: TypeAlias = list[Request] | PageOf
"""What one thread does at a time: requests that are looked up together, or a page."""


class Answered(NamedTuple):
    """A job is done, or has met an error that the process does not survive."""

    reads: Sequence[tuple[Origin, Found]] = ()
    pages: Sequence[tuple[bytes, Page | LargeEntry]] = ()
    seconds: float = 0.0
    failure: Exception | None = None


class Reader:
    """Looks keys up, and blocks until etcd has answered. Used by several threads."""

    def __init__(self, link: Link, layout: Layout, generation: Generation) -> None:
        self.link = link
        self.layout = layout
        self.generation = generation
        self.through_log = True

    def look_up(self, keys: Sequence[str]) -> Found:
        """Their values, all as of one revision. Raises Closed."""
        while True:
            try:
                return self._look_up(keys)
            except Rejected:
                # A revision that is compacted since, or a cluster that denies all: the worker's deadline decides.
                self.link.pause(RETRY_SECONDS)

    def _look_up(self, keys: Sequence[str]) -> Found:
        size = transactions.READS_MAX
        generation, first = self._first(keys[:size])
        found = transactions.values(first)
        for start in range(size, len(keys), size):
            chunk = keys[start : start + size]
            request = transactions.read_at(self.layout, generation, chunk, first.header.revision)
            found += transactions.values(self.link.txn(request))
        return found

    def _first(self, keys: Sequence[str]) -> tuple[int, pb.TxnResponse]:
        while True:
            generation = self.generation.value
            request = transactions.read(self.layout, generation, keys, through_log=self.through_log)
            response = self.link.txn(request)
            if response.succeeded:
                return generation, response
            self.generation.saw(transactions.generation_in(response))


class Reads:
    """The reads and pages that wait, and those that are under way. Used by the main thread."""

    def __init__(self, carry_out: Callable[[Job], Answered], answered: Inbox[Answered]) -> None:
        self._waiting: deque[Request] = deque()
        self._waiting_pages: deque[PageOf] = deque()
        self._free = _THREADS
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=_run, args=(carry_out, self._jobs, answered), name=f"reads {number}", daemon=True)
            for number in range(_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def add(self, keys: Sequence[str], origin: Origin) -> None:
        """Have keys looked up, after the next `begin`."""
        self._waiting.append(Request(keys, origin))

    def add_page(self, request: PageRequest, peer: bytes) -> None:
        """Have a page made, after the next `begin`."""
        self._waiting_pages.append(PageOf(request, peer))

    def begin(self) -> None:
        """Send what waits, as far as threads are free. Pages are many reads each, and leave one thread to others."""
        while self._waiting and self._free:
            self._free -= 1
            self._jobs.put(self._take())
        while self._waiting_pages and self._free > 1:
            self._free -= 1
            self._jobs.put(self._waiting_pages.popleft())

    def end(self) -> None:
        """A job is done."""
        self._free += 1
        self.begin()

    def is_idle(self) -> bool:
        """True when nothing waits and nothing is under way."""
        return not self._waiting and not self._waiting_pages and self._free == _THREADS

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


def look_up_all(reader: Reader, requests: Sequence[Request]) -> list[tuple[Origin, Found]]:
    """Look the keys of all these requests up together. Raises link.Closed."""
    found = reader.look_up([key for request in requests for key in request.keys])
    ends, start = [], 0
    for request in requests:
        ends.append((request.origin, found[start : start + len(request.keys)]))
        start += len(request.keys)
    return ends


def _run(
    carry_out: Callable[[Job], Answered], jobs: "queue.SimpleQueue[Job | None]", answered: Inbox[Answered]
) -> None:
    """A thread that reads."""
    while (job := jobs.get()) is not None:
        began = time.perf_counter()
        try:
            done = carry_out(job)
            answered.put(done._replace(seconds=time.perf_counter() - began))
        except Closed:
            return
        except Exception as error:  # whatever it is, the main thread has to learn of it
            answered.put(Answered(failure=error))
            return
