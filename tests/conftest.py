"""The process that runs the specifications: its signals, its messages, and the order of what it runs."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# A shell that runs this in the background ignores SIGINT, and every process that is started here would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.default_int_handler)  # a run that is ended ends what it has started

pytest.register_assert_rewrite("tests.support")  # so that a failed assertion there says what it compared


@pytest.fixture(scope="module")
def module_path(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory for what the specifications of a module share; gone afterwards unless one of them failed."""
    path = tmp_path_factory.mktemp("module")
    failed_before = request.session.testsfailed
    yield path
    if request.session.testsfailed == failed_before:
        shutil.rmtree(path, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the specifications that start processes after all others, which are fast."""
    items.sort(
        key=lambda item: bool({"Server", "running_tool", "subprocess"} & vars(item.getparent(pytest.Module).obj).keys())
    )
