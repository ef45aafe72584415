"""Which version of a file an answer is about (RFC 9110, sections 8.8 and 13)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

_WEAK = "W/"


@dataclass(frozen=True, slots=True)
class Validators:
    """One version of a file, as far as its server tells it from others."""

    size: int
    """Bytes."""
    etag: str = ""
    modified: str = ""
    """The date, in the server's words."""

    @classmethod
    def of(cls, headers: Mapping[str, str], size: int) -> Self:
        """Read it from the headers of an answer."""
        return cls(size, headers.get("ETag", ""), headers.get("Last-Modified", ""))

    @property
    def is_comparable(self) -> bool:
        """Whether another version of the same size would look different."""
        return bool(self.etag or self.modified)

    @property
    def conditions(self) -> dict[str, str]:
        """The headers by which the server itself refuses to answer from another version."""
        if self._is_strong:
            return {"If-Match": self.etag}
        # A weak tag never matches in If-Match.
        return {"If-Unmodified-Since": self.modified} if self.modified else {}

    @property
    def tag(self) -> str:
        """What tells it from others, in few words."""
        return self._opaque or self.modified

    def matches(self, other: Validators) -> bool:
        """Whether an answer that says ``other`` is about this version.

        Servers may ignore the conditions. A weak tag leaves open whether every byte is the same, so
        the date is looked at too; such a tag may become strong as the file gets older.
        """
        if self._is_strong:
            return (self.size, self.etag) == (other.size, other.etag)
        mine, its = ((each.size, each._opaque, each.modified) for each in (self, other))
        return mine == its

    def matches_mirror(self, other: Validators) -> bool:
        """Whether an answer of another server that says ``other`` is about this version.

        Each server makes tags of its own, so that different ones tell nothing: then mirrors have
        the size and the date in common, which those who copy files keep. Where a server tells no
        date, nobody knows.
        """
        if self.size != other.size:
            return False
        tags = self._opaque and self._opaque == other._opaque
        dates = self.modified and self.modified == other.modified
        return bool(tags or dates)

    @property
    def _is_strong(self) -> bool:
        return bool(self.etag) and not self.etag.startswith(_WEAK)

    @property
    def _opaque(self) -> str:
        return self.etag.removeprefix(_WEAK)
