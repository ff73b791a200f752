"""Says whether the packages of a virtual environment are for the Python that is in it now.

    VENV/bin/python -IS kv/venv_python.py VENV            exit status 0: they are
    VENV/bin/python -IS kv/venv_python.py VENV --record   says that they are, from now on

Run at every start, so it imports next to nothing. What it records lies among the packages: an upgrade of the system may
replace the Python behind the environment, or take packages away from it; then it is found no more, or says another one.
"""

import os
import sys


def main(venv: str, record: bool) -> int:
    """The exit status."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}{'t' if 't' in sys.abiflags else ''}"
    path = f"{venv}/lib/{version}/site-packages/kv-python.txt"
    this = "\n".join((os.path.realpath(sys.executable), sys.version, str(sys.implementation.cache_tag), sys.abiflags))
    if record:
        with open(path, "w") as file:
            file.write(this)
        return 0
    try:
        with open(path) as file:
            return file.read() != this
    except OSError:
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:] == ["--record"]))
