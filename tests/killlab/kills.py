"""The kills: orders, and carrying them out on the processes of a cluster, by their role.

Owns the orders, and when each is carried out. Knows nothing of load, requests or reports.
"""

import contextlib
import functools
import itertools
import random
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import psutil

from tests.killlab.cluster import ROLES_OF, Cluster, Victim

ROLES: Final = tuple(dict.fromkeys(role for roles in ROLES_OF.values() for role in roles))
"""Those of all engines."""
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

    def __init__(self, cluster: Cluster, orders: Sequence[Order], rng: random.Random) -> None:
        self.waiting = sorted(orders)
        """Orders that have not been carried out."""
        self._cluster = cluster
        self._rng = rng
        self._later: list[tuple[float, Callable[[], object]]] = []
        """What brings back or resumes, and when."""
        self._killed: set[psutil.Process] = set()  # may still be there for a moment

    def carry_out_due(self, elapsed_s: float) -> Iterator[Kill]:
        """Carry out the orders whose time has come, and bring back what was away long enough."""
        self._bring_back(elapsed_s)
        for order in list(itertools.takewhile(lambda order: order.at_s <= elapsed_s, self.waiting)):
            if kill := self._carry_out(order, elapsed_s):
                self.waiting.remove(order)
                yield kill

    def close(self) -> None:
        """Bring back and resume all."""
        self._bring_back(float("inf"))

    def _carry_out(self, order: Order, elapsed_s: float) -> Kill | None:
        found = [each for each in self._cluster.victims(order.role) if self._killed.isdisjoint(each.processes)]
        if not found:
            return None
        victim = self._rng.choice(found)
        kill = Kill(order, time.monotonic_ns(), victim.pid)
        if order.frozen_s is not None:
            _signal_all(victim.processes, signal.SIGSTOP)
            resume = functools.partial(_signal_all, victim.processes, signal.SIGCONT)
            self._later.append((elapsed_s + order.frozen_s, resume))
            return kill
        return kill if self._kill(victim, elapsed_s) else None

    def _kill(self, victim: Victim, elapsed_s: float) -> bool:
        """False when it ended by itself in the meantime, as a checkpoint may."""
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            return False
        self._killed.update(victim.processes)
        if victim.away_s:
            self._later.append((elapsed_s + victim.away_s, victim.bring_back))
        else:
            victim.bring_back()
        return True

    def _bring_back(self, elapsed_s: float) -> None:
        due = [each for each in self._later if each[0] <= elapsed_s]
        self._later = [each for each in self._later if each[0] > elapsed_s]
        for _, bring_back in due:
            bring_back()


def _signal_all(processes: Sequence[psutil.Process], number: int) -> None:
    """Send a signal to each process that still exists. A pid that was used again is left alone."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
