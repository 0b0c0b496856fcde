"""Generations as people see them: which there are, and what somebody wishes readers to see: a rollback, a pin, no pin.

A wish is one transaction in the registry, together with who wished it and why; the indexer that leads follows it within
half a second, and whoever leads after it. Nothing else is needed for it to come true, and no process is asked. Where
nobody leads, or the leader has died, the command leads for as long as that takes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from indexer import tree
from indexer.build import while_leading
from indexer.leadership import AnotherLeads
from indexer.publish import Publisher, render_again
from indexer.registry import Registry, decisions, generations, lead, take_turn
from indexer.registry.decisions import Action, Decision
from indexer.registry.generations import Generation, Standing
from indexer.wiring import Parts
from sidecar.clock import Clock
from sidecar.errors import CatalogError
from sidecar.store import Store

WAIT_S: Final = 10.0
LOOK_EVERY_S: Final = 0.1
# A leader that gives no sign of life for a lease is dead; a little longer shows that it gives some.
DEAD_LEASES: Final = 1.5
# A publication that is under way ends within moments, if it is not one that somebody has died in.
IN_FLIGHT_LOOKS: Final = 20
DECISIONS: Final = 10
KNOWN: Final = "`catalog-indexer generations` lists those that are"


class NoSuchGeneration(CatalogError):
    """Raised when the registry knows no generation of a number."""


class TreeLost(CatalogError):
    """Raised when the store has not all of a generation's tree any more."""


class NothingToDo(CatalogError):
    """Raised when readers are shown already what somebody wishes them to be shown, or nothing is pinned."""


class _InFlight(Exception):
    """Raised to end a transaction in which a publication turned out to be under way."""


class State(StrEnum):
    """Whether readers could see a generation: yes; not while another one is pinned; or never, it was not finished."""

    PUBLISHED = "published"
    HELD = "held back"
    UNSEEN = "never shown"


@dataclass(frozen=True, slots=True)
class Entry:
    """One generation. `in_store`: whether the store has its tree, as far as what lies above documents and bitmaps
    tells; None if the store is out of reach.
    """

    generation: Generation
    state: State
    served: bool
    pinned: bool
    in_store: bool | None


@dataclass(frozen=True, slots=True)
class History:
    """The newest generations and the latest decisions, newest first. `held` are behind the pin, also those not listed.

    `store`: what is wrong with the store, if it could not be read.
    """

    entries: list[Entry]
    pin: int | None
    held: int
    decisions: list[Decision]
    store: str | None


async def look(registry: Registry, store: Store, count: int) -> History:
    """The history, as registry and store tell it."""
    async with registry.read() as connection:
        standing = await generations.standing(connection)
        known = await generations.latest(connection, count)
        waiting = {g.generation for g in await generations.held(connection, count)}
        made = await decisions.made(connection, DECISIONS)
    if standing.pinned is not None and standing.pinned not in known:
        known.append(standing.pinned)
    problem: str | None = None
    served: Generation | None = None
    there: dict[int, bool | None] = {}
    try:
        served = await _served(registry, store)
        seen: set[bytes] = set()
        for generation in known:
            walked = await tree.walk(store, [generation.digest], seen)
            there[generation.generation] = not walked.broken
            seen |= walked.opened
    except CatalogError as error:
        problem = str(error)
    entries = [
        Entry(
            generation=g,
            state=State.PUBLISHED if g.moved else State.HELD if g.generation in waiting else State.UNSEEN,
            served=served is not None and g.generation == served.generation,
            pinned=g.generation == standing.pin,
            in_store=there.get(g.generation),
        )
        for g in known
    ]
    return History(entries, standing.pin, standing.held, made, problem)


async def roll_back(registry: Registry, store: Store, number: int | None, who: str, why: str) -> Generation:
    """Wishes readers to see a generation's tree again, and to stay there; by default the one before what they see.

    Returns it. Raises NoSuchGeneration, TreeLost, NothingToDo, StoreError, RegistryError; then nothing was changed.
    """
    served = await _served(registry, store)
    async with registry.read() as connection:
        pin = await generations.pin(connection)
    wanted = await _wanted(registry, served, number)
    if served is not None and served.is_tree_of(wanted.generation) and pin in (None, wanted.generation):
        more = "" if pin is not None else "; `catalog-indexer pin` keeps them there"
        raise NothingToDo(f"readers see generation {wanted.generation} already{more}")
    _, damage = await tree.survey(store, [wanted.digest])
    if damage:
        raise TreeLost(
            f"the tree of generation {wanted.generation} is not whole in the store any more: {len(damage.missing)} of "
            f"its objects are missing, {len(damage.corrupt)} corrupt; {KNOWN} (store.keep_generations says how many "
            "are kept)"
        )
    async with registry.plain() as connection:
        await generations.set_pin(connection, wanted.generation)
        made = Decision(registry.time.now_ms(), Action.ROLLBACK, str(wanted.generation), who, why)
        await decisions.note(connection, made)
    return wanted


async def pin(registry: Registry, store: Store, clock: Clock, who: str, why: str) -> Generation:
    """Wishes readers to stay on what they see, and returns that. Raises NothingToDo, StoreError, RegistryError."""
    looks = 0
    while True:
        looks += 1
        served = await _served(registry, store)
        if served is None:
            raise NothingToDo("the store shows no generation that this registry has published: there is nothing to pin")
        try:
            await _pin(registry, served, who, why, certain=looks < IN_FLIGHT_LOOKS)
        except _InFlight:
            await clock.sleep(LOOK_EVERY_S)
        else:
            return served


async def unpin(registry: Registry, store: Store, who: str, why: str) -> tuple[int, int]:
    """Wishes readers to see the newest state; the generation that was pinned, and the registry's clock by now.

    Raises NothingToDo, StoreError, RegistryError.
    """
    await store.pointer()  # Whoever unpins expects to see it happen.
    async with registry.plain() as connection:
        await take_turn(connection)
        number = await generations.pin(connection)
        if number is None:
            raise NothingToDo("no generation is pinned")
        await generations.set_pin(connection, None)
        await decisions.note(connection, Decision(registry.time.now_ms(), Action.UNPIN, str(number), who, why))
        return number, await generations.clock(connection)


async def come_true(parts: Parts, shows: Callable[[Generation], bool], pin: int | None) -> Generation | None:
    """Waits until readers see a generation of which this is true, or leads until they do if nobody else leads.

    Returns it. None if the leader has not come to it in time, and is alive: then it will, or whoever leads next. None
    also if this is not what is pinned any more: somebody has wished otherwise.
    """
    until_s = parts.clock.monotonic() + WAIT_S
    while True:
        served = await _served(parts.registry, parts.store)
        if served is not None and shows(served):
            return served
        async with parts.registry.read() as connection:
            if await generations.pin(connection) != pin:
                return None
        if parts.clock.monotonic() >= until_s:
            # One that was killed leads until somebody else does.
            if not await _lead(parts, patience=DEAD_LEASES):
                return None
        elif (await lead.observe(parts.registry)).holder is None:
            await _lead(parts)
        else:
            await parts.clock.sleep(LOOK_EVERY_S)


async def _lead(parts: Parts, patience: float = 0) -> bool:
    """Carries out what is wished, as the leader; False if another one leads, and went on for so many leases."""
    publisher = Publisher(parts.registry, parts.store, parts.clock)
    await publisher.check()
    try:
        await while_leading(parts, lambda epoch: _commit(parts, publisher, epoch), patience=patience)
    except AnotherLeads:
        return False
    return True


async def _commit(parts: Parts, publisher: Publisher, epoch: int) -> None:
    await render_again(parts.registry, epoch)
    while await publisher.commit(epoch) is not None:
        pass
    if publisher.problem is not None:
        raise TreeLost(publisher.problem)


async def _served(registry: Registry, store: Store) -> Generation | None:
    """What readers see, if it is one of this registry's."""
    pointer = await store.pointer()
    if pointer is None:
        return None
    async with registry.read() as connection:
        named = await generations.find(connection, pointer.generation)
    return named if named is not None and named.digest == pointer.digest else None


async def find(registry: Registry, number: int) -> Generation:
    """The generation of a number. Raises NoSuchGeneration."""
    async with registry.read() as connection:
        found = await generations.find(connection, number)
    if found is None:
        raise NoSuchGeneration(f"no generation {number} is known here; {KNOWN}")
    return found


async def _wanted(registry: Registry, served: Generation | None, number: int | None) -> Generation:
    if number is not None:
        return await find(registry, number)
    if served is None:
        raise NoSuchGeneration(f"the store shows no generation of this registry: name the one to roll back to; {KNOWN}")
    shown = served.generation if served.shows is None else served.shows
    async with registry.read() as connection:
        before = await generations.before(connection, shown)
    if before is None:
        raise NoSuchGeneration(f"no generation before {shown} is known here: there is nothing to roll back to")
    return before


async def _pin(registry: Registry, served: Generation, who: str, why: str, *, certain: bool) -> None:
    async with registry.plain() as connection:
        # First: whoever is about to publish gives its number before this, and is seen below, or after it, and sees the
        # pin; and so does whoever else wishes something.
        await take_turn(connection)
        standing = await generations.standing(connection)
        if standing.pin is not None:
            raise NothingToDo(f"generation {standing.pin} is pinned already")
        if certain and _is_under_way(standing, served):
            raise _InFlight
        await generations.set_pin(connection, served.generation)
        made = Decision(registry.time.now_ms(), Action.PIN, str(served.generation), who, why)
        await decisions.note(connection, made)


def _is_under_way(standing: Standing, served: Generation) -> bool:
    """Whether a number was given after that of what is served: its pointer may move at any moment."""
    return standing.last is not None and standing.last.generation > served.generation
