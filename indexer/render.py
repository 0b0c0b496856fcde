"""From a document's text to its metadata object, and to the ones that differ for a query. Pure.

RENDERER names everything that a rendered byte depends on: if it changes, every document is rendered again.
"""

from typing import Any, Final

import orjson
import zstandard

from indexer.documents import as_forced, with_runs
from sidecar.contract.objects import FORMAT_VERSION, ZSTD_LEVEL, Sealed
from sidecar.contract.records import Metadata, seal_record
from sidecar.contract.words import ContentType

RENDERER: Final = (
    f"1/format-{FORMAT_VERSION}/orjson-{orjson.__version__}"
    f"/zstd-{'.'.join(map(str, zstandard.ZSTD_VERSION))}-{ZSTD_LEVEL}"
)


def render(key: str, kind: ContentType, text: bytes) -> Sealed:
    """The metadata object of a stored document's text."""
    return _seal(key, kind, orjson.loads(text)["content"])


def render_for_query(
    key: str, kind: ContentType, text: bytes, allowed: frozenset[str] = frozenset(), *, forced: bool = False
) -> Sealed:
    """The metadata object that a query's catalogs show instead: allowed restricted runs kept, forced ones as open."""
    content = with_runs(orjson.loads(text)["content"], allowed)
    return _seal(key, kind, as_forced(content) if forced else content)


def _seal(key: str, kind: ContentType, content: Any) -> Sealed:
    return seal_record(Metadata(key, kind, (orjson.dumps(content, option=orjson.OPT_SORT_KEYS),)))
