#!/bin/sh
# Runs all checks: format, lint, types, tests. Sets up .venv and .venv-tests by itself; arguments go to pytest.
set -eu
cd -- "$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)"

./run.sh --help >/dev/null # sets up .venv, as a user would
.venv/bin/python kv/setup_venv.py .venv-tests tests/requirements.txt
bin=.venv-tests/bin
"$bin/ruff" format --check --quiet .
"$bin/ruff" check --quiet .
"$bin/mypy" --no-error-summary
exec "$bin/python" -m pytest "$@"
