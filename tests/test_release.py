"""A release: one version, a changelog that people can read, and a workflow that tests what is supported."""

import re
import shutil
import subprocess
import tomllib

import pytest
import yaml

import kv
from tests.support.harness import ROOT

WORKFLOW = ROOT / ".github/workflows/ci.yml"
JOBS = yaml.safe_load(WORKFLOW.read_text())["jobs"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()


def test_the_version_stands_in_one_place():
    kinds = (
        "kv/**/*.py",
        "kv/**/*.yaml",
        "logd/**/*.py",
        "deploy/*",
        "*.toml",
        "*.yaml",
        "Dockerfile",
        "docs/*.md",
        "*.md",
    )
    files = {path for kind in kinds for path in ROOT.glob(kind)} - {ROOT / "CHANGELOG.md"}
    version = re.compile(rf"(?<![\d.]){re.escape(kv.__version__)}(?![\d.])")
    assert [path for path in files if version.search(path.read_text())] == [ROOT / "kv/__init__.py"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "kv.__version__"}


def test_the_changelog_begins_with_what_is_unreleased_and_then_has_this_version():
    unreleased, released, *_ = re.findall(r"^## (.+)$", CHANGELOG, re.MULTILINE)
    assert unreleased == "Unreleased"
    assert re.fullmatch(rf"{re.escape(kv.__version__)} – \d+ [A-Z][a-z]+ \d{{4}}", released)


def test_the_changelog_sorts_changes_by_what_they_are_to_a_user():
    assert set(re.findall(r"^### (.+)$", CHANGELOG, re.MULTILINE)) <= {"Added", "Changed", "Fixed"}


def runs(job):
    return [step["run"] for step in JOBS[job]["steps"] if "run" in step]


def test_the_workflow_runs_the_test_command_on_every_python_that_is_supported():
    matrix = JOBS["tests"]["strategy"]["matrix"]
    first, last = (int(minor) for minor in (matrix["python"][0][2:], matrix["python"][-1][2:]))
    assert matrix["python"] == [f"3.{minor}" for minor in range(first, last + 1)]
    required = PROJECT["project"]["requires-python"]
    assert required == f">=3.{first}"
    assert f"| 3.{first} to 3.{last}, on Linux and macOS |" in (ROOT / "docs/compatibility.md").read_text()
    assert {name.partition("-")[0] for name in matrix["system"]} == {"ubuntu", "macos"}
    assert "./tests/run.sh" in runs("tests")


def test_the_workflow_runs_the_kill_lab_every_night():
    (command,) = runs("killlab")
    assert command.startswith("python3 -m tests.killlab --minutes ")
    assert "schedule" in JOBS["killlab"]["if"]


def test_the_linter_of_workflows_has_no_complaint():
    if not shutil.which("actionlint"):
        pytest.skip("actionlint is missing")
    done = subprocess.run(["actionlint", WORKFLOW], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
