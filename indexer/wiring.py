"""Opening what the settings name: registry, store, source. Nothing else knows which implementation is behind them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from indexer import validators
from indexer.registry import Registry
from indexer.source import Source, SourceError
from indexer.source.discovery import DiscoverySource
from indexer.source.file import FileSource
from indexer.source.upstream import Credentials, GivenToken, Limits, Tokens
from sidecar.clock import Clock
from sidecar.settings import Settings
from sidecar.store import Store
from sidecar.store.urls import open_store


@dataclass(frozen=True, slots=True)
class Parts:
    """What every command of the indexer works on."""

    settings: Settings
    clock: Clock
    registry: Registry
    store: Store
    source: Source


def open_source(settings: Settings, clock: Clock) -> Source:
    """The source of `source.kind`."""
    if settings.source.kind == "file":
        return FileSource(Path(settings.source.path), restricted_runs=settings.source.restricted_runs)
    return DiscoverySource(settings.source, settings.lms, clock)


def limits_of(settings: Settings) -> validators.Limits:
    """How far results may differ, of queries that have no limits of their own."""
    usual = settings.quarantine
    return validators.Limits(lost=usual.lost, gained=usual.gained, floor=usual.floor)


def open_credentials(settings: Settings, token: str, clock: Clock) -> Credentials | None:
    """The token that was handed over; else the OAuth client of [source], if there is one; else none at all."""
    if token:
        return GivenToken(token)
    source = settings.source
    if not (source.oauth_url and source.oauth_client_id and source.oauth_client_secret):
        return None
    limits = Limits(source.timeout_s, source.retries, source.concurrency)
    return Tokens(source.oauth_url, source.oauth_client_id, source.oauth_client_secret, limits, clock)


def read_token(path: Path) -> str:
    """The token in a file. Raises SourceError, which never has it in its text."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it has other characters than a token"
        raise SourceError(f"token file {path}: {reason}") from error
    return checked_token(text, f"token file {path}")


def checked_token(text: str, where: str) -> str:
    """A token that can be sent. Raises SourceError, which never has it in its text."""
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise SourceError(f"{where}: it must hold a token and nothing else, no JWT or Bearer before it")
    return text


@asynccontextmanager
async def opened(settings: Settings, clock: Clock) -> AsyncIterator[Parts]:
    """Everything opened, the registry's tables made or migrated; and closed at the end."""
    source = open_source(settings, clock)
    store = open_store(settings.store.url, writable=True)
    registry = Registry(settings.registry.url, clock)
    try:
        await registry.open()
        yield Parts(settings, clock, registry, store, source)
    finally:
        await source.close()
        await store.close()
        await registry.close()
