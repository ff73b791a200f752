"""How many processors this process may use, which may be far fewer than the machine has.

Three things can restrict it: the affinity (taskset, cpuset), and the quota of a control group of version 2 or 1 (what
`docker run --cpus` and the limits of Kubernetes set).
"""

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

_MEMBERSHIPS: Final = Path("/proc/self/cgroup")
_CGROUPS: Final = Path("/sys/fs/cgroup")


def usable() -> int:
    """At least 1. A quota of one and a half processors counts as two."""
    count = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, math.ceil(min([count, *_quotas(_MEMBERSHIPS, _CGROUPS)])))


def _quotas(memberships: Path, mounted: Path) -> Iterator[float]:
    """The quotas, in processors, of the groups that the process is in, and of those above them."""
    with contextlib.suppress(OSError):
        for line in memberships.read_text(errors="replace").splitlines():
            _, controllers, group = line.split(":", 2)
            if not controllers:
                yield from _up(mounted, group, _quota_of_version_2)
            elif "cpu" in controllers.split(","):
                yield from _up(mounted / "cpu", group, _quota_of_version_1)


def _up(mounted: Path, group: str, quota: Callable[[Path], float]) -> Iterator[float]:
    """The quotas from a group upwards. In a container, the path may not exist, and what is mounted is the group."""
    names = [name for name in group.split("/") if name not in ("", "..")]
    for length in range(len(names), -1, -1):
        with contextlib.suppress(OSError, ValueError):  # there is none, or it is "max"
            yield quota(mounted.joinpath(*names[:length]))


def _quota_of_version_2(group: Path) -> float:
    quota, period = (group / "cpu.max").read_text().split()
    return int(quota) / int(period)


def _quota_of_version_1(group: Path) -> float:
    quota = int((group / "cpu.cfs_quota_us").read_text())
    return quota / int((group / "cpu.cfs_period_us").read_text()) if quota > 0 else math.inf
