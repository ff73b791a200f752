"""What is checked before a cluster is used: that its members are of one cluster, of versions that keep what they
acknowledge, and take requests as large as ours.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from logd.etcd import kv_pb2 as pb
from logd.etcd.layout import Layout
from logd.etcd.link import Link, Rejected
from logd.etcd.verdict import Verdict

_LEAST: Final = (3, 4, 0)
_LOSES_DATA: Final = ((3, 5, 0), (3, 5, 2))
"""From one to the other: members disagree after a kill under load (etcd #13766)."""
_READ_INDEX_IS_SOUND: Final = {(3, 4): 42, (3, 5): 28, (3, 6): 9}
"""From this patch on, a read without the log is linearizable (etcd #20418)."""
_ENVELOPE_BYTES: Final = 1024
"""What etcd may add to a request before it looks at its size."""

Version = tuple[int, int, int]


class Unusable(Exception):
    """A cluster that must not be used, or cannot be as the options are; the message says why."""


def check_members(members: Mapping[str, pb.StatusResponse]) -> None:
    """Check the members that have answered, by endpoint. Raises Unusable."""
    for url, status in members.items():
        version = parse_version(status.version)
        if version < _LEAST or _LOSES_DATA[0] <= version <= _LOSES_DATA[1]:
            raise Unusable(
                f"{url} is etcd {status.version}: 3.5.0 to 3.5.2 can lose what they acknowledged, and versions before"
                " 3.4 are not known to work"
            )
    clusters = {status.header.cluster_id for status in members.values()}
    if len(clusters) > 1:
        raise Unusable(f"the endpoints {', '.join(members)} belong to {len(clusters)} different clusters")


def reads_index_is_sound(versions: Sequence[str]) -> bool:
    """Whether reads that do not go through the log are linearizable on members of these versions."""
    return all(map(_is_sound, map(parse_version, versions)))


def check_request_size(link: Link, layout: Layout, request_bytes_max: int) -> None:
    """Send a request of the largest size, whose condition is never true. Raises Unusable, Rejected, Closed."""
    request = pb.TxnRequest()
    compare = request.compare.add()
    compare.target = pb.Compare.VALUE  # of a key that is never there: not true of any value
    compare.key = layout.never
    put = request.success.add().request_put
    put.key = layout.never
    put.value = bytes(request_bytes_max - _ENVELOPE_BYTES)
    try:
        link.txn(request)
    except Rejected as error:
        if error.verdict is Verdict.NO_SPACE:  # it is not too large
            return
        if error.verdict is Verdict.TOO_LARGE:
            raise Unusable(
                f"{link.current_url} refuses requests of --etcd-request-bytes-max, {request_bytes_max} bytes: start its"
                f" members with --max-request-bytes={request_bytes_max}, or lower the option and --value-bytes-max"
            ) from error
        raise


def parse_version(text: str) -> Version:
    """The numbers of a version; what follows them is left out. (0, 0, 0) when it has none."""
    numbers = text.partition("-")[0].partition("+")[0].split(".")
    if len(numbers) != 3 or not all(each.isdecimal() for each in numbers):
        return (0, 0, 0)
    major, minor, patch = map(int, numbers)
    return (major, minor, patch)


def _is_sound(version: Version) -> bool:
    if version[:2] > max(_READ_INDEX_IS_SOUND):
        return True
    return version[2] >= _READ_INDEX_IS_SOUND.get(version[:2], 1 << 30)
