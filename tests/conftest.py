"""The process that runs the specifications: its signals, its messages, and the order of what it runs."""

import signal

import pytest

# A shell that runs this in the background ignores SIGINT, and every process that is started here would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.default_int_handler)  # a run that is ended ends what it has started

pytest.register_assert_rewrite("tests.support")  # so that a failed assertion there says what it compared


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the specifications that start processes after all others, which are fast."""
    items.sort(
        key=lambda item: bool({"Server", "running_tool", "subprocess"} & vars(item.getparent(pytest.Module).obj).keys())
    )
