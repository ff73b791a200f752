"""The last warnings of all processes: what is kept, how much of it, and that many may write at a time."""

import logging
import os
import subprocess
import sys

import pytest

from logd.shared import logging_setup, recent_warnings
from logd.shared.recent_warnings import WARNINGS_MAX, RecentWarnings
from tests.support.harness import ROOT

WRITES = """
import logging, sys
from logd.shared import logging_setup
logging_setup.set_up("writer", "info", "text", int(sys.argv[1]))
for number in range(50):
    logging.error("%d %s", number, "x" * 100)
"""


@pytest.fixture
def ring():
    fd = recent_warnings.make()
    yield RecentWarnings(fd)
    os.close(fd)


@pytest.fixture
def log(ring):
    """A logger that ends there alone."""
    logger = logging.Logger("some.logger")
    logger.addHandler(ring)
    return logger


def messages(ring):
    return [each.message for each in ring.read()]


def test_nothing_is_kept_at_first(ring):
    assert ring.read() == []


def test_what_is_kept_of_a_warning_is_when_how_severe_who_and_what(ring, log):
    log.error("%d of %s", 3, "all")
    (kept,) = ring.read()
    assert (kept.level, kept.role, kept.pid, kept.message) == ("error", "MainProcess", os.getpid(), "3 of all")
    assert kept.time > 0


def test_only_warnings_and_worse_are_kept(ring, log):
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        log.log(level, "%d", level)
    assert messages(ring) == ["30", "40", "50"]


@pytest.mark.parametrize("count", [WARNINGS_MAX - 1, WARNINGS_MAX, WARNINGS_MAX + 1, 5 * WARNINGS_MAX + 7])
def test_the_last_ones_are_kept_oldest_first(ring, log, count):
    for number in range(count):
        log.handle(
            logging.makeLogRecord(
                {"msg": str(number), "levelno": logging.ERROR, "levelname": "ERROR", "created": number}
            )
        )
    assert messages(ring) == [str(number) for number in range(max(0, count - WARNINGS_MAX), count)]
    assert os.fstat(ring.fd).st_size <= 64 << 10


@pytest.mark.parametrize("message", ["two\nlines", "", "a  b", "Zürich 🎉\0", "\udcff of a path"])
def test_whatever_a_message_is_the_ones_after_it_are_read(ring, log, message):
    log.error("%s", message)
    log.error("next")
    assert len(messages(ring)) == 2
    assert messages(ring)[1] == "next"


def test_a_long_message_is_cut_between_characters(ring, log):
    log.error("€" * 1000)
    log.error("next")
    cut, following = messages(ring)
    assert set(cut) == {"€"}
    assert 100 < len(cut) < 1000
    assert following == "next"


def test_a_record_that_is_being_written_is_left_out(ring, log):
    log.error("whole")
    os.write(ring.fd, b"17956")
    assert messages(ring) == ["whole"]


def test_processes_that_write_at_the_same_time_leave_whole_records(ring):
    command = [sys.executable, "-c", WRITES, str(ring.fd)]
    running = [subprocess.Popen(command, cwd=ROOT, pass_fds=(ring.fd,), stderr=subprocess.DEVNULL) for _ in range(4)]
    assert [each.wait(30) for each in running] == [0] * 4
    kept = ring.read()
    assert len(kept) == WARNINGS_MAX
    assert {each.pid for each in kept} <= {each.pid for each in running}
    assert {each.message.partition(" ")[2] for each in kept} == {"x" * 100}


def test_a_full_disk_or_a_closed_file_is_no_error_of_who_logs(log, ring):
    log.handlers = [RecentWarnings(-1)]
    log.error("lost here alone")
    assert ring.read() == []


def test_a_message_that_cannot_be_formatted_is_no_error_of_who_logs(log, ring, capsys):
    log.error("%d", "no number")
    log.error("next")
    assert messages(ring) == ["next"]
    assert "no number" in capsys.readouterr().err


def test_a_child_is_told_where_its_parent_keeps_them(ring, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [ring])
    assert logging_setup.descriptors() == (ring.fd,)
    assert logging_setup.flags()[-2:] == ["--warnings-fd", str(ring.fd)]
