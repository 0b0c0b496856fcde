"""Catalogs in the registry: catalogs add, list, remove."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from indexer.catalog_body import BadCatalog, read_catalog
from indexer.catalog_file import NotCatalogs, read_bodies
from indexer.cli.running import Refused, config_option, settings_of, uuid_of, who, with_registry
from indexer.registry import Registry, catalogs
from indexer.registry.catalogs import CatalogExists, QueryClash, RegisteredCatalog


@click.group("catalogs")
def catalogs_group() -> None:
    """Catalogs in the registry; a running `serve` follows what changes here."""


@catalogs_group.command("add")
@config_option
@click.argument("file", type=click.File("rb"))
@click.option("--created", metavar="TIME", help="Say that they were made then (ISO 8601), as when moving registries.")
def add(config: Path | None, file: Any, created: str | None) -> None:
    """Add catalogs from a JSON FILE, or from standard input (-).

    It holds one catalog in the fields of enterprise-catalog's API, a list of them, or an object whose `catalogs` is
    such a list. All are added, or none is.
    """
    settings = settings_of(config)
    where = getattr(file, "name", "<stdin>")
    try:
        bodies = read_bodies(file.read(), where)
    except NotCatalogs as error:
        raise Refused(str(error)) from error
    created_ms = None if created is None else _milliseconds(created)

    async def run(registry: Registry) -> tuple[int, int]:
        new = 0
        async with registry.write() as tx:
            for number, body in enumerate(bodies, start=1):
                try:
                    new += (await catalogs.create(tx, read_catalog(body), who(), created_ms))[1]
                except (BadCatalog, CatalogExists, QueryClash) as error:
                    raise Refused(f"{where}: catalog {number} of {len(bodies)}: {error}") from error
        return new, len(bodies)

    new, all_ = with_registry(settings, run)
    click.echo(f"{new} catalogs added, {all_ - new} were there already")


@catalogs_group.command("list")
@config_option
@click.option("--customer", help="Only those of this enterprise customer.")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON, in the form that `add` reads.")
def list_(config: Path | None, customer: str | None, as_json: bool) -> None:
    """List catalogs in order of creation."""
    wanted = None if customer is None else uuid_of(customer)

    async def run(registry: Registry) -> list[RegisteredCatalog]:
        async with registry.read() as connection:
            return await catalogs.select(connection)

    rows = [r for r in with_registry(settings_of(config), run) if wanted in (None, r.customer)]
    if as_json:
        click.echo(json.dumps([catalogs.as_body(row) for row in rows], indent=2))
        return
    for row in rows:
        click.echo(f"{row.uuid}  {row.customer}  {row.query_title or row.wanted}  {row.title}")


@catalogs_group.command("remove")
@config_option
@click.argument("uuid", nargs=-1, required=True)
def remove(config: Path | None, uuid: tuple[str, ...]) -> None:
    """Remove catalogs: all of these, or none."""
    them = dict.fromkeys(map(uuid_of, uuid))

    async def run(registry: Registry) -> None:
        async with registry.write() as tx:
            for each in them:
                await catalogs.remove(tx, each, who())

    with_registry(settings_of(config), run)
    click.echo(f"{len(them)} catalogs removed")


def _milliseconds(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise Refused(f"--created {text!r} is not an ISO 8601 time, such as 2026-01-31T12:00:00Z") from error
    milliseconds = round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    if milliseconds < 0:
        raise Refused(f"--created {text!r} is before 1970")
    return milliseconds
