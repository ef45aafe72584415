"""What an open disk may use."""

from __future__ import annotations

from dataclasses import dataclass

from ...arguments import check_count


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be used at once."""

    memory: int = 64 << 20
    """Bytes of chunks that are kept after they were read or stored."""
    unstored: int = 256 << 20
    """Bytes of chunks that were written to and are not stored."""
    requests: int = 32
    """Chunks that are read, and as many again that are stored, at the same time."""

    def __post_init__(self) -> None:
        """Refuse what would never come to an end."""
        check_count("memory", self.memory, minimum=0)
        check_count("unstored", self.unstored, minimum=0)
        check_count("requests", self.requests)
