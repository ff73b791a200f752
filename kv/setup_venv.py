"""Sets up a virtual environment with the packages of requirements files. Run by run.sh before anything is installed.

    python3 kv/setup_venv.py VENV REQUIREMENTS...

Knows only the standard library. Does nothing when VENV is up to date. Several may run at once: one works, the others
wait. The new environment is made beside VENV and takes its place when it is complete, because a server may be running
from VENV, and has to go on when the set-up fails.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO


def main(venv: Path, requirements: list[Path]) -> int:
    """Set up VENV if that is needed; the exit status."""
    wanted = "".join(path.read_text() for path in requirements)
    stamp = venv / ".requirements.txt"
    with venv.with_name(venv.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (venv / "bin" / "python").exists() and stamp.exists() and stamp.read_text() == wanted:
            return 0
        print(f"setting up {venv} with Python {sys.version.split()[0]}; this is done once", file=sys.stderr, flush=True)
        new = venv.with_name(venv.name + ".new")
        if status := _run(lock, sys.executable, "-m", "venv", "--clear", str(new)):
            return status
        install = [str(new / "bin" / "python"), "-m", "pip", "install", "--quiet", "--require-hashes"]
        for path in requirements:
            install += ["--requirement", str(path)]
        if status := _run(lock, *install):
            return status
        (new / ".requirements.txt").write_text(wanted)
        _replace(venv, new)
    return 0


def _replace(venv: Path, new: Path) -> None:
    """Put the new environment in the place of the old one. An interruption in between is another first start."""
    for script in (new / "bin").iterdir():  # they name the directory in which they were made
        if script.is_file() and not script.is_symlink():
            script.write_bytes(script.read_bytes().replace(os.fsencode(new), os.fsencode(venv)))
    old = venv.with_name(venv.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if venv.exists():
        venv.rename(old)
    new.rename(venv)
    shutil.rmtree(old, ignore_errors=True)


def _run(lock: IO[str], *command: str) -> int:
    """Run a command; it also holds the lock, in case only this process is killed."""
    quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}
    status = subprocess.run(
        command, env=os.environ | quiet, stdout=sys.stderr, check=False, pass_fds=(lock.fileno(),)
    ).returncode
    if status:
        print(f"the set-up failed, and is tried again at the next start: {' '.join(command)}", file=sys.stderr)
    return status


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]]))
    except OSError as error:
        sys.exit(f"the set-up failed: {error}")
