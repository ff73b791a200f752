"""Asks the server in the same container for its health: `python -m kv.healthcheck` ends with 0 when it is healthy.

It knows only $PORT, because other options may be flags of another process: so it tries HTTP first, and then HTTPS.
"""

import http.client
import os
import ssl
import sys
from typing import Final

_ANSWER_SECONDS: Final = 4.0


def main() -> str | None:
    """Why the server is not healthy; None when it accepts reads and writes."""
    port = int(os.environ["PORT"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the certificate has the public name
    context.verify_mode = ssl.CERT_NONE
    try:
        try:
            return _ask(http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_SECONDS))
        except (ConnectionResetError, http.client.HTTPException):  # the answer of a TLS server to HTTP
            return _ask(http.client.HTTPSConnection("127.0.0.1", port, timeout=_ANSWER_SECONDS, context=context))
    except (OSError, http.client.HTTPException) as error:
        return f"no answer: {error}"


def _ask(connection: http.client.HTTPConnection) -> str | None:
    connection.request("GET", "/health")
    response = connection.getresponse()
    return None if response.status == http.HTTPStatus.OK else response.read().decode()


if __name__ == "__main__":
    sys.exit(main())
