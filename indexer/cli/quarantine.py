"""Results of pulls that are held back, and who lets them pass: quarantine list, show, approve, reject, limits.

A decision is written to the registry with who and why; the indexer that serves, or the next build, carries it out.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from sqlalchemy.ext.asyncio import AsyncConnection

from indexer.cli.running import (
    Refused,
    config_option,
    json_option,
    settings_of,
    stripped,
    who,
    why_option,
    with_registry,
)
from indexer.registry import Registry, catalogs, decisions, pulls, quarantine, take_turn
from indexer.registry.catalogs import RegisteredCatalog
from indexer.registry.decisions import Action, Decision
from indexer.registry.pulls import Target
from indexer.registry.quarantine import State
from indexer.validators import Found, Limits, differing
from indexer.wiring import limits_of
from sidecar.contract.words import iso_time

result_option = click.option(
    "--result", metavar="ID", help="Only if this is still the result that is held back; `show` prints the id."
)
RESULT_CHARACTERS = 12
KEYS_SHOWN = 20


class _Number(click.FloatRange):
    """A number in a range; not `nan`, which is in every range, and with which every comparison fails."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


@click.group("quarantine")
def quarantine_group() -> None:
    """Results of pulls that differ too much from what is served, and are held back until somebody decides."""


@quarantine_group.command("list")
@config_option
@json_option
def list_(config: Path | None, as_json: bool) -> None:
    """List the queries of which a result is held back, approved or rejected."""

    async def run(registry: Registry) -> list[tuple[Target, quarantine.Refused]]:
        async with registry.read() as connection:
            refused = {each.hash: each for each in await quarantine.all_refused(connection)}
            return [(t, refused[t.hash]) for t in await pulls.targets(connection) if t.hash in refused]

    them = with_registry(settings_of(config), run)
    if as_json:
        click.echo(json.dumps([_as_json(target, each) for target, each in them], indent=2))
        return
    for target, each in them:
        click.echo(
            f"{each.hash}  {each.state:8}  since {iso_time(each.first_ms)}, {each.times} times  "
            f"{target.catalogs} catalogs  {target.title or ''}"
        )
        for objection in each.objections:
            click.echo(f"    {objection}")


@dataclass(frozen=True, slots=True)
class _Shown:
    target: Target
    refused: quarantine.Refused
    served: Found
    found: Found
    catalogs: list[RegisteredCatalog]
    decisions: list[Decision]


@quarantine_group.command("show")
@config_option
@click.argument("query")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, with all content keys.")
def show(config: Path | None, query: str, as_json: bool) -> None:
    """Show what a result that is held back would take away, and what it would bring.

    QUERY is its hash, id or title.
    """

    async def run(registry: Registry) -> _Shown:
        async with registry.read() as connection:
            target, refused = await _refused(connection, query)
            found = await quarantine.found(connection, target.hash)
            served = await quarantine.served(connection, target.hash)
            assert found is not None
            return _Shown(
                target=target,
                refused=refused,
                served=served or Found({}),
                found=found,
                catalogs=[c for c in await catalogs.select(connection) if c.wanted == target.hash],
                decisions=[d for d in await decisions.made(connection) if d.subject == target.hash],
            )

    shown = with_registry(settings_of(config), run)
    sets = {"members": differing(shown.served.members, shown.found.members)}
    if shown.served.restricted is not None and shown.found.restricted is not None:
        restricted = differing(shown.served.restricted, shown.found.restricted)
        if restricted != sets["members"]:
            sets["with restricted runs shown"] = restricted
    if as_json:
        report = _as_json(shown.target, shown.refused) | {
            "in_catalogs": [{"uuid": c.uuid, "title": c.title, "customer": c.customer} for c in shown.catalogs],
            "differences": {
                name: {"lost": sorted(lost), "gained": sorted(gained)} for name, (lost, gained) in sets.items()
            },
            "decisions": [asdict(decision) for decision in shown.decisions],
        }
        click.echo(json.dumps(report, indent=2))
        return
    refused = shown.refused
    click.echo(f"query    {refused.hash}  {shown.target.title or ''}")
    click.echo(
        f"result   {_id(refused)}, {refused.state}, found {refused.times} times, last {iso_time(refused.last_ms)}"
    )
    for objection in refused.objections:
        click.echo(f"refused  {objection}")
    for catalog in shown.catalogs:
        click.echo(f"catalog  {catalog.uuid}  {catalog.title}")
    for name, (lost, gained) in sets.items():
        _tell(f"lost ({name})", lost)
        _tell(f"gained ({name})", gained)
    for decision in shown.decisions:
        click.echo(f"{iso_time(decision.at_ms)}  {decision.action} by {decision.who}: {decision.why}")


@quarantine_group.command("approve")
@config_option
@click.argument("query", nargs=-1, required=True)
@result_option
@why_option
def approve(config: Path | None, query: tuple[str, ...], result: str | None, why: str) -> None:
    """Let a result that is held back pass: the query is pulled again now, and may find that, or something like it."""
    for target, task in with_registry(settings_of(config), lambda r: _decide(r, query, result, State.APPROVED, why)):
        click.echo(
            f"approved: {target.title or target.hash}; pull {task}, by the indexer that serves or the next build"
        )


@quarantine_group.command("reject")
@config_option
@click.argument("query", nargs=-1, required=True)
@result_option
@why_option
def reject(config: Path | None, query: tuple[str, ...], result: str | None, why: str) -> None:
    """Keep what is served, and be silent for as long as pulls find the same; they go on."""
    for target, _ in with_registry(settings_of(config), lambda r: _decide(r, query, result, State.REJECTED, why)):
        click.echo(f"rejected: {target.title or target.hash}; what it serves stays, and grows old")


@quarantine_group.command("limits")
@config_option
@click.argument("query")
@click.option("--lost", type=_Number(0, 1), help="Share of the members that may be gone; 1: all of them.")
@click.option("--gained", type=_Number(0), help="How many may have come, as a multiple of those there were.")
@click.option("--floor", type=click.IntRange(1), help="Fewer than this many may always be gone, but not the last.")
@click.option("--usual", is_flag=True, help="Take all limits of its own away.")
@click.option("--why", callback=stripped, help="The reason, which is recorded; needed to change something.")
def limits(
    config: Path | None,
    query: str,
    lost: float | None,
    gained: float | None,
    floor: int | None,
    usual: bool,
    why: str | None,
) -> None:
    """Tell the limits of one query, or give it limits of its own.

    QUERY is its hash, id or title. What is not given stays as it is.
    """
    settings = settings_of(config)
    given = {name: value for name, value in (("lost", lost), ("gained", gained), ("floor", floor)) if value is not None}
    if given and usual:
        raise Refused("--usual takes limits away, and the others give some: say one of both")
    if (given or usual) and not why:
        raise Refused("--why: say why the limits change; it is recorded")

    async def run(registry: Registry) -> tuple[Target, dict[str, Any], Limits]:
        async with registry.plain() as connection:
            target = await _target(connection, query)
            own = await quarantine.own_limits(connection, target.query_id)
            if given or usual:
                own = {} if usual else own | given
                await quarantine.set_limits(
                    connection, target.query_id, lost=own.get("lost"), gained=own.get("gained"), floor=own.get("floor")
                )
                now_ms = registry.time.now_ms()
                told = ", ".join(f"{name} {value}" for name, value in own.items()) or "the usual ones"
                await decisions.note(connection, Decision(now_ms, Action.LIMIT, target.hash, who(), f"{told}: {why}"))
                if await quarantine.refused(connection, target.hash) is not None:
                    await pulls.request(connection, target.hash, now_ms)
            return target, own, await quarantine.limits(connection, target.query_id, limits_of(settings))

    target, own, now = with_registry(settings, run)
    click.echo(f"{target.hash}  {target.title or ''}")
    for name in ("lost", "gained", "floor"):
        click.echo(f"    {name:6}  {getattr(now, name)}{'  its own' if name in own else ''}")


async def _decide(
    registry: Registry, queries: Iterable[str], result: str | None, state: State, why: str
) -> list[tuple[Target, str]]:
    """Decides about all of them, or about none; with the ids of the pulls that an approval asks for."""
    decided = []
    action = Action.APPROVE if state is State.APPROVED else Action.REJECT
    async with registry.plain() as connection:
        # First: a pull that ends meanwhile must not put another result under the decision.
        await take_turn(connection)
        for query in dict.fromkeys(queries):
            target, refused = await _refused(connection, query)
            if result is not None and not refused.digest.hex().startswith(result.lower()):
                raise Refused(f"{query!r}: the result that is held back by now is {_id(refused)}, and not {result}")
            await quarantine.decide(connection, target.hash, state)
            now_ms = registry.time.now_ms()
            told = f"{why} ({refused.why}; result {_id(refused)})"
            await decisions.note(connection, Decision(now_ms, action, target.hash, who(), told))
            task = await pulls.request(connection, target.hash, now_ms) if state is State.APPROVED else ""
            decided.append((target, task))
    return decided


async def _target(connection: AsyncConnection, query: str) -> Target:
    for target in await pulls.targets(connection):
        if target.is_called(query):
            return target
    raise Refused(f"no catalog wants a query of hash, id or title {query!r}")


async def _refused(connection: AsyncConnection, query: str) -> tuple[Target, quarantine.Refused]:
    target = await _target(connection, query)
    refused = await quarantine.refused(connection, target.hash)
    if refused is None:
        raise Refused(f"nothing of {query!r} is held back; `catalog-indexer quarantine list` tells what is")
    return target, refused


def _as_json(target: Target, refused: quarantine.Refused) -> dict[str, Any]:
    return {
        "hash": refused.hash,
        "title": target.title,
        "state": refused.state,
        "result": _id(refused),
        "catalogs": target.catalogs,
        "first": iso_time(refused.first_ms),
        "last": iso_time(refused.last_ms),
        "times": refused.times,
        "objections": [asdict(objection) for objection in refused.objections],
    }


def _id(refused: quarantine.Refused) -> str:
    return refused.digest.hex()[:RESULT_CHARACTERS]


def _tell(name: str, keys: Iterable[str]) -> None:
    them = sorted(keys)
    click.echo(f"{name}: {len(them):,}")
    for key in them[:KEYS_SHOWN]:
        click.echo(f"    {key}")
    if len(them) > KEYS_SHOWN:
        click.echo(f"    and {len(them) - KEYS_SHOWN:,} more; --json has all")
