"""What readers see: generations, diff, rollback, pin, unpin. Whoever changes that says why, and it is recorded."""

import json
import sys
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click

from indexer import history
from indexer.cli.running import (
    config_option,
    json_option,
    moment,
    settings_of,
    who,
    why_option,
    with_parts,
    with_published,
)
from indexer.diff import Changed, ChangedQuery, Diff, Keys, Named
from indexer.diff import diff as compare
from indexer.history import Entry, History
from indexer.registry import Registry, generations
from indexer.registry.generations import Generation
from indexer.wiring import Parts
from sidecar.store import Store

KEYS_SHOWN: Final = 5
# Which generation makes it true, once readers see it; and what is pinned by it.
Wish = tuple[Callable[[Generation], bool], int | None]


@click.command("generations")
@config_option
@click.option("--last", type=click.IntRange(1), default=20, show_default=True, help="How many, the newest.")
@json_option
def generations_(config: Path | None, last: int, as_json: bool) -> None:
    """List generations: what is published, held back and pinned, whose trees are in the store, and who decided what."""
    found = with_published(settings_of(config), lambda registry, store: history.look(registry, store, last))
    if as_json:
        click.echo(json.dumps(_history_as_json(found), indent=2))
        return
    for entry in found.entries:
        click.echo(_line(entry))
    if not found.entries:
        click.echo("no generation was ever published")
    if found.pin is not None:
        click.echo(f"generation {found.pin} is pinned; {found.held} held back behind it")
    if found.store is not None:
        click.echo(f"the store cannot be read: {found.store}", err=True)
    for made in found.decisions:
        click.echo(f"{moment(made.at_ms)}  {made.action.value} {made.subject}  {made.who}: {made.why}")
    sys.exit(0 if found.store is None else 1)


@click.command("diff")
@config_option
@click.argument("before", type=click.IntRange(1))
@click.argument("after", type=click.IntRange(1))
@json_option
def diff(config: Path | None, before: int, after: int, as_json: bool) -> None:
    """Tell what differs from generation BEFORE to generation AFTER: catalogs, queries, their content, documents."""

    async def run(registry: Registry, store: Store) -> Diff:
        old, new = [await history.find(registry, number) for number in (before, after)]
        return await compare(store, old, new)

    found = with_published(settings_of(config), run)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
        return
    for line in _diff_as_lines(found):
        click.echo(line)
    if found.is_empty():
        click.echo(f"generations {before} and {after} show the same")


@click.command("rollback")
@config_option
@click.argument("generation", type=click.IntRange(1), required=False)
@why_option
def rollback(config: Path | None, generation: int | None, why: str) -> None:
    """Show readers the tree of an earlier GENERATION again, and pin it; by default the one before what they see."""

    async def wish(parts: Parts) -> Wish:
        wanted = await history.roll_back(parts.registry, parts.store, generation, who(), why)
        return lambda served: served.is_tree_of(wanted.generation), wanted.generation

    _carry_out(config, wish)


@click.command("pin")
@config_option
@why_option
def pin(config: Path | None, why: str) -> None:
    """Keep readers on what they see now; whatever is published from here on is held back."""

    async def wish(parts: Parts) -> Wish:
        pinned = await history.pin(parts.registry, parts.store, parts.clock, who(), why)
        return lambda served: served.is_tree_of(pinned.generation), pinned.generation

    _carry_out(config, wish)


@click.command("unpin")
@config_option
@why_option
def unpin(config: Path | None, why: str) -> None:
    """Show readers the newest state again: what was held back is published."""

    async def wish(parts: Parts) -> Wish:
        _, clock = await history.unpin(parts.registry, parts.store, who(), why)
        return lambda served: served.clock >= clock, None

    _carry_out(config, wish)


def _carry_out(config: Path | None, wish: Callable[[Parts], Awaitable[Wish]]) -> None:
    """Notes a wish, and waits until it has come true."""

    async def run(parts: Parts) -> tuple[Generation | None, int | None, int | None]:
        shows, wanted = await wish(parts)
        served = await history.come_true(parts, shows, wanted)
        async with parts.registry.read() as connection:
            return served, wanted, await generations.pin(connection)

    served, wanted, pinned = with_parts(settings_of(config), run)
    if served is None:
        if pinned != wanted:
            said = "it was recorded, and somebody has decided otherwise since: `catalog-indexer generations` says who"
        else:
            said = (
                "it is recorded, and the indexer that leads has not come to it yet; if that one is gone, the next one "
                "to lead will. `catalog-indexer generations` and `/health` say how it stands"
            )
        click.echo(said, err=True)
        sys.exit(1)
    shown = "" if served.shows is None else f", which shows the tree of generation {served.shows}"
    click.echo(f"readers see generation {served.generation}{shown}{', pinned' if pinned is not None else ''}")


def _line(entry: Entry) -> str:
    g = entry.generation
    marks = [entry.state.value]
    marks += [f"shows {g.shows}"] * (g.shows is not None)
    marks += ["served"] * entry.served + ["PINNED"] * entry.pinned
    marks += {None: ["store unknown"], True: [], False: ["not in the store any more"]}[entry.in_store]
    return (
        f"{g.generation:>8}  epoch {g.epoch:<4} {moment(g.published_at_ms)}  "
        f"{g.objects:>8} objects {g.bytes:>14,} bytes  {', '.join(marks)}"
    )


def _history_as_json(found: History) -> dict[str, Any]:
    return {
        "generations": [_entry_as_json(entry) for entry in found.entries],
        "pinned": found.pin,
        "held": found.held,
        "decisions": [asdict(made) for made in found.decisions],
        "store": found.store,
    }


def _entry_as_json(entry: Entry) -> dict[str, Any]:
    g = entry.generation
    return {
        "generation": g.generation,
        "epoch": g.epoch,
        "published_at_ms": g.published_at_ms,
        "shows": g.shows,
        "objects": g.objects,
        "bytes": g.bytes,
        "clock": g.clock,
        "digest": g.digest.hex(),
        "producer": g.producer,
        "state": entry.state.value,
        "served": entry.served,
        "pinned": entry.pinned,
        "in_store": entry.in_store,
    }


def _diff_as_lines(found: Diff) -> Iterable[str]:
    for sign, what, named in (
        ("+", "catalog", found.catalogs_added),
        ("-", "catalog", found.catalogs_removed),
        ("+", "customer", found.customers_added),
        ("-", "customer", found.customers_removed),
    ):
        yield from (_named(sign, what, one) for one in named)
    for what, changed in (("catalog", found.catalogs_changed), ("customer", found.customers_changed)):
        for each in changed:
            yield _named("~", what, each)
            yield from _fields(each.fields)
    for sign, queries in (("+", found.queries_added), ("-", found.queries_removed), ("~", found.queries_changed)):
        for query in queries:
            yield _named(sign, "query", query)
            yield from _fields(query.fields)
            for version, sets in (("v1", query.v1), ("v2", query.v2 or {})):
                yield from (f"    {version} {name}: {_keys(keys)}" for name, keys in sets.items())
            if query.documents:
                yield f"    documents of its own: {_some(query.documents)}"
    for sign, keys in (("+", found.documents_added), ("-", found.documents_removed), ("~", found.documents_changed)):
        if keys:
            yield f"{sign} documents: {_some(keys)}"


def _named(sign: str, what: str, one: Named | Changed | ChangedQuery) -> str:
    return f"{sign} {what} {one.id}  {one.title or ''}".rstrip()


def _fields(changed: dict[str, tuple[Any, Any]]) -> Iterable[str]:
    return (f"    {name}: {was} -> {now}" for name, (was, now) in changed.items())


def _keys(keys: Keys) -> str:
    parts = [f"gained {_some(keys.gained)}"] * bool(keys.gained) + [f"lost {_some(keys.lost)}"] * bool(keys.lost)
    return "; ".join(parts)


def _some(keys: list[str]) -> str:
    more = f", and {len(keys) - KEYS_SHOWN:,} more" if len(keys) > KEYS_SHOWN else ""
    return f"{len(keys):,} ({', '.join(keys[:KEYS_SHOWN])}{more})"
