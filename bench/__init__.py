"""aiovblk and its peers side by side: ``make bench``, or ``python -m bench --help``.

Servers and the client are pinned, in two placements: on one core, and on a core each. In many short
rounds all servers have their turn in each case within a second or two, so that a machine that
drifts drifts for all alike; what is compared are quartiles. The figure that matters is the CPU time
of the server per request, which moves far less than requests per second when others use the
machine.

    cases.py        what is asked of a server: direction, size, depth, connections, back end
    placement.py    where server and client run
    peers/          the servers: how each is started, what it needs; clients, too
    native/         programs in C: a server that is the limit, and the load generator
    pythons.py      the interpreters, and how they were built
    revision.py     aiovblk as it was at another revision, to be measured beside it
    server.py       one server's life
    load.py         asking it, by loadgen.py or fio.py: their command lines and what they print
    figures.py      what one run of a case shows
    process.py      what a server took: CPU time and memory
    rounds.py       the order of it all
    summary.py      quartiles and ratios
    asking.py       aiovblk as a client, beside others
    footprint.py    what takes no rounds: memory of a sparse device, growth, import time
    kernel.py       servers behind a /dev/nbdN, in a virtual machine
    guest.py        what runs there
    attach.py       one server's life there
    mounting.py     how long aiovblk takes to mount in an interpreter that is ready
    asked.py        the bounds that the project sets itself, and whether they are met
    tables.py       both as tables
    report.py       the pages docs/performance.md and docs/performance-figures.md, and JSON
    machine.py      what it was measured on
    picture.py      the same as bars, where matplotlib is
    observing.py    the dispatcher with and without its statistics and events
    dispatch.py     a smaller thing of its own: the dispatcher alone, over a socket pair
    storage.py      another: disks in object stores and caches
    endurance.py    another: many requests through one mount
"""
