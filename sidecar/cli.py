"""The command line: reads the settings, builds what lies outside of the process, and turns failures into exit codes.

0 after SIGTERM or SIGINT; 1 if the port or the socket is taken; 2 if the command line or the settings are wrong. Each
failure is one message on standard error, with what to change.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Final, NoReturn

import click
import uvloop

from sidecar import __version__, collector
from sidecar.app import serve as serve_until
from sidecar.clock import SystemClock
from sidecar.errors import StoreError
from sidecar.keys import KeysUnusable
from sidecar.log import configure
from sidecar.settings import Settings, SettingsError, load
from sidecar.sockets import CannotListen
from sidecar.store.urls import open_store

# A generation is opened and joined in a thread, and each request waits so long for its turn: CPython's own is 5 ms. The
# thread gets no less done for it, measured down to half of this.
SWITCH_INTERVAL_S: Final = 0.0001


@click.group()
@click.version_option(__version__, prog_name="catalog-sidecar")
def main() -> None:
    """Answers what an enterprise catalog contains, next to the caller."""


@main.command()
@click.option(
    "--config", type=click.Path(path_type=Path), help="Settings (TOML); without it, defaults and environment."
)
def serve(config: Path | None) -> None:
    """Serve until SIGTERM or SIGINT."""
    try:
        settings = load(config, os.environ)
    except SettingsError as error:
        _fail(2, str(error))
    configure(settings.log)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    collector.take_over()
    try:
        uvloop.run(_serve(settings))
    except (StoreError, KeysUnusable) as error:
        _fail(2, str(error))
    except CannotListen as error:
        _fail(1, str(error))


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve_until(settings, open_store(settings.store.url, writable=False), SystemClock(), stop)


def _fail(code: int, message: str) -> NoReturn:
    click.echo(f"catalog-sidecar: {message}", err=True)
    raise SystemExit(code)
