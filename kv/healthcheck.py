"""Asks the server in the same container for its health: `python -m kv.healthcheck` ends with 0 when that is good.

Knows no options but $PORT, as they may be flags of another process: it tries HTTP, and where nobody speaks that, TLS.
"""

import http.client
import os
import ssl
import sys
from typing import Final

_ANSWER_SECONDS: Final = 4.0


def main() -> str | None:
    """What is wrong; None when the server takes reads and writes."""
    port = int(os.environ["PORT"])
    context = ssl.create_default_context()
    context.check_hostname = False  # the certificate is for the name that others use
    context.verify_mode = ssl.CERT_NONE
    try:
        try:
            return _ask(http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_SECONDS))
        except (ConnectionResetError, http.client.HTTPException):  # what a server does that waits for a handshake
            return _ask(http.client.HTTPSConnection("127.0.0.1", port, timeout=_ANSWER_SECONDS, context=context))
    except (OSError, http.client.HTTPException) as error:
        return f"no answer: {error}"


def _ask(connection: http.client.HTTPConnection) -> str | None:
    connection.request("GET", "/health")
    response = connection.getresponse()
    return None if response.status == http.HTTPStatus.OK else response.read().decode()


if __name__ == "__main__":
    sys.exit(main())
