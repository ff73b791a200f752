"""The operating guide says what the program does: its labels, its exit statuses, its commands, its worked example."""

import re

import pytest

from logd.__main__ import main
from logd.local.recovery import Finding
from logd.shared.protocol import Exit
from tests.support.builders import file_name, lay_out, offsets
from tests.support.harness import ROOT

GUIDE = (ROOT / "docs" / "operating.md").read_text()


@pytest.mark.parametrize("finding", Finding)
def test_every_finding_is_in_the_guide_and_those_that_refuse_have_a_row(finding):
    assert f"`{finding.name}`" in GUIDE
    assert (f"\n| `{finding.name}` |" in GUIDE) == finding.refuses


@pytest.mark.parametrize("status", [status for status in Exit if status is not Exit.DISK_FAILED])
def test_every_exit_status_of_the_server_has_a_row(status):
    assert f"\n| {status:d} |" in GUIDE


def test_every_tool_that_the_guide_calls_exists(capsys):
    tools = set(re.findall(r"`?logd ([a-z]+) (?:--[a-z-]+ )?/", GUIDE))
    assert tools == {"inspect", "verify", "dump", "repair", "export", "import"}
    for tool in tools:
        with pytest.raises(SystemExit) as ended:
            main([tool, "--help"])
        assert ended.value.code == 0


def test_the_worked_example_goes_as_told(tmp_path, capsys, caplog):
    """Damage, inspect, repair: each sentence of the guide, with other numbers."""

    def said(*arguments):
        status = main([*arguments, str(tmp_path)])
        return status, re.sub(r"\d[\d,]*", "N", capsys.readouterr().out)

    lay_out(tmp_path, "1-8 9-14 15-14")
    path = tmp_path / file_name("9-14")
    data = bytearray(path.read_bytes())
    data[offsets(data)[2] + 25] ^= 1
    path.write_bytes(data)
    guide = re.sub(r"\d[\d,]*", "N", GUIDE)
    for arguments, ends in [
        (["inspect"], Exit.DAMAGED),
        (["repair"], Exit.STOPPED),
        (["repair", "--yes"], Exit.STOPPED),
    ]:
        status, out = said(*arguments)
        assert status == ends
        for line in out.splitlines():
            told = re.sub(r" +", " ", line.replace("N deletes, N clears", "").partition(", and what follows")[0])
            assert told.partition(": frame")[0] in re.sub(r" +", " ", guide.replace("N deletes, N clears", ""))
    assert said("verify") == (Exit.STOPPED, "N files, N damaged; recovery would: serve [CLEAN]\n")
    status, out = said("dump", "--set-aside")
    assert status == Exit.STOPPED
    assert out.splitlines()[0].partition('"session"')[0] in guide
    for told in caplog.messages:
        assert re.sub(r"\d+", "N", told) in guide
