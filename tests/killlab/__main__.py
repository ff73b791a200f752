"""`python -m tests.killlab`: the only place that knows the process it runs in."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent.parent
_VENV = _ROOT / ".venv-tests"


def main(arguments: list[str]) -> int:
    """Carry out an experiment and report; the exit status."""
    from tests.killlab import lab, measure, options, report
    from tests.killlab.progress import Bar

    parsed = options.parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Bar(parsed.seconds) as bar:
        bar.log(f"seed {parsed.seed}")
        result = lab.run(parsed, bar)
    figures = measure.measure(result)
    print(report.summary(result, figures))
    if parsed.report:
        parsed.report.write_text(report.page(result, figures, arguments), encoding="utf-8")
        print(f"report: {parsed.report}")
    if result.is_interrupted:
        return 128 + signal.SIGINT
    return 1 if measure.problems(result, figures) else 0


def _become_python_of_the_tests(arguments: list[str]) -> None:
    """Set up the environment of the tests, as tests/run.sh does, and start again in it."""
    python, setup = str(_ROOT / ".venv/bin/python"), str(_ROOT / "kv/setup_venv.py")
    commands = ([str(_ROOT / "run.sh"), "--help"], [python, setup, str(_VENV), str(_ROOT / "tests/requirements.txt")])
    for command in commands:
        if status := subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
            sys.exit(status)  # it has said why
    python = str(_VENV / "bin/python")
    os.execv(python, [python, "-m", "tests.killlab", *arguments])


if __name__ == "__main__":
    if not importlib.util.find_spec("psutil") and Path(sys.prefix) != _VENV:
        _become_python_of_the_tests(sys.argv[1:])
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:  # before the load, or for the second time
        sys.exit(128 + signal.SIGINT)
