"""`python -m indexer` is `catalog-indexer`."""

from indexer.cli import main

main(prog_name="catalog-indexer")
