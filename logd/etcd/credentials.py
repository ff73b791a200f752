"""The files by which etcd and this server know each other. A password is in no command line and in no log."""

from pathlib import Path

import grpc

from logd.etcd.checks import Unusable
from logd.etcd.link import User


def of_channel(ca: Path | None, cert: Path | None, key: Path | None) -> grpc.ChannelCredentials | None:
    """From PEM files: whom we trust, and who we are. None when there are none. Raises Unusable."""
    if not ca and not cert:
        return None
    return grpc.ssl_channel_credentials(
        root_certificates=_read(ca) if ca else None,
        private_key=_read(key) if key else None,
        certificate_chain=_read(cert) if cert else None,
    )


def of_user(path: Path | None) -> User | None:
    """From a file with one line, NAME:PASSWORD. Raises Unusable."""
    if path is None:
        return None
    name, colon, password = _read(path).decode(errors="replace").strip().partition(":")
    if not (name and colon and password):
        raise Unusable(f"{path} must hold one line, NAME:PASSWORD")
    return User(name, password)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unusable(f"{path} cannot be read: {error.strerror}") from error
