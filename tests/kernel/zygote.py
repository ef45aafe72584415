"""Starts servers fast: `python -m tests.kernel.zygote ARGUMENTS`.

For each line that it reads it runs `aiovblk ARGUMENTS` in a fork, everything being imported, and
prints the process id of that first.
"""

from __future__ import annotations

import os
import sys

from aiovblk import cli


def main() -> None:
    """Fork once for each line, and reap whoever was killed before."""
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            print(f"process {os.getpid()}", flush=True)
            os._exit(cli.main(sys.argv[1:]))
        os.waitpid(child, 0)
        print("ended", flush=True)


if __name__ == "__main__":
    main()
