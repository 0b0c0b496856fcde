"""What every command stands on: settings, opening what they name, and errors as one clear line and an exit code.

0: done; 1: done, and something is wrong that is listed; 2: refused, nothing was changed.
"""

import asyncio
import getpass
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import click

from indexer.registry import Registry
from indexer.source import SourceError
from indexer.wiring import Parts, checked_token, opened, read_token
from sidecar.clock import SystemClock
from sidecar.contract.words import canonical_uuid
from sidecar.errors import CatalogError
from sidecar.keys import KeysUnusable
from sidecar.log import configure
from sidecar.settings import IMPORT_TOKEN_ENV, Settings, SettingsError, load
from sidecar.sockets import CannotListen
from sidecar.store import Store
from sidecar.store.urls import open_store

T = TypeVar("T")
config_option = click.option(
    "--config",
    "config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Settings file; CATALOG_<SECTION>_<NAME> in the environment overrides it.",
)


def stripped(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """The text of an option without the space around it. Raises Refused if nothing is left of one that was given."""
    if value is not None and not value.strip():
        raise Refused("--why is empty: say why, for whoever reads `catalog-indexer generations` later")
    return None if value is None else value.strip()


why_option = click.option("--why", required=True, callback=stripped, help="The reason, which is recorded.")

token_option = click.option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"File with the token to ask with; else {IMPORT_TOKEN_ENV}, else the OAuth client of [source].",
)


json_option = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")


class Refused(click.ClickException):
    """Raised to end with one line on stderr and exit code 2."""

    exit_code = 2


def settings_of(config: Path | None) -> Settings:
    """The settings of a file and the environment; logging is set up by them."""
    try:
        settings = load(config, os.environ)
    except SettingsError as error:
        raise Refused(str(error)) from error
    configure(settings.log)
    return settings


def run_to_end(work: Awaitable[T]) -> T:
    """What the work returns; what it refuses becomes one line."""

    async def run() -> T:
        return await work

    try:
        return asyncio.run(run())
    except (CatalogError, SourceError, CannotListen, KeysUnusable) as error:
        raise Refused(str(error)) from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def with_parts(settings: Settings, work: Callable[[Parts], Awaitable[T]]) -> T:
    """Runs work over everything that the settings name."""

    async def run() -> T:
        async with opened(settings, SystemClock()) as parts:
            return await work(parts)

    return run_to_end(run())


def with_registry(settings: Settings, work: Callable[[Registry], Awaitable[T]]) -> T:
    """Runs work over the registry alone."""

    async def run() -> T:
        registry = Registry(settings.registry.url, SystemClock())
        try:
            await registry.open()
            return await work(registry)
        finally:
            await registry.close()

    return run_to_end(run())


def with_store(settings: Settings, work: Callable[[Store], Awaitable[T]]) -> T:
    """Runs work over the store alone, which is opened for reading."""

    async def run() -> T:
        store = open_store(settings.store.url, writable=False)
        try:
            return await work(store)
        finally:
            await store.close()

    return run_to_end(run())


def with_published(settings: Settings, work: Callable[[Registry, Store], Awaitable[T]]) -> T:
    """Runs work over the registry and the store, which is opened for reading."""

    async def run(registry: Registry) -> T:
        store = open_store(settings.store.url, writable=False)
        try:
            return await work(registry, store)
        finally:
            await store.close()

    return with_registry(settings, run)


def until_stopped(settings: Settings, work: Callable[[Parts], Awaitable[None]]) -> None:
    """Runs work over everything until a signal ends it."""

    async def run(parts: Parts) -> None:
        working = asyncio.ensure_future(work(parts))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, working.cancel)
        with suppress(asyncio.CancelledError):
            await working

    with_parts(settings, run)


def token_of(file: Path | None) -> str:
    """The token that was handed over; an empty text if none was."""
    try:
        if file is not None:
            return read_token(file)
        given = os.environ.get(IMPORT_TOKEN_ENV)
        return "" if given is None else checked_token(given.strip(), IMPORT_TOKEN_ENV)
    except SourceError as error:
        raise Refused(str(error)) from error


def who() -> str:
    """Who is recorded as having given a command."""
    try:
        return f"cli:{getpass.getuser()}"
    except (OSError, KeyError):  # A number without a name, as in a container.
        return f"cli:{os.getuid()}"


def uuid_of(text: str) -> str:
    """A uuid as it is stored. Raises Refused."""
    uuid = canonical_uuid(text)
    if uuid is None:
        raise Refused(f"{text!r} is not a uuid")
    return uuid


def moment(ms: int) -> str:
    """A time as tables show it: ISO 8601, to the second."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds")
