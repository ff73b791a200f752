"""Reads: those that wait are looked up together, in up to four transactions at a time.

A read of etcd is linearizable without the log (ReadIndex) from versions 3.4.42, 3.5.28 and 3.6.9 on; before, it could
be stale (etcd #20418), and goes through the log. It takes about twice the processor time there.

All keys of one request are seen at one revision. When they do not fit into one transaction, the others are read as they
were at the revision of the first: etcd keeps old revisions until they are compacted.
"""

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple, TypeAlias

from logd.engine import Found, Origin
from logd.etcd import kv_pb2 as pb
from logd.etcd import transactions
from logd.etcd.generation import Generation
from logd.etcd.layout import Layout
from logd.etcd.link import Closed, Expired, Link
from logd.etcd.mailbox import Inbox
from logd.etcd.writer import Fenced
from logd.shared.protocol import LargeEntry, Page, PageRequest

_THREADS: Final = 4
_TOGETHER_PART: Final = 1 / 3
"""Of the time of a job: for the tries to look all its keys up at once."""
_KEYS_MAX_WHEN_SLOW: Final = 8
_PIECE_BYTES_MAX: Final = 32 << 20


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
    """A job is done, or was given up: then this is empty."""

    reads: Sequence[tuple[Origin, Found]] = ()
    pages: Sequence[tuple[bytes, Page | LargeEntry]] = ()
    seconds: float = 0.0


class Reader:
    """Looks keys up, and blocks until etcd has answered. Used by several threads.

    `until` is a time of the monotonic clock. All raise Rejected, link.Expired after it, link.Closed, and Fenced.
    """

    def __init__(self, link: Link, layout: Layout, generation: Generation, *, value_bytes_max: int = 1 << 20) -> None:
        self.link = link
        self.layout = layout
        self.generation = generation
        self.through_log = True
        self.values_max = max(1, _PIECE_BYTES_MAX // value_bytes_max)
        """How many values of unknown sizes may be asked for at once."""

    def look_up(self, keys: Sequence[str], until: float = math.inf, *, keys_max: int = transactions.READS_MAX) -> Found:
        """Their values, all as of one revision. `keys_max`: in one transaction."""
        return list(self.each(keys, until, keys_max=keys_max))

    def each(
        self, keys: Sequence[str], until: float, *, keys_max: int, keys_only: bool = False
    ) -> Iterator[bytes | None]:
        """As `look_up`, read only as far as it is iterated. `keys_only`: b"" for each value."""
        found: dict[str, bytes | None] = {}
        chunks = _chunks(dict.fromkeys(keys), keys_max)
        generation = revision = 0
        for key in keys:
            if key not in found:
                chunk = next(chunks)
                if not revision:
                    request_for = partial(
                        transactions.read, self.layout, keys=chunk, keys_only=keys_only, through_log=self.through_log
                    )
                    generation, response = self.at_generation(request_for, until)
                    revision = response.header.revision
                else:
                    request = transactions.read_at(self.layout, generation, chunk, revision, keys_only=keys_only)
                    response = self.link.txn(request, until=until)
                found.update(zip(chunk, transactions.values(response), strict=True))
            yield found[key]

    def at_generation(self, request_for: Callable[[int], pb.TxnRequest], until: float) -> tuple[int, pb.TxnResponse]:
        """The present generation, and the answer to the request for it."""
        while True:
            generation = self.generation.value
            response = self.link.txn(request_for(generation), until=until)
            if response.succeeded:
                return generation, response
            found = transactions.generation_in(response)
            if found <= generation:
                raise Fenced(f"etcd is back at generation {found}, and has been at {generation}: it was restored")
            self.generation.advance_to(found)


class Reads:
    """The reads and pages that wait, and those that are under way. Used by the main thread."""

    def __init__(self, carry_out: Callable[[Job], Answered], answered: Inbox[Answered | Exception]) -> None:
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
        count, size = len(requests[0].keys), _bytes_of(requests[0].keys)
        while self._waiting:
            keys = self._waiting[0].keys
            count, size = count + len(keys), size + _bytes_of(keys)
            if count > transactions.READS_MAX or size > transactions.READ_KEYS_BYTES_MAX:
                break
            requests.append(self._waiting.popleft())
        return requests


def look_up_all(reader: Reader, requests: Sequence[Request], until: float) -> list[tuple[Origin, Found]]:
    """Look the keys of all these requests up together. Raises as Reader does."""
    keys = [key for request in requests for key in request.keys]
    now = time.monotonic()
    try:
        found = reader.look_up(keys, now + (until - now) * _TOGETHER_PART)
    except Expired:  # the values may be so large that no try has time for them all
        found = reader.look_up(keys, until, keys_max=_KEYS_MAX_WHEN_SLOW)
    ends, start = [], 0
    for request in requests:
        ends.append((request.origin, found[start : start + len(request.keys)]))
        start += len(request.keys)
    return ends


def _chunks(keys: Iterable[str], keys_max: int) -> Iterator[list[str]]:
    """The keys in parts that one transaction has room for."""
    chunk: list[str] = []
    size = 0
    for key in keys:
        key_bytes = len(key.encode())
        if chunk and (len(chunk) == keys_max or size + key_bytes > transactions.READ_KEYS_BYTES_MAX):
            yield chunk
            chunk, size = [], 0
        chunk.append(key)
        size += key_bytes
    if chunk:
        yield chunk


def _bytes_of(keys: Sequence[str]) -> int:
    return sum(len(key.encode()) for key in keys)


def _run(
    carry_out: Callable[[Job], Answered], jobs: "queue.SimpleQueue[Job | None]", answered: Inbox[Answered | Exception]
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
            answered.put(error)
            return
