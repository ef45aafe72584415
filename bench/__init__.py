"""aiovblk and its peers side by side: ``make bench``, or ``python -m bench --help``.

Every server is started anew in every round, and in every case all of them have their turn before
the next case begins, so that a machine that drifts drifts for all alike. What is compared is the
median over the rounds; the figure that matters is the CPU time of the server per request, which
moves far less than requests per second when others use the machine.

    cases.py        what is asked of a server: pattern, size, depth, connections, back end
    peers/          the servers: how each is started, what it needs, our own reference in C
    server.py       one server's life
    load.py         fio, which asks; it reaches a server through a Target
    process.py      what a server took: CPU time and memory
    rounds.py       the order of it all
    footprint.py    what takes no rounds: memory of a sparse device, growth, import time
    summary.py      medians and ratios
    kernel.py       the same once more in a virtual machine, each server behind a /dev/nbdN
    guest.py        what runs there
    attach.py       one server's life there
    mounting.py     how long aiovblk takes to mount in an interpreter that is ready
    asked.py        the bounds that the project sets itself, and whether they are met
    tables.py       both as tables
    report.py       all tables, the page docs/performance.md, and JSON
    machine.py      what it was measured on
    picture.py      the same as bars, where matplotlib is
    dispatch.py     a smaller thing of its own: the dispatcher alone, over a socket pair
    observing.py    the same with and without its statistics and events
"""
