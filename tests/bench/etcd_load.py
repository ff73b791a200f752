"""A load of single puts or ranges on etcd by gRPC, as its clients make them: one in flight on each connection.

`python -m tests.bench.etcd_load ADDRESS SECONDS` reads the variables that put.lua and get.lua read, and prints the line
of JSON that they print. Runs in the environment of the server, where gRPC is.
"""

import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from typing import Final, TypeAlias

import grpc.aio

from logd.etcd import kv_pb2 as pb

_Call: TypeAlias = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
_CALL_SECONDS: Final = 10.0
_OPTIONS: Final = [("grpc.use_local_subchannel_pool", 1)]  # else all channels are one connection


async def main(address: str, seconds: float) -> None:
    """Put the load on etcd, and print what came of it."""
    random.seed()
    latencies_us: list[int] = []
    errors: Counter[str] = Counter(connect=0, read=0, write=0, timeout=0, status=0)
    began = time.monotonic()
    connections = int(os.environ["CONNECTIONS"])
    await asyncio.gather(*(_client(address, began + seconds, latencies_us, errors) for _ in range(connections)))
    duration_us = round((time.monotonic() - began) * 1e6)
    latencies_us.sort()
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    latency = {
        name: latencies_us[min(int(len(latencies_us) * share), len(latencies_us) - 1)] for name, share in shares.items()
    }
    print(
        json.dumps({"requests": len(latencies_us), "duration_us": duration_us, "latency_us": latency, "errors": errors})
    )


async def _client(address: str, until: float, latencies_us: list[int], errors: Counter[str]) -> None:
    prefix, keys = os.environ["KEY_PREFIX"], int(os.environ["KEYS"])
    is_put, value = os.environ["OPERATION"] == "PUT", b"v" * int(os.environ["VALUE_BYTES"])
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        call: _Call = channel.unary_unary("/etcdserverpb.KV/Put" if is_put else "/etcdserverpb.KV/Range")
        while (start := time.monotonic()) < until:
            key = f"{prefix}{random.randint(1, keys)}".encode()
            request = pb.PutRequest(key=key, value=value) if is_put else pb.RangeRequest(key=key)
            try:
                await call(request.SerializeToString(), timeout=_CALL_SECONDS)
            except grpc.RpcError:
                errors["status"] += 1
            latencies_us.append(round((time.monotonic() - start) * 1e6))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
