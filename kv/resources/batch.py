"""/batch: several writes and checks, all or nothing.

Owns the lines of a batch and of its answer; does not know how a batch is carried out.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final, Literal, TypeAlias

import falcon
import falcon.asgi
import msgspec

from kv.config import UNLIMITED, BatchLimits
from kv.log_client.outcomes import PreconditionFailed
from kv.request import Refusal, Request, Resource, check_key, check_value, quoted
from kv.resources.storage import Storage
from logd.shared.etag import etag
from logd.shared.protocol import DECODE_ERRORS, Check, FailedCheck, Transaction

OPERATIONS_MAX: Final = 1000
_LINES: Final = "application/jsonl"
_ETAG: Final = re.compile(r'"([!#-~]*)"|([!#-~]*)')
_UNPRINTABLE: Final = re.compile(r"[^ -~]+")
_REASON_CHARACTERS_MAX: Final = 200


class _Put(msgspec.Struct, tag_field="op", tag="put", forbid_unknown_fields=True):
    key: str
    value: str


class _Delete(msgspec.Struct, tag_field="op", tag="delete", forbid_unknown_fields=True):
    key: str


class _Check(msgspec.Struct, tag_field="op", tag="check", forbid_unknown_fields=True):
    """Exactly one of the two is there."""

    key: str
    etag: str | msgspec.UnsetType = msgspec.UNSET
    absent: Literal[True] | msgspec.UnsetType = msgspec.UNSET


_Operation: TypeAlias = _Put | _Delete | _Check
_decode: Final = msgspec.json.Decoder(_Operation).decode
_encode_lines: Final = msgspec.json.Encoder().encode_lines


class BatchResource(Resource):
    """Carries a batch out."""

    def __init__(self, storage: Storage, bytes_max: int, limits: BatchLimits = UNLIMITED) -> None:
        """`limits` are those of the engine, which may allow fewer checks than operations."""
        self._storage = storage
        self._bytes_max = bytes_max
        self._limits = limits

    async def on_post(self, req: Request, resp: falcon.asgi.Response) -> None:
        """Make all writes, at one point of the order of all writes; or none, when a check does not hold there."""
        req.qualifiers()
        transaction = parse(await req.body(self._bytes_max, "batch too large"))
        self._limit_checks(transaction)
        try:
            await self._storage.execute(transaction)
        except PreconditionFailed as error:
            resp.status = falcon.HTTP_412
            found: Iterable[tuple[str, str | None]] = _present(transaction, error.failed)
        else:
            found = ((key, etag(value)) for key, value in transaction.puts.items())
        resp.content_type = _LINES
        resp.data = _encode_lines({"key": key, "etag": None if tag is None else quoted(tag)} for key, tag in found)

    def _limit_checks(self, transaction: Transaction) -> None:
        """Raises Refusal."""
        checks_max, bytes_max = self._limits.checks_max, self._limits.checked_bytes_max
        if checks_max is not None and len(transaction.checks) > checks_max:
            raise Refusal(falcon.HTTP_413, f"batch too large: more than {checks_max} checks")
        if bytes_max is not None and sum(len(check.key.encode()) for check in transaction.checks) > bytes_max:
            raise Refusal(falcon.HTTP_413, f"batch too large: more than {bytes_max} bytes of keys in checks")


def _present(transaction: Transaction, failed: Iterable[FailedCheck]) -> Iterator[tuple[str, str | None]]:
    """The keys of the checks that did not hold, and the tags of what is there."""
    return ((transaction.checks[index].key, tag) for index, tag in failed)


def parse(body: bytes) -> Transaction:
    """What the lines of a body ask for. Raises Refusal, which names the line."""
    lines = body.removesuffix(b"\n").split(b"\n")
    if len(lines) > OPERATIONS_MAX:
        raise Refusal(falcon.HTTP_413, "batch too large")
    if not body:
        raise Refusal(falcon.HTTP_400, "batch cannot be empty")
    transaction = Transaction([], {}, [])
    written: set[str] = set()
    for number, line in enumerate(lines, start=1):
        try:
            _add(transaction, written, _decode(line))
        except Refusal as refusal:
            raise Refusal(refusal.status, f"line {number}: {refusal.text}") from refusal
        except DECODE_ERRORS as error:
            reason = _UNPRINTABLE.sub(" ", str(error))[:_REASON_CHARACTERS_MAX]
            raise Refusal(falcon.HTTP_400, f"line {number}: {reason}") from error
    return transaction


def _add(transaction: Transaction, written: set[str], operation: _Operation) -> None:
    """Raises Refusal."""
    key = operation.key
    check_key(key.encode())
    if isinstance(operation, _Check):
        transaction.checks.append(_check(operation))
        return
    if key in written:
        raise Refusal(falcon.HTTP_400, "the key is written twice")
    written.add(key)
    if isinstance(operation, _Put):
        value = operation.value.encode()
        check_value(value)
        transaction.puts[key] = value
    else:
        transaction.deletes.append(key)


def _check(operation: _Check) -> Check:
    if (operation.etag is msgspec.UNSET) == (operation.absent is msgspec.UNSET):
        raise Refusal(falcon.HTTP_400, "a check needs either etag or absent")
    if operation.etag is msgspec.UNSET:
        return Check(operation.key, None, negated=True)
    match = _ETAG.fullmatch(operation.etag)
    if not match:
        raise Refusal(falcon.HTTP_400, "etag is no strong entity tag")
    return Check(operation.key, [match[1] or match[2] or ""], negated=False)
