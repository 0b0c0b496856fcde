"""What two services are asked so that they can be compared, and what our index knows of each question. Pure.

Of a sampled catalog: what it contains, key by key, known, foreign and unknown, in other spellings; what its customer's
catalogs do; documents, one by one and in pages; how it differs from a list of keys; its record and its query. Beside
that, once: what does not exist, and what is malformed.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import quote, urlencode

from indexer.judge import Kind, Known, Question
from sidecar.contract.words import ContentType

UNKNOWN: Final = "no+such"
NOBODY: Final = "00000000-0000-4000-8000-000000000000"
MALFORMED: Final = "no-uuid"
PAGE_SIZE: Final = 5
_PROGRAMS: Final = (ContentType.PROGRAM, ContentType.PATHWAY)


@dataclass(frozen=True, slots=True)
class Key:
    """A content key, and of a run the key of its course."""

    key: str
    type: ContentType
    course: str | None = None


@dataclass(frozen=True, slots=True)
class Holding:
    """Those of the keys of a case that are members of a catalog, and those that it contains."""

    members: frozenset[str] = frozenset()
    contained: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Case:
    """A catalog to ask about. `v1` and `v2` have the holdings of all catalogs of its customer, its own included.

    No `customer`: one that has too many catalogs to know them all.
    """

    uuid: str
    customer: str | None
    query: str
    keys: tuple[Key, ...]
    v1: Mapping[str, Holding] = field(default_factory=dict)
    v2: Mapping[str, Holding] = field(default_factory=dict)
    never_pulled: frozenset[str] = frozenset()
    changed: frozenset[str] = frozenset()

    def known(self, version: str, keys: Collection[Key], catalogs: Collection[str] | None = None) -> Known:
        """What is known of a question about these keys, asked of these catalogs, or of all of the customer's."""
        holdings = self.v1 if version == "v1" else self.v2
        asked = holdings.keys() if catalogs is None else catalogs
        nested: dict[str, str] = {}
        otherwise = False
        for holding in (holdings[uuid] for uuid in asked if uuid in holdings):
            for key in keys:
                if key.key in holding.members:
                    otherwise = True
                elif key.key in holding.contained and key.course is not None:
                    nested[key.key] = key.course
                elif key.key in holding.contained:
                    otherwise = True
        return Known(
            nested=nested,
            otherwise=otherwise,
            never_pulled=not self.never_pulled.isdisjoint(asked),
            changed=not self.changed.isdisjoint(asked),
        )


def questions(cases: Sequence[Case]) -> Iterator[Question]:
    """All questions about some catalogs, and those that are about none."""
    for case in cases:
        for version in ("v1", "v2"):
            yield from _of_catalog(case, version)
            if case.customer is not None:
                yield from _of_customer(case, case.customer, version)
        known = case.known("v1", [], (case.uuid,))
        yield Question(Kind.CATALOG, f"/api/v1/enterprise-catalogs/{case.uuid}/", known=known)
        yield Question(Kind.QUERY, f"/api/v1/catalog-queries/get_query_by_hash/?hash={case.query}")
    yield Question(Kind.CATALOGS, "/api/v1/enterprise-catalogs/?page_size=1")
    yield from _of_nothing(cases[0].uuid if cases else NOBODY)


def _of_catalog(case: Case, version: str) -> Iterator[Question]:
    path = f"/api/{version}/enterprise-catalogs/{case.uuid}"
    own, every = (case.uuid,), [key.key for key in case.keys]
    for key in case.keys:
        yield Question(Kind.CATALOG_CONTAINS, _contains(path, key), known=case.known(version, [key], own))
    none = case.known(version, [], own)
    yield Question(Kind.CATALOG_CONTAINS, f"{path}/contains_content_items/?course_run_ids={quote(UNKNOWN)}", known=none)
    if case.keys:
        first, known = case.keys[0], case.known(version, case.keys[:1], own)
        for spelling in dict.fromkeys((first.key.lower(), first.key.upper())):
            yield Question(Kind.CATALOG_CONTAINS, _contains(path, first, spelling), known=known)
        joined = _contains(path, first, f"{UNKNOWN},{first.key}")
        yield Question(Kind.CATALOG_CONTAINS, joined, known=replace(known, commas=True))
        by_key = urlencode([("page_size", "100"), *(("content_keys", key) for key in every)])
        yield Question(Kind.PAGE, f"{path}/get_content_metadata/?{by_key}", known=case.known(version, case.keys, own))
    yield Question(Kind.PAGE, f"{path}/get_content_metadata/?page_size={PAGE_SIZE}", known=none)
    yield Question(Kind.DIFF, f"{path}/generate_diff/", {"content_keys": [*every, UNKNOWN]}, none)


def _of_customer(case: Case, customer: str, version: str) -> Iterator[Question]:
    path = f"/api/{version}/enterprise-customer/{customer}"
    for key in case.keys:
        known = case.known(version, [key])
        asked = f"{_contains(path, key)}&get_catalogs_containing_specified_content_ids=True"
        yield Question(Kind.CUSTOMER_CONTAINS, asked, known=known)
        yield Question(Kind.DOCUMENT, f"{path}/content-metadata/{quote(key.key, safe='')}/", known=known)
    none = case.known(version, [])
    yield Question(
        Kind.CUSTOMER_CONTAINS, f"{path}/contains_content_items/?course_run_ids={quote(UNKNOWN)}", known=none
    )
    yield Question(Kind.DOCUMENT, f"{path}/content-metadata/{quote(UNKNOWN, safe='')}/", known=none)
    if case.keys:
        first = case.keys[0]
        plain = f"{path}/content-metadata/{quote(first.key, safe='')}/?skip_customer_fetch=True"
        yield Question(Kind.DOCUMENT, plain, known=case.known(version, [first]))
    body = {"content_keys": [*(key.key for key in case.keys), UNKNOWN]}
    yield Question(Kind.FILTER, f"{path}/filter_content_items/", body, none)
    named = case.known(version, [], (case.uuid,))
    yield Question(Kind.FILTER, f"{path}/filter_content_items/", body | {"catalog_uuids": [case.uuid]}, named)


def _of_nothing(catalog: str) -> Iterator[Question]:
    """What exists nowhere, and what is malformed; some of it breaks today's service."""
    bad = Known(bad=True)
    catalogs, customers = "/api/v1/enterprise-catalogs", "/api/v1/enterprise-customer"
    asked = f"?course_run_ids={quote(UNKNOWN)}"
    for path in ("/", f"/contains_content_items/{asked}", "/get_content_metadata/"):
        yield Question(Kind.ERROR, f"{catalogs}/{NOBODY}{path}")
        yield Question(Kind.ERROR, f"{catalogs}/{MALFORMED}{path}", known=bad)
    yield Question(Kind.ERROR, f"{catalogs}/{catalog}/contains_content_items/", known=bad)
    yield Question(Kind.ERROR, f"{customers}/{NOBODY}/contains_content_items/{asked}")
    yield Question(Kind.ERROR, f"{customers}/{MALFORMED}/contains_content_items/{asked}", known=bad)
    yield Question(Kind.ERROR, f"{customers}/{MALFORMED}/content-metadata/{quote(UNKNOWN, safe='')}/", known=bad)
    yield Question(Kind.ERROR, f"{customers}/{NOBODY}/filter_content_items/", [UNKNOWN], bad)


def _contains(path: str, key: Key, spelling: str | None = None) -> str:
    """Asked as clients do: programs by their uuids, and a key's plus escaped."""
    name = "program_uuids" if key.type in _PROGRAMS else "course_run_ids"
    return f"{path}/contains_content_items/?{name}={quote(key.key if spelling is None else spelling, safe='')}"


def sent(question: Question) -> bytes | None:
    """The bytes to post, if there are some."""
    return None if question.body is None else json.dumps(question.body).encode()
