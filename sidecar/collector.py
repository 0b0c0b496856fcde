"""When Python's cyclic garbage collector runs, and over what: the one place that tells it.

An index is some hundred thousand objects that live long and have no cycles. Left alone, the collector walks all of them
again and again, 40 to 400 ms during which no request is answered. So what a generation is made of is frozen: the
collector never looks at it any more, while reference counts free it as before when the generation goes. It rests while
a generation is loaded, when so many objects come that it would be woken. Between loads it runs as ever, over the little
that is left, so that cycles which requests or libraries make are still found.

This is the process's collector and not a sidecar's: nothing happens before `take_over`, which `serve` calls.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

# With so few new records, all that is not frozen is walked in a fraction of a millisecond.
FEW: Final = 2_000
_ours = False


def take_over() -> None:
    """From here on `resting` and `settle` do what they say."""
    global _ours  # noqa: PLW0603  (the collector is the process's, too)
    _ours = True
    gc.freeze()


@contextmanager
def resting() -> Iterator[None]:
    """No collection starts by itself meanwhile."""
    if not _ours:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def settle(new: int) -> None:
    """Freezes everything that there is, once a generation with so many new records is served.

    Cycles that are garbage by now would be frozen for ever; they are looked for first, unless that takes long.
    """
    if _ours:
        if new < FEW:
            gc.collect()
        gc.freeze()
