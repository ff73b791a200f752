"""The files that say who may talk to the server: the token that requests have to carry, and the certificate it shows.

Owns how they are read and checked, before anything starts that needs them. Knows no HTTP: the token is asked for in
kv/auth.py.
"""

import ipaddress
import logging
import ssl
from pathlib import Path

from kv.config import Config

log = logging.getLogger("kv.tls")


class CannotUse(Exception):
    """A file of the user's cannot be used as it is; the message says why."""


def read_token(path: Path) -> bytes:
    """The token in a file. Raises CannotUse."""
    try:
        mode, token = path.stat().st_mode, path.read_bytes().strip()
    except OSError as error:
        raise CannotUse(f"--token-file {path} cannot be read: {error.strerror}") from error
    if mode & 0o007:
        raise CannotUse(f"--token-file {path} can be read or written by every user; chmod o-rwx it")
    if not token.isascii() or not token.decode(errors="replace").isprintable() or b" " in token or not token:
        raise CannotUse(f"--token-file {path} must hold one word of printable ASCII characters")
    return token


def tls_context(config: Config) -> ssl.SSLContext | None:
    """What a server needs to speak TLS, 1.2 at least; None when it is not to. Raises CannotUse."""
    if not config.tls_cert_file:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(config.tls_cert_file, config.tls_key_file, password=lambda: b"")
    except OSError as error:  # an ssl.SSLError is one
        raise CannotUse(
            f"--tls-cert-file {config.tls_cert_file} and --tls-key-file {config.tls_key_file}"
            f" cannot be used: {error.strerror or error}"
        ) from error
    return context


def check(config: Config) -> None:
    """Try what workers will need. Raises CannotUse."""
    if config.token_file:
        read_token(config.token_file)
    tls_context(config)


def warn(config: Config) -> None:
    """Say what a server that others can reach leaves open to them."""
    if _is_loopback(config.host):
        return
    if not config.token_file:
        log.warning("listening on %s, and there is no authentication: --token-file asks for a token", config.host)
    elif not config.tls_cert_file:
        log.warning("listening on %s without TLS: whoever sees the traffic has the token and the data", config.host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
