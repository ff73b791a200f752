"""The tag of a value: what tells two values apart without sending them (the entity tag of RFC 9110, 8.8.3).

It depends on the bytes of the value alone, so it is the same in every process, on every engine, and after a restore.
That it is 128 bits of SHA-256 is part of the format: a log holds tags that replay compares. Nobody can make two values
with the same tag on purpose with less than some 2^64 attempts, which a shorter one would not promise.
"""

import hashlib
from typing import Final

TAG_DIGITS: Final = 32


def etag(value: bytes) -> str:
    """The tag of a value: 32 hexadecimal digits in lower case."""
    return hashlib.sha256(value).hexdigest()[:TAG_DIGITS]
