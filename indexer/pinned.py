"""The pinned tree, as far as a publisher knows it: what it needs, and whether the store has all of it.

The registry describes its newest state and no other: what the store loses of an older tree may be lost for good. What
both trees have in common is written again with the newest one.
"""

from collections.abc import Set
from typing import Final

import structlog

from indexer import tree
from sidecar.contract.objects import ObjectType
from sidecar.contract.records import Root, open_record
from sidecar.store import Store

# Of lost objects: how many a line of the log names.
NAMED: Final = 20

log = structlog.get_logger(__name__)


class Pinned:
    """What is known of the tree of one pinned generation, `number`; None if none is pinned.

    `tree`: the digests of all that it needs, as far as that was ever seen. `root`: its root, or one of the same tree.
    `settled`: whether a commit has done what it can. `problem`: what is wrong.
    """

    def __init__(self, store: Store, number: int | None = None) -> None:
        self.number = number
        self.tree: Set[bytes] = frozenset()
        self.root: Root | None = None
        self.settled = False
        self.problem: str | None = None
        self._store = store
        self._lost: Set[bytes] = frozenset()
        self._sure = False

    def doubt(self) -> None:
        """Has it looked at again: what the store holds may not be what it held."""
        self._sure = self.settled = False

    def has(self, digest: bytes) -> bool:
        """Whether the store is known to have this object, because the pinned tree needs it."""
        return self._sure and digest in self.tree and digest not in self._lost

    async def is_whole(self, root: bytes, trusted: Set[bytes]) -> bool:
        """Whether the store has all of the tree below this root, which is the pinned one's or one of the same tree.

        What is trusted is not read. If objects are lost, says so: once, and in `problem`.
        """
        if not (self._sure and root in self.tree) and not await self._is_lost_still():
            found, damage = await tree.survey(self._store, [root], trusted)
            self.tree, self._lost, self._sure = self.tree | found, damage.all(), True
            if root not in self._lost:
                opened = open_record(root, (await self._store.get([root]))[root], ObjectType.ROOT)
                assert isinstance(opened, Root)
                self.root = opened
        if not self._lost:
            self.problem = None
            return True
        self._say(
            f"generation {self.number} is pinned, and objects of its tree are lost that the registry does not describe "
            f"any more ({len(self._lost)} or more): sidecars stay on what they have; restore the store, roll back to "
            "another generation, or unpin"
        )
        return False

    def is_unknown(self) -> None:
        """The registry does not know the generation that is pinned in it."""
        self._say(f"generation {self.number} is pinned, and the registry does not know it: unpin, or roll back")

    async def _is_lost_still(self) -> bool:
        """One lost object tells: if it is not back, all of the tree need not be read to say the same again."""
        return bool(self._lost) and bool(await tree.look(self._store, [min(self._lost)]))

    def _say(self, problem: str) -> None:
        if problem != self.problem:
            lost = sorted(digest.hex() for digest in self._lost)
            log.error("the pinned tree is not whole", reason=problem, objects=lost[:NAMED])
        self.problem = problem
