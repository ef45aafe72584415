"""Compare versions of a file by their validators: ETag, Last-Modified (RFC 9110, 8.8 and 13)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

_WEAK = "W/"


@dataclass(frozen=True, slots=True)
class Validators:
    """Identify one version of a file, by its size and the validators that its server sends."""

    size: int
    """Bytes."""
    etag: str = ""
    modified: str = ""
    """The Last-Modified date, verbatim."""

    @classmethod
    def of(cls, headers: Mapping[str, str], size: int) -> Self:
        """Take them from the headers of a response."""
        return cls(size, headers.get("ETag", ""), headers.get("Last-Modified", ""))

    @property
    def is_comparable(self) -> bool:
        """Whether there is a validator, so that another version of the same size can be noticed."""
        return bool(self.etag or self.modified)

    @property
    def conditions(self) -> dict[str, str]:
        """The headers of a conditional request, which the server refuses for another version."""
        if self._is_strong:
            return {"If-Match": self.etag}
        # A weak tag never matches in If-Match.
        return {"If-Unmodified-Since": self.modified} if self.modified else {}

    @property
    def tag(self) -> str:
        """The ETag without its weakness, or the date."""
        return self._opaque or self.modified

    def matches(self, other: Validators) -> bool:
        """Whether a response with the validators ``other`` is of this version.

        It is compared here because servers may ignore the conditions. A weak ETag does not mean
        that every byte is the same, so the date is compared too; a weak ETag may become strong as
        the file gets older.
        """
        if self._is_strong:
            return (self.size, self.etag) == (other.size, other.etag)
        ours, theirs = ((each.size, each._opaque, each.modified) for each in (self, other))
        return ours == theirs

    def matches_mirror(self, other: Validators) -> bool:
        """Whether a response of another server with the validators ``other`` is of this version.

        Each server makes ETags of its own, so different ones mean nothing. Then size and date must
        be the same: tools that copy files to mirrors keep the date. Without a date it is unknown,
        and so not accepted.
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
