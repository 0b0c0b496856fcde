"""The store: where objects lie under their digests, and the one pointer that moves. The protocol, and how to open one.

The store understands nothing of what it holds and verifies nothing; readers verify. Objects are written before the
root that needs them and the root before the pointer, so that whoever reads a pointer can read its whole tree.
"""

from collections.abc import Collection, Iterable, Set
from typing import NamedTuple, Protocol

from sidecar.contract.objects import Sealed
from sidecar.errors import Fenced, PointerConflict


class Pointer(NamedTuple):
    """The root pointer. Pairs of (epoch, generation) only ever grow."""

    epoch: int
    generation: int
    digest: bytes


class Store(Protocol):
    """One store. Every method raises StoreError when the store cannot be reached or read."""

    async def get(self, digests: Collection[bytes]) -> dict[bytes, bytes]:
        """The bytes stored under these digests, unverified; those that are missing are absent."""
        ...

    async def put(self, objects: Iterable[Sealed]) -> None:
        """Writes objects, over what lies there already; when it returns, all of them can be read."""
        ...

    async def pointer(self) -> Pointer | None:
        """The root pointer; None while nothing was ever published here. Raises PointerDamaged if it is no pointer."""
        ...

    async def move(self, pointer: Pointer) -> None:
        """Moves the pointer to a higher (epoch, generation) and announces it.

        Moving to where it is already does nothing; a pointer that is damaged gives way to any. Raises Fenced if the
        pair is lower than the present one, and PointerConflict if it is the same pair with another digest; then nothing
        has changed.
        """
        ...

    async def changed(self, known: Pointer | None, timeout_s: float) -> Pointer | None:
        """Waits until the pointer is another than `known`, at most so long, and returns the pointer."""
        ...

    async def sweep(self, live: Set[bytes], *, epoch: int, now_ms: int, grace_ms: int) -> int:
        """Deletes what has been outside of `live` for longer than the grace, and returns how many objects that was.

        What is noted as outside since a time after `now_ms`, by a clock that was wrong, is so since now.

        Raises Fenced as soon as the pointer has a higher epoch than the sweeper's.
        """
        ...

    async def close(self) -> None:
        """Ends every connection; the store is not used after that."""
        ...


def check_move(present: Pointer | None, wanted: Pointer) -> bool:
    """Whether the pointer has to move at all; raises Fenced or PointerConflict if it must not. Every store's rule."""
    if present is None or present[:2] < wanted[:2]:
        return True
    if present == wanted:
        return False
    if present[:2] == wanted[:2]:
        raise PointerConflict(
            f"epoch {wanted.epoch}, generation {wanted.generation} is published as {present.digest.hex()} already, "
            f"and not as {wanted.digest.hex()}: two publishers believe that they lead"
        )
    raise Fenced(
        f"epoch {wanted.epoch}, generation {wanted.generation} is behind the published epoch {present.epoch}, "
        f"generation {present.generation}: another publisher has taken over"
    )


def check_epoch(present: Pointer | None, epoch: int) -> None:
    """Raises Fenced if a publisher of this epoch has been replaced."""
    if present is not None and present.epoch > epoch:
        raise Fenced(f"epoch {epoch} is over: epoch {present.epoch} has published generation {present.generation}")
