"""The command line of the server. `run.sh` ends up here."""

import dataclasses
import logging
import os
import sys

import setproctitle

from kv.config import Config
from kv.supervisor import CannotStart, Supervisor


def main() -> int:
    """Serve until told to stop; the exit status."""
    config = Config.from_command_line(None, os.environ)
    logging.basicConfig(
        level=config.log_level.upper(),
        format="%(asctime)s %(name)s[%(process)d] %(levelname)s %(message)s",
        stream=sys.stderr,
    )
    setproctitle.setproctitle(f"kv: supervisor on port {config.port}")
    try:
        return Supervisor(dataclasses.replace(config, working_dir=config.working_dir.absolute())).run()
    except CannotStart as error:
        if str(error):
            logging.getLogger("kv.supervisor").critical("%s", error)
        return error.status


if __name__ == "__main__":
    sys.exit(main())
