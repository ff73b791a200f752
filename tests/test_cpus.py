"""How many processors may be used: what restricts them, for real where this machine allows it."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kv import cpus
from tests.support.harness import ROOT

USABLE = "from kv import cpus; print(cpus.usable())"
VERSION_1 = Path("/sys/fs/cgroup/cpu")


def usable(*before):
    command = [*before, sys.executable, "-c", USABLE]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="there is no affinity here")
def test_a_process_that_is_bound_to_one_processor_may_use_one():
    one = min(os.sched_getaffinity(0))
    assert usable("taskset", "--cpu-list", str(one)) == 1


@pytest.mark.skipif(os.geteuid() != 0 or not (VERSION_1 / "cpu.cfs_quota_us").exists(), reason="no such control group")
def test_a_quota_of_one_processor_is_one():
    group = VERSION_1 / f"kvt-{os.getpid()}"
    group.mkdir()
    try:
        (group / "cpu.cfs_quota_us").write_text("100000")
        assert usable("sh", "-c", f'echo $$ >{group}/cgroup.procs; exec "$@"', "sh") == 1
    finally:
        group.rmdir()


def lay_out(top, files):
    for name, text in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"self": "0::/a/b\n", "a/b/cpu.max": "150000 100000\n"}, 2),
        ({"self": "0::/a/b\n", "a/b/cpu.max": "max 100000\n", "a/cpu.max": "100000 100000\n"}, 1),
        ({"self": "0::/a/b\n", "a/b/cpu.max": "max 100000\n"}, 64),
        ({"self": "0::/\n", "cpu.max": "300000 100000\n"}, 3),
        ({"self": "0::/../other\n", "cpu.max": "50000 100000\n"}, 1),
        ({"self": "0::/a\n", "cpu.max": "nonsense\n"}, 64),
        (
            {
                "self": "4:cpu,cpuacct:/docker/1\n",
                "cpu/cpu.cfs_quota_us": "250000\n",
                "cpu/cpu.cfs_period_us": "100000",
            },
            3,
        ),
        ({"self": "4:cpu:/\n", "cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ({"self": "4:cpuset:/\n1:cpuacct:/\n"}, 64),
        ({}, 64),
    ],
)
def test_quotas_of_control_groups_and_of_those_above_them_count(tmp_path, monkeypatch, files, expected):
    lay_out(tmp_path, files)
    monkeypatch.setattr(cpus, "_MEMBERSHIPS", tmp_path / "self")
    monkeypatch.setattr(cpus, "_CGROUPS", tmp_path)
    with contextlib.suppress(AttributeError):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert cpus.usable() == expected
