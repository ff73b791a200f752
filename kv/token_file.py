"""The file with the token that requests must carry, and other secrets in files.

A file, so that the token appears in no command line, no environment and no log. The supervisor reads it to check it,
and each worker when it starts, so a reload takes a new token. Knows no HTTP; who asks for the token is kv/auth.py.
"""

from pathlib import Path

from kv.config import UnusableFile


def read_token(path: Path) -> bytes:
    """The token in a file that not every user can read. Raises UnusableFile."""
    token = read_secret("--token-file", path)
    if not token.isascii() or not token.decode(errors="replace").isprintable() or b" " in token or not token:
        raise UnusableFile(f"--token-file {path} must hold one word of printable ASCII characters")
    return token


def read_secret(flag: str, path: Path) -> bytes:
    """What is in a file that not every user can read, without white space around it. Raises UnusableFile."""
    try:
        mode, secret = path.stat().st_mode, path.read_bytes().strip()
    except OSError as error:
        raise UnusableFile(f"{flag} {path} cannot be read: {error.strerror}") from error
    if mode & 0o007:
        raise UnusableFile(f"{flag} {path} can be read or written by every user; chmod o-rwx it")
    return secret
