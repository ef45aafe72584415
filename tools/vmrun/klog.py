"""Which lines of a kernel log say that the kernel found a bug in itself."""

import re
from collections.abc import Iterable

# Anchored at the start of a message, because userspace, module and device names occur in the
# middle.  What nbd says when its server dies ("Possible stuck request", "Other side returned
# error", "shutting down sockets", "Buffer I/O error") and what a file system above it says
# ("EXT4-fs error") is the normal answer to what the tests do, and matches nothing here.
COMPLAINT = re.compile(
    r"""(?:\[[^]]*\]\s*)*                       # time, and on some kernels the task or CPU
        (?: (?:watchdog:\s)?BUG\b
          | WARNING:
          | kernel\ BUG\ at
          | Oops\b
          | general\ protection\ fault
          | double\ fault
          | Kernel\ panic
          | INFO:\ task\ .*\ blocked\ (?:in\ I/O\ wait\ )?for\ more\ than  # 7.3 tells them apart
          | refcount_t:
          | (?:slab\ )?list_(?:add|del)\ corruption
          | .*\b(?:KASAN|UBSAN|KCSAN|KFENCE):
          | .*\bsoft\ lockup\b
          | .*\bhard\ LOCKUP\b
        )""",
    re.VERBOSE,
)


def complaints(lines: Iterable[str]) -> list[str]:
    """Return those of `lines` that are a kernel's complaint about itself."""
    return [line for line in lines if COMPLAINT.match(line)]
