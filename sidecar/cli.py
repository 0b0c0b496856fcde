"""The command line: reads the settings, chooses what runs, and turns failures into exit codes.

0 after SIGTERM or SIGINT; 1 if the port or the socket is taken; 2 if the command line or the settings are wrong. Each
failure is one message on standard error, with what to change.
"""

import os
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import click

from sidecar import __version__
from sidecar.log import configure
from sidecar.settings import SettingsError, Unusable, load
from sidecar.sockets import CannotListen


@click.group()
@click.version_option(__version__, prog_name="catalog-sidecar")
def main() -> None:
    """Answers what an enterprise catalog contains, next to the caller."""


@main.command()
@click.option(
    "--config", type=click.Path(path_type=Path), help="Settings (TOML); without it, defaults and environment."
)
def serve(config: Path | None) -> None:
    """Serve until SIGTERM or SIGINT; with several workers, SIGHUP exchanges them one by one."""
    try:
        settings = load(config, os.environ)
    except SettingsError as error:
        _fail(2, str(error))
    configure(settings.log)
    try:
        # Only one of them: what looks after workers has no use for 30 MB of what they do.
        if settings.sidecar.workers == 1:
            import_module("sidecar.process").answer(settings)
        else:
            import_module("sidecar.workers.supervisor").supervise(settings, config, os.environ)
    except Unusable as error:
        _fail(2, str(error))
    except CannotListen as error:
        _fail(1, str(error))


def _fail(code: int, message: str) -> NoReturn:
    click.echo(f"catalog-sidecar: {message}", err=True)
    raise SystemExit(code)
