"""Generate the random requests of one round, from a seed."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from .regions import Regions

# The commands, with weights.
_READS = {"read": 12, "extents": 4, "cache": 1, "flush": 1}
_CHANGES = {"write": 14, "write_zeroes": 4, "trim": 3, "flush": 3}

_MAX_CHAINS = 10
_MAX_REQUESTS = 4  # of one chain
_CANCELLED = 0.1  # of all requests


@dataclass(frozen=True, slots=True)
class GeneratedRequest:
    """A call of a handler, and how it is run. Its times are turns of the event loop."""

    command: str
    """The name of the handler."""
    blocks: range
    block_size: int
    may_trim: bool = False
    pause: int = 0
    """Time to wait before the call."""
    hold: int = 0
    """Time that the result of a read waits to be sent."""
    cancel: int | None = None
    """Time after which the handler is cancelled; None for no cancellation."""
    again: bool = False
    """Whether it is then run again, as when an event loop shuts down; else the request fails."""

    @property
    def offset(self) -> int:
        """Bytes."""
        return self.blocks.start * self.block_size

    @property
    def length(self) -> int:
        """Bytes."""
        return len(self.blocks) * self.block_size

    def __str__(self) -> str:
        """Describe the call."""
        arguments = "" if self.command == "flush" else f"{self.offset}, {self.length} bytes"
        cancelled = "" if self.cancel is None else " cancelled" + " and run again" * self.again
        return f"{self.command}({arguments}){cancelled}"


class RequestGenerator:
    """Generates requests.

    Args:
        regions: the blocks that they use.
        block_size: bytes.
        read_only: whether to leave out all changes.
        concurrency: requests in flight at most.

    """

    def __init__(
        self, regions: Regions, block_size: int, *, read_only: bool, concurrency: int
    ) -> None:
        self._regions = regions
        self._block_size = block_size
        self._weights = _READS if read_only else _READS | _CHANGES
        self._max_chains = min(_MAX_CHAINS, concurrency)

    def round(self, random: Random) -> list[list[GeneratedRequest]]:
        """Return chains of requests, which run concurrently; a chain runs in sequence."""
        taken: list[range] = []
        chains = []
        for _ in range(random.randint(1, self._max_chains)):
            length = random.randint(1, _MAX_REQUESTS)
            commands = random.choices(list(self._weights), list(self._weights.values()), k=length)
            chains.append([self._request(random, command, taken) for command in commands])
        return chains

    def _request(self, random: Random, command: str, taken: list[range]) -> GeneratedRequest:
        blocks = self._regions.pick(random, taken)
        taken.append(blocks)
        return GeneratedRequest(
            command,
            blocks,
            self._block_size,
            may_trim=random.random() < 0.5,
            pause=random.choice([0, 0, 0, 1, 2]),
            hold=random.choice([0, 0, 1, 3]),
            cancel=random.randint(0, 4) if random.random() < _CANCELLED else None,
            again=random.random() < 0.5,
        )
