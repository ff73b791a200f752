#!/bin/sh
# Becomes the server: ./run.sh --port 8080 --working-dir DIR (--help lists the options).
# On the first start, and when requirements.txt has changed, sets up .venv beside this file.
set -eu
# What is closed would be the number of the next file that is opened.
{ true <&0; } 2>/dev/null || exec </dev/null
{ true >&1; } 2>/dev/null || exec >/dev/null
true >&2 || exec 2>/dev/null
# Variables that change how Python, or what it sets up, behaves; kv/environment.py does the same for the children.
# Of pip's, those are left that say how an index is reached.
unset $(export -p | while read -r _ variable; do
    case $variable in
        PIP_CONFIG_FILE=* | PIP_*INDEX_URL=* | PIP_FIND_LINKS=* | PIP_NO_INDEX=* | PIP_TRUSTED_HOST=* | PIP_*CERT=*) ;;
        PIP_PROXY=* | PIP_RETRIES=* | PIP_*TIMEOUT=* | PIP_*CACHE_DIR=* | PIP_KEYRING_PROVIDER=*) ;;
        PYTHON* | PIP_* | GUNICORN_*) echo "${variable%%=*}" ;;
    esac
done) _

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)

find_python() {
    for python in python3 python3.14 python3.13 python3.12 python3.11; do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        found=$python
        "$python" -c 'import ensurepip, venv' 2>/dev/null && return
    done
    if [ -n "${found:-}" ]; then
        echo "run.sh: $found has no venv module; install it (on Debian and Ubuntu: apt install python3-venv)" >&2
    else
        echo "run.sh: Python 3.11 or newer is needed, and no python3 in PATH is; install it" >&2
    fi
    exit 1
}

if ! cmp -s "$here/requirements.txt" "$here/.venv/.requirements.txt" || ! [ -x "$here/.venv/bin/python" ]; then
    find_python
    "$python" "$here/kv/setup_venv.py" "$here/.venv" "$here/requirements.txt"
fi
# For an upgrade (kv/upgrade.py): the path by which this was called, as a link in it may lead elsewhere by then.
KV_RUN_SH=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)/${0##*/}
export KV_RUN_SH
PYTHONPATH=$here PYTHONSAFEPATH=1 PYTHONUTF8=1 exec "$here/.venv/bin/python" -m kv "$@"
