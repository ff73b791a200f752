"""The command line of the server. `run.sh` ends up here."""

import logging
import os
import sys

import setproctitle

from kv.config import Config
from kv.supervisor import CannotStart, Supervisor
from logd.shared import logging_setup


def main() -> int:
    """Serve until told to stop; the exit status."""
    config = Config.from_command_line(None, os.environ)
    logging_setup.set_up("supervisor", config.log_level, config.log_format)
    setproctitle.setproctitle(f"kv: supervisor on port {config.port}")
    try:
        return Supervisor(config.with_absolute_paths()).run()
    except CannotStart as error:
        if str(error):
            logging.getLogger("kv.supervisor").critical("%s", error)
        return error.status


if __name__ == "__main__":
    sys.exit(main())
