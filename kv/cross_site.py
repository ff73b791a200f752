"""Whether a browser sent a request on behalf of a page that is not this server's.

Any page may have the browser of its reader send a text to a server on the reader's own machine, without asking for it
first (the Fetch Standard calls such requests simple). A browser says of which page a request is: by Sec-Fetch-Site
(W3C, Fetch Metadata Request Headers), or where it sends none, by Origin. No other program sends either. Knows fields
alone: no routes, and not what becomes of the request.
"""

from typing import Any, Final

_SITE: Final = b"sec-fetch-site"
_ORIGIN: Final = b"origin"
FIELDS: Final = frozenset({_SITE, _ORIGIN})
_OWN_SITES: Final = frozenset({b"same-origin", b"none"})
"""`none` is the reader's own doing, as with a bookmark."""


def is_cross_site(scope: dict[str, Any]) -> bool:
    """True when a page of another origin made this request, be it of the same domain."""
    sites, origins, host = [], [], b""
    for name, value in scope["headers"]:
        if name == _SITE:
            sites.append(value)
        elif name == _ORIGIN:
            origins.append(value)
        elif name == b"host":
            host = value
    if sites:
        return not _OWN_SITES.issuperset(sites)
    own = b"%b://%b" % (scope["scheme"].encode(), host)
    return any(origin.lower() != own.lower() for origin in origins)
