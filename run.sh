#!/bin/sh
# Becomes the server: ./run.sh --port 8080 --working-dir DIR (--help lists the options).
# On the first start, and when the requirements or the Python behind .venv have changed, sets up .venv beside this file,
# wherever it is called from, and also through a symbolic link.
set -eu
trap 'exit 0' TERM INT # until there is a server, this is all that has to stop
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

# The absolute path of a directory, through no link.
directory_of() {
    CDPATH='' cd -- "$(dirname -- "$1")" && pwd -P
}

here=$(directory_of "$0")
self=$here/${0##*/}
while [ -L "$self" ]; do
    link=$(readlink -- "$self")
    case $link in
    /*) ;;
    *) link=$here/$link ;;
    esac
    here=$(directory_of "$link")
    self=$here/${link##*/}
done

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

# Another engine needs more packages. Once it was asked for they are there, and are no harm to others.
requirements=$here/requirements.txt
with_etcd=$here/requirements-etcd.txt
engine=${KV_ENGINE:-}
previous=
for argument in "$@"; do
    case $previous in --engine) engine=$argument ;; esac
    case $argument in --engine=*) engine=${argument#*=} ;; esac
    previous=$argument
done
case $engine in etcd) requirements=$with_etcd ;; esac

venv_is_current() {
    installed=$here/.venv/.requirements.txt
    { cmp -s "$requirements" "$installed" || cmp -s "$with_etcd" "$installed"; } &&
        "$here/.venv/bin/python" -IS "$here/kv/venv_python.py" "$here/.venv" 2>/dev/null
}

if ! venv_is_current; then
    find_python
    "$python" "$here/kv/setup_venv.py" "$here/.venv" "$requirements" &
    set_up=$!
    trap 'kill "$set_up" 2>/dev/null; exit 0' TERM INT # a shell would wait for it first
    wait "$set_up"
fi
# For an upgrade (kv/upgrade.py): the path by which this was called, as a link in it may lead elsewhere by then.
KV_RUN_SH=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)/${0##*/}
export KV_RUN_SH
# Python needs a moment before it can react to a signal: one that arrives before is kept until then, where env can do
# that (GNU coreutils 8.31). The server takes it up (kv/signals.py).
if env --block-signal=TERM true 2>/dev/null; then
    set -- env --block-signal=TERM --block-signal=INT "$here/.venv/bin/python" -m kv "$@"
else
    set -- "$here/.venv/bin/python" -m kv "$@"
fi
PYTHONPATH=$here PYTHONSAFEPATH=1 PYTHONUTF8=1 exec "$@"
