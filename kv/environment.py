"""The environment of the processes that the supervisor starts.

Owns which variables of whoever started the server reach them: none that changes how Python or gunicorn run. Those of
the server itself are options (kv/config.py). run.sh does the same for the supervisor.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).resolve().parent.parent
_OF_OTHERS: Final = ("PYTHON", "PIP_", "GUNICORN_", "LISTEN_", "LC_", "KV_")
"""Beginnings of names. What children need of KV_ is given to them."""
_NAMES_OF_OTHERS: Final = frozenset(
    {"WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS", "PORT", "NOTIFY_SOCKET", "LANG", "LANGUAGE"}
)


def python_path(project: Path) -> dict[str, str]:
    """The variables with which Python runs the code of this project, and UTF-8 whatever the locale is."""
    return {"PYTHONPATH": str(project), "PYTHONSAFEPATH": "1", "PYTHONUTF8": "1"}


def of_children(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child."""
    kept = {
        name: value
        for name, value in environment.items()
        if not name.startswith(_OF_OTHERS) and name not in _NAMES_OF_OTHERS
    }
    return kept | python_path(_ROOT)
