"""URLs of object stores: which schemes there are, and the store and folder that one names."""

from __future__ import annotations

from pathlib import PurePosixPath

AWS_SCHEMES = frozenset({"s3", "s3a"})
SCHEMES = AWS_SCHEMES | {"gs", "az", "abfs", "abfss"}
"""URL schemes of object stores on the network."""


def split_url(url: str) -> tuple[str, str]:
    """Return the store and the folder in it; no character of a URL is decoded."""
    scheme, _, rest = url.partition("://")
    bucket, _, path = rest.partition("/")
    return f"{scheme}://{bucket}", str(PurePosixPath("/", path)).strip("/")
