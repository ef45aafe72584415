"""Copy-on-write: a disk that is another disk, and what was written since.

* ``format``: what the diff looks like.
* ``states``: where the contents of each block are, in memory.
* ``diff``: both, over the device that holds them; all rules of durability are there.
* ``layer``: :class:`Overlay`, which joins a base and a diff.
* ``moving``: from the diff to the base, and from one base to another.
* ``files``: a diff that is a file.
* ``changes``: who waits for whom.
"""

from .overlay import Overlay

__all__ = ["Overlay"]
