"""Pages of keys: a range of etcd, read piece by piece as it was at one revision.

The first piece compares the generation and names the revision; so what comes between the pieces is not seen, and they
can be read past the log.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from logd.engine import cut_page
from logd.etcd import kv_pb2 as pb
from logd.etcd import transactions
from logd.etcd.layout import Span
from logd.etcd.link import Rejected
from logd.etcd.reads import RETRY_SECONDS, Reader
from logd.shared.protocol import PAGE_BYTES_MAX, LargeEntry, Page, PageQuery, PageRequest

_FIRST_VALUES: Final = 32
_PIECE_KEYS: Final = 1000


def page(reader: Reader, request: PageRequest) -> Page | LargeEntry:
    """The page that is asked for. Raises link.Closed."""
    while True:
        try:
            return cut_page(request, _entries(reader, request.query))
        except Rejected:  # as in Reader.look_up; what has been read of the page is of no use
            reader.link.pause(RETRY_SECONDS)


def _entries(reader: Reader, query: PageQuery) -> Iterator[tuple[str, bytes | None]]:
    if query.keys is None:
        yield from _range(reader, query)
        return
    for key, value in zip(query.keys, reader.look_up(query.keys), strict=True):
        yield key, value if query.with_values or value is None else b""


def _range(reader: Reader, query: PageQuery) -> Iterator[tuple[str, bytes]]:
    first = max(query.prefix, query.after and query.after + "\0")  # the least string that is greater
    limit = _FIRST_VALUES if query.with_values else min(query.limit + 1, _PIECE_KEYS)
    while True:
        generation = reader.generation.value
        data = reader.layout.data(generation)
        span = Span(data + first.encode(), reader.layout.range_end(generation, query.prefix))
        if span.first >= span.end:
            return
        response = reader.link.txn(
            transactions.read_range(
                reader.layout, generation, span, limit, keys_only=not query.with_values, through_log=reader.through_log
            )
        )
        if response.succeeded:
            break
        reader.generation.saw(transactions.generation_in(response))
    revision = response.header.revision
    while True:
        found = response.responses[0].response_range
        for each in found.kvs:
            yield each.key[len(data) :].decode(), each.value
        if not found.more:
            return
        span = Span(found.kvs[-1].key + b"\0", span.end)
        limit = _next_limit(found.kvs) if query.with_values else _PIECE_KEYS
        response = reader.link.txn(transactions.read_range_at(span, limit, revision, keys_only=not query.with_values))


def _next_limit(found: Sequence[pb.KeyValue]) -> int:
    """How many entries make a page, if they are as large as those before."""
    bytes_each = 1 + sum(len(each.key) + len(each.value) for each in found) // len(found)
    return max(1, min(_PIECE_KEYS, PAGE_BYTES_MAX // bytes_each))
