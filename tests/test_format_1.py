"""A directory that the last release wrote, with version 1 of the formats, is read by this program."""

import shutil
from pathlib import Path

import pytest

from logd.local import recovery
from logd.local.disk import LocalDisk
from logd.local.recovery import Finding

WRITTEN = Path(__file__).parent / "data" / "format-1"
"""By a server with segments of 4 KiB: 60 values, a checkpoint, 15 more, two deletes, one value replaced."""


@pytest.fixture
def directory(tmp_path):
    shutil.copytree(WRITTEN, tmp_path / "data")
    return tmp_path / "data"


def expected():
    data = {f"key{number:02d}": b"value %d " % number * 10 for number in range(60)}
    data |= {f"key{number:02d}": f"wért {number}".encode() for number in range(60, 75)}
    del data["key03"], data["key70"]
    return data | {"key05": b"replaced"}


def test_a_directory_of_version_1_is_read(directory):
    recovered = recovery.load(LocalDisk(directory))
    assert recovered.finding is Finding.CLEAN
    assert recovered.snapshot
    assert recovered.store.data == expected()
    assert list(recovered.store.sessions.values()) == [78]
