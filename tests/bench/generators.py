"""The load generators: wrk for HTTP, redis-benchmark for redis. Each run is one `Sample`.

Owns their command lines and what they print. Knows nothing of who is measured.
"""

import csv
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from logd.shared.etag import etag
from tests.bench.cases import BATCH_KEYS, Case, Operation, Sample

_LOAD: Final = Path(__file__).resolve().parent.parent / "load"
SCRIPTS: Final[Mapping[Operation, Path]] = {
    Operation.PUT: _LOAD / "put.lua",
    Operation.GET: _LOAD / "get.lua",
    Operation.CONDITIONAL_PUT: _LOAD / "conditional.lua",
    Operation.BATCH: _LOAD / "batch.lua",
}
ETCD_SCRIPT: Final = Path(__file__).with_name("etcd.lua")

_TIMEOUT_SECONDS: Final = 10
_PATIENCE_SECONDS: Final = 120
_THREADS_MAX: Final = max(1, (os.cpu_count() or 2) // 4)  # one thread is enough for four cores of any target here
_CALIBRATION_REQUESTS: Final = 2_000


class LoadFailed(Exception):
    """A load generator failed; the message is what it printed."""


def missing(program: str) -> str:
    """One line on how to install a program that is missing; empty when it is there."""
    return (
        ""
        if shutil.which(program)
        else f"{program} is missing; install it (on Debian and Ubuntu: apt install {program})"
    )


# wrk -----------------------------------------------------------------------------------------------------


def wrk(url: str, script: Path, case: Case, seconds: int) -> Sample:
    """Put a load on a server for that long. Raises LoadFailed."""
    threads = min(_THREADS_MAX, case.connections)
    command = ["wrk", f"-t{threads}", f"-c{case.connections}", f"-d{seconds}s", f"--timeout={_TIMEOUT_SECONDS}s"]
    return run_script([*command, "-s", str(script), url], case, seconds)


def run_script(command: Sequence[str], case: Case, seconds: int, settings: Mapping[str, str] | None = None) -> Sample:
    """Run a program that is told the case as the scripts of wrk are, and prints what they print. Raises LoadFailed."""
    of_case = {
        "CONNECTIONS": str(case.connections),
        "KEYS": str(case.keys),
        "KEY_PREFIX": case.key_prefix,
        "VALUE_BYTES": str(case.value_bytes),
        "ETAG": f'"{etag(b"v" * case.value_bytes)}"',  # that of the value that is there, and is put again
        "BATCH_KEYS": str(BATCH_KEYS),
        "OPERATION": case.operation.value,
        "JSON": "1",
    }
    printed, cpu_seconds = _run(command, seconds, {**of_case, **(settings or {})})
    return replace(parse_wrk(printed), cpu_seconds={"load": cpu_seconds})


def parse_wrk(printed: str) -> Sample:
    """Read the line of JSON that the scripts print last. Raises LoadFailed."""
    try:
        result = json.loads(printed.splitlines()[-1])
        latency = result["latency_us"]
        if not result["requests"]:
            raise LoadFailed(f"not one request was answered: {printed[-500:]}")
        return Sample(
            requests=result["requests"],
            seconds=result["duration_us"] / 1e6,
            p50_us=latency["p50"],
            p90_us=latency["p90"],
            p99_us=latency["p99"],
            max_us=latency["max"],
            errors={kind: count for kind, count in result["errors"].items() if count},
        )
    except (IndexError, ValueError, KeyError, TypeError) as error:
        raise LoadFailed(f"wrk did not print its result but: {printed[-500:]}") from error


# redis-benchmark -----------------------------------------------------------------------------------------


class RedisBenchmark:
    """Remembers its speed, because its option is a number of requests and not a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._throughput: dict[Case, float] = {}

    def run(self, case: Case, seconds: int) -> Sample:
        """Put a load on redis for about that long. Raises LoadFailed."""
        if case not in self._throughput:
            self._throughput[case] = self._send(case, max(_CALIBRATION_REQUESTS, case.connections), 0).throughput
        sample = self._send(case, max(case.connections, round(self._throughput[case] * seconds)), seconds)
        self._throughput[case] = sample.throughput
        return sample

    def fill(self, case: Case) -> None:
        """Write the keys. It knows only random ones, and so many of them leave out one key in 20,000."""
        self._send(case._replace(operation=Operation.PUT), 10 * case.keys, 0)

    def _send(self, case: Case, requests: int, seconds: int) -> Sample:
        command = ["redis-benchmark", "-p", str(self._port), "-t", "set" if case.operation is Operation.PUT else "get"]
        command += ["-c", str(case.connections), "-n", str(requests), "-r", str(case.keys), "-d", str(case.value_bytes)]
        printed, cpu_seconds = _run([*command, "--csv", "--precision", "3"], seconds)
        return replace(parse_redis_benchmark(printed, requests), cpu_seconds={"load": cpu_seconds})


def parse_redis_benchmark(printed: str, requests: int) -> Sample:
    """Read its CSV, which has milliseconds and no p90. It ends with an error at the first that it meets."""
    rows = list(csv.DictReader(line for line in printed.splitlines() if line.startswith('"')))
    try:
        (row,) = rows
        return Sample(
            requests=requests,
            seconds=requests / float(row["rps"]),
            p50_us=float(row["p50_latency_ms"]) * 1000,
            p99_us=float(row["p99_latency_ms"]) * 1000,
            max_us=float(row["max_latency_ms"]) * 1000,
        )
    except (ValueError, KeyError, ZeroDivisionError) as error:
        raise LoadFailed(f"redis-benchmark did not print its result but: {printed[-500:]}") from error


def _run(command: Sequence[str], seconds: int, settings: Mapping[str, str] | None = None) -> tuple[str, float]:
    """What a program prints, and the processor time that it took. It has ended when this returns or raises."""
    before = _children_cpu_seconds()
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **(settings or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=seconds + _PATIENCE_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise LoadFailed(f"{command[0]} did not end within {error.timeout:.0f} s") from error
    except subprocess.CalledProcessError as error:
        raise LoadFailed(
            f"{command[0]} ended with {error.returncode}: {(error.stderr or error.stdout)[-500:]}"
        ) from error
    return done.stdout, _children_cpu_seconds() - before


def _children_cpu_seconds() -> float:
    """Of children that have ended, which in the middle of a round are load generators alone."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
