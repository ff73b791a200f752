"""The certificates that the options name, and the warning when others can reach the server without TLS or a token.

Gunicorn's master reads the certificate when it starts and on each reload; the workers that it starts until the next
reload inherit it. So a worker that is started again shows the same certificate as the others, and needs no file that
may have been removed or replaced meanwhile. Those for etcd are only checked here. Knows no HTTP.
"""

import contextlib
import ipaddress
import logging
import ssl
from collections.abc import Iterator

from kv.config import Config, UnusableFile

log = logging.getLogger("kv.tls")

_of_workers: ssl.SSLContext | None = None


def read_certificate(config: Config) -> ssl.SSLContext | None:
    """The certificate and key, for TLS 1.2 or newer; None when the options name none. Raises UnusableFile."""
    if not config.tls_cert_file:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with _loading(f"--tls-cert-file {config.tls_cert_file} and --tls-key-file {config.tls_key_file}"):
        context.load_cert_chain(config.tls_cert_file, config.tls_key_file, password=lambda: b"")
    return context


def check_those_for_etcd(config: Config) -> None:
    """Raises UnusableFile where logd could not speak TLS to etcd with these files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if config.etcd_ca_file:
        with _loading(f"--etcd-ca-file {config.etcd_ca_file}"):
            context.load_verify_locations(config.etcd_ca_file)
    if config.etcd_cert_file:
        with _loading(f"--etcd-cert-file {config.etcd_cert_file} and --etcd-key-file {config.etcd_key_file}"):
            context.load_cert_chain(config.etcd_cert_file, config.etcd_key_file, password=lambda: b"")


@contextlib.contextmanager
def _loading(files: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # an ssl.SSLError is one
        raise UnusableFile(f"{files} cannot be used: {error.strerror or error}") from error


def reload(config: Config) -> None:
    """Read the certificate for the workers that are started from now on.

    Raises UnusableFile, and keeps the last certificate then.
    """
    global _of_workers  # noqa: PLW0603 - it reaches the workers by fork
    _of_workers = read_certificate(config)


def of_workers() -> ssl.SSLContext | None:
    """What the last `reload` has read; None for plain HTTP."""
    return _of_workers


def warn_if_exposed(config: Config) -> None:
    """Log a warning when others can reach the host, or see the traffic to etcd, and the token, or TLS, is missing."""
    for scheme, host in config.etcd_hosts():
        if scheme == "http" and not _is_loopback(host):
            log.warning("etcd at %s without TLS: whoever sees the traffic has the data", host)
    if _is_loopback(config.host):
        return
    if not config.token_file:
        log.warning("listening on %s without authentication; --token-file makes requests need a token", config.host)
    elif not config.tls_cert_file:
        log.warning("listening on %s without TLS: whoever sees the traffic has the token and the data", config.host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
