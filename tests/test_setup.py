"""The first start: run.sh sets up a virtual environment of its own, once, even if it is killed or started twice.

Copies of run.sh and kv/setup_venv.py, in a directory with a space in its name, start a script instead of the server.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import zipfile

import pytest

from tests.support.harness import ROOT, await_true

SERVER = """
import json, os, sys
print(json.dumps([sys.argv[1:], sys.prefix, os.getpid()]))
sys.exit(3)
"""
SERVED = 3  # the exit status of that script
REAL_PYTHON = f'exec "{sys.executable}" "$@"'


class Project:
    """A checkout of the project, and the programs that are in PATH for its run.sh."""

    def __init__(self, directory):
        self.directory = directory / "the project"
        self.venv = self.directory / ".venv"
        self.requirements = self.directory / "requirements.txt"
        self._bin = directory / "bin"
        (self.directory / "kv").mkdir(parents=True)
        self._bin.mkdir()
        for name in ("run.sh", "kv/setup_venv.py", "kv/venv_python.py"):
            shutil.copy(ROOT / name, self.directory / name)
        for name in ("kv/app.py", "kv/http/worker.py", "logd/__main__.py"):  # what is imported on trial
            (self.directory / name).parent.mkdir(exist_ok=True)
            (self.directory / name).touch()
        (self.directory / "kv" / "__main__.py").write_text(SERVER)
        self.requirements.write_text("# nothing\n")
        for name in ("cmp", "dirname", "readlink", "env", "true"):
            (self._bin / name).symlink_to(shutil.which(name))
        self._started = []

    def install(self, name, script):
        """Put a shell script into PATH."""
        program = self._bin / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    def start(self, *arguments, called=None, **environment):
        self._started.append(
            subprocess.Popen(
                [called or self.directory / "run.sh", *arguments],
                env={"PATH": str(self._bin), "PIP_NO_INDEX": "1", "no_proxy": "*", **environment},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return self._started[-1]

    def run(self, *arguments):
        """Start, and wait for the end: the exit status, and what was written to stdout and stderr."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def end(self):
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=10)


@pytest.fixture
def project(tmp_path):
    project = Project(tmp_path)
    yield project
    project.end()


@pytest.fixture(scope="module")
def used_project(module_path):
    """One that has been set up, and may be set up again."""
    project = Project(module_path)
    project.install("python3", REAL_PYTHON)
    assert_sets_up_and_serves(project)
    yield project
    project.end()


def assert_serves(project, called=None):
    process = project.start("--port", "8080", "--working-dir=a  b", called=called)
    out, err = process.communicate(timeout=60)
    assert process.returncode == SERVED, err
    assert json.loads(out) == [["--port", "8080", "--working-dir=a  b"], str(project.venv), process.pid]
    return err


def assert_serves_at_once(project):
    assert assert_serves(project) == ""


def assert_sets_up_and_serves(project):
    err = assert_serves(project)
    assert err.startswith(f"setting up {project.venv} with Python 3.")
    assert err.count("\n") == 1


def test_an_environment_that_is_up_to_date_is_used_as_it_is(used_project):
    used_project.install("python3", "exit 1")
    assert_serves_at_once(used_project)
    used_project.requirements.touch()
    assert_serves_at_once(used_project)
    used_project.install("python3", REAL_PYTHON)


def test_other_requirements_are_installed_into_a_new_environment(used_project):
    leftover = used_project.venv / "leftover"
    leftover.touch()
    used_project.requirements.write_text(f"# other\n{make_wheel(used_project.directory.parent)}\n")
    assert_sets_up_and_serves(used_project)
    assert not leftover.exists()
    assert_serves_at_once(used_project)
    tool = subprocess.run([used_project.venv / "bin" / "tool"], check=True, capture_output=True, text=True)
    assert tool.stdout == f"{used_project.venv}\n"  # scripts name the environment by the place where it is now
    assert {path.name for path in used_project.directory.glob(".venv*")} == {".venv", ".venv.lock"}


def make_wheel(directory):
    """A package with a command, `tool`, that says in which environment it runs; what requires it."""
    path = directory / "tool-1-py3-none-any.whl"
    files = {
        "tool.py": "import sys\ndef main(): print(sys.prefix)\n",
        "tool-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: tool\nVersion: 1\n",
        "tool-1.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tool-1.dist-info/entry_points.txt": "[console_scripts]\ntool = tool:main\n",
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
        wheel.writestr("tool-1.dist-info/RECORD", "".join(f"{name},,\n" for name in files))
    return f"tool @ {path.as_uri()} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def packages(project):
    """The directory of the packages."""
    return next(project.venv.glob("lib/python*/site-packages"))


def rename_packages(project):
    """As if they were those of another minor version."""
    packages(project).parent.rename(project.venv / "lib" / "python3.10")


def remove_packages(project):
    shutil.rmtree(packages(project))


def record_another_python(project):
    record = packages(project) / "kv-python.txt"
    record.write_text(record.read_text().replace("3.", "3.9", 1))


@pytest.mark.parametrize("change", [rename_packages, remove_packages, record_another_python])
def test_an_environment_whose_python_or_packages_have_changed_is_set_up_again(used_project, change):
    change(used_project)
    assert_sets_up_and_serves(used_project)
    assert_serves_at_once(used_project)


def test_an_environment_that_cannot_run_the_server_takes_no_ones_place(used_project):
    mark = used_project.venv / "mark"
    mark.touch()
    requirements = used_project.requirements.read_text()
    used_project.requirements.write_text("# tried\n")
    (used_project.directory / "kv" / "app.py").write_text("import missing\n")
    status, out, err = used_project.run()
    assert (status, out) == (1, "")
    assert "No module named 'missing'" in err
    assert err.splitlines()[-1].startswith("the set-up failed, and is tried again at the next start")
    assert mark.exists()
    (used_project.directory / "kv" / "app.py").write_text("")
    used_project.requirements.write_text(requirements)
    assert_serves_at_once(used_project)


def test_run_sh_may_be_called_through_symbolic_links(used_project, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "absolute").symlink_to(used_project.directory / "run.sh")
    (tmp_path / "bin" / "relative").symlink_to("../absolute")
    (tmp_path / "directory").symlink_to(used_project.directory)
    for called in ("absolute", "bin/relative", "directory/run.sh"):
        assert assert_serves(used_project, tmp_path / called) == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_set_up_ends_it_with_0(project, number):
    project.install("python3", REAL_PYTHON)
    process = project.start()
    assert process.stderr.readline().startswith("setting up ")
    process.send_signal(number)
    assert process.wait(30) == 0


def test_an_environment_whose_python_is_gone_is_set_up_again(used_project):
    python = used_project.venv / "bin" / "python"
    python.unlink()
    python.symlink_to("/nonexistent/python3")
    assert_sets_up_and_serves(used_project)
    assert_serves_at_once(used_project)


def test_a_set_up_that_was_killed_starts_again(used_project):
    shutil.rmtree(used_project.venv)
    process = used_project.start()
    await_true((used_project.directory / ".venv.new" / "pyvenv.cfg").exists)
    kill(process)

    with socket.create_server(("127.0.0.1", 0)) as index:  # takes connections and never answers: pip has to wait
        used_project.requirements.write_text(f"nothing==1 --hash=sha256:{'0' * 64}\n")
        process = used_project.start(PIP_NO_INDEX="0", PIP_INDEX_URL=f"http://127.0.0.1:{index.getsockname()[1]}/")
        index.settimeout(30)
        with index.accept()[0]:
            kill(process)

    used_project.requirements.write_text("# nothing once more\n")
    assert_sets_up_and_serves(used_project)
    assert_serves_at_once(used_project)


def kill(process):
    os.killpg(process.pid, signal.SIGKILL)
    out, _ = process.communicate(timeout=10)
    assert (process.returncode, out) == (-signal.SIGKILL, "")


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (["--engine", "etcd"], {}),
        (["--engine=etcd"], {}),
        ([], {"KV_ENGINE": "etcd"}),
    ],
)
def test_an_engine_with_packages_of_its_own_gets_them_when_it_is_asked_for_and_they_stay(project, arguments, variables):
    project.install("python3", REAL_PYTHON)
    with_etcd = project.directory / "requirements-etcd.txt"
    with_etcd.write_text("# nothing\n# and nothing more\n")
    assert_sets_up_and_serves(project)
    for asked, environment, sets_up in ((arguments, variables, True), (arguments, variables, False), ([], {}, False)):
        process = project.start(*asked, **environment)
        _, err = process.communicate(timeout=60)
        assert process.returncode == SERVED
        assert ("setting up" in err) == sets_up
    assert (project.venv / ".requirements.txt").read_text() == with_etcd.read_text()


def test_of_two_first_starts_at_once_one_sets_up_and_both_serve(project):
    project.install("python3", REAL_PYTHON)
    first = project.start()
    assert first.stderr.readline().startswith("setting up ")
    second = project.start()
    assert first.poll() is None  # it is still setting up
    for process in (first, second):
        assert process.communicate(timeout=60)[1] == ""
        assert process.returncode == SERVED


def test_requirements_that_cannot_be_installed_end_the_start(used_project):
    used_project.requirements.write_text(f"nothing==1 --hash=sha256:{'0' * 64}\n")
    mark = used_project.venv / "mark"
    mark.touch()
    status, out, err = used_project.run()
    assert status not in (0, SERVED)
    assert out == ""
    assert err.startswith("setting up ")
    assert err.splitlines()[-1].startswith("the set-up failed, and is tried again at the next start")
    assert mark.exists()  # a server may be running from the old environment


# Python --------------------------------------------------------------------------------------------------

TOO_OLD = "exit 1"
NO_VENV = 'case "$2" in *ensurepip*) exit 1;; esac'
SUITABLE = '[ "$1" = -c ] || { echo "${0##*/}: $*"; exit 4; }'


@pytest.mark.parametrize(
    ("installed", "parts"),
    [
        ({}, ["Python 3.11 or newer", "install"]),
        ({"python3": TOO_OLD}, ["Python 3.11 or newer", "install"]),
        ({"python3": TOO_OLD, "python3.11": TOO_OLD}, ["Python 3.11 or newer", "install"]),
        ({"python3": NO_VENV}, ["python3 ", "venv", "apt install python3-venv"]),
        ({"python3": TOO_OLD, "python3.12": NO_VENV}, ["python3.12 ", "venv", "install"]),
    ],
)
def test_without_a_suitable_python_one_line_says_what_to_install(project, installed, parts):
    for name, script in installed.items():
        project.install(name, script)
    status, out, err = project.run("--port", "8080")
    assert (status, out) == (1, "")
    assert err.count("\n") == 1
    assert [part for part in parts if part not in err] == []
    assert not project.venv.exists()


@pytest.mark.parametrize(
    ("installed", "chosen"),
    [
        ({"python3": SUITABLE}, "python3"),
        ({"python3.11": SUITABLE}, "python3.11"),
        ({"python3": TOO_OLD, "python3.13": SUITABLE}, "python3.13"),
        ({"python3": NO_VENV, "python3.12": SUITABLE}, "python3.12"),
        ({"python3": SUITABLE, "python3.14": SUITABLE}, "python3"),
    ],
)
def test_the_first_suitable_python_is_used(project, installed, chosen):
    for name, script in installed.items():
        project.install(name, script)
    directory = project.directory
    arguments = f"{directory}/kv/setup_venv.py {directory}/.venv {directory}/requirements.txt"
    assert project.run() == (4, f"{chosen}: {arguments}\n", "")
