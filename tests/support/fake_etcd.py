"""A cluster of etcd in memory, for one thread: transactions as etcd evaluates them, and faults as a test says.

Knows what `Link` needs of an endpoint and nothing of the engine. What a call comes to is decided by the next entry of
`faults`; without one, it is applied and answered.
"""

import enum
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import grpc

from logd.etcd import kv_pb2 as pb
from logd.etcd.link import Link

PATH_OPERATIONS_MAX: Final = 128


class Fault(enum.Enum):
    """What happens to a transaction that is sent."""

    ANSWER_LOST = enum.auto()
    """It is applied, and the answer does not arrive."""
    LOST = enum.auto()
    """It is never applied, and nobody says so."""
    LATE = enum.auto()
    """It is applied when the test calls `deliver`; the sender knows nothing."""
    NO_SPACE_APPLIED = enum.auto()
    NO_SPACE = enum.auto()
    BUSY = enum.auto()
    DENIED = enum.auto()


class FakeError(grpc.RpcError):
    """An error as grpc raises it."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self._code, self._text = code, text

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._text


_UNAVAILABLE: Final = (grpc.StatusCode.UNAVAILABLE, "etcdserver: request timed out")
_NO_SPACE: Final = (grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
_ERRORS: Final = {
    Fault.ANSWER_LOST: _UNAVAILABLE,
    Fault.LOST: _UNAVAILABLE,
    Fault.LATE: (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"),
    Fault.NO_SPACE_APPLIED: _NO_SPACE,
    Fault.NO_SPACE: _NO_SPACE,
    Fault.BUSY: (grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: too many requests"),
    Fault.DENIED: (grpc.StatusCode.PERMISSION_DENIED, "etcdserver: permission denied"),
}


@dataclass
class _Value:
    value: bytes
    revision: int
    version: int


@dataclass
class FakeEtcd:
    """The state of the cluster."""

    faults: deque[Fault] = field(default_factory=deque)
    """Of the next transactions that may write; reads meet none."""
    request_bytes_max: int = 3 << 19
    values: dict[bytes, _Value] = field(default_factory=dict)
    revision: int = 1
    requests: list[pb.TxnRequest] = field(default_factory=list)
    """All that were sent."""
    late: list[pb.TxnRequest] = field(default_factory=list)

    def link(self) -> Link:
        """A link to it by three endpoints."""
        return Link([FakeEndpoint(f"http://node{number}", self) for number in range(3)])

    def versions(self, prefix: bytes) -> dict[bytes, int]:
        """How often each key was put."""
        return {key: each.version for key, each in self.values.items() if key.startswith(prefix)}

    def deliver(self) -> list[bool]:
        """Apply the transactions that are late; which of them met their condition."""
        late, self.late = self.late, []
        return [self.apply(request).succeeded for request in late]

    def put(self, key: bytes, value: bytes) -> None:
        """Put a key as another client does."""
        self.revision += 1
        self._put(key, value)

    def delete(self, key: bytes) -> None:
        """Delete a key as another client does."""
        self.revision += 1
        self.values.pop(key, None)

    def send(self, request: pb.TxnRequest) -> pb.TxnResponse:
        """What a member does with a transaction. Raises FakeError."""
        self.requests.append(request)
        if request.ByteSize() > self.request_bytes_max:
            raise FakeError(grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: request is too large")
        _check_count(request, PATH_OPERATIONS_MAX)
        _check_keys(request, set())
        fault = self.faults.popleft() if self.faults and _may_write(request.success) else None
        if fault is Fault.LATE:
            self.late.append(request)
        if fault in (None, Fault.ANSWER_LOST, Fault.NO_SPACE_APPLIED):
            response = self.apply(request)
        if fault:
            raise FakeError(*_ERRORS[fault])
        return response

    def apply(self, request: pb.TxnRequest) -> pb.TxnResponse:
        """Apply a transaction, whatever faults there are."""
        if _may_write(request.success):
            self.revision += 1
        response = self._apply(request)
        response.header.revision = self.revision
        return response

    def _apply(self, request: pb.TxnRequest) -> pb.TxnResponse:
        response = pb.TxnResponse(succeeded=all(map(self._holds, request.compare)))
        for operation in request.success if response.succeeded else request.failure:
            answer = response.responses.add()
            match operation.WhichOneof("request"):
                case "request_range":
                    self._range(operation.request_range, answer.response_range)
                case "request_put":
                    self._put(operation.request_put.key, operation.request_put.value)
                    answer.response_put.SetInParent()
                case "request_delete_range":
                    for key in self._keys(operation.request_delete_range):
                        del self.values[key]
                    answer.response_delete_range.SetInParent()
                case "request_txn":
                    answer.response_txn.CopyFrom(self._apply(operation.request_txn))
        return response

    def _holds(self, compare: pb.Compare) -> bool:
        found = self.values.get(compare.key)
        if compare.target == pb.Compare.VALUE:
            return found is not None and found.value == compare.value
        assert compare.target == pb.Compare.MOD
        return (found.revision if found else 0) == compare.mod_revision

    def _put(self, key: bytes, value: bytes) -> None:
        before = self.values.get(key)
        self.values[key] = _Value(value, self.revision, before.version + 1 if before else 1)

    def _range(self, request: pb.RangeRequest, response: pb.RangeResponse) -> None:
        keys = sorted(self._keys(request))
        limit = request.limit or len(keys)
        for key in keys[:limit]:
            found = self.values[key]
            response.kvs.add(key=key, value=b"" if request.keys_only else found.value, mod_revision=found.revision)
        response.more = len(keys) > limit

    def _keys(self, request: pb.RangeRequest | pb.DeleteRangeRequest) -> list[bytes]:
        if request.range_end:
            return [key for key in self.values if request.key <= key < request.range_end]
        return [request.key] if request.key in self.values else []


class FakeEndpoint:
    """One member: any of them answers as the cluster does."""

    def __init__(self, url: str, etcd: FakeEtcd) -> None:
        self.url = url
        self._etcd = etcd

    def call(self, method: str, message: bytes, seconds: float, metadata: object) -> Any:  # noqa: ANN401
        """As logd.etcd.link.Endpoint.call."""
        assert method == "txn"
        return self._etcd.send(pb.TxnRequest.FromString(message))

    def close(self) -> None:
        """Nothing is open."""


def _may_write(operations: Sequence[pb.RequestOp]) -> bool:
    return any(each.WhichOneof("request") != "request_range" for each in operations)


def _check_count(request: pb.TxnRequest, operations_left: int) -> None:
    """The limit of etcd on the operations along a path. Raises FakeError."""
    count = max(len(request.compare), len(request.success), len(request.failure))
    if count > operations_left:
        raise FakeError(grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: too many operations in txn request")
    for operation in (*request.success, *request.failure):
        if operation.WhichOneof("request") == "request_txn":
            _check_count(operation.request_txn, operations_left - count)


def _check_keys(request: pb.TxnRequest, written: set[bytes]) -> None:
    """No key may be written twice. Raises FakeError."""
    for operation in request.success:
        kind = operation.WhichOneof("request")
        if kind == "request_txn":
            _check_keys(operation.request_txn, written)
        elif kind in ("request_put", "request_delete_range"):
            key = getattr(operation, kind).key
            if key in written:
                raise FakeError(grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request")
            written.add(key)
