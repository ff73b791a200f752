"""Pages of keys: a range of etcd, read piece by piece as it was at one revision.

The first piece compares the generation and names the revision; so what comes between the pieces is not seen, and they
can be read past the log.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Final

from logd.engine import cut_page
from logd.etcd import kv_pb2 as pb
from logd.etcd import transactions
from logd.etcd.layout import Span
from logd.etcd.reads import Reader
from logd.shared.protocol import PAGE_BYTES_MAX, LargeEntry, Page, PageQuery, PageRequest

_PIECE_KEYS: Final = 1000


def page(reader: Reader, request: PageRequest, until: float = math.inf) -> Page | LargeEntry:
    """The page that is asked for. Raises as Reader does."""
    return cut_page(request, _entries(reader, request.query, until))


def _entries(reader: Reader, query: PageQuery, until: float) -> Iterator[tuple[str, bytes | None]]:
    if query.keys is None:
        return _range(reader, query, until)
    keys_max = min(transactions.READS_MAX, reader.values_max) if query.with_values else transactions.READS_MAX
    found = reader.each(query.keys, until, keys_max=keys_max, keys_only=not query.with_values)
    return zip(query.keys, found, strict=True)


def _range(reader: Reader, query: PageQuery, until: float) -> Iterator[tuple[str, bytes]]:
    keys_only = not query.with_values
    largest = _PIECE_KEYS if keys_only else min(_PIECE_KEYS, reader.values_max)
    limit = min(query.limit + 1, largest)

    def span_in(generation: int) -> Span:
        data = reader.layout.data(generation)
        return Span(data + query.first.encode(), reader.layout.range_end(generation, query.prefix))

    def first_piece(generation: int) -> pb.TxnRequest:
        return transactions.read_range(
            reader.layout,
            generation,
            span_in(generation),
            limit,
            keys_only=keys_only,
            through_log=reader.through_log,
        )

    if span_in(0).first >= span_in(0).end:
        return
    generation, response = reader.at_generation(first_piece, until)
    key_begins = len(reader.layout.data(generation))
    end, revision = span_in(generation).end, response.header.revision
    while True:
        found = response.responses[0].response_range
        for each in found.kvs:
            yield each.key[key_begins:].decode(), each.value
        if not found.more:
            return
        limit = largest if keys_only else _next_limit(limit, largest, found.kvs)
        span = Span(found.kvs[-1].key + b"\0", end)
        response = reader.link.txn(transactions.read_range_at(span, limit, revision, keys_only=keys_only), until=until)


def _next_limit(limit: int, largest: int, found: Sequence[pb.KeyValue]) -> int:
    """How many entries make a page, if they are as large as those before; not many more, as they may be larger."""
    bytes_each = 1 + sum(len(each.key) + len(each.value) for each in found) // len(found)
    return max(1, min(2 * limit, largest, PAGE_BYTES_MAX // bytes_each))
