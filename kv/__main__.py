"""The command line of the server. `run.sh` ends up here."""

import importlib
import logging
import os
import sys
from pathlib import Path
from typing import Final

import setproctitle

from kv import supervisor
from kv.config import Config, UnusableFile
from kv.errors import CannotServe
from logd.shared import logging_setup, recent_warnings, standard_streams
from logd.shared.protocol import Exit

_CODE_OF_CHILDREN: Final = ("kv.app", "kv.http.worker", "logd.__main__")
_CODE_OF_ETCD: Final = ("logd.etcd.credentials", "logd.etcd.engine")
_UMASK: Final = 0o077  # that of who starts the server may be too wide, or let not even itself read its files
_GUNICORN_CONF: Final = Path(__file__).parent.with_name("gunicorn.conf.py")


def main() -> int:
    """Serve until told to stop; the exit status."""
    standard_streams.open_missing()
    os.umask(_UMASK)
    config = Config.from_command_line(None, os.environ, _check)
    logging_setup.set_up("supervisor", config.log_level, config.log_format, recent_warnings.make())
    setproctitle.setproctitle(f"kv: supervisor on port {config.port}")
    log = logging.getLogger("kv.supervisor")
    try:
        return supervisor.Supervisor(config.with_absolute_paths()).run()
    except UnusableFile as error:
        log.critical("%s", error)
        return Exit.USAGE
    except CannotServe as error:
        if str(error):
            log.critical("%s", error)
        return error.status


def _check(config: Config) -> None:
    """Check the files that the options name, and that all code can be loaded. An upgrade asks for this first."""
    supervisor.check_files(config.with_absolute_paths())
    setproctitle.setproctitle("kv: check")  # gunicorn reads it when it is imported; arguments may be no UTF-8
    for module in (*_CODE_OF_CHILDREN, *(_CODE_OF_ETCD if config.engine == "etcd" else ())):
        importlib.import_module(module)
    compile(_GUNICORN_CONF.read_bytes(), _GUNICORN_CONF, "exec")


if __name__ == "__main__":
    sys.exit(main())
