"""What most tests of disks in an object store begin with."""

from __future__ import annotations

import pytest

from ....support.object_store import Bucket, bucket_with_disk


@pytest.fixture
async def bucket() -> Bucket:
    """A bucket with a new disk; modules that begin with something else have one of their own."""
    return await bucket_with_disk()
