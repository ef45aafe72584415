"""The kernel's events of NBD connections that have died (LINK_DEAD), by netlink."""

from __future__ import annotations

from . import netlink

# include/uapi/linux/genetlink.h and netlink.h
CTRL_ATTR_MCAST_GROUPS = 7
CTRL_ATTR_MCAST_GRP_ID = 2
NETLINK_ADD_MEMBERSHIP = 1


class LinkDeadListener:
    """A socket that receives an event (LINK_DEAD) for each connection that dies from now on.

    In another network namespace than the first there are no events (nbd_mcast_index).

    Raises:
        OSError: as for :func:`.netlink.disconnect`.

    """

    def __init__(self) -> None:
        self._sock = netlink.open_socket()
        try:
            self._family, answer = netlink.look_up(self._sock)
            groups = dict(netlink.parse_attributes(answer))[CTRL_ATTR_MCAST_GROUPS]
            (_, group), *_ = netlink.parse_attributes(groups)  # the family has one
            number = netlink.parse_u32(group, CTRL_ATTR_MCAST_GRP_ID)
            self._sock.setsockopt(netlink.SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, number)
        except BaseException:
            self._sock.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor, to be polled for input."""
        return self._sock.fileno()

    def read(self) -> list[int]:
        """Return the indices of the devices that have lost a connection. Blocks for an event."""
        return [
            netlink.parse_u32(body[netlink.GENERIC.size :], netlink.Attribute.INDEX)
            for kind, _, body in netlink.parse_messages(self._sock.recv(65536))
            if kind == self._family and body[0] == netlink.NetlinkCommand.LINK_DEAD
        ]

    def close(self) -> None:
        """Close the socket: receive no more events."""
        self._sock.close()
