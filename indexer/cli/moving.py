"""Taking catalogs over from another service, and comparing its answers with ours: import, compare."""

import json
import secrets
import sys
from dataclasses import replace
from pathlib import Path

import click

from indexer.catalog_file import NotCatalogs, read_offers
from indexer.cli.running import (
    Refused,
    config_option,
    json_option,
    run_to_end,
    settings_of,
    token_of,
    token_option,
    who,
    with_registry,
    with_store,
)
from indexer.compare import CATALOGS_A_ROUND, Comparison
from indexer.compare import compare as run_comparison
from indexer.judge import Question, Verdict
from indexer.offer import Offer
from indexer.origin import Origin
from indexer.registry import Registry
from indexer.source.upstream import Door, Limits
from indexer.takeover import Report, take_over
from indexer.wiring import open_credentials, open_source
from sidecar.clock import SystemClock
from sidecar.settings import HTTP_URL, Settings
from sidecar.store import Store


@click.command("import")
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
    settings = settings_of(config)
    if "://" in origin:
        if not HTTP_URL.passes(origin):
            raise Refused(f"--from: a service must be {HTTP_URL.accepts}")
        token = token_of(token_file)
        offers = run_to_end(_offers(settings, origin, token))
    else:
        try:
            with click.open_file(origin, "rb") as file:
                offers = read_offers(file.read(), "<stdin>" if origin == "-" else origin)
        except OSError as error:
            raise Refused(f"--from {origin}: {error.strerror}; name a file or the http:// URL of a service") from error
        except NotCatalogs as error:
            raise Refused(str(error)) from error

    async def run(registry: Registry) -> Report:
        return await take_over(registry, offers, who(), update=update, dry_run=dry_run)

    report = with_registry(settings, run)
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.as_text())
    sys.exit(0 if report.is_whole else 1)


@click.command()
@config_option
@click.option("--with", "other", metavar="URL", help="The other service; else compare.url.")
@click.option("--base", metavar="URL", help="The sidecar that answers for us; else compare.base.")
@token_option
@click.option("--catalogs", type=click.IntRange(1), default=CATALOGS_A_ROUND, show_default=True, help="Size of sample.")
@click.option("--per-second", type=click.FloatRange(0, min_open=True), help="Questions a second; else the setting.")
@click.option("--seed", type=click.IntRange(0), help="Ask the same questions again.")
@json_option
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
    settings = settings_of(config)
    sides = settings.compare
    sides = replace(sides, url=other or sides.url, base=base or sides.base, per_second=per_second or sides.per_second)
    for name, url in (("--with", sides.url), ("--base", sides.base)):
        if not HTTP_URL.passes(url):
            raise Refused(f"{name}: a service must be {HTTP_URL.accepts}")
    file = token_file or (Path(sides.token_file) if sides.token_file else None)
    token = token_of(file)
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

    with_store(settings, run)
    click.echo(json.dumps(told.as_json(), indent=2) if as_json else told.as_text())
    sys.exit(0 if told.is_sound else 1)


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
