"""Copy-on-write: an overlay reads as a base device, and stores what is written in a diff.

* ``format``: the layout of the diff.
* ``blockmap``: where the contents of each block are, in memory.
* ``diff``: header, map and blocks on the device that holds them; all rules of durability.
* ``overlay``: :class:`Overlay`, the layer over a base and a diff.
* ``committing``: commit (diff to base) and rebase (one base to another).
* ``files``: a diff in a file.
"""

from .overlay import Overlay

__all__ = ["Overlay"]
