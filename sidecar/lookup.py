"""The hot path: what a catalog or a customer contains, asked of one index. Pure and synchronous; no I/O lives here.

A lookup is: catalog -> the query that it serves -> `ordinal in bitmap`. "Unknown catalog" and "never pulled" are
raised, "not contained" is an answer; what cannot be told is never answered with no.
"""

import json
from collections.abc import Collection, Iterable, Iterator
from typing import Generic, NamedTuple, TypeVar

from pyroaring import BitMap

from sidecar.contract.index import Catalog, Content, Index, Query
from sidecar.contract.words import PullState
from sidecar.errors import NotPulledYet, UnknownCatalog

T = TypeVar("T")


class Answer(NamedTuple, Generic[T]):
    """An answer, and when the oldest content that it rests on was pulled; None if it rests on no content."""

    value: T
    oldest_ms: int | None


def catalog_contains(index: Index, uuid: str, keys: Iterable[str], restricted: bool) -> Answer[bool]:
    """Whether the catalog contains any of the keys. `restricted`: with the restricted runs that its query allows."""
    catalog = index.catalogs.get(uuid)
    if catalog is None:
        raise UnknownCatalog(f"no catalog has the uuid {uuid}")
    ordinals = _ordinals(index, keys)
    for query, content in _contents([catalog], restricted):
        return Answer(_contains_any(content, ordinals), query.pulled_at_ms)
    return Answer(False, None)


def customer_contains(index: Index, customer: str, keys: Iterable[str], restricted: bool) -> Answer[bool]:
    """Whether any catalog of the customer contains any of the keys.

    Yes as soon as one does. No only if all of them were pulled; else NotPulledYet.
    """
    ordinals = _ordinals(index, keys)
    used = []
    for query, content in _contents(index.of_customer.get(customer, ()), restricted):
        used.append(query)
        if _contains_any(content, ordinals):
            return Answer(True, _oldest_ms(used))
    return Answer(False, _oldest_ms(used))


def catalogs_containing(index: Index, customer: str, keys: Iterable[str], restricted: bool) -> Answer[list[str]]:
    """The customer's catalogs that contain any of the keys, in order of creation. NotPulledYet if one never was."""
    ordinals = _ordinals(index, keys)
    catalogs = index.of_customer.get(customer, ())
    contents = list(_contents(catalogs, restricted))
    yes = {query.hash for query, content in contents if _contains_any(content, ordinals)}
    uuids = [catalog.uuid for catalog in catalogs if catalog.serving is not None and catalog.serving.hash in yes]
    return Answer(uuids, _oldest_ms(query for query, _ in contents))


def filter_content_items(
    index: Index, customer: str, keys: Iterable[str], catalog_uuids: Collection[str], restricted: bool
) -> Answer[list[str]]:
    """The keys that are members, or courses of member runs that were not asked for, in order; exact keys alone.

    Of the named catalogs, whoever owns them, or without names of all of the customer's. NotPulledYet if one never was.
    """
    if catalog_uuids:
        chosen = [index.catalogs[uuid] for uuid in dict.fromkeys(catalog_uuids) if uuid in index.catalogs]
    else:
        chosen = list(index.of_customer.get(customer, ()))
    contents = list(_contents(chosen, restricted))
    known = index.dictionary.ordinals
    asked = {key: ordinal for key in keys if (ordinal := known.get(key)) is not None}
    ordinals = BitMap(asked.values())
    kept = BitMap.union(BitMap(), *(_filtered(index, content, ordinals) for _, content in contents))
    return Answer([key for key, ordinal in asked.items() if ordinal in kept], _oldest_ms(q for q, _ in contents))


def _ordinals(index: Index, keys: Iterable[str]) -> list[int]:
    return [ordinal for key in keys for ordinal in index.dictionary.find(key)]


def _contents(catalogs: Iterable[Catalog], restricted: bool) -> Iterator[tuple[Query, Content]]:
    """What the catalogs hold, each query once; raises NotPulledYet at the end, so that an early yes wins."""
    seen: set[bytes] = set()
    never_pulled = []
    for catalog in catalogs:
        query = catalog.serving
        content = None if query is None else query.v2 if restricted else query.v1
        if query is None or content is None:
            if not can_never_be_pulled(catalog.wanted):
                never_pulled.append(catalog.uuid)
        elif query.hash not in seen:
            seen.add(query.hash)
            yield query, content
    if never_pulled:
        raise NotPulledYet(f"never pulled: {', '.join(never_pulled)}")


def can_never_be_pulled(query: Query) -> bool:
    """A filter that is not an object selects nothing, ever. One that a source merely fails to evaluate may yet."""
    return query.state is PullState.UNPULLABLE and not isinstance(json.loads(query.record.content_filter), dict)


def _contains_any(content: Content, ordinals: Iterable[int]) -> bool:
    contained = content.contained
    return any(ordinal in contained for ordinal in ordinals)


def _filtered(index: Index, content: Content, asked: BitMap) -> BitMap:
    members = content.members
    kept = members & asked
    beside = (content.contained & asked) - members
    if beside:
        # Today's service drops a course all of whose member runs were asked for beside it, and callers see that.
        parents = index.dictionary.parents
        courses = {parents[member] for member in members - asked}
        kept |= BitMap([ordinal for ordinal in beside if ordinal in courses])
    return kept


def _oldest_ms(queries: Iterable[Query]) -> int | None:
    return min((query.pulled_at_ms for query in queries if query.pulled_at_ms is not None), default=None)
