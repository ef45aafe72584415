"""``aiovblk top`` on a fake /sys: ``python -m tests.support.top_on_tree ROOT [OPTION...]``."""

from __future__ import annotations

import sys
from pathlib import Path

from aiovblk import cli
from aiovblk.kernel import procfs, sysfs

if __name__ == "__main__":
    root, *options = sys.argv[1:]
    sysfs.SYS_BLOCK = Path(root, "sys/block")
    procfs.PROC = Path(root, "proc")
    sys.exit(cli.main(["top", *options]))
