"""Sets up a virtual environment with the packages of requirements files. Run by run.sh before anything is installed.

    python3 kv/setup_venv.py VENV REQUIREMENTS...

Knows only the standard library. Does nothing when VENV is up to date: it records for which requirements it is, and for
which Python (kv/venv_python.py). Several may run at once: one works, the others wait.

The new environment is made beside VENV, tried, and takes its place, because a server may be running from VENV, and has
to go on when the set-up fails. As a first start should take seconds, it gets no pip: the one of the Python that runs
this installs into it, in several processes, and compiles nothing: a start compiles what it imports, which is a part.
"""

import ensurepip
import fcntl
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

_ROOT: Final = Path(__file__).resolve().parent.parent
_PROCESSES: Final = 2
_INSTALL: Final = (
    *("install", "--quiet", "--require-hashes", "--no-deps", "--no-compile", "--no-warn-script-location"),
    "--requirement",
)
_TRIAL: Final = f"import sys; sys.path.insert(0, {str(_ROOT)!r}); import kv.app, kv.http.worker, logd.__main__"


def main(environment: Path, requirements: Sequence[Path]) -> int:
    """Set up the environment if that is needed; the exit status."""
    wanted = "".join(path.read_text() for path in requirements)
    with environment.with_name(environment.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_current(environment, wanted):
            return 0
        version = sys.version.split()[0]
        print(f"setting up {environment} with Python {version}; this is done once", file=sys.stderr, flush=True)
        new = environment.with_name(environment.name + ".new")
        venv.EnvBuilder(clear=True, symlinks=True).create(new)
        python = str(new / "bin" / "python")
        for commands in (
            [[python, "-I", _pip(), *_INSTALL, str(share)] for share in _shares(wanted, new)],
            [[python, "-I", "-c", _TRIAL]],
            [[python, "-IS", str(_ROOT / "kv" / "venv_python.py"), str(new), "--record"]],
        ):
            if status := _run(lock, commands):
                return status
        (new / ".requirements.txt").write_text(wanted)
        _replace(environment, new)
    return 0


def _is_current(environment: Path, wanted: str) -> bool:
    python, record = environment / "bin" / "python", environment / ".requirements.txt"
    if not (python.exists() and record.exists() and record.read_text() == wanted):
        return False
    command = [str(python), "-IS", str(_ROOT / "kv" / "venv_python.py"), str(environment)]
    return subprocess.run(command, check=False).returncode == 0


def _shares(wanted: str, directory: Path) -> list[Path]:
    """Files in this directory that have the requirements between them, a few each."""
    requirements = re.split(r"^(?=\w)", wanted, flags=re.MULTILINE)[1:]
    shares = []
    for number in range(min(_PROCESSES, len(requirements))):
        shares.append(directory / f"requirements-{number}.txt")
        shares[-1].write_text("".join(requirements[number::_PROCESSES]))
    return shares


def _pip() -> str:
    """A pip that the new environment's Python can run: the installed one, which is compiled, or the bundled wheel."""
    installed = Path(sysconfig.get_path("purelib", vars={"base": sys.base_prefix})) / "pip" / "__pip-runner__.py"
    if installed.exists():
        return str(installed)
    directories = [Path(ensurepip.__file__).parent / "_bundled", Path(sysconfig.get_config_var("WHEEL_PKG_DIR") or ".")]
    wheels = [wheel for directory in directories for wheel in sorted(directory.glob("pip-*.whl"))]
    if not wheels:
        raise FileNotFoundError("this Python bundles no pip; install the package that has its ensurepip")
    return str(wheels[-1] / "pip")


def _replace(environment: Path, new: Path) -> None:
    """Put the new environment in the place of the old one. An interruption in between is another first start."""
    for script in (new / "bin").iterdir():  # they name the directory in which they were made
        if script.is_file() and not script.is_symlink():
            script.write_bytes(script.read_bytes().replace(os.fsencode(new), os.fsencode(environment)))
    old = environment.with_name(environment.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if environment.exists() or environment.is_symlink():
        environment.rename(old)
    new.rename(environment)
    if old.is_symlink():
        old.unlink()
    shutil.rmtree(old, ignore_errors=True)


def _run(lock: IO[str], commands: Sequence[Sequence[str]]) -> int:
    """Run commands at once; they hold the lock too, in case only this process is killed. The status of a failed one."""
    quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}
    running = [
        subprocess.Popen(command, env=os.environ | quiet, stdout=sys.stderr, pass_fds=(lock.fileno(),))
        for command in commands
    ]
    failed = [
        (command, status) for command, process in zip(commands, running, strict=True) if (status := process.wait())
    ]
    for command, _ in failed[:1]:
        print(f"the set-up failed, and is tried again at the next start: {shlex.join(command)}", file=sys.stderr)
    return failed[0][1] if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]]))
    except OSError as error:
        sys.exit(f"the set-up failed: {error}")
