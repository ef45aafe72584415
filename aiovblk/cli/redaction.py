"""Take passwords and signatures of URLs out of what is printed or logged."""

from __future__ import annotations

import re

from ..storage.http import redact_url

_HTTP_URL = re.compile(r"https?://[^\s'\"]+", re.IGNORECASE)

# Behind a user's name, up to the last @: a password that is not quoted as a URL demands may have
# any characters. Not a port, and not the end of a URL that a message quotes ("nbd://host: ...").
_PASSWORD = re.compile(r"(?<=//)([^\s/?#:@]*):(?!\s|[0-9]+(?:[/?#:\s'\"]|$))[^\n]*@")


def redact(text: str) -> str:
    """Return a message without the passwords in it, and without what follows the ? of a web URL.

    A message with an address behind such a password loses what is between the two as well: rather
    too much is left out than too little.
    """
    return _PASSWORD.sub(r"\1:...@", _HTTP_URL.sub(lambda found: redact_url(found[0]), text))
