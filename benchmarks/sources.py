"""Whether content pulled from course-discovery is that of the corpus file which it serves, and how many requests it is.

    python -m benchmarks.sources --corpus corpus.json --definitions definitions.json --discovery http://127.0.0.1:18382

Two builds from empty registries, one with each source, are compared object by object. The server has to serve that
corpus over discovery's routes, with the LMS's and the token's beside them; what it counts under /_stats is printed.
"""

import argparse
import json
import tempfile
import urllib.request
from pathlib import Path

from benchmarks.installation import CREATED, SAME, Installation
from sidecar.contract.objects import ObjectType


def read_arguments(description: str | None) -> argparse.Namespace:
    """The corpus, its definitions, and the server of it."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--definitions", type=Path, required=True, help="catalogs, as `catalogs add` reads them")
    parser.add_argument("--discovery", required=True, help="base URL of a server of this corpus")
    return parser.parse_args()


def main() -> None:
    """Builds twice, compares and prints."""
    arguments = read_arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        builds: dict[str, dict[ObjectType, set[bytes]]] = {}
        before: dict[str, int] = {}
        for kind in ("file", "discovery"):
            here = Installation(Path(folder) / kind, arguments.corpus.absolute())
            if kind == "discovery":
                here.config.write_text(from_discovery(here.config.read_text(), arguments.discovery))
            here.indexer("catalogs", "add", str(arguments.definitions.absolute()), "--created", CREATED)
            before = _requests(arguments.discovery)
            seconds, peak_mib = here.indexer("build")
            builds[kind] = here.objects()
            print(f"{kind}: {seconds:.1f} s, {peak_mib:.0f} MiB at most")
        print("requests by route:")
        for route, count in sorted(_requests(arguments.discovery).items()):
            print(f"  {count - before.get(route, 0):5} {route}")
        differing = {t.name.lower(): len(builds["file"][t] ^ builds["discovery"][t]) for t in SAME}
        print(f"objects: { {t.name.lower(): len(builds['file'][t]) for t in SAME} }")
        print(f"objects that the two builds do not share: {differing}")
        raise SystemExit(1 if any(differing.values()) else 0)


def from_discovery(config: str, url: str, **more: float) -> str:
    """The settings with course-discovery instead of the corpus file, and more of the source's settings."""
    head, _, tail = config.partition("[source]\n")
    rest = tail.partition("[")[2]
    source = {
        "kind": "discovery",
        "url": url,
        "oauth_url": f"{url}/oauth2/access_token",
        "oauth_client_id": "catalog",
        "oauth_client_secret": "catalog-secret",
        **more,
    }
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in source.items())
    return f'{head}[source]\n{lines}[lms]\nurl = "{url}"\n[{rest}'


def _requests(url: str) -> dict[str, int]:
    """How many requests the server has had, by method and route; customers count as one route."""
    try:
        with urllib.request.urlopen(f"{url}/_stats", timeout=5) as response:
            counted: dict[str, int] = json.load(response)
    except OSError:
        return {}
    by_route: dict[str, int] = {}
    for route, count in counted.items():
        name = route.rpartition("enterprise-customer/")
        route = f"{name[0]}{name[1]}" if name[1] else route
        by_route[route] = by_route.get(route, 0) + count
    return by_route


if __name__ == "__main__":
    main()
