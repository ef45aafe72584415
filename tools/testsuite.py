"""The program behind tools/test; the package `suite` beside it has the code."""

import sys

from suite.cli import main

sys.exit(main())
