"""Where a file on the web is, and what of that may be shown."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

SCHEMES = frozenset({"http", "https"})

# What is left as it is: a signature may be of the URL to the letter.
_SAFE = "%/:=&?+!$,;'@()*[]~"


@dataclass(frozen=True, slots=True)
class HTTPURL:
    """What a URL says."""

    url: str
    """What is asked for: the URL without user, password and fragment."""
    name: str
    """The URL for logs and errors: without the query as well, which may hold a signature."""
    authorization: str | None
    """The header that tells user and password, if the URL has them."""

    @classmethod
    def parse(cls, url: str) -> HTTPURL:
        """Read ``https://HOST/FILE`` or ``http://USER:PASSWORD@HOST:PORT/FILE?QUERY``.

        Raises:
            ValueError: it is none. The message does not repeat it.

        """
        try:
            parts = urlsplit(url)
            usable = parts.scheme in SCHEMES and parts.hostname and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise ValueError(
                "this is no URL of a file on the web; write https://HOST/FILE, with %40 for an @"
                " in a password, %2F for a / and so on"
            ) from None
        user, _, host = parts.netloc.rpartition("@")
        path, query = quote(parts.path or "/", safe=_SAFE), quote(parts.query, safe=_SAFE)
        return cls(
            urlunsplit((parts.scheme, host, path, query, "")),
            urlunsplit((parts.scheme, host, path, "", "")),
            _basic(user) if user else None,
        )


def _basic(user: str) -> str:
    # RFC 7617; a colon separates the two, and so they are decoded apart.
    name, _, password = user.partition(":")
    return "Basic " + b64encode(f"{unquote(name)}:{unquote(password)}".encode()).decode()


def redact_url(text: str) -> str:
    """Return a URL without user, password, query and fragment, and other text as it is."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return text.partition(":")[0] + ":..."
    if parts.scheme not in SCHEMES:
        return text
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(SplitResult(parts.scheme, host, parts.path, "", ""))
