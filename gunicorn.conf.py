"""How gunicorn hosts kv.app. Started by kv/supervisor.py, which passes the options in the environment.

All code of the workers is imported here, in the master, before it forks. So a worker that is started later, by a reload
or because another one died, runs the code that the server was started with, whatever is on disk by then. SIGUSR2 to the
supervisor is what takes new code.
"""

import logging
import os
import signal
from pathlib import Path

import kv.app
import kv.http.worker
from kv import listener, tls
from kv.config import Config, Inherited, UnusableFile
from logd.shared import logging_setup

_config = Config.from_environment(os.environ)
_inherited = Inherited.from_environment(os.environ)

bind = [f"fd://{fd}" for fd in _inherited.listen_fds]
backlog = listener.BACKLOG  # a worker's listen() sets it anew
workers = _config.workers
worker_class = "kv.http.worker.Worker"
chdir = str(Path(__file__).parent)
# Gunicorn judges by clocks, which go on while everything is paused. A frozen worker is found by kv/heartbeats.py; a
# worker that stops ends by itself, and kv/supervisor.py ends one that does not.
timeout = 0
graceful_timeout = 1_000_000_000
control_socket_disable = True
proc_name = "kv"

logging_setup.name_process("gunicorn")
_logging = logging_setup.configuration(_config.log_level, _config.log_format, _inherited.warnings_fd)
logconfig_dict = _logging | {
    "loggers": {
        "gunicorn.error": {"level": "WARNING", "handlers": _logging["root"]["handlers"], "propagate": False},
        "gunicorn.access": {"level": "WARNING", "handlers": [], "propagate": False},
    },
}


def on_starting(server):  # noqa: ANN001, ANN201
    """SIGINT and SIGUSR2 to the group are for the supervisor; the master ignores them since its start."""
    server.SIGNALS = [number for number in server.SIGNALS if number not in (signal.SIGINT, signal.SIGUSR2)]
    server.app.reload = lambda: None  # it would run this file as it is on disk; the options cannot have changed
    tls.reload(_config)
    kv.http.worker.keep_stops_of_new_workers()


def on_reload(server):  # noqa: ANN001, ANN201
    """The supervisor has checked the files, unless the signal came from somebody else."""
    try:
        tls.reload(_config)
    except UnusableFile as error:
        logging.getLogger("kv.tls").error("the workers go on with the last certificate: %s", error)


def post_fork(server, worker):  # noqa: ANN001, ANN201
    """Log as a worker, not as the master."""
    logging_setup.name_process("worker")
