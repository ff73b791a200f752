"""The documents are true as far as a program can tell: links, options, names of files, and tables that are complete."""

import dataclasses
import re
import tomllib

import pytest
import yaml

from kv.config import Config
from kv.scoreboard import STATUSES
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
METHODS = {"get", "head", "put", "post", "delete"}
FLAGS_OF_OTHERS = {
    *("--universal", "--generate-hashes", "--no-header", "--no-annotate", "--extra"),  # uv
    *(
        "--latency",
        "--data-binary",
        "--retry",
        "--retry-connrefused",
        "--block-signal",
        "--cpus",
        "--filter",
    ),  # wrk, curl, env, docker, split
    *("--python", "--pyi", "--proto"),  # protoc
    *("--name", "--data-dir", "--logger", "--max-request-bytes", "--quota-backend-bytes", "--client-cert-auth"),  # etcd
    *("--listen-client-urls", "--advertise-client-urls", "--listen-peer-urls", "--initial-advertise-peer-urls"),
    *("--initial-cluster", "--initial-cluster-state", "--heartbeat-interval", "--election-timeout", "--peer"),
    *("--trusted-ca-file", "--cert-file", "--key-file", "--auto-compaction-retention"),
    *("--endpoints", "--peer-urls", "--prefix", "--no-password"),  # etcdctl
}


def text_of(name):
    return (ROOT / name).read_text()


def section(text, heading):
    """What is below a heading of the second level."""
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


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


def test_the_readme_fits_a_few_screens_and_leads_to_every_other_document():
    text = text_of("README.md")
    assert len(text.splitlines()) <= 150
    linked = {name.partition("#")[0] for name in re.findall(r"\]\(([^)\s]+)\)", text)}
    others = {str(path.relative_to(ROOT)) for path in DOCUMENTS if path.name != "README.md"}
    assert others - linked == set()


def test_the_options_have_a_row_each_with_their_default_and_there_are_no_others(capsys):
    rows = re.findall(r"^\| `--([a-z-]+)` \| ([^|]+) \|", text_of("docs/configuration.md"), re.MULTILINE)
    with pytest.raises(SystemExit):
        Config.from_command_line(["--check-config"], {})
    defaults = re.findall(r"^(\w+) = (.+)  # default$", capsys.readouterr().out, re.MULTILINE)
    expected = {name.replace("_", "-"): default for name, default in defaults} | {"workers": "one a processor"}
    assert len(rows) == len(SERVER_FLAGS)
    assert dict(rows) == expected


def test_every_limit_on_clients_is_explained_by_what_it_is_against():
    limits = flags_of(section(text_of("docs/configuration.md"), "Limits and time-outs"))
    assert limits - flags_of(text_of("docs/limits.md")) == {"--stop-timeout-s"}


def test_the_http_api_has_a_row_for_every_path_and_method_of_the_description_and_every_status():
    text = text_of("docs/http-api.md")
    requests = section(text, "Requests")
    paths = yaml.safe_load(text_of("kv/resources/openapi.yaml"))["paths"]
    for path, operations in paths.items():
        rows = [line for line in requests.splitlines() if f" {path}`" in line]
        shown = set(re.findall(r"\b[A-Z]{3,}\b", " ".join(row.split("|")[1] for row in rows)))
        assert {name.upper() for name in operations.keys() & METHODS} == shown, path
    for status in STATUSES:
        assert re.search(rf"\b{status}\b", text), status


def test_every_dependency_has_a_row_with_its_reason_and_there_are_no_others():
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    pinned = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    rows = [
        line.split("|")[1] for line in section(text_of("CONTRIBUTING.md"), "Dependencies").splitlines() if "|" in line
    ]
    named = {name.strip() for row in rows[2:] for name in row.split(",") if "**" not in name}
    assert named == {each.partition("==")[0] for each in pinned}


def test_the_guide_for_contributors_has_a_row_for_every_test_file_and_what_is_beside_them():
    text = text_of("CONTRIBUTING.md")
    beside = {f"{path.name}/" for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    files = {path.name for path in (ROOT / "tests").glob("test_*.py")}
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert sorted(named) == sorted(files | beside)


def test_the_layout_in_the_architecture_names_every_module():
    layout = section(text_of("docs/architecture.md"), "Where things are")
    words = set(re.findall(r"\w+", layout))
    modules = [path for path in PROGRAMS if path.parts[len(ROOT.parts)] in ("kv", "logd")]
    missing = {path.stem for path in modules if not path.stem.startswith("__")} - words
    assert missing == set()
