"""The command line: reads settings, opens what they name, and turns errors into one clear line and an exit code.

0: done; 1: done, and something is wrong that is listed; 2: refused, nothing was changed.
"""

import asyncio
import getpass
import json
import logging
import os
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
import structlog

from indexer import build as building
from indexer import demo as demonstration
from indexer import dump as dumping
from indexer.catalog_body import BadCatalog, read_catalog
from indexer.catalog_file import NotCatalogs, read_bodies, read_offers
from indexer.check import check as check_store
from indexer.compare import CATALOGS_A_ROUND, Comparison
from indexer.compare import compare as run_comparison
from indexer.judge import Question, Verdict
from indexer.metrics import Metrics
from indexer.offer import Offer
from indexer.origin import Origin
from indexer.publication import Publication
from indexer.registry import Registry, catalogs, pulls
from indexer.registry.catalogs import CatalogExists, QueryClash, RegisteredCatalog
from indexer.registry.pulls import Target
from indexer.service import Role
from indexer.service import serve as serve_for_ever
from indexer.source import SourceError
from indexer.source.upstream import Door, Limits
from indexer.status import Status
from indexer.status import status as look
from indexer.takeover import Report, take_over
from indexer.web import make_app
from indexer.wiring import Parts, checked_token, open_credentials, open_source, opened, read_token
from sidecar import __version__
from sidecar.clock import SystemClock
from sidecar.contract.words import canonical_uuid
from sidecar.errors import CatalogError
from sidecar.intake import runner_of
from sidecar.keys import KeysUnusable
from sidecar.log import configure
from sidecar.settings import HTTP_URL, IMPORT_TOKEN_ENV, Settings, SettingsError, load
from sidecar.sockets import CannotListen, listening
from sidecar.store import Store
from sidecar.store.urls import open_store

T = TypeVar("T")
log = structlog.get_logger(__name__)
config_option = click.option(
    "--config",
    "config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Settings file; CATALOG_<SECTION>_<NAME> in the environment overrides it.",
)

token_option = click.option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"File with the token to ask with; else {IMPORT_TOKEN_ENV}, else the OAuth client of [source].",
)


class Refused(click.ClickException):
    """Raised to end with one line on stderr and exit code 2."""

    exit_code = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="catalog-indexer")
def main() -> None:
    """Pulls enterprise catalogs' content, compiles it, and publishes it for sidecars."""


@main.command()
@config_option
@click.option("--adopt", is_flag=True, help="Publish over the generations of another registry that the store holds.")
def serve(config: Path | None, adopt: bool) -> None:
    """Pull what is due, publish what changes, and take writes over HTTP, until stopped."""
    settings = _settings(config)

    async def run(parts: Parts) -> None:
        role, publication, metrics = Role(), Publication(parts.registry), Metrics()
        indexer = settings.indexer
        runner = runner_of(make_app(parts, role, publication, metrics))
        async with listening(runner, indexer.host, indexer.port, section="indexer") as bound:
            log.info("listening", host=bound.host, port=bound.port)
            await serve_for_ever(parts, role, publication, metrics, adopt=adopt)

    _until_stopped(settings, run)


@main.command()
@config_option
@click.option("--query", help="Build this one alone: its hash, id or title.")
@click.option("--adopt", is_flag=True, help="Publish over the generations of another registry that the store holds.")
def build(config: Path | None, query: str | None, adopt: bool) -> None:
    """Pull every query that catalogs want, or one, and publish once."""
    settings = _settings(config)
    built = _with_parts(settings, lambda parts: _build(parts, query, adopt))
    new = built.generation
    if new is None:
        click.echo("nothing to publish: the store shows the registry's state")
    else:
        click.echo(
            f"generation {new.generation}: {len(built.passed)} queries pulled, "
            f"{new.objects} objects of {new.bytes:,} bytes written"
        )
    for target in built.failed:
        click.echo(f"failed: {target.title or target.hash}; `catalog-indexer status` says why", err=True)
    if built.customers_failed:
        click.echo(f"failed: the details of {built.customers_failed} customers", err=True)
    sys.exit(1 if built.failed or built.customers_failed else 0)


@main.command()
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

    for target, task in _with_registry(_settings(config), run):
        click.echo(f"{task}  {target.hash}  {target.title or ''}")


@main.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def status(config: Path | None, as_json: bool) -> None:
    """Say who leads, what is published, and how every query's pulls go."""
    settings = _settings(config)
    now = _with_registry(settings, lambda registry: look(registry, settings))
    click.echo(json.dumps(now.as_json(), indent=2) if as_json else _as_table(now))


@main.command()
@config_option
def check(config: Path | None) -> None:
    """Verify the published object tree, down to the last document."""
    report = _with_store(_settings(config), check_store)
    for problem in report.problems:
        click.echo(problem)
    if report.pointer is not None:
        counted = ", ".join(f"{n} {kind.name.lower()}" for kind, n in sorted(report.objects.items()))
        click.echo(
            f"generation {report.pointer.generation}, epoch {report.pointer.epoch}: {sum(report.objects.values())} "
            f"objects of {report.bytes:,} bytes ({counted}), {len(report.problems)} problems"
        )
    sys.exit(1 if report.problems else 0)


@main.command()
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

    click.echo(json.dumps(_with_store(_settings(config), run), indent=2))


@main.command("import")
@config_option
@click.option("--from", "origin", required=True, metavar="URL|FILE", help="A service, or a JSON file (- is stdin).")
@token_option
@click.option("--update", is_flag=True, help="Change catalogs and queries that exist and say something else.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def import_(
    config: Path | None, origin: str, token_file: Path | None, update: bool, dry_run: bool, as_json: bool
) -> None:
    """Take catalogs and their queries over from a running enterprise-catalog, or from a file.

    A file is what `catalogs add` takes, or a dump of the tables of catalogs and queries (`manage.py dumpdata`). What
    is here already stays as it is. Run again, it changes nothing.
    """
    settings = _settings(config)
    if "://" in origin:
        if not HTTP_URL.passes(origin):
            raise Refused(f"--from: a service must be {HTTP_URL.accepts}")
        token = _token(token_file)
        offers = _run(_offers(settings, origin, token))
    else:
        try:
            with click.open_file(origin, "rb") as file:
                offers = read_offers(file.read(), "<stdin>" if origin == "-" else origin)
        except OSError as error:
            raise Refused(f"--from {origin}: {error.strerror}; name a file or the http:// URL of a service") from error
        except NotCatalogs as error:
            raise Refused(str(error)) from error

    async def run(registry: Registry) -> Report:
        return await take_over(registry, offers, _who(), update=update, dry_run=dry_run)

    report = _with_registry(settings, run)
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.as_text())
    sys.exit(0 if report.is_whole else 1)


@main.command()
@config_option
@click.option("--with", "other", metavar="URL", help="The other service; else compare.url.")
@click.option("--base", metavar="URL", help="The sidecar that answers for us; else compare.base.")
@token_option
@click.option("--catalogs", type=click.IntRange(1), default=CATALOGS_A_ROUND, show_default=True, help="Size of sample.")
@click.option("--per-second", type=click.FloatRange(0, min_open=True), help="Questions a second; else the setting.")
@click.option("--seed", type=click.IntRange(0), help="Ask the same questions again.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def compare(
    config: Path | None,
    other: str | None,
    base: str | None,
    token_file: Path | None,
    catalogs: int,
    per_second: float | None,
    seed: int | None,
    as_json: bool,
) -> None:
    """Ask another service and our sidecar the same questions, and tell every difference that is not meant.

    Ends with 1 if there is one, or if nothing could be compared.
    """
    settings = _settings(config)
    sides = settings.compare
    sides = replace(sides, url=other or sides.url, base=base or sides.base, per_second=per_second or sides.per_second)
    for name, url in (("--with", sides.url), ("--base", sides.base)):
        if not HTTP_URL.passes(url):
            raise Refused(f"{name}: a service must be {HTTP_URL.accepts}")
    file = token_file or (Path(sides.token_file) if sides.token_file else None)
    token = _token(file)
    told = Comparison(secrets.randbelow(1 << 32) if seed is None else seed)

    async def run(store: Store) -> None:
        with click.progressbar(length=0, label="asking", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:

            def planned(questions: int) -> None:
                bar.length = questions

            def heard(question: Question, verdict: Verdict) -> None:
                told.note(question, verdict)
                bar.update(1)

            compared = replace(settings, compare=sides)
            await run_comparison(
                compared, store, SystemClock(), told, heard, token=token, catalogs=catalogs, planned=planned
            )

    _with_store(settings, run)
    click.echo(json.dumps(told.as_json(), indent=2) if as_json else told.as_text())
    sys.exit(0 if told.is_sound else 1)


@main.group("catalogs")
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
    settings = _settings(config)
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
                    new += (await catalogs.create(tx, read_catalog(body), _who(), created_ms))[1]
                except (BadCatalog, CatalogExists, QueryClash) as error:
                    raise Refused(f"{where}: catalog {number} of {len(bodies)}: {error}") from error
        return new, len(bodies)

    new, all_ = _with_registry(settings, run)
    click.echo(f"{new} catalogs added, {all_ - new} were there already")


@catalogs_group.command("list")
@config_option
@click.option("--customer", help="Only those of this enterprise customer.")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON, in the form that `add` reads.")
def list_(config: Path | None, customer: str | None, as_json: bool) -> None:
    """List catalogs in order of creation."""
    wanted = None if customer is None else _uuid(customer)

    async def run(registry: Registry) -> list[RegisteredCatalog]:
        async with registry.read() as connection:
            return await catalogs.select(connection)

    rows = [r for r in _with_registry(_settings(config), run) if wanted in (None, r.customer)]
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
    them = dict.fromkeys(map(_uuid, uuid))

    async def run(registry: Registry) -> None:
        async with registry.write() as tx:
            for each in them:
                await catalogs.remove(tx, each, _who())

    _with_registry(_settings(config), run)
    click.echo(f"{len(them)} catalogs removed")


@main.command()
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


def _settings(config: Path | None) -> Settings:
    try:
        settings = load(config, os.environ)
    except SettingsError as error:
        raise Refused(str(error)) from error
    configure(settings.log)
    return settings


def _run(work: Awaitable[T]) -> T:
    async def run() -> T:
        return await work

    try:
        return asyncio.run(run())
    except (CatalogError, SourceError, CannotListen, KeysUnusable) as error:
        raise Refused(str(error)) from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _with_parts(settings: Settings, work: Callable[[Parts], Awaitable[T]]) -> T:
    async def run() -> T:
        async with opened(settings, SystemClock()) as parts:
            return await work(parts)

    return _run(run())


def _with_registry(settings: Settings, work: Callable[[Registry], Awaitable[T]]) -> T:
    async def run() -> T:
        registry = Registry(settings.registry.url, SystemClock())
        try:
            await registry.open()
            return await work(registry)
        finally:
            await registry.close()

    return _run(run())


def _with_store(settings: Settings, work: Callable[[Store], Awaitable[T]]) -> T:
    async def run() -> T:
        store = open_store(settings.store.url, writable=False)
        try:
            return await work(store)
        finally:
            await store.close()

    return _run(run())


def _until_stopped(settings: Settings, work: Callable[[Parts], Awaitable[None]]) -> None:
    async def run(parts: Parts) -> None:
        working = asyncio.ensure_future(work(parts))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, working.cancel)
        with suppress(asyncio.CancelledError):
            await working

    _with_parts(settings, run)


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


async def _offers(settings: Settings, url: str, token: str) -> list[Offer]:
    """Everything that a service offers, with a bar for each step on a terminal."""
    clock = SystemClock()
    asking = settings.source
    credentials = open_credentials(settings, token, clock)
    door = Door(url, Limits(asking.timeout_s, asking.retries, asking.concurrency), clock, credentials)
    source = open_source(settings, clock)
    try:
        with click.progressbar(length=0, label="reading", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:

            def progress(step: str, of: int) -> None:
                if bar.label != step:
                    bar.label, bar.pos, bar.length = step, 0, of
                bar.update(1)

            return await Origin(door, source, clock, progress).offers()
    finally:
        await door.close()
        await source.close()
        if credentials is not None:
            await credentials.close()


def _token(file: Path | None) -> str:
    """The token that was handed over; an empty text if none was."""
    try:
        if file is not None:
            return read_token(file)
        given = os.environ.get(IMPORT_TOKEN_ENV)
        return "" if given is None else checked_token(given.strip(), IMPORT_TOKEN_ENV)
    except SourceError as error:
        raise Refused(str(error)) from error


def _milliseconds(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise Refused(f"--created {text!r} is not an ISO 8601 time, such as 2026-01-31T12:00:00Z") from error
    milliseconds = round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    if milliseconds < 0:
        raise Refused(f"--created {text!r} is before 1970")
    return milliseconds


def _who() -> str:
    try:
        return f"cli:{getpass.getuser()}"
    except (OSError, KeyError):  # A number without a name, as in a container.
        return f"cli:{os.getuid()}"


def _uuid(text: str) -> str:
    uuid = canonical_uuid(text)
    if uuid is None:
        raise Refused(f"{text!r} is not a uuid")
    return uuid


def _as_table(now: Status) -> str:
    published = "never"
    if now.published_at_ms is not None:
        published = datetime.fromtimestamp(now.published_at_ms / 1000, UTC).isoformat(timespec="seconds")
    lines = [
        f"status      {now.status}",
        f"leader      {now.holder or 'nobody'}, epoch {now.epoch}",
        f"generation  {now.generation or 'none'}, published {published}",
        f"registry    clock {now.clock}, {now.behind} changes not published yet",
        f"queries     {len(now.queries)} wanted by catalogs",
    ]
    if now.customers_overdue:
        lines.append(f"customers   {now.customers_overdue} whose details are overdue")
    if now.budget is not None:
        enough = "enough for the freshness promise"
        if now.budget.exceeds_promise_s:
            enough = f"TOO FEW: pulling all exceeds the freshness promise by {now.budget.exceeds_promise_s} s"
        needed, allowed = now.budget.requests_per_refresh, now.budget.requests_per_hour
        lines.append(f"requests    {needed} to pull all, {allowed} an hour: {enough}")
    for query in now.queries:
        age = "never pulled" if query.age_s is None else f"{query.age_s} s old"
        lines.append(
            f"  {query.hash}  {query.state:10}  {age:>14}{'  STALE' if query.stale else ''}  "
            f"{query.catalogs} catalogs  {query.title or ''}"
        )
        if query.error:
            lines.append(f"      {query.error}")
    return "\n".join(lines)
