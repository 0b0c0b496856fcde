"""The `file` source: a corpus on disk, in the shapes that discovery returns, searched with our own filter evaluator.

The corpus is read whole, once per version of the file (size and time of change), and kept as texts beside the fields
that filters look at. Visibility is discovery's: without leave, neither restricted runs nor their entries in courses.
"""

import asyncio
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from indexer.documents import BadDocument, Document, Item, is_let_in, item, without_restricted
from indexer.filters import FIELDS, FilterError, allowed_restricted_runs, compile_filter, forced_courses
from indexer.source import CustomerDetails, Pulled, SourceError, Unpullable, read_customer
from sidecar.contract.words import ContentType

_PARTS = ("courses", "programs", "pathways", "reviews", "customers")


@dataclass(frozen=True, slots=True)
class Entry:
    """A search/all document: the fields that a filter can ask for, and the item without and with restricted runs."""

    fields: Document
    plain: Item
    shown: Item


@dataclass(frozen=True, slots=True)
class Corpus:
    """One version of the file, ready to be searched, in search/all's order."""

    entries: Sequence[Entry]
    courses: Mapping[str, Entry]
    customers: Mapping[str, CustomerDetails]


def read_corpus(text: bytes, where: str) -> Corpus:
    """The corpus in a JSON text. Raises SourceError if it has another shape, naming the place."""
    try:
        corpus = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise SourceError(f"{where}: not JSON: {error}") from error
    if not isinstance(corpus, dict) or not all(isinstance(corpus.get(part), list) for part in _PARTS):
        raise SourceError(f"{where}: a corpus is an object with the lists {', '.join(_PARTS)}")
    try:
        entries = sorted(
            _entries(corpus), key=lambda e: (e.fields["aggregation_key"], str(e.fields.get("start") or ""))
        )
        courses = {e.plain.key: e for e in entries if e.plain.type is ContentType.COURSE}
        customers = [read_customer(c, f"{where}: customer {n}") for n, c in enumerate(corpus["customers"])]
        return Corpus(entries, courses, {c.uuid: c for c in customers})
    except (KeyError, TypeError, AttributeError, BadDocument) as error:
        raise SourceError(f"{where}: {type(error).__name__}: {error}") from error


def search(corpus: Corpus, content_filter: object, *, restricted_runs: bool = True) -> Pulled:
    """What search/all finds in a corpus. Raises Unpullable for a filter that cannot be evaluated here."""
    if not isinstance(content_filter, dict):
        raise Unpullable(f"the content filter is {content_filter!r:.80}, and not an object")
    try:
        compiled = compile_filter(content_filter)
        allowed = allowed_restricted_runs(content_filter)
        keys = forced_courses(content_filter)
    except FilterError as error:
        raise Unpullable(str(error)) from error
    hits = [entry for entry in corpus.entries if compiled.matches(entry.fields)]
    forced = [corpus.courses[key] for key in keys if key in corpus.courses]
    restricted = None
    if allowed and restricted_runs:
        found = (e.shown for e in (*hits, *forced) if not e.shown.restricted or e.shown.key in allowed)
        restricted = tuple({item.key: item for item in found}.values())
    return Pulled(
        members=tuple(e.plain for e in hits if not e.plain.restricted),
        restricted=restricted,
        forced=tuple(e.plain for e in forced),
        warnings=tuple(f"key {key!r} is unknown to search/all and ignored" for key in compiled.ignored)
        + tuple(f"force-included course {key!r} does not exist" for key in keys if key not in corpus.courses),
    )


class FileSource:
    """Implements Source over a corpus file; another version of the file is read at the next pull."""

    def __init__(self, path: Path, *, restricted_runs: bool = True) -> None:
        self._path = path
        self._restricted_runs = restricted_runs
        self._version: tuple[int, int] | None = None
        self._corpus = Corpus((), {}, {})
        self._reading = asyncio.Lock()

    async def pull(self, content_filter: object, *, since_ms: int = 0) -> Pulled:
        corpus = await self._current()
        return await asyncio.to_thread(search, corpus, content_filter, restricted_runs=self._restricted_runs)

    async def customer(self, uuid: str) -> CustomerDetails | None:
        return (await self._current()).customers.get(uuid)

    async def close(self) -> None:
        pass

    async def _current(self) -> Corpus:
        async with self._reading:
            version = self._look()
            if version != self._version:
                self._corpus = await asyncio.to_thread(self._read)
                self._version = version
        return self._corpus

    def _look(self) -> tuple[int, int]:
        try:
            stat = os.stat(self._path)
        except OSError as error:
            raise SourceError(f"source.path {self._path}: {error.strerror}") from error
        return stat.st_size, stat.st_mtime_ns

    def _read(self) -> Corpus:
        try:
            text = self._path.read_bytes()
        except OSError as error:
            raise SourceError(f"source.path {self._path}: {error.strerror}") from error
        return read_corpus(text, str(self._path))


def _entries(corpus: dict[str, list[Any]]) -> Iterator[Entry]:
    reviews = {review["course_key"]: review for review in corpus["reviews"]}
    for course in corpus["courses"]:
        search_, full, review = course["search"], course["full"], reviews.get(course["search"]["key"])
        yield from _entry(search_, full, review)
        for run in course["runs"]:
            yield from _entry(run)
        course.clear()
    for program in corpus["programs"]:
        yield from _entry(program["search"], program["full"])
    for pathway in corpus["pathways"]:
        yield from _entry(pathway["search"])


def _entry(search_: Document, full: Document | None = None, review: Document | None = None) -> Iterable[Entry]:
    if not is_let_in(search_):
        return
    shown = plain = item(search_, full, review)
    if any(run.restricted for run in shown.runs):
        plain = item(without_restricted(search_), without_restricted(full) if full else None, review)
    yield Entry({field: search_[field] for field in FIELDS if field in search_}, plain, shown)
