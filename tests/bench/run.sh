#!/bin/sh
# Measures the server beside others (--help lists the options). Sets up .venv and .venv-bench by itself.
set -eu
cd -- "$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd -P)"

./run.sh --help >/dev/null # sets up .venv, as a user would
.venv/bin/python kv/setup_venv.py .venv-bench tests/bench/requirements.txt
exec .venv-bench/bin/python -m tests.bench "$@"
