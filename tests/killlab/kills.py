"""The kills: orders, and carrying them out on the processes of a server, by their role.

Owns the orders and the signals. Knows nothing of load, requests or reports.
"""

import contextlib
import itertools
import random
import re
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import psutil

from tests.support.harness import Server

GROUP: Final = "group"
ROLES: Final = ("logd", "worker", "gunicorn", "supervisor", "checkpoint", GROUP)
_UNITS: Final = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0}
_TIME: Final = r"(\d+(?:\.\d+)?)(ms|s|m|)"
_ORDER: Final = re.compile(rf"(stop:)?({'|'.join(ROLES)})@{_TIME}(?:\+{_TIME})?")


class Order(NamedTuple):
    """Kill a process of that role at that time after the load began; or freeze it for so long."""

    at_s: float
    role: str
    frozen_s: float | None = None

    def __str__(self) -> str:
        return (
            f"{self.role}@{self.at_s:g}s"
            if self.frozen_s is None
            else f"stop:{self.role}@{self.at_s:g}s+{self.frozen_s:g}s"
        )


def parse_seconds(text: str) -> float:
    """`3`, `3s`, `500ms` or `2m`. Raises ValueError."""
    if not (match := re.fullmatch(_TIME, text)):
        raise ValueError(f"{text!r} is not a time such as 3s, 500ms or 2m")
    return float(match[1]) * _UNITS[match[2]]


def parse_orders(text: str) -> list[Order]:
    """`logd@3s,stop:worker@6s+2s`. Raises ValueError."""
    return [_parse_order(part.strip()) for part in text.split(",")]


def _parse_order(text: str) -> Order:
    match = _ORDER.fullmatch(text)
    if not match or bool(match[1]) != bool(match[5]):
        raise ValueError(f"{text!r} is neither ROLE@3s nor stop:ROLE@3s+2s, with ROLE one of {', '.join(ROLES)}")
    at_s = float(match[3]) * _UNITS[match[4]]
    return Order(at_s, match[2], float(match[5]) * _UNITS[match[6]] if match[5] else None)


def one_of_each(roles: Sequence[str], seconds: float) -> list[Order]:
    """Each role once, at even distances."""
    return [Order(seconds * n / (len(roles) + 1), role) for n, role in enumerate(roles, 1)]


def at_random(count: int, roles: Sequence[str], seconds: float, rng: random.Random) -> list[Order]:
    """Random roles at random times, but for the first and the last second."""
    margin = min(1.0, seconds / 10)
    return [Order(rng.uniform(margin, seconds - margin), rng.choice(roles)) for _ in range(count)]


def at_intervals(interval_s: float, roles: Sequence[str], seconds: float, rng: random.Random) -> list[Order]:
    """Random roles, one after each interval."""
    return [Order(n * interval_s, rng.choice(roles)) for n in range(1, int(seconds / interval_s - 0.5) + 1)]


@dataclass(frozen=True)
class Kill:
    """An order that was carried out. `at` is in nanoseconds, of the clock of the clients."""

    order: Order
    at: int
    pid: int

    @property
    def what(self) -> str:
        """The role, and that it was frozen and not killed."""
        return self.order.role if self.order.frozen_s is None else f"stop:{self.order.role}"


class Killer:
    """Carries out orders when they are due, each as soon as there is a process of its role."""

    def __init__(self, server: Server, orders: Sequence[Order], rng: random.Random) -> None:
        self.waiting = sorted(orders)
        """Orders that have not been carried out."""
        self._server = server
        self._rng = rng
        self._frozen: list[tuple[float, list[psutil.Process]]] = []
        self._killed: set[psutil.Process] = set()  # may still be there for a moment

    def carry_out_due(self, elapsed_s: float) -> Iterator[Kill]:
        """Carry out the orders whose time has come, and resume what was frozen long enough."""
        self._thaw(elapsed_s)
        for order in list(itertools.takewhile(lambda order: order.at_s <= elapsed_s, self.waiting)):
            if kill := self._carry_out(order, elapsed_s):
                self.waiting.remove(order)
                yield kill

    def close(self) -> None:
        """Resume every frozen process."""
        self._thaw(float("inf"))

    def _carry_out(self, order: Order, elapsed_s: float) -> Kill | None:
        server = self._server
        there = server.members() if order.role == GROUP else server.role(order.role)
        found = [process for process in there if process not in self._killed]
        if not found:
            return None
        assert server.process is not None
        chosen = found if order.role == GROUP else [self._rng.choice(found)]
        pid = server.process.pid if order.role == GROUP else chosen[0].pid
        kill = Kill(order, time.monotonic_ns(), pid)
        if order.frozen_s is not None:
            self._frozen.append((elapsed_s + order.frozen_s, chosen))
            _signal_all(chosen, signal.SIGSTOP)
        elif order.role == GROUP:
            server.crash()
            server.spawn()
        elif not _signal_all(chosen, signal.SIGKILL):
            return None  # it ended by itself in the meantime, as a checkpoint may
        elif pid == server.process.pid:
            server.wait()
            server.spawn()
        if order.frozen_s is None:
            self._killed.update(chosen)
        return kill

    def _thaw(self, elapsed_s: float) -> None:
        for due_s, processes in self._frozen:
            if due_s <= elapsed_s:
                _signal_all(processes, signal.SIGCONT)
        self._frozen = [each for each in self._frozen if each[0] > elapsed_s]


def _signal_all(processes: Sequence[psutil.Process], number: int) -> int:
    """Send a signal to each process that still exists; how many did. A pid that was used again is left alone."""
    count = 0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
            count += 1
    return count
