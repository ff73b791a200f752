"""The documents are true as far as a program can tell: links, options, names of files, and tables that are complete."""

import dataclasses
import re

import pytest

from kv.config import Config
from logd.tools.commands import COMMANDS
from tests.bench import options as bench
from tests.killlab import options as killlab
from tests.support.harness import ROOT

DOCUMENTS = sorted(
    path for pattern in ("*.md", "docs/*.md", "logd/*.md", "tests/load/*.md") for path in ROOT.glob(pattern)
)
PROGRAMS = sorted(path for directory in ("kv", "logd", "tests") for path in (ROOT / directory).rglob("*.py"))
SERVER_FLAGS = {"--" + field.name.replace("_", "-") for field in dataclasses.fields(Config)}
INSTEAD_OF_SERVING = {"--check-config", "--version", "--help"}
TOOL_FLAGS = {argument.name for command in COMMANDS for argument in command.arguments if argument.name.startswith("--")}
FLAGS_OF_OTHERS = {
    *("--universal", "--generate-hashes", "--no-header", "--no-annotate", "--extra"),  # uv
    *("--latency", "--data-binary", "--block-signal", "--cpus"),  # wrk, curl, env, docker
}


def text_of(name):
    return (ROOT / name).read_text()


def anchors(document):
    """The names of a document's headings in links, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def flags_of(text):
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]", text))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_a_heading_that_exist(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_option_that_a_document_names_exists(document):
    known = SERVER_FLAGS | INSTEAD_OF_SERVING | TOOL_FLAGS | FLAGS_OF_OTHERS
    for program in (bench, killlab):
        known |= flags_of(text_of(program.__file__))
    assert flags_of(document.read_text()) <= known


@pytest.mark.parametrize("source", [*DOCUMENTS, *PROGRAMS], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_of_the_project_that_is_named_exists(source):
    """Paths from the top, such as `kv/app.py`, and documents by their names."""
    text = source.read_text()
    for name in re.findall(r"(?<![\w/.-])(?:kv|logd|tests|docs|deploy)/[\w/-]+\.(?:py|md|yml|yaml|json)\b", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"(?<![\w/.-])[A-Z]{3,}\.md\b", text):
        assert any(document.name == name for document in DOCUMENTS), name


def test_the_readme_has_a_row_for_every_option_and_no_other():
    table = text_of("README.md").partition("\n## Options\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `--")]
    assert sorted(flag for row in rows for flag in flags_of(row)) == sorted(SERVER_FLAGS)


def test_the_guide_for_contributors_has_a_row_for_every_test_file_and_what_is_beside_them():
    text = text_of("CONTRIBUTING.md")
    beside = {f"{path.name}/" for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    files = {path.name for path in (ROOT / "tests").glob("test_*.py")}
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert sorted(named) == sorted(files | beside)


def test_the_layout_in_the_architecture_names_every_module():
    layout = text_of("docs/architecture.md").partition("\n## Where things are\n")[2].partition("\n## ")[0]
    words = set(re.findall(r"\w+", layout))
    modules = [path for path in PROGRAMS if path.parts[len(ROOT.parts)] in ("kv", "logd")]
    missing = {path.stem for path in modules if not path.stem.startswith("__")} - words
    assert missing == set()
