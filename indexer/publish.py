"""Publishing: what the registry says becomes a generation in the store, objects first, root next, pointer last.

A commit covers everything up to the registry's clock at its start; what is accepted meanwhile goes into the next one.
An object is skipped only if the root that is being replaced refers to it, or if this publisher has just written it;
otherwise it is written again, so that a store that was emptied, or lost to an older copy of itself, is made whole.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from indexer import tree
from indexer.compiler import PRODUCER, Compiler
from indexer.ingest import PLAIN
from indexer.mirror import Mirror
from indexer.registry import Deposed, Registry, generations, pulls
from indexer.registry.generations import Generation
from indexer.render import RENDERER, render
from sidecar.clock import Clock
from sidecar.contract.objects import Sealed
from sidecar.contract.records import Root, seal_record
from sidecar.contract.words import ContentType
from sidecar.errors import CatalogError, ContractError, ObjectMissing
from sidecar.store import Pointer, Store

BATCH_BYTES: Final = 4 * 1024 * 1024
DOCUMENTS: Final = 256
SWEEP_GRACE_MS: Final = 3_600_000

log = structlog.get_logger(__name__)


class ForeignStore(CatalogError):
    """Raised when the store holds generations that this registry knows nothing of, and nobody said to adopt it."""


class Publisher:
    """Publishes for one epoch at a time. Use from one task; `upload` may be called from others."""

    def __init__(self, registry: Registry, store: Store, clock: Clock, *, adopt: bool = False) -> None:
        self._registry = registry
        self._store = store
        self._clock = clock
        self._adopt = adopt
        self._mirror = Mirror()
        self._compiler = Compiler(self._mirror)
        self._pointer: Pointer | None = None
        self._looked = False
        self._compiled = False
        self._covered = -1
        self._references: set[bytes] = set()
        self._uploaded: set[bytes] = set()
        self._written = (0, 0)
        # What time it was, and from here on it is later by as much as has passed, however the clock jumps: an hour of
        # grace is one in which readers have read on.
        self._begun_ms, self._begun_s = clock.now_ms(), clock.monotonic()

    async def check(self) -> None:
        """Raises ForeignStore if publishing here would overwrite generations of another registry."""
        pointer = await self._store.pointer()
        if not self._looked:
            self._looked, self._pointer = True, pointer
        async with self._registry.read() as connection:
            known = await generations.latest(connection)
        if pointer is not None and not known and not self._adopt:
            raise ForeignStore(
                f"the store has generation {pointer.generation}, and the registry has never published any: is this the "
                "right store, and is the registry complete? Point store.url elsewhere, restore the registry, or say "
                "--adopt to publish over it"
            )

    async def upload(self, objects: Iterable[Sealed]) -> None:
        """Writes objects ahead of the commit that will refer to them."""
        await self._write(objects)

    async def commit(self, epoch: int) -> Generation | None:
        """Publishes the registry's state; None if the store shows it already.

        Raises Deposed or Fenced if another leads, and StoreError or RegistryError if one is out of reach; the next
        commit makes up for whatever this one has left undone.
        """
        try:
            return await self._commit(epoch)
        except BaseException:
            # What was refreshed may not have been written: the next commit starts from everything there is.
            self._compiled = False
            raise

    async def sweep(self, epoch: int, keep: int) -> int:
        """Deletes objects that none of the last `keep` generations has needed for an hour; how many that was.

        The registry forgets old pulls and generations beside it.
        """
        # Whatever was uploaded long ago, for a pull that was then given up, may be gone in a moment: from here on it is
        # written again.
        self._uploaded.clear()
        async with self._registry.read() as connection:
            known = await generations.latest(connection, keep, moved=True)
        live = set(self._references)
        for generation in known:
            try:
                live |= await tree.references(self._store, generation.digest, live)
            except (ContractError, ObjectMissing):
                # The store was emptied since: there is nothing whole to keep.
                continue
        now_ms = self._begun_ms + round((self._clock.monotonic() - self._begun_s) * 1000)
        swept = await self._store.sweep(live, epoch=epoch, now_ms=now_ms, grace_ms=SWEEP_GRACE_MS)
        async with self._registry.plain() as connection:
            await pulls.prune(connection, now_ms)
            await generations.prune(connection, max(generations.KEPT, keep))
        return swept

    async def _commit(self, epoch: int) -> Generation | None:
        await self.check()
        pointer = await self._store.pointer()
        if not self._compiled or pointer != self._pointer:
            await self._note_moved(pointer)
        async with self._registry.read() as connection:
            changes = await self._mirror.refresh(connection)
            known = await generations.latest(connection)
            last = known[0] if known else None
            if pointer != self._pointer or not self._compiled:
                self._compiler = Compiler(self._mirror)
                changes = self._mirror.everything()
                self._references = await self._already_there(pointer)
                self._uploaded &= await tree.intact(self._store, self._uploaded)
            elif self._mirror.clock == self._covered:
                return None
            outdated = self._compiler.outdated(changes)
            texts = await pulls.texts(connection, self._compiler.texts_needed(outdated))
            await self._write(self._compiler.update(changes, outdated, texts))
            await self._write_documents(connection, changes.content)
        if (
            last is not None
            and pointer == (last.epoch, last.generation, last.digest)
            and last.clock == self._mirror.clock
            and pointer.digest in self._references  # Its tree is there, and was not written again just now.
        ):
            self._shown(pointer)
            return None
        return await self._move(epoch, pointer, last)

    async def _note_moved(self, pointer: Pointer | None) -> None:
        """Makes up for a move that passed, and whose note did not."""
        async with self._registry.read() as connection:
            known = await generations.latest(connection)
        if pointer is not None and known and not known[0].moved and known[0].digest == pointer.digest:
            async with self._registry.plain() as connection:
                await generations.moved(connection, known[0].generation)

    async def _already_there(self, pointer: Pointer | None) -> set[bytes]:
        if pointer is None:
            return set()
        try:
            found = await tree.references(self._store, pointer.digest)
        except (ContractError, ObjectMissing) as error:
            log.warning("the published tree is damaged; everything is written again", reason=str(error))
            return set()
        intact = await tree.intact(self._store, found)
        if damaged := len(found) - len(intact):
            log.warning("objects of the published tree are missing or damaged; they are written again", objects=damaged)
        return intact

    async def _move(self, epoch: int, pointer: Pointer | None, last: Generation | None) -> Generation:
        number = 1 + max(0 if last is None else last.generation, 0 if pointer is None else pointer.generation)
        now_ms = self._clock.now_ms()
        parent = None if pointer is None else pointer.digest
        root = self._compiler.root(epoch=epoch, generation=number, published_at_ms=now_ms, parent=parent)
        sealed = seal_record(root)
        await self._write([sealed])
        new = self._generation(root, sealed.digest)
        async with self._registry.plain() as connection:
            if not await generations.intend(connection, new):
                raise Deposed(f"epoch {epoch} is over: another indexer leads")
        moved = Pointer(epoch, number, sealed.digest)
        await self._store.move(moved)  # This makes the generation visible; all that it needs is in the store by now.
        self._shown(moved)
        async with self._registry.plain() as connection:
            await generations.moved(connection, number)
        log.info("published", generation=number, epoch=epoch, clock=root.clock, objects=new.objects, bytes=new.bytes)
        return new

    def _generation(self, root: Root, digest: bytes) -> Generation:
        objects, size = self._written
        return Generation(
            generation=root.generation,
            epoch=root.epoch,
            digest=digest,
            parent=root.parent,
            clock=root.clock,
            published_at_ms=root.published_at_ms,
            objects=objects,
            bytes=size,
            producer=PRODUCER,
            moved=False,
        )

    def _shown(self, pointer: Pointer) -> None:
        self._pointer, self._compiled = pointer, True
        self._covered = self._mirror.clock
        self._written = (0, 0)
        self._references = self._compiler.references() | {pointer.digest}
        self._uploaded -= self._references

    async def _write(self, objects: Iterable[Sealed]) -> None:
        """Writes what is not there yet, in batches, making the objects in a thread."""
        remaining = iter(objects)
        while batch := await asyncio.to_thread(self._next_batch, remaining):
            await self._store.put(batch)
            self._uploaded.update(digest for digest, _ in batch)
            count, size = self._written
            self._written = count + len(batch), size + sum(len(data) for _, data in batch)

    def _next_batch(self, remaining: Iterator[Sealed]) -> list[Sealed]:
        batch: dict[bytes, Sealed] = {}
        size = 0
        for sealed in remaining:
            if sealed.digest not in self._references and sealed.digest not in self._uploaded:
                batch[sealed.digest] = sealed
                size += len(sealed.data)
            if size >= BATCH_BYTES:
                break
        return list(batch.values())

    async def _write_documents(self, connection: AsyncConnection, changed: Iterable[int]) -> None:
        missing = [o for o in changed if self._is_missing(self._mirror.metadata[o])]
        for first in range(0, len(missing), DOCUMENTS):
            ordinals = missing[first : first + DOCUMENTS]
            texts = await pulls.texts(connection, {(ordinal, PLAIN) for ordinal in ordinals})
            await self._write(self._rendered(ordinals, [texts[ordinal, PLAIN] for ordinal in ordinals]))

    def _is_missing(self, digest: bytes | None) -> bool:
        return digest is not None and digest not in self._references and digest not in self._uploaded

    def _rendered(self, ordinals: Sequence[int], texts: Sequence[bytes]) -> Iterator[Sealed]:
        for ordinal, text in zip(ordinals, texts, strict=True):
            yield render(self._mirror.keys[ordinal], ContentType(self._mirror.types[ordinal]), text)


async def render_again(registry: Registry, epoch: int) -> int:
    """Takes over what this build's renderer makes of every document, if another build rendered them; how many changed.

    The times of change stay: the content is the same.
    """
    async with registry.read() as connection:
        if await pulls.rendered_by(connection) == RENDERER:
            return 0
        mirror = Mirror()
        await mirror.refresh(connection)
        changed: list[tuple[int, bytes]] = []
        documents = [ordinal for ordinal, digest in enumerate(mirror.metadata) if digest is not None]
        for first in range(0, len(documents), DOCUMENTS):
            ordinals = documents[first : first + DOCUMENTS]
            texts = await pulls.texts(connection, {(ordinal, PLAIN) for ordinal in ordinals})
            changed += await asyncio.to_thread(_differing, mirror, ordinals, texts)
    async with registry.write(epoch) as tx:
        await pulls.set_metadata(tx, changed)
        await pulls.set_renderer(tx, RENDERER)
    return len(changed)


def _differing(mirror: Mirror, ordinals: Sequence[int], texts: dict[tuple[int, int], bytes]) -> list[tuple[int, bytes]]:
    rendered = (
        (ordinal, render(mirror.keys[ordinal], ContentType(mirror.types[ordinal]), texts[ordinal, PLAIN]).digest)
        for ordinal in ordinals
    )
    return [(ordinal, digest) for ordinal, digest in rendered if digest != mirror.metadata[ordinal]]
