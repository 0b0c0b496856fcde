"""Publishing: what the registry says becomes a generation in the store, objects first, root next, pointer last.

A commit covers everything up to the registry's clock at its start; what is accepted meanwhile goes into the next one.
An object is skipped only if the root that is being replaced refers to it, or if this publisher has just written it;
otherwise it is written again, so that a store that was emptied, or lost to an older copy of itself, is made whole.

While a generation is pinned, readers are shown its tree and no other. If the pointer names another one (somebody has
just asked for a rollback, or the store fell back), that tree is published once more, under a number above all others.
Commits go on, and what they make is noted and held back; without the pin the newest of it is published. A pinned tree
of which the store has lost what the registry does not say any more cannot be shown: then nothing is moved.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import replace
from typing import Final

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from indexer import tree
from indexer.compiler import Compiler
from indexer.ingest import PLAIN
from indexer.metrics import Metrics
from indexer.mirror import Mirror
from indexer.pinned import NAMED, Pinned
from indexer.registry import Deposed, Registry, generations, pulls
from indexer.registry.generations import Generation, Standing
from indexer.render import RENDERER, render
from indexer.tree import Damage
from sidecar.clock import Clock
from sidecar.contract.objects import ObjectType, Sealed
from sidecar.contract.records import Root, open_record, seal_record
from sidecar.contract.words import ContentType
from sidecar.errors import CatalogError, PointerDamaged
from sidecar.store import Pointer, Store

BATCH_BYTES: Final = 4 * 1024 * 1024
DOCUMENTS: Final = 256
SWEEP_GRACE_MS: Final = 3_600_000

log = structlog.get_logger(__name__)


class ForeignStore(CatalogError):
    """Raised when the store holds generations that this registry knows nothing of, and nobody said to adopt it."""


async def pointer_of(store: Store) -> Pointer | None:
    """The root pointer; None also if it is damaged: then a higher one is written over it."""
    try:
        return await store.pointer()
    except PointerDamaged as error:
        log.error("the root pointer is damaged; it is written again", reason=str(error))
        return None


class Publisher:
    """Publishes for one epoch at a time. Commit from one task; the other methods may be called from others."""

    def __init__(
        self, registry: Registry, store: Store, clock: Clock, *, adopt: bool = False, metrics: Metrics | None = None
    ) -> None:
        self._registry = registry
        self._store = store
        self._clock = clock
        self._adopt = adopt
        self._metrics = metrics or Metrics()
        self._mirror = Mirror()
        self._compiler = Compiler(self._mirror)
        self._pointer: Pointer | None = None
        self._looked = False
        self._compiled = False
        self._covered = -1
        # Exchanged and never changed in place: `needed` hands it out.
        self._references: Set[bytes] = frozenset()
        self._uploaded: set[bytes] = set()
        self._written = (0, 0)
        self._pinned = Pinned(store)
        self._suspects = Damage()
        # The number that the pointer was found at, below what was published, until it is put right; 0 for no pointer.
        self._fell_to: int | None = None
        self._alarmed: Set[bytes] = frozenset()
        # What the registry's state at this clock did not bring back.
        self._incurable: tuple[int, Set[bytes]] = (-1, frozenset())
        # A tree that is about to be shown again must not be swept in the moment before it is.
        self._sweeping = asyncio.Lock()
        # What time it was, and from here on it is later by as much as has passed, however the clock jumps: an hour of
        # grace is one in which readers have read on.
        self._begun_ms, self._begun_s = clock.now_ms(), clock.monotonic()

    @property
    def problem(self) -> str | None:
        """Why readers do not see what they should, as of the last commit."""
        return self._pinned.problem

    async def check(self) -> None:
        """Raises ForeignStore if publishing here would overwrite generations of another registry."""
        try:
            pointer = await self._store.pointer()
            there = "nothing" if pointer is None else f"generation {pointer.generation}"
        except PointerDamaged:
            pointer, there = None, "a damaged pointer"
        if not self._looked:
            self._looked, self._pointer = True, pointer
        async with self._registry.read() as connection:
            known = await generations.latest(connection)
        if there != "nothing" and not known and not self._adopt:
            raise ForeignStore(
                f"the store has {there}, and the registry has never published any: is this the "
                "right store, and is the registry complete? Point store.url elsewhere, restore the registry, or say "
                "--adopt to publish over it"
            )

    async def upload(self, objects: Iterable[Sealed]) -> None:
        """Writes objects ahead of the commit that will refer to them."""
        await self._write(objects)

    async def commit(self, epoch: int) -> Generation | None:
        """Publishes the registry's state, or notes it if a generation is pinned; None if there is nothing to do.

        A generation that was not `moved` to is held back. Where the pinned tree had to be shown again, that is what is
        returned, and the next commit does the rest.
        Raises Deposed or Fenced if another leads, and StoreError or RegistryError if one is out of reach; the next
        commit makes up for whatever this one has left undone.
        """
        try:
            return await self._commit(epoch)
        except BaseException:
            # What was refreshed may not have been written: the next commit starts from everything there is.
            self._compiled = False
            raise

    def needed(self) -> Set[bytes]:
        """The digests of all that the published and the pinned tree need, and what waits behind the pin, as of now.

        Empty if the last commit did not pass: the next one looks at everything itself.
        """
        if not self._compiled:
            return frozenset()
        return self._references | self._pinned.tree if self._pinned.tree else self._references

    def suspect(self, damage: Damage) -> None:
        """Raises an alarm, and has the next commit write these objects again. Also of none: it then tries again what
        it could not do.
        """
        self._alarm(damage)
        self._suspects.add(damage)
        self._pinned.doubt()

    async def sweep(self, epoch: int, keep: int) -> int:
        """Deletes objects that nothing has needed for an hour; how many that was.

        What is needed: the trees of the last `keep` generations that readers could see, of the pinned one, and of the
        last `keep` that wait behind the pin. The registry forgets old pulls and generations beside it.
        """
        async with self._sweeping:
            # Whatever was uploaded long ago, for a pull that was then given up, may be gone in a moment: from here on
            # it is written again.
            self._uploaded.clear()
            async with self._registry.read() as connection:
                known = await generations.latest(connection, keep, moved=True)
                known += await generations.held(connection, keep)
                pinned = (await generations.standing(connection)).pinned
            live = set(self._references | self._pinned.tree)
            for generation in known if pinned is None else (pinned, *known):
                # Where objects are damaged or lost, all that can still be seen of the tree is kept.
                live |= (await tree.walk(self._store, [generation.digest], live)).found
            now_ms = self._begun_ms + round((self._clock.monotonic() - self._begun_s) * 1000)
            swept = await self._store.sweep(live, epoch=epoch, now_ms=now_ms, grace_ms=SWEEP_GRACE_MS)
        async with self._registry.plain() as connection:
            await pulls.prune(connection, now_ms)
            await generations.prune(connection, max(generations.KEPT, keep))
        return swept

    async def _commit(self, epoch: int) -> Generation | None:
        await self.check()
        pointer = await pointer_of(self._store)
        anew = not self._compiled or pointer != self._pointer
        if anew:
            await self._note_moved(pointer)
        async with self._registry.read() as connection:
            changes = await self._mirror.refresh(connection)
            standing = await generations.standing(connection)
            shown = await _shown(connection, pointer)
            damage = self._take_suspects()
            if anew:
                self._note_fallen_back(pointer, standing)
                damage.add(await self._look_at_all(pointer, standing))
            if anew or damage:
                self._references = self._references - damage.all()
                self._uploaded -= damage.all()
                self._pinned.doubt()
                self._compiler = Compiler(self._mirror)
                changes = self._mirror.everything()
            elif self._is_idle(standing):
                return None
            outdated = self._compiler.outdated(changes)
            texts = await pulls.texts(connection, self._compiler.texts_needed(outdated))
            await self._write(self._compiler.update(changes, outdated, texts))
            await self._write_documents(connection, changes.content)
        if anew or damage:
            held = standing.last if standing.held else None
            await self._write_roots([g for g in (shown, standing.pinned, held) if g is not None])
        new = await self._publish(epoch, pointer, shown, standing)
        if damage:
            await self._note_healed(damage)
        return new

    async def _publish(
        self, epoch: int, pointer: Pointer | None, shown: Generation | None, standing: Standing
    ) -> Generation | None:
        """What was compiled is in the store. Decides whether it is shown, held back, or there already."""
        last, pin = standing.last, standing.pin
        self._metrics.pinned.set(pin is not None)
        self._metrics.held.set(standing.held)
        if self._pinned.number != pin:
            self._pinned = Pinned(self._store, pin)
        if pin is None:
            there = [shown if shown == last else None]
        else:
            # Not of the newest that was seen: the store fell back, and sidecars wait for it to come up again.
            if shown is not None and shown.is_tree_of(pin) and shown == standing.seen:
                await self._pinned.is_whole(shown.digest, self._references | self._uploaded)
            elif (again := await self._show_again(epoch, pointer, standing)) is not None:
                return again
            there = [last if standing.held else None, standing.pinned]
        self._pinned.settled = True
        for same in there:
            if same is not None and self._is_root_of(same):
                self._settle(pointer, same.digest)
                return None
        return await self._announce(epoch, self._compiled_root(), None, pointer, last)

    async def _show_again(self, epoch: int, pointer: Pointer | None, standing: Standing) -> Generation | None:
        """Publishes the pinned tree under a new number; None, and `problem`, if the store has not all of it."""
        pinned = standing.pinned
        if pinned is None:
            self._pinned.is_unknown()
            return None
        async with self._sweeping:
            whole = await self._pinned.is_whole(pinned.digest, self._references | self._uploaded)
            if not whole or self._pinned.root is None:
                self._metrics.refused.labels("pinned tree lost").inc()
                return None
            return await self._announce(epoch, self._pinned.root, pinned.generation, pointer, standing.last)

    async def _announce(
        self, epoch: int, content: Root, shows: int | None, pointer: Pointer | None, last: Generation | None
    ) -> Generation | None:
        """Gives content the next number: writes its root and notes it, then moves the pointer there if that is what the
        pin says in the moment of the note.

        What was held back is returned as not moved to. None if somebody has changed the pin since it was read.
        """
        root = replace(
            content,
            epoch=epoch,
            generation=1 + max(0 if last is None else last.generation, 0 if pointer is None else pointer.generation),
            published_at_ms=self._clock.now_ms(),
            parent=None if pointer is None else pointer.digest,
        )
        sealed = seal_record(root)
        await self._write([sealed])
        new = self._generation(root, sealed.digest, shows)
        async with self._registry.plain() as connection:
            if not await generations.intend(connection, new):
                raise Deposed(f"epoch {epoch} is over: another indexer leads")
            pin = await generations.pin(connection)
        if pin != shows:
            if shows is None:
                self._metrics.held.inc()
                self._settle(pointer, sealed.digest)
                log.info("held back behind the pin", generation=root.generation, pinned=pin, clock=root.clock)
            return new if shows is None else None
        moved = Pointer(root.epoch, root.generation, sealed.digest)
        await self._store.move(moved)  # This makes the generation visible; all that it needs is in the store by now.
        self._fell_to = None
        self._settle(moved, sealed.digest)
        if shows is not None:
            # What was compiled has no root yet, and the tree that is shown is not its.
            self._covered = -1
        self._metrics.last_publish_s.set(self._clock.now_ms() / 1000)
        async with self._registry.plain() as connection:
            await generations.moved(connection, root.generation)
        log.info(
            "published",
            generation=root.generation,
            epoch=root.epoch,
            clock=root.clock,
            objects=new.objects,
            bytes=new.bytes,
            **({} if shows is None else {"shows": shows}),
        )
        return replace(new, moved=True)

    async def _note_moved(self, pointer: Pointer | None) -> None:
        """Makes up for a move that passed, and whose note did not."""
        async with self._registry.read() as connection:
            shown = await _shown(connection, pointer)
        if shown is not None and not shown.moved:
            async with self._registry.plain() as connection:
                await generations.moved(connection, shown.generation)

    def _note_fallen_back(self, pointer: Pointer | None, standing: Standing) -> None:
        """Raises an alarm, once, if the store shows less than readers could see: it is about to be made whole, and
        whatever has emptied it may do so again.
        """
        there = 0 if pointer is None else pointer.generation
        fell_to = None if standing.seen is None or there >= standing.seen.generation else there
        if fell_to not in (None, self._fell_to):
            self._metrics.damage.labels("pointer").inc()
            log.error(
                "the store has lost what was published: it was emptied, or is an older copy",
                shows=there or None,
                published=None if standing.seen is None else standing.seen.generation,
            )
        self._fell_to = fell_to

    async def _look_at_all(self, pointer: Pointer | None, standing: Standing) -> Damage:
        """Reads all that the store should have; `_references` is then what it does have."""
        roots = set() if pointer is None else {pointer.digest}
        if standing.pinned is not None:
            roots.add(standing.pinned.digest)
        if standing.held and standing.last is not None:
            roots.add(standing.last.digest)
        found, damage = await tree.survey(self._store, roots)
        self._references = found - damage.all()
        self._uploaded &= await tree.intact(self._store, self._uploaded)
        self._alarm(damage)
        return damage

    async def _write_roots(self, wanted: Sequence[Generation]) -> None:
        """Writes lost roots again, if what was compiled, or a root that is there, tells all that they said."""
        lost = [generation for generation in wanted if not self._has(generation.digest)]
        if not lost:
            return
        roots = [] if self._pinned.root is None else [self._pinned.root]
        for digest, data in (await self._store.get({g.digest for g in wanted if self._has(g.digest)})).items():
            root = open_record(digest, data, ObjectType.ROOT)
            assert isinstance(root, Root)
            roots.append(root)
        for generation in lost:
            same = [_under_the_name_of(generation, root) for root in (*roots, self._compiled_root())]
            await self._write([sealed for sealed in same if sealed.digest == generation.digest])

    def _is_root_of(self, generation: Generation) -> bool:
        """Whether a generation shows what was compiled, and its root is in the store."""
        if generation.clock != self._mirror.clock or not self._has(generation.digest):
            return False
        return _under_the_name_of(generation, self._compiled_root()).digest == generation.digest

    def _compiled_root(self) -> Root:
        """What was compiled, without a name yet."""
        return self._compiler.root(epoch=0, generation=0, published_at_ms=0, parent=None)

    def _is_idle(self, standing: Standing) -> bool:
        """Whether the last commit has done all there is to do."""
        pinned = self._pinned
        return self._mirror.clock == self._covered and pinned.number == standing.pin and pinned.settled

    def _take_suspects(self) -> Damage:
        """What is to be written again, but for what the same state of the registry could not bring back just now."""
        damage, self._suspects = self._suspects, Damage()
        clock, incurable = self._incurable
        return Damage() if clock == self._mirror.clock and damage.all() <= incurable else damage

    def _generation(self, root: Root, digest: bytes, shows: int | None) -> Generation:
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
            producer=root.producer,
            moved=False,
            shows=shows,
        )

    def _settle(self, pointer: Pointer | None, root: bytes) -> None:
        """What was compiled has this root, and the store this pointer."""
        self._pointer, self._compiled = pointer, True
        self._covered = self._mirror.clock
        self._written = (0, 0)
        self._references = self._compiler.references() | {root}
        self._uploaded -= self._references

    def _alarm(self, damage: Damage) -> None:
        """Says what is damaged, once until it is whole again."""
        new = damage.all() - self._alarmed
        if not new:
            return
        self._metrics.damaged.set(len(damage))
        self._alarmed = self._alarmed | new
        missing, corrupt = damage.missing & new, damage.corrupt & new
        self._metrics.damage.labels("missing").inc(len(missing))
        self._metrics.damage.labels("corrupt").inc(len(corrupt))
        log.error(
            "objects that readers need are damaged in the store; they are written again",
            missing=len(missing),
            corrupt=len(corrupt),
            objects=sorted(digest.hex() for digest in new)[:NAMED],
        )

    async def _note_healed(self, damage: Damage) -> None:
        left = await tree.look(self._store, damage.all())
        healed = damage.all() - left.all()
        self._metrics.healed.inc(len(healed))
        needed = self.needed() & damage.all()
        self._alarmed = (self._alarmed - healed) & needed
        self._incurable = self._mirror.clock, left.all()
        self._metrics.damaged.set(len(left.all() & needed))
        if healed:
            log.info("objects were written again, bit for bit", objects=len(healed))

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
            if not self._has(sealed.digest):
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
        return digest is not None and not self._has(digest)

    def _has(self, digest: bytes) -> bool:
        """Whether the store has this object, and nothing will delete it before the next root needs it."""
        return digest in self._references or digest in self._uploaded or self._pinned.has(digest)

    def _rendered(self, ordinals: Sequence[int], texts: Sequence[bytes]) -> Iterator[Sealed]:
        for ordinal, text in zip(ordinals, texts, strict=True):
            yield render(self._mirror.keys[ordinal], ContentType(self._mirror.types[ordinal]), text)


async def _shown(connection: AsyncConnection, pointer: Pointer | None) -> Generation | None:
    """The generation that a pointer names, if it is one of this registry's."""
    named = None if pointer is None else await generations.find(connection, pointer.generation)
    return named if named is not None and pointer == (named.epoch, named.generation, named.digest) else None


def _under_the_name_of(generation: Generation, root: Root) -> Sealed:
    """The root that a generation of the same tree has: everything that only the registry's row tells is that row's."""
    named = replace(
        root,
        epoch=generation.epoch,
        generation=generation.generation,
        published_at_ms=generation.published_at_ms,
        parent=generation.parent,
        producer=generation.producer,
    )
    return seal_record(named)


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
