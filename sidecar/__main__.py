"""`python -m sidecar` is `catalog-sidecar`."""

from sidecar.cli import main

main(prog_name="catalog-sidecar")
