"""Parse the URL of a file on a web server, and redact its secrets: password, query."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

SCHEMES = frozenset({"http", "https"})

# Characters that are not encoded: a signature may cover the URL to the letter.
_SAFE = "%/:=&?+!$,;'@()*[]~"


@dataclass(frozen=True, slots=True)
class HTTPURL:
    """A URL, separated into what is requested, what is shown, and the password."""

    url: str
    """For requests: the URL without user, password and fragment."""
    name: str
    """For logs and errors: the URL without the query as well, which may hold a signature."""
    authorization: str | None
    """The header with user and password, if the URL has them."""

    @classmethod
    def parse(cls, url: str) -> HTTPURL:
        """Parse ``https://HOST/FILE`` or ``http://USER:PASSWORD@HOST:PORT/FILE?QUERY``.

        Raises:
            ValueError: it is no such URL. The message does not repeat it.

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
    # RFC 7617; a colon separates the two, so each is decoded on its own.
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
