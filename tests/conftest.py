"""The process that runs the specifications: its signals, and the order of what it runs."""

import signal

import pytest

# A shell that runs this in the background ignores SIGINT, and every process that is started here would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the specifications that start processes after all others, which are fast."""
    items.sort(key=lambda item: bool({"Server", "subprocess"} & vars(item.getparent(pytest.Module).obj).keys()))
