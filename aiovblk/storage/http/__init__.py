"""A read-only disk that is a file on a web server, read by range requests.

:mod:`.device` is the block device; :mod:`.resource` makes the requests, with retries, redirects and
mirrors; :mod:`.responses` parses responses and classifies errors; :mod:`.validators` compares
versions of the file (ETag, Last-Modified); :mod:`.url` parses URLs and redacts secrets in them.
"""

from .device import HTTPDevice
from .url import SCHEMES, redact_url

__all__ = ["SCHEMES", "HTTPDevice", "redact_url"]
