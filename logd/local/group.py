"""A group: the batches that are synced together, and the limit on the data that was in force for them.

Owns how a group is encoded as the payload of a frame, but for the frame. The limit is an option, and so no part of the
state; but what a write came to may depend on it, so it is written down where replay and checkpoints find it.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from logd.shared.protocol import WriteBatch, encode

_decode: Final = msgspec.msgpack.Decoder(list[int | WriteBatch]).decode


class Group(NamedTuple):
    """The batches of a frame, and the most bytes of data that they may lead to; 0 for no limit."""

    batches: list[WriteBatch]
    data_bytes_max: int


def elements(raws: Sequence[bytes], data_bytes_max: int) -> Sequence[bytes]:
    """What the array of a group holds, encoded: a limit, if there is one, and the batches as they came."""
    return [encode(data_bytes_max), *raws] if data_bytes_max else raws


def decode(payload: bytes | memoryview) -> Group:
    """Read the payload of a frame. Raises one of protocol.DECODE_ERRORS."""
    found = _decode(payload)
    limits = [each for each in found[:1] if isinstance(each, int)]
    batches = [each for each in found if isinstance(each, WriteBatch)]
    if len(limits) + len(batches) != len(found) or (limits and not (batches and limits[0] > 0)):
        raise msgspec.ValidationError("a limit on the data is no limit, or stands where none belongs")
    return Group(batches, sum(limits))
