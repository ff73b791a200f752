"""The transactions of etcd that the engine is made of, as messages, and what is read from their answers.

    a group     If    the record is the one that we wrote last, the generation is the one we know,
                      and the keys that decided checks are as they were then
                Then  put the record, the next generation after a clear, and the writes
                Else  get the record, the generation and those keys

A condition names a revision, not a version: a version begins again when a key is deleted and made anew, a revision
never comes again.

etcd allows 128 operations in a transaction, counted along each path through nested ones. So many writes go into nested
transactions; reads never do, as etcd does not take a nested transaction for read-only.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from logd.etcd import kv_pb2 as pb
from logd.etcd import records
from logd.etcd.group import Folded, Present
from logd.etcd.layout import Layout, Span
from logd.etcd.records import Record
from logd.shared.etag import etag

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

READS_MAX: Final = 120
"""Keys that are looked up in one transaction."""
READ_KEYS_BYTES_MAX: Final = 256 << 10
"""Of those keys together. No --etcd-request-bytes-max is as small as this."""
_FLAT_WRITES_MAX: Final = 100
_NESTED_WRITES: Final = 64


class Condition(NamedTuple):
    """What has to be so when a group is applied."""

    revision: int
    """Of the record; 0 when there is none."""
    generation: int


class Standing(NamedTuple):
    """What etcd has of a lane, and of the keys that were asked for."""

    revision: int
    """Of the record; 0 when there is none."""
    record: Record | None
    generation: int
    present: dict[str, Present]


def group(
    layout: Layout, lane: int, condition: Condition, record: bytes, folded: Folded, *, keys: Sequence[str]
) -> pb.TxnRequest:
    """A folded group, with its new record. `keys` are those that its checks name."""
    revision, generation = condition
    data = layout.data(generation)
    request = pb.TxnRequest()
    _expect_revision(request, layout.record(lane), revision)
    _expect_generation(request, layout, generation)
    for key, seen in folded.relied_on.items():
        _expect_revision(request, data + key.encode(), seen)
    _put(request, layout.record(lane), record)
    if folded.clears:
        data = layout.data(generation + 1)
        _put(request, layout.generation, b"%d" % (generation + 1))
    _write(request, data, folded.writes)
    _get_standing(request.failure, layout, lane, generation, keys)
    return request


def take_over(layout: Layout, lane: int, revision: int, record: bytes) -> pb.TxnRequest:
    """Put a record in the place of the one with this revision."""
    request = pb.TxnRequest()
    _expect_revision(request, layout.record(lane), revision)
    _put(request, layout.record(lane), record)
    _get_standing(request.failure, layout, lane, 0, ())
    return request


def look(layout: Layout, lane: int, generation: int, keys: Sequence[str], *, through_log: bool) -> pb.TxnRequest:
    """Get a standing. Through the log, it is not before any transaction that has been answered, even by an error."""
    request = pb.TxnRequest()
    _get_standing(request.success, layout, lane, generation, keys)
    if through_log:
        _make_proposal(request, layout)
    return request


def standing(response: pb.TxnResponse, keys: Sequence[str]) -> Standing:
    """Read the answer to any of the above that got it."""
    record, generation, *values = (each.response_range.kvs for each in response.responses)
    return Standing(
        record[0].mod_revision if record else 0,
        records.decode(record[0].value) if record else None,
        int(generation[0].value) if generation else 0,
        {
            key: Present(found[0].mod_revision, etag(found[0].value)) if found else Present()
            for key, found in zip(keys, values, strict=True)
        },
    )


# Reads ---------------------------------------------------------------------------------------------------


def read(
    layout: Layout, generation: int, keys: Iterable[str], *, keys_only: bool = False, through_log: bool
) -> pb.TxnRequest:
    """Look keys up if the generation is this one; else get the generation."""
    request = pb.TxnRequest()
    data = layout.data(generation)
    _expect_generation(request, layout, generation)
    for key in keys:
        _get(request, data + key.encode(), keys_only=keys_only)
    request.failure.add().request_range.key = layout.generation
    if through_log:
        _make_proposal(request, layout)
    return request


def read_at(
    layout: Layout, generation: int, keys: Iterable[str], revision: int, *, keys_only: bool = False
) -> pb.TxnRequest:
    """Look keys up as they were at a revision."""
    request = pb.TxnRequest()
    data = layout.data(generation)
    for key in keys:
        _get(request, data + key.encode(), keys_only=keys_only).revision = revision
    return request


def read_range(
    layout: Layout, generation: int, span: Span, limit: int, *, keys_only: bool, through_log: bool
) -> pb.TxnRequest:
    """Get the first keys of a span if the generation is this one; else get the generation."""
    request = pb.TxnRequest()
    _expect_generation(request, layout, generation)
    _get_range(request, span, limit, keys_only=keys_only)
    request.failure.add().request_range.key = layout.generation
    if through_log:
        _make_proposal(request, layout)
    return request


def read_range_at(span: Span, limit: int, revision: int, *, keys_only: bool) -> pb.TxnRequest:
    """Get the first keys of a span as they were at a revision."""
    request = pb.TxnRequest()
    _get_range(request, span, limit, keys_only=keys_only).revision = revision
    return request


def values(response: pb.TxnResponse) -> list[bytes | None]:
    """The values that a read has found, in the order of its keys; b"" for each that it asked only the key of."""
    return [found[0].value if (found := each.response_range.kvs) else None for each in response.responses]


def generation_in(response: pb.TxnResponse) -> int:
    """The generation, in the answer to a read that named another one."""
    found = response.responses[0].response_range.kvs
    return int(found[0].value) if found else 0


# What is left over ---------------------------------------------------------------------------------------


def first_in(span: Span, limit: int = 0, *, keys_only: bool = False) -> pb.TxnRequest:
    """Get the first keys of a span, whatever the generation is; all of them with limit 0."""
    request = pb.TxnRequest()
    _get_range(request, span, limit, keys_only=keys_only)
    return request


def remove(layout: Layout, generation: int, span: Span) -> pb.TxnRequest:
    """Remove all keys of a span if the generation is this one."""
    request = pb.TxnRequest()
    _expect_generation(request, layout, generation)
    delete = request.success.add().request_delete_range
    delete.key, delete.range_end = span
    return request


def remove_record(key: bytes, revision: int) -> pb.TxnRequest:
    """Remove the record with this key, if it has this revision."""
    request = pb.TxnRequest()
    _expect_revision(request, key, revision)
    request.success.add().request_delete_range.key = key
    return request


# Parts ---------------------------------------------------------------------------------------------------


def _expect_revision(request: pb.TxnRequest, key: bytes, revision: int) -> None:
    """Revision 0: that there is no such key."""
    compare = request.compare.add()
    compare.target = pb.Compare.MOD
    compare.key = key
    compare.mod_revision = revision


def _expect_generation(request: pb.TxnRequest, layout: Layout, generation: int) -> None:
    if generation == 0:
        _expect_revision(request, layout.generation, 0)
        return
    compare = request.compare.add()
    compare.target = pb.Compare.VALUE
    compare.key = layout.generation
    compare.value = b"%d" % generation


def _get(request: pb.TxnRequest, key: bytes, *, keys_only: bool) -> pb.RangeRequest:
    range_ = request.success.add().request_range
    range_.key = key
    range_.keys_only = keys_only
    return range_


def _get_range(request: pb.TxnRequest, span: Span, limit: int, *, keys_only: bool) -> pb.RangeRequest:
    range_ = request.success.add().request_range
    range_.key, range_.range_end = span
    range_.limit = limit
    range_.keys_only = keys_only
    return range_


def _put(request: pb.TxnRequest, key: bytes, value: bytes) -> None:
    put = request.success.add().request_put
    put.key = key
    put.value = value


def _write(request: pb.TxnRequest, data: bytes, writes: dict[str, bytes | None]) -> None:
    if len(writes) <= _FLAT_WRITES_MAX:
        _add_writes(request, data, writes.items())
        return
    items = list(writes.items())
    for first in range(0, len(items), _NESTED_WRITES):
        _add_writes(request.success.add().request_txn, data, items[first : first + _NESTED_WRITES])


def _add_writes(request: pb.TxnRequest, data: bytes, writes: Iterable[tuple[str, bytes | None]]) -> None:
    for key, value in writes:
        if value is None:
            request.success.add().request_delete_range.key = data + key.encode()
        else:
            put = request.success.add().request_put
            put.key = data + key.encode()
            put.value = value


def _get_standing(
    operations: "RepeatedCompositeFieldContainer[pb.RequestOp]",
    layout: Layout,
    lane: int,
    generation: int,
    keys: Sequence[str],
) -> None:
    data = layout.data(generation)
    for key in (layout.record(lane), layout.generation, *(data + each.encode() for each in keys)):
        operations.add().request_range.key = key


def _make_proposal(request: pb.TxnRequest, layout: Layout) -> None:
    """Have etcd bring a read into its log: a transaction that might delete something is not read-only."""
    request.failure.add().request_delete_range.key = layout.never
