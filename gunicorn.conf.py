"""How gunicorn hosts kv.app. Started by kv/supervisor.py, which hands everything over in the environment."""

import os
import signal
import sys
from pathlib import Path

# SIGHUP runs this file again and starts new workers: with the code as it is now, not as the master once imported it.
for _name in [name for name in sys.modules if name.partition(".")[0] in ("kv", "logd")]:
    del sys.modules[_name]

from kv.config import Config, Inherited  # noqa: E402
from logd.shared import logging_setup  # noqa: E402

_config = Config.from_environment(os.environ)

bind = f"fd://{Inherited.from_environment(os.environ).listen_fd}"
backlog = 65535  # a worker's listen() sets it anew; the kernel clamps it to somaxconn
workers = _config.workers
worker_class = "kv.http.worker.Worker"
chdir = str(Path(__file__).parent)
worker_tmp_dir = "/dev/shm" if sys.platform == "linux" else None
graceful_timeout = round(_config.stop_timeout_s) + 1  # the worker has the first word
control_socket_disable = True
proc_name = "kv"

logging_setup.name_process("gunicorn")
logconfig_dict = logging_setup.configuration(_config.log_level, _config.log_format) | {
    "loggers": {
        "gunicorn.error": {"level": "WARNING", "handlers": ["stderr"], "propagate": False},
        "gunicorn.access": {"level": "WARNING", "handlers": [], "propagate": False},
    },
}


def when_ready(server):  # noqa: ANN001, ANN201
    """Ctrl-C reaches the whole group: the supervisor then stops gunicorn the graceful way, so it means nothing here."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def post_fork(server, worker):  # noqa: ANN001, ANN201
    """What a worker logs is not the master's."""
    logging_setup.name_process("worker")
