"""The command line: which commands there are. A file here has those of one purpose; `running` what all stand on."""

import click

from indexer.cli.catalogs import catalogs_group
from indexer.cli.generations import diff, generations_, pin, rollback, unpin
from indexer.cli.moving import compare, import_
from indexer.cli.quarantine import quarantine_group
from indexer.cli.serving import build, check, demo, dump, refresh, serve, status
from sidecar import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="catalog-indexer")
def main() -> None:
    """Pulls enterprise catalogs' content, compiles it, and publishes it for sidecars."""


for command in (serve, build, refresh, status, check, dump, import_, compare, catalogs_group, quarantine_group, demo):
    main.add_command(command)
for command in (generations_, diff, rollback, pin, unpin):
    main.add_command(command)
