"""A library that is preloaded into the processes of a server: calls that fail, and a wall clock that jumps, on demand.

For what no file system and no limit here can cause. It asks for a file at each call, so that a test decides when.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

_SOURCE: Final = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
static int fails(const char *call) {
    const char *path = getenv("FAILING"), *calls = getenv("FAILING_CALLS");
    if (!path || !calls || !strstr(calls, call) || access(path, F_OK)) return 0;
    errno = atoi(getenv("FAILING_ERRNO"));
    return 1;
}
int fdatasync(int fd) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fdatasync");
    return fails("fdatasync") ? -1 : real(fd);
}
int fsync(int fd) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
    return fails("fsync") ? -1 : real(fd);
}
pid_t fork(void) {
    pid_t (*real)(void) = dlsym(RTLD_NEXT, "fork");
    return fails("fork") ? -1 : real();
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    const char *path = getenv("JUMPED");
    int status = real(clock, now);
    if (clock == CLOCK_REALTIME && path && !access(path, F_OK)) now->tv_sec += 3600;
    return status;
}
"""


def build(directory: Path) -> Path:
    """The library, made in this directory. Skips the test where there is no compiler."""
    if not shutil.which("gcc"):
        pytest.skip("there is no gcc here to make the library with")
    source, library = directory / "shim.c", directory / "shim.so"
    source.write_text(_SOURCE)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


class Failing:
    """Calls that fail in the processes of a server while the file `path` exists."""

    def __init__(self, library: Path, path: Path, calls: str, error: int) -> None:
        self.path = path
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAILING": str(path),
            "FAILING_CALLS": calls,
            "FAILING_ERRNO": str(error),
        }


class Clock:
    """The wall clock of the processes of a server: an hour later while the file `path` exists."""

    def __init__(self, library: Path, path: Path) -> None:
        self.path = path
        self.environment = {"LD_PRELOAD": str(library), "JUMPED": str(path)}
