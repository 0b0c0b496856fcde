"""Several processes that answer as one sidecar: `sidecar.workers` above 1.

    supervisor      holds the sockets that all listen on, starts the workers, and answers nothing itself
      |  a socket pair each, lines of JSON (`channel.py`)
      v
    worker 1 … N    each a whole sidecar: an index, a follower, a memory of its own

**Sockets.** The supervisor binds before anybody starts: for each slot TCP sockets with SO_REUSEPORT, and one unix
socket for all. Every worker inherits all of them and is told which slots to take connections from: its own, and that of
a neighbour whose worker is not there. What waits in a queue outlives whoever was to take it.

**When a worker ends** that was not told to, another is started: at once if it had run for a while, else after a pause
that doubles. A worker is given its slot once it serves what the others do, or if none serves anything after PATIENCE_S:
then it says itself that it cannot tell.

**SIGHUP exchanges the workers**, slot by slot. A new worker gets the slot once it serves what the others do. Then the
old one takes no more connections and ends each with the answer to its next request (`Connection: close`); after DRAIN_S
it closes those that ask nothing, and what is under way then has BUSY_S. A new worker that ends or is not ready after
READY_S is given up, the old one stays, and so do all others. The settings are read again for it. If they are wrong
nothing is exchanged; a slot that got a new worker keeps its settings, also when it has to be started again. Where the
sidecar listens and how many workers there are needs a restart.

**SIGTERM, SIGINT**: all workers finish what is under way, and end. A worker whose supervisor is gone, by kill -9 too,
sees its end of the socket pair close, and does the same.

**The disk copy** is one for all. The worker that has its lock completes it, the others read it, and one of them takes
over within seconds when the lock is free (`sidecar/disk.py`).

**A write** that a worker passes on is answered once all workers serve it: what was written can be read back whoever is
asked. Where the pages of a walk begin (`sidecar/walks.py`) each worker remembers for itself: whoever walks over one
connection is not affected.

**One page of metrics** (`page.py`). The worker that is asked asks the supervisor, and that asks all. Counters are
those of all workers there ever were, gauges of those that serve now and answered. Of a worker that is silent for
COLLECT_S the counters are those that it told last, so that no counter goes back. What a worker counted since it was
last asked is lost if it dies without a word. prometheus_client's own way, files that all map into memory, was not
taken: each increment would write to a file, and its gauges know no rule for what cannot be told.
"""
