"""The way to the cluster: its endpoints, and how a request is sent until its outcome is certain.

Owns the channels, the tries and their time-outs, and the token. Does not know what a request means: it sends the same
bytes again, to one endpoint after the other. That is right for reads, and for writes whose condition only one sending
can meet (logd/etcd/writer.py). gRPC itself sends nothing again.

Calls block. They are made by threads of their own, which costs less processor time than futures of gRPC do.

Tries are short, because a proposal that is lost with its leader is answered after 7 s, and an endpoint that is cut off
from the others not at all.
"""

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

import grpc

from logd.etcd import kv_pb2 as pb
from logd.etcd.verdict import Verdict, judge

_TRY_SECONDS: Final = (0.5, 0.5, 0.5, 1.0, 1.0, 2.0)  # the last one for all further tries
_PAUSE_SECONDS: Final = (0.02, 0.05, 0.1, 0.2)  # after a try that failed at once; the last one as above
_BUSY_SECONDS: Final = 0.05
_STATUS_SECONDS: Final = 2.0
_OPTIONS: Final = (
    ("grpc.enable_retries", 0),  # they would send again what is sent again here
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own for each channel
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),  # 120 s by default
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)

log = logging.getLogger("logd.etcd.link")


class Rejected(Exception):
    """etcd has answered with an error that sending again does not help against."""

    def __init__(self, verdict: Verdict, text: str, *, is_in_doubt: bool) -> None:
        super().__init__(text)
        self.verdict = verdict
        self.text = text
        self.is_in_doubt = is_in_doubt
        """True when an earlier try of the same request has had no answer: that one may still be applied."""


class Closed(Exception):
    """The link was closed while a request had no answer."""


class Expired(Exception):
    """A request had no answer in its time."""


class User(NamedTuple):
    """Who etcd is to take this server for, where that is not said by its certificate."""

    name: str
    password: str


@dataclass(slots=True)
class Tally:
    """What was counted of all calls."""

    calls: Counter[str] = field(default_factory=lambda: Counter({"ok": 0} | {each.name.lower(): 0 for each in Verdict}))
    """Tries, by how they ended."""
    repeated: int = 0
    """Tries beyond the first of a request."""
    switches: int = 0
    """Of the endpoint."""


class Link:
    """Sends requests to a cluster. Used by several threads, and usable after every error but Closed."""

    def __init__(
        self,
        endpoints: "Sequence[Member]",
        *,
        user: User | None = None,
        on_unanswered: Callable[[], None] = lambda: None,
    ) -> None:
        """`endpoints`: the nearest first. `on_unanswered` is called after each call without an answer."""
        self._endpoints = endpoints
        self._current = 0
        self._silent: set[int] = set()
        """Of the endpoints, those that gave no answer when they were last used."""
        self._user = user
        self._token = ""
        self._on_unanswered = on_unanswered
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self.tally = Tally()
        self.answered_at = time.monotonic()
        """When a request had its last answer."""
        self.revision = 0
        """The highest that an answer has told of."""
        self.raft_term = 0

    @property
    def urls(self) -> list[str]:
        """The endpoints."""
        return [each.url for each in self._endpoints]

    @property
    def current_url(self) -> str:
        """The endpoint that is used now."""
        return self._endpoints[self._current].url

    def txn(self, request: pb.TxnRequest, *, until: float = math.inf) -> pb.TxnResponse:
        """Send a transaction until it is answered. Raises Rejected, Closed.

        After `until`, by the monotonic clock, it is not sent again. Raises Expired then.
        """
        response: pb.TxnResponse = self._until_answered("txn", request.SerializeToString(), until)
        with self._lock:
            self.revision = max(self.revision, response.header.revision)
            self.raft_term = max(self.raft_term, response.header.raft_term)
        return response

    def compact(self, revision: int) -> None:
        """Have etcd forget all states before a revision. Raises Rejected, Closed."""
        self._until_answered("compact", pb.CompactionRequest(revision=revision).SerializeToString())

    def status(self, url: str) -> pb.StatusResponse | None:
        """How the member at an endpoint is; None when it does not answer. Raises Closed."""
        endpoint = next(each for each in self._endpoints if each.url == url)
        try:
            response: pb.StatusResponse = self._call(
                endpoint, "status", pb.StatusRequest().SerializeToString(), _STATUS_SECONDS, self._metadata()
            )
        except grpc.RpcError:
            return None
        return response

    def silent_s(self) -> float:
        """For how long no request had an answer."""
        return time.monotonic() - self.answered_at

    def close(self) -> None:
        """End all calls."""
        self._closed.set()
        for endpoint in self._endpoints:
            endpoint.close()

    @property
    def is_closed(self) -> bool:
        """True when no call can be made any more."""
        return self._closed.is_set()

    def pause(self, seconds: float) -> None:
        """Sleep. Raises Closed."""
        if self._closed.wait(seconds):
            raise Closed

    # Tries -----------------------------------------------------------------------------------------------

    def _until_answered(self, method: str, message: bytes, until: float = math.inf) -> Any:  # noqa: ANN401
        unanswered = unauthenticated = tries = 0
        while time.monotonic() < until:
            index = self._current
            if self._user and not self._token and not self._authenticate(self._user, index, is_in_doubt=unanswered > 0):
                continue
            token, began, try_s = self._token, time.monotonic(), _at(_TRY_SECONDS, unanswered)
            response, error = self._try(index, method, message, try_s)
            self._count(error, tries)
            self._note_answer(index, error)
            if error is None:
                return response
            tries += 1
            if error.verdict is Verdict.UNANSWERED:
                self._leave(index)
                self._on_unanswered()
                if time.monotonic() - began < try_s / 2:
                    self.pause(_at(_PAUSE_SECONDS, unanswered))
                unanswered += 1
            elif error.verdict is Verdict.BUSY:
                self.pause(_BUSY_SECONDS)
            elif error.verdict is Verdict.UNAUTHENTICATED and self._user:
                if self._token == token:  # no other thread has got a new one
                    self._token = ""
                if unauthenticated:  # it is not that the token is old; and a new one costs etcd a bcrypt
                    self.pause(_PAUSE_SECONDS[-1])
                unauthenticated += 1
            else:
                raise Rejected(error.verdict, error.text, is_in_doubt=unanswered > 0)
        raise Expired

    def _try(self, index: int, method: str, message: bytes, seconds: float) -> "tuple[Any, _Error | None]":
        """Send once: a response, or an error."""
        try:
            return self._call(self._endpoints[index], method, message, seconds, self._metadata()), None
        except grpc.RpcError as error:
            return None, _error(error)

    def _call(
        self,
        endpoint: "Member",
        method: str,
        message: bytes,
        seconds: float,
        metadata: tuple[tuple[str, str], ...] | None,
    ) -> Any:  # noqa: ANN401
        """As Member.call. Raises grpc.RpcError, Closed."""
        try:
            return endpoint.call(method, message, seconds, metadata)
        except grpc.RpcError:
            if self._closed.is_set():
                raise Closed from None
            raise
        except ValueError:  # the channel is closed
            raise Closed from None

    def _count(self, error: "_Error | None", tries_before: int) -> None:
        with self._lock:
            self.tally.calls[error.verdict.name.lower() if error else "ok"] += 1
            self.tally.repeated += tries_before > 0
        if error is None or error.verdict is not Verdict.UNANSWERED:
            self.answered_at = time.monotonic()

    def _note_answer(self, index: int, error: "_Error | None") -> None:
        """Log once when an endpoint stops answering, and once when it answers again."""
        is_silent = error is not None and error.verdict is Verdict.UNANSWERED
        with self._lock:
            if is_silent == (index in self._silent):
                return
            self._silent ^= {index}
        if error and is_silent:
            log.warning("%s does not answer: %s", self._endpoints[index].url, error.text)
        else:
            log.info("%s answers again", self._endpoints[index].url)

    def _leave(self, index: int) -> None:
        """Use the next endpoint, unless another thread has done so."""
        with self._lock:
            if index != self._current or len(self._endpoints) == 1:
                return
            self._current = (index + 1) % len(self._endpoints)
            self.tally.switches += 1

    # The token -------------------------------------------------------------------------------------------

    def _metadata(self) -> tuple[tuple[str, str], ...] | None:
        return (("token", self._token),) if self._token else None

    def _authenticate(self, user: User, index: int, *, is_in_doubt: bool) -> bool:
        """Get a new token. False when the endpoint does not answer. Raises Rejected."""
        request = pb.AuthenticateRequest(name=user.name, password=user.password)
        try:
            response = self._call(
                self._endpoints[index], "authenticate", request.SerializeToString(), _STATUS_SECONDS, None
            )
        except grpc.RpcError as failure:
            error = _error(failure)
            self._note_answer(index, error)
            if error.verdict is not Verdict.UNANSWERED:
                raise Rejected(Verdict.DENIED, error.text, is_in_doubt=is_in_doubt) from failure
            self._leave(index)
            self._on_unanswered()
            self.pause(_PAUSE_SECONDS[-1])
            return False
        self._token = response.token
        return True


class Member(Protocol):
    """What a link needs of an endpoint."""

    @property
    def url(self) -> str:
        """Where it is."""

    def call(self, method: str, message: bytes, seconds: float, metadata: tuple[tuple[str, str], ...] | None) -> Any:  # noqa: ANN401
        """Send a request once: txn, compact, status or authenticate. Raises grpc.RpcError; ValueError after `close`."""

    def close(self) -> None:
        """End all calls."""


class Endpoint:
    """One member of the cluster, and the calls that it offers."""

    def __init__(self, url: str, credentials: grpc.ChannelCredentials | None) -> None:
        self.url = url
        scheme, _, target = url.partition("://")
        if scheme == "https":
            self._channel = grpc.secure_channel(target, credentials or grpc.ssl_channel_credentials(), _OPTIONS)
        else:
            self._channel = grpc.insecure_channel(target, _OPTIONS)
        self._methods = {
            "txn": self._method("KV/Txn", pb.TxnResponse),
            "compact": self._method("KV/Compact", pb.CompactionResponse),
            "status": self._method("Maintenance/Status", pb.StatusResponse),
            "authenticate": self._method("Auth/Authenticate", pb.AuthenticateResponse),
        }

    def call(self, method: str, message: bytes, seconds: float, metadata: tuple[tuple[str, str], ...] | None) -> Any:  # noqa: ANN401
        return self._methods[method](message, timeout=seconds, metadata=metadata)

    def close(self) -> None:
        self._channel.close()

    def _method(self, name: str, response: Any) -> Callable[..., Any]:  # noqa: ANN401
        return self._channel.unary_unary(f"/etcdserverpb.{name}", None, response.FromString)


class _Error(NamedTuple):
    """What a try ended with."""

    verdict: Verdict
    text: str


def _error(error: Any) -> _Error:  # noqa: ANN401
    """Of a grpc.RpcError, whose type does not say that it has a code."""
    text = error.details() or ""
    return _Error(judge(error.code(), text), text)


def _at(seconds: Sequence[float], index: int) -> float:
    return seconds[min(index, len(seconds) - 1)]
