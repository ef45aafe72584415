#!/usr/bin/python3
"""Run the command, whose modules lie where no other program searches."""

import sys

sys.path.insert(0, "/usr/lib/aiovblk")

from aiovblk.cli import main

sys.exit(main())
