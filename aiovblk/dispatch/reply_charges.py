"""Charge unsent replies to a network client's memory quota, and refund them (backpressure).

The memory of a request is refunded when its reply has left, except for one write buffer: a client
that does not read its replies gets no further memory.
"""

from __future__ import annotations

from .memory_budget import REQUEST_COST, ConnectionQuota


class ReplyCharges:
    """What the replies of one connection cost.

    Args:
        quota: what they are charged to.

    Attributes:
        waited: bytes that requests were charged whose replies are queued.
        charged: bytes of queued replies that are charged although their requests never waited.
        sent: bytes of sent requests, to be refunded.

    """

    def __init__(self, quota: ConnectionQuota) -> None:
        self._quota = quota
        self.waited = 0
        self.charged = 0
        self.sent = 0

    def charge(self, reads: list[int], writes: list[int]) -> None:
        """Charge what was answered without waiting, and is not sent yet: bytes of each."""
        cost = (len(reads) + len(writes)) * REQUEST_COST + sum(reads) + sum(writes)
        self._quota.charge(cost - self.charged)
        self.charged = cost

    def charge_sent(self, reads: list[int], writes: list[int]) -> None:
        """Charge what was answered without waiting and sent now; it is refunded once it left."""
        self.charge(reads, writes)
        self.sent += self.charged
        self.charged = 0

    def send_waited(self) -> None:
        """Note that the replies were sent whose requests have waited."""
        self.sent += self.waited
        self.waited = 0

    def refund_sent(self) -> None:
        """Refund the memory of replies that have left, except for one write buffer."""
        self._quota.refund(self.sent)
        self.sent = 0
