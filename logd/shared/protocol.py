"""The messages between HTTP workers and logd.

Knows how a message is encoded and what each one promises; does not know who sends it, over what, or what is done with
it.

Every message is one ZeroMQ frame holding one MessagePack array whose first element is its tag.
A `WriteBatch` is encoded once, by the worker: the same bytes go into the log, and replay decodes them as the same type
(logd/FORMAT.md describes them byte by byte).

Exactly once. A worker is a *session*: a random id, and batches numbered 1, 2, 3, … Batch 0 writes nothing and opens the
session. logd accepts only the next number, answers a repeat as it answered the first, and answers a session that it
does not know with `Dropped`. `base` is the lowest number whose answer the worker does not have yet (RIFL's "first
incomplete", SOSP '15): numbers below it are never sent again, so logd may forget that it refused them, and what came of
them.

Outcomes. What becomes of a `Transaction`, and of a write at the limit on the data, is decided when its batch is
applied, by what the log holds before it. It is part of the state until the worker has it: a repeat gets the same
answer, also from a logd that was started since.
"""

from enum import IntEnum
from typing import Final, TypeAlias

import msgspec

BATCH_BYTES_SOFT_MAX: Final = 1 << 20
"""A batch, or an answer, that has reached this size gets no further entry. One entry may be larger by itself."""

LARGE_VALUE_BYTES: Final = 64 << 10
"""A larger value is not sent before the worker knows its size: it may have no room for it."""

PAGE_BYTES_MAX: Final = 1 << 20
"""Of the keys and values of a page. One entry may be larger by itself."""

PAGE_KEYS_MAX: Final = 10_000
"""Of a page, and of the keys that a page may be asked for one by one."""

MESSAGE_OVERHEAD_BYTES: Final = 4 << 20
"""What a message may hold beside its one largest value: the soft maximum, keys, and encoding."""

VALUE_BYTES_CEILING: Final = 256 << 20
"""The highest limit on one value that may be configured."""

MESSAGE_BYTES_CEILING: Final = VALUE_BYTES_CEILING + MESSAGE_OVERHEAD_BYTES
"""No message is ever larger, whatever is configured."""

PROTOCOL_VERSION: Final = 5
"""Of the messages and of what they promise. Increased with every change that the other side would misunderstand."""

SESSION_ID_BYTES: Final = 16

KEY_PATTERN: Final = "[A-Za-z0-9:_.-]+"
"""What a key is; the whole of it has to match."""

assert BATCH_BYTES_SOFT_MAX < MESSAGE_OVERHEAD_BYTES


class Reason(IntEnum):
    """Why a write batch was certainly not applied."""

    NO_SPACE = 1
    """No space left on the device."""
    SCARCE = 2
    """The system had no memory or no descriptor for it at that moment."""
    UNREACHABLE = 3
    """What makes writes durable does not answer, or refuses to."""


class Exit(IntEnum):
    """The exit status of logd, which its supervisor obeys."""

    STOPPED = 0
    """Stopped in order, because the lifeline was closed."""
    CRASHED = 1
    """Unexpected; starting again is right."""
    USAGE = 2
    """The command line is wrong; starting again is useless."""
    LOCKED = 10
    """A living process uses the directory."""
    DAMAGED = 11
    """Acknowledged data would be lost; a person has to decide."""
    UNUSABLE = 12
    """The directory cannot be written, or its files were removed while it was served."""
    DISK_FAILED = 13
    """A write or a sync failed; a successor trusts only what it has written anew."""


# Worker to logd ------------------------------------------------------------------------------------------


class Check(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Holds when the present value of `key` has one of these tags; with None for them, when there is a value at all.

    With `negated` it holds when that is not so.
    """

    key: str
    tags: list[str] | None
    negated: bool

    def holds(self, tag: str | None) -> bool:
        """Whether it holds when this is the tag of the present value; None when there is no value."""
        return (tag is not None and (self.tags is None or tag in self.tags)) != self.negated


class Transaction(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Writes that are made at one point of the order of all writes if all checks hold there; else none is made.

    No key is both in `puts` and in `deletes`.
    """

    checks: list[Check]
    puts: dict[str, bytes]
    deletes: list[str]


class WriteBatch(msgspec.Struct, tag=1, array_like=True, frozen=True, gc=False):
    """Writes of a few event-loop turns, in the order in which they are applied.

    First `clear`, then `puts` and `deletes`, which share no key, then `transactions`, one after the other.
    """

    session: bytes
    number: int
    base: int
    clear: bool
    puts: dict[str, bytes]
    deletes: list[str]
    transactions: list[Transaction] = []
    """Version 1 of the format did not have them."""


class ReadBatch(msgspec.Struct, tag=2, array_like=True, frozen=True, gc=False):
    """Look up `keys`. Answered by one or more `Values` and, for values over LARGE_VALUE_BYTES, `Large`."""

    number: int
    keys: list[str]


class StatusRequest(msgspec.Struct, tag=3, array_like=True, frozen=True, gc=False):
    """Are reads and writes possible? Answered by `Status`."""

    number: int


class StatsRequest(msgspec.Struct, tag=4, array_like=True, frozen=True, gc=False):
    """How is the log writer? Answered by `Stats`."""

    number: int


class ReadLarge(msgspec.Struct, tag=5, array_like=True, frozen=True, gc=False):
    """Look up `key`: there is room for `bytes_max`. Answered by `Values`, or by `Large` when that is not enough."""

    number: int
    key: str
    bytes_max: int


class PageQuery(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Which keys: at most `limit` of those that begin with `prefix` and are greater than `after`, in byte order.

    With `keys`: those of them that exist, in the order of this list.
    """

    prefix: str = ""
    after: str = ""
    limit: int = PAGE_KEYS_MAX
    keys: list[str] | None = None
    with_values: bool = False

    @property
    def first(self) -> str:
        """The least key that it may find: the prefix, or the least string that is greater than `after`."""
        return max(self.prefix, self.after and self.after + "\0")


class PageRequest(msgspec.Struct, tag=6, array_like=True, frozen=True, gc=False):
    """The keys that `query` is about, as many as a page may have: there is room for `bytes_max`.

    Answered by `Page`, or by `LargeEntry` when that is not enough for the first of them.
    """

    number: int
    query: PageQuery
    bytes_max: int


Request: TypeAlias = WriteBatch | ReadBatch | StatusRequest | StatsRequest | ReadLarge | PageRequest

# logd to worker ------------------------------------------------------------------------------------------


class Hello(msgspec.Struct, tag=10, array_like=True, frozen=True, gc=False):
    """The first message on every new connection: what was not answered on an earlier one has to be sent again.

    logd answers ZMQ_PROBE_ROUTER with it. The worker also needs ZMQ_IMMEDIATE: without it, only its first connection is
    announced. Answers that had arrived and were not read are lost with a connection.

    A worker of another version sends nothing then. This message alone has to be understood by all versions: fields are
    only added to it, at the end.
    """

    pid: int
    version: int = 1
    """The PROTOCOL_VERSION of logd. Version 1 did not send it."""


FailedCheck: TypeAlias = tuple[int, str | None]
"""The index of a check in its transaction, and the tag of the value that was there; None when there was none."""


class Outcomes(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Which writes of a batch were not made when it was applied; all others were."""

    over_limit: list[str]
    """Keys of those puts that would have taken the data beyond its limit."""
    failed: dict[int, list[FailedCheck]]
    """By the index of a transaction, the checks that did not hold; none when it was the limit on the data."""


class Committed(msgspec.Struct, tag=11, array_like=True, frozen=True, gc=False):
    """These batches of a session are durable and applied."""

    session: bytes
    numbers: list[int]
    outcomes: dict[int, Outcomes] = {}
    """By number, of those batches of which not every write was made."""


class Refused(msgspec.Struct, tag=12, array_like=True, frozen=True, gc=False):
    """These batches of a session were not applied and never will be."""

    session: bytes
    numbers: list[int]
    reason: Reason


class Gap(msgspec.Struct, tag=13, array_like=True, frozen=True, gc=False):
    """Batch `number` of a session was not accepted: `expected` has to come first."""

    session: bytes
    number: int
    expected: int


class Dropped(msgspec.Struct, tag=14, array_like=True, frozen=True, gc=False):
    """The session of batch `number` is not known (any more): whether its batches were applied is not known."""

    session: bytes
    number: int


class Values(msgspec.Struct, tag=15, array_like=True, frozen=True, gc=False):
    """Answers to a read request: the values of its keys from index `first` on; None where there is none."""

    number: int
    first: int
    values: list[bytes | None]


class Status(msgspec.Struct, tag=16, array_like=True, frozen=True, gc=False):
    """`unavailable_reason` is empty when reads and writes are possible, else it says why they are not."""

    number: int
    unavailable_reason: str


class Large(msgspec.Struct, tag=18, array_like=True, frozen=True, gc=False):
    """Takes the place of a value in the answers to a request: that of the key at `index` has `size` bytes."""

    number: int
    index: int
    size: int


class Page(msgspec.Struct, tag=19, array_like=True, frozen=True, gc=False):
    """Keys that exist and, when they were asked for, the values of all of them: one state, which is durable."""

    number: int
    keys: list[str]
    values: list[bytes]
    """Empty when they were not asked for."""
    left: int
    """Of a range: 1 when there are keys after these, else 0. Of `PageQuery.keys`: how many, the last ones, this page is
    not about."""


class LargeEntry(msgspec.Struct, tag=20, array_like=True, frozen=True, gc=False):
    """Takes the place of a page: its first key and value together have `size` bytes."""

    number: int
    size: int


class Histogram(msgspec.Struct, array_like=True, gc=False):
    """How many values were at most `bounds[i]` and above the bound before; the last count is of those above all."""

    bounds: list[float]
    counts: list[int]
    total: float


class ClusterStats(msgspec.Struct, array_like=True, frozen=True, kw_only=True, gc=False):
    """The numbers of an engine whose data is in an etcd cluster."""

    endpoint: str
    """That requests go to now, as a URL."""
    version: str
    """Of that member; empty when it did not answer the last time."""
    calls: dict[str, int]
    """Tries of requests to etcd, by outcome."""
    retries: int
    """Tries beyond the first."""
    applied_by_earlier_try: int
    """Groups that turned out to have been applied by a try that had no answer."""
    endpoint_switches: int
    read_seconds: Histogram
    """Of transactions that read."""
    generation: int
    """How often everything was cleared."""
    db_bytes: int
    """The size of that member's file; 0 when it did not answer the last time."""
    db_bytes_in_use: int
    """What would be left of it after a defragmentation."""
    raft_term: int
    """Rises with every election."""
    no_answer_seconds: float
    """For how long requests wait and none has been answered; 0 when none waits."""


class Stats(msgspec.Struct, tag=17, array_like=True, frozen=True, kw_only=True, gc=False):
    """Numbers for people who watch. What is counted is counted since this logd was started.

    An engine without a log of its own leaves out what is about the log and its files.
    """

    number: int
    unavailable_reason: str
    """As in `Status`."""
    sessions: int
    groups: int
    batches: int
    refused: dict[str, int]
    """Batches that were answered and not accepted, by reason."""
    writes_not_made: dict[str, int]
    """Writes of batches that were applied, by reason; a transaction counts as one."""
    group_writes: Histogram
    sync_seconds: Histogram
    pages: int
    """Of keys, that were sent."""
    cpu_seconds: float
    resident_bytes: int
    """0 where the system does not provide it."""
    keys: int | None = None
    data_bytes: int | None = None
    """Keys and values, without what it costs to hold them."""
    appended_bytes: int | None = None
    log_bytes: int | None = None
    """Of the log that no snapshot holds."""
    segments: int | None = None
    free_bytes: int | None = None
    snapshot_bytes: int | None = None
    checkpoint_due_bytes: int | None = None
    """As much sealed log makes a checkpoint due."""
    checkpoints: dict[str, int] | None = None
    """By outcome."""
    checkpoint_seconds: float | None = None
    """How long the last one took; 0 when there was none."""
    checkpoint_at: float | None = None
    """When the newest snapshot was finished, as seconds since 1970; 0 when there is none."""
    finding: str | None = None
    """What recovery found, as in logd/local/recovery.py."""
    recovery_seconds: float | None = None
    dropped_bytes: int | None = None
    """Of a write that was cut short; recovery dropped them."""
    unsorted_keys: int | None = None
    """Keys that are not in order yet, as after a start: pages wait for them."""
    cluster: ClusterStats | None = None


Reply: TypeAlias = Hello | Committed | Refused | Gap | Dropped | Values | Status | Stats | Large | Page | LargeEntry

encode: Final = msgspec.msgpack.Encoder().encode
decode_request: Final = msgspec.msgpack.Decoder(Request).decode
decode_reply: Final = msgspec.msgpack.Decoder(Reply).decode
DECODE_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Raised by the decoders when the bytes are not one of their messages."""
