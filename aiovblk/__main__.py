"""``python -m aiovblk`` is the command ``aiovblk``."""

import sys

from .cli import main

sys.exit(main())
