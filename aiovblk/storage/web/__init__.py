"""A disk that is a file on a web server."""

from .address import SCHEMES, without_secrets
from .device import HTTPDevice

__all__ = ["SCHEMES", "HTTPDevice", "without_secrets"]
