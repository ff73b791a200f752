#!/bin/sh
# Runs all checks, the fast ones first: format, lint, imports, types, tests. Sets up .venv and .venv-tests by itself;
# arguments go to pytest (`-n 0` runs one file after the other).
set -eu
cd -- "$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)"

./run.sh --help >/dev/null # sets up .venv, as a user would
.venv/bin/python kv/setup_venv.py .venv-tests tests/requirements.txt
tests/bring_etcd.sh
bin=.venv-tests/bin
"$bin/ruff" format --check --quiet .
"$bin/ruff" check --quiet .
"$bin/lint-imports" --no-cache --no-logo
"$bin/mypy" --no-error-summary
exec "$bin/python" -m pytest -n 2 --dist loadfile "$@" # most wait more than they work
