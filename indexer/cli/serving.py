"""Pulling, publishing, and looking at what is published: serve, build, refresh, status, check, dump, demo."""

import json
import logging
import sys
from pathlib import Path

import click
import structlog

from indexer import build as building
from indexer import demo as demonstration
from indexer import dump as dumping
from indexer.check import check as check_store
from indexer.cli.running import (
    config_option,
    json_option,
    moment,
    settings_of,
    until_stopped,
    with_parts,
    with_registry,
    with_store,
)
from indexer.metrics import Metrics
from indexer.publication import Publication
from indexer.registry import Registry, pulls
from indexer.registry.pulls import Target
from indexer.service import Role
from indexer.service import serve as serve_for_ever
from indexer.status import Status
from indexer.status import status as look
from indexer.web import make_app
from indexer.wiring import Parts
from sidecar.intake import runner_of
from sidecar.sockets import listening
from sidecar.store import Store

log = structlog.get_logger(__name__)


@click.command()
@config_option
@click.option("--adopt", is_flag=True, help="Publish over the generations of another registry that the store holds.")
def serve(config: Path | None, adopt: bool) -> None:
    """Pull what is due, publish what changes, and take writes over HTTP, until stopped."""
    settings = settings_of(config)

    async def run(parts: Parts) -> None:
        role, publication, metrics = Role(), Publication(parts.registry), Metrics()
        indexer = settings.indexer
        runner = runner_of(make_app(parts, role, publication, metrics))
        async with listening(runner, indexer.host, indexer.port, section="indexer") as bound:
            log.info("listening", host=bound.host, port=bound.port)
            await serve_for_ever(parts, role, publication, metrics, adopt=adopt)

    until_stopped(settings, run)


@click.command()
@config_option
@click.option("--query", help="Build this one alone: its hash, id or title.")
@click.option("--adopt", is_flag=True, help="Publish over the generations of another registry that the store holds.")
def build(config: Path | None, query: str | None, adopt: bool) -> None:
    """Pull every query that catalogs want, or one, and publish once."""
    settings = settings_of(config)
    built = with_parts(settings, lambda parts: _build(parts, query, adopt))
    new = built.generation
    if new is None:
        held = "" if built.pinned is None else f"; generation {built.pinned} is pinned"
        click.echo(f"nothing to publish: the store shows the registry's state{held}")
    elif not new.moved:
        click.echo(
            f"generation {new.generation}: {len(built.passed)} queries pulled, held back: generation {built.pinned} is "
            "pinned; `catalog-indexer unpin` publishes what has been held back"
        )
    else:
        click.echo(
            f"generation {new.generation}: {len(built.passed)} queries pulled, "
            f"{new.objects} objects of {new.bytes:,} bytes written"
        )
    for target in built.held:
        click.echo(f"held back: {target.title or target.hash}; see `catalog-indexer quarantine show`", err=True)
    for target in built.failed:
        click.echo(f"failed: {target.title or target.hash}; `catalog-indexer status` says why", err=True)
    if built.customers_failed:
        click.echo(f"failed: the details of {built.customers_failed} customers", err=True)
    sys.exit(1 if built.failed or built.held or built.customers_failed else 0)


@click.command()
@config_option
@click.argument("query", nargs=-1)
def refresh(config: Path | None, query: tuple[str, ...]) -> None:
    """Ask the indexer that serves to pull queries again now: these (hash, id or title), or all that catalogs want."""

    async def run(registry: Registry) -> list[tuple[Target, str]]:
        async with registry.plain() as connection:
            targets = await pulls.targets(connection)
            for one in query:
                if not any(t.is_called(one) for t in targets):
                    raise building.NoSuchQuery(f"no catalog wants a query of hash, id or title {one!r}")
            wanted = [t for t in targets if not query or any(t.is_called(one) for one in query)]
            now_ms = registry.time.now_ms()
            return [(t, await pulls.request(connection, t.hash, now_ms)) for t in wanted]

    for target, task in with_registry(settings_of(config), run):
        click.echo(f"{task}  {target.hash}  {target.title or ''}")


@click.command()
@config_option
@json_option
def status(config: Path | None, as_json: bool) -> None:
    """Say who leads, what is published, and how every query's pulls go."""
    settings = settings_of(config)
    now = with_registry(settings, lambda registry: look(registry, settings))
    click.echo(json.dumps(now.as_json(), indent=2) if as_json else _as_table(now))


@click.command()
@config_option
def check(config: Path | None) -> None:
    """Verify the published object tree, down to the last document."""
    report = with_store(settings_of(config), check_store)
    for problem in report.problems:
        click.echo(problem)
    if report.pointer is not None:
        counted = ", ".join(f"{n} {kind.name.lower()}" for kind, n in sorted(report.objects.items()))
        click.echo(
            f"generation {report.pointer.generation}, epoch {report.pointer.epoch}: {sum(report.objects.values())} "
            f"objects of {report.bytes:,} bytes ({counted}), {len(report.problems)} problems"
        )
    sys.exit(1 if report.problems else 0)


@click.command()
@config_option
@click.argument("what")
def dump(config: Path | None, what: str) -> None:
    """Print an object as JSON.

    WHAT is `root`, a digest, the beginning of a digest that the root names, or the uuid or query hash of a record.
    """

    async def run(store: Store) -> object:
        if len(what.replace("-", "")) == 32:
            return await dumping.find_record(store, what)
        digest, record = await dumping.find(store, what)
        return {"digest": digest, "type": record.TYPE.name, "record": dumping.readable(record)}

    click.echo(json.dumps(with_store(settings_of(config), run), indent=2))


@click.command()
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("var/demo"),
    show_default=True,
    help="Where everything that the demo makes is kept.",
)
@click.option("--courses", type=click.IntRange(40), default=300, show_default=True, help="Size of the sample corpus.")
@click.option("--indexer-port", type=click.IntRange(0, 65535), default=18170, show_default=True)
@click.option("--sidecar-port", type=click.IntRange(0, 65535), default=18160, show_default=True)
def demo(directory: Path, courses: int, indexer_port: int, sidecar_port: int) -> None:
    """Run an indexer and a sidecar over an invented corpus, until Ctrl-C."""
    sys.exit(demonstration.run(directory, courses, indexer_port, sidecar_port))


async def _build(parts: Parts, query: str | None, adopt: bool) -> building.Built:
    terminal = sys.stderr.isatty()
    if terminal and parts.settings.log.level == "info":
        logging.getLogger().setLevel(logging.WARNING)  # The bar says the same.
    with click.progressbar(length=0, label="pulling", file=sys.stderr, hidden=not terminal) as bar:

        def progress(target: Target | None, of: int) -> None:
            if bar.length:
                bar.update(1)
            bar.length = of
            bar.label = "publishing" if target is None else f"pulling {target.title or target.hash:.30}"
            bar.render_progress()

        return await building.build(parts, query=query, adopt=adopt, progress=progress)


def _as_table(now: Status) -> str:
    published = "never"
    if now.published_at_ms is not None:
        published = moment(now.published_at_ms)
    lines = [
        f"status      {now.status}",
        f"leader      {now.holder or 'nobody'}, epoch {now.epoch}",
        f"generation  {now.generation or 'none'}, published {published}",
        f"registry    clock {now.clock}, {now.behind} changes not published yet",
        f"queries     {len(now.queries)} wanted by catalogs",
    ]
    if now.pinned is not None:
        lines.append(
            f"pinned      generation {now.pinned}, {now.held} held back behind it; `catalog-indexer generations` says "
            "why, and `catalog-indexer unpin` ends it"
        )
    if now.customers_overdue:
        lines.append(f"customers   {now.customers_overdue} whose details are overdue")
    if now.quarantined:
        lines.append(
            f"quarantine  {now.quarantined} results are held back; `catalog-indexer quarantine list` tells them"
        )
    if now.budget is not None:
        enough = "enough for the freshness promise"
        if now.budget.exceeds_promise_s:
            enough = f"TOO FEW: pulling all exceeds the freshness promise by {now.budget.exceeds_promise_s} s"
        needed, allowed = now.budget.requests_per_refresh, now.budget.requests_per_hour
        lines.append(f"requests    {needed} to pull all, {allowed} an hour: {enough}")
    for query in now.queries:
        age = "never pulled" if query.age_s is None else f"{query.age_s} s old"
        lines.append(
            f"  {query.hash}  {query.state:11}  {age:>14}{'  STALE' if query.stale else ''}  "
            f"{query.catalogs} catalogs  {query.title or ''}"
        )
        if query.error:
            lines.append(f"      {query.error}")
    return "\n".join(lines)
