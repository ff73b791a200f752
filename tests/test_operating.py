"""The operating guide is true: its labels, its exit statuses, its commands, its worked example."""

import re
from pathlib import Path

import pytest

from logd.__main__ import main
from logd.local.recovery import Finding
from logd.shared.protocol import Exit
from logd.tools.commands import COMMANDS
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


def test_every_tool_has_a_place_in_the_guide(capsys):
    shown = set(re.findall(r"`?logd ([a-z]+) (?:--[a-z-]+ )?/", GUIDE))
    assert shown == {command.name for command in COMMANDS}
    for name in shown:
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        assert ended.value.code == 0


def test_the_worked_example_goes_as_the_guide_shows(tmp_path, capsys, caplog, monkeypatch):
    """Damage, inspect, repair, dump: each line of the guide, with other numbers."""

    def printed(*arguments):
        status = main([*arguments])
        return status, re.sub(r"\d[\d,]*", "N", capsys.readouterr().out)

    data = tmp_path / "var/lib/kv/data"
    data.mkdir(parents=True)
    lay_out(data, "1-8 9-14 15-14")
    path = data / file_name("9-14")
    content = bytearray(path.read_bytes())
    content[offsets(content)[2] + 25] ^= 1
    path.write_bytes(content)
    guide = re.sub(r"\d[\d,]*", "N", GUIDE)
    for arguments, ends in [
        (["inspect"], Exit.DAMAGED),
        (["repair"], Exit.STOPPED),
        (["repair", "--yes"], Exit.STOPPED),
    ]:
        status, out = printed(*arguments, str(data))
        assert status == ends
        for line in out.splitlines():
            start = re.sub(r" +", " ", line.replace("N deletes, N clears", "").partition(", and what follows")[0])
            assert start.partition(": frame")[0] in re.sub(r" +", " ", guide.replace("N deletes, N clears", ""))
    assert printed("verify", str(data)) == (Exit.STOPPED, "N files, N damaged; recovery would: serve [CLEAN]\n")
    monkeypatch.chdir(tmp_path)
    status, out = printed("dump", *map(str, sorted(Path("var/lib/kv/data").glob("*.damaged*"))))
    assert status == Exit.STOPPED
    assert out.splitlines()[0].partition('"session"')[0].replace('"var', '"/var') in guide
    for message in caplog.messages:
        assert re.sub(r"\d+", "N", message) in guide
