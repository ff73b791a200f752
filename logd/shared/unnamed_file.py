"""A file that has no name and lives as long as a process has it open: memory that processes share by inheriting it."""

import os
import sys
import tempfile


def make_file(name: str) -> int:
    """The descriptor of a new file; in memory where the system has that, with the name for people who look there."""
    if sys.platform == "linux":
        return os.memfd_create(name)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
