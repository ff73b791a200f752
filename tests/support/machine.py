"""The machine and the versions that results were obtained with, in words.

Knows nothing of the results.
"""

import importlib.metadata
import os
import platform
import subprocess
import tomllib
from pathlib import Path

import psutil

from tests.support.harness import ROOT


def machine() -> str:
    """Processor, cores, memory."""
    return f"{_processor()}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"


def system() -> str:
    """The operating system."""
    return f"{platform.system()} {platform.release()}"


def versions() -> dict[str, str]:
    """Python, and the packages that the server needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    packages = [requirement.partition("==")[0] for requirement in project["dependencies"]]
    return {"Python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}


def commit() -> str:
    """The commit that is checked out; empty outside of a repository."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def file_system(directory: Path) -> str:
    """The kind of file system that a directory is on; empty where it is not known."""
    mounts = {partition.mountpoint: partition.fstype for partition in psutil.disk_partitions(all=True)}
    directory = directory.absolute()
    return next((mounts[str(each)] for each in (directory, *directory.parents) if str(each) in mounts), "")


def _processor() -> str:
    """Its name, where there is a way to know it."""
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
