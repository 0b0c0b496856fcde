"""From what a pull found to what the registry will hold: facts, ordinals, documents, bitmaps. Pure.

New content keys get the next ordinals in sorted order, parents and nested runs included. What was known stays known:
a run that discovery stops listing keeps its ordinal and its course, and is merely no longer active.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Final

import orjson
import zstandard

from indexer.documents import Item, without_restricted
from indexer.render import render
from indexer.source import Pulled, SourceError
from sidecar.contract.objects import Sealed
from sidecar.contract.records import Bitmap
from sidecar.contract.words import ContentType

PLAIN: Final = 0
SHOWN: Final = 1


@dataclass(frozen=True, slots=True)
class Facts:
    """What the registry knows of one content key."""

    ordinal: int
    key: str
    type: ContentType
    parent: int | None = None
    uuid: str | None = None
    restricted: bool = False
    active: bool = False
    metadata: bytes | None = None
    modified_ms: int = 0


@dataclass(frozen=True, slots=True)
class Known:
    """The part of the registry that a pull touches: its keys, the runs of its courses, and where ordinals go on."""

    facts: Mapping[str, Facts]
    documents: Mapping[tuple[int, int], bytes]
    next_ordinal: int


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document to be kept: its ordinal, its variant, the digest of its text, the text compressed."""

    ordinal: int
    variant: int
    digest: bytes
    body: bytes


@dataclass(slots=True)
class Ingested:
    """All that one pull changes. `rendered` are new metadata objects, to be stored before anything refers to them."""

    facts: list[Facts] = field(default_factory=list)
    documents: list[StoredDocument] = field(default_factory=list)
    outdated: list[tuple[int, int]] = field(default_factory=list)
    rendered: list[Sealed] = field(default_factory=list)
    members: bytes = b""
    restricted_members: bytes | None = None
    forced: bytes = b""


def mentioned(pulled: Pulled) -> set[str]:
    """Every content key that a pull speaks of: items, their parents, their nested runs."""
    keys: set[str] = set()
    for item in _items(pulled):
        keys.add(item.key)
        keys.update(run.key for run in item.runs)
        if item.parent is not None:
            keys.add(item.parent)
    return keys


def ingest(pulled: Pulled, known: Known, now_ms: int) -> Ingested:
    """What the registry has to change so that it says what was pulled. `known` has every mentioned key that it has.

    Raises SourceError if a key is of two types: a run whose parent is no course would spoil the whole generation.
    """
    merge = _Merge(known, sorted(mentioned(pulled) - known.facts.keys()), now_ms)
    for item in pulled.members:
        merge.plain(item)
    for item in pulled.restricted or ():
        merge.shown(item)
    for item in pulled.forced:
        merge.plain(item)
    ordinal = merge.ordinal
    forced = [ordinal(item.key) for item in pulled.forced]
    done = merge.done
    done.facts = [facts for key, facts in merge.facts.items() if facts != known.facts.get(key) or key in merge.touched]
    done.facts.sort(key=lambda facts: facts.ordinal)
    done.members = Bitmap.of({*(ordinal(item.key) for item in pulled.members), *forced}).encode()
    done.forced = Bitmap.of(forced).encode()
    if pulled.restricted is not None:
        done.restricted_members = Bitmap.of({*(ordinal(item.key) for item in pulled.restricted), *forced}).encode()
    return done


class _Merge:
    def __init__(self, known: Known, new: list[str], now_ms: int) -> None:
        self.facts = dict(known.facts)
        self.documents = dict(known.documents)
        self.now_ms = now_ms
        self.done = Ingested()
        self.touched: set[str] = set()
        # Here and not where it is written: this may run beside the event loop, and holds up no other writer.
        self._compressor = zstandard.ZstdCompressor()
        self._fresh = {key: known.next_ordinal + i for i, key in enumerate(new)}
        self._runs: dict[int, set[str]] = {}
        for facts in known.facts.values():
            if facts.parent is not None:
                self._runs.setdefault(facts.parent, set()).add(facts.key)

    def ordinal(self, key: str) -> int:
        return self.facts[key].ordinal

    def plain(self, item: Item) -> None:
        """An item as everybody sees it: restricted runs neither appear in it nor are said to be gone."""
        facts = self._learn(item)
        self._end_unlisted(facts, item, restricted=False)
        self._keep(facts, PLAIN, item)

    def shown(self, item: Item) -> None:
        """An item of a search that shows restricted runs: what it does not list is gone, restricted or not."""
        facts = self._learn(item)
        self._end_unlisted(facts, item, restricted=True)
        if not any(run.restricted for run in item.runs):
            self._keep(facts, PLAIN, item)
            if self.documents.pop((facts.ordinal, SHOWN), None) is not None:
                self.done.outdated.append((facts.ordinal, SHOWN))
                self.touched.add(item.key)
            return
        self._keep(facts, SHOWN, item)
        if (facts.ordinal, PLAIN) not in self.documents:
            document = orjson.loads(item.text)
            document["content"] = without_restricted(document["content"])
            text = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
            self._keep(facts, PLAIN, replace(item, text=text))

    def _learn(self, item: Item) -> Facts:
        parent = None if item.parent is None else self._know(item.parent, ContentType.COURSE)
        have = self._know(item.key, item.type)
        facts = replace(have, uuid=item.uuid or have.uuid)
        if item.type is ContentType.COURSE_RUN:
            facts = replace(facts, restricted=item.restricted, parent=have.parent if parent is None else parent.ordinal)
        self.facts[item.key] = facts
        for run in item.runs:
            known = self._know(run.key, ContentType.COURSE_RUN)
            self.facts[run.key] = replace(
                known,
                parent=facts.ordinal,
                uuid=run.uuid or known.uuid,
                restricted=run.restricted,
                active=run.active,
            )
        return facts

    def _know(self, key: str, kind: ContentType) -> Facts:
        facts = self.facts.get(key)
        if facts is None:
            facts = self.facts[key] = Facts(self._fresh[key], key, kind)
        if facts.type is not kind:
            names = [k.name.lower().replace("_", " ") for k in (facts.type, kind)]
            raise SourceError(f"{key!r} is a {names[0]}, and the source speaks of it as a {names[1]}")
        return facts

    def _end_unlisted(self, course: Facts, item: Item, *, restricted: bool) -> None:
        for key in self._runs.get(course.ordinal, set()) - {run.key for run in item.runs}:
            run = self.facts[key]
            # A run that this pull has found below another course is that one's by now.
            if run.parent == course.ordinal and (restricted or not run.restricted):
                self.facts[key] = replace(run, active=False)

    def _keep(self, facts: Facts, variant: int, item: Item) -> None:
        digest = blake2b(item.text, digest_size=32).digest()
        if self.documents.get((facts.ordinal, variant)) == digest:
            return
        self.documents[facts.ordinal, variant] = digest
        body = self._compressor.compress(item.text)
        self.done.documents.append(StoredDocument(facts.ordinal, variant, digest, body))
        if variant == PLAIN:
            sealed = render(item.key, item.type, item.text)
            if sealed.digest != facts.metadata:
                self.done.rendered.append(sealed)
                # Never back, whatever this machine's clock says: whoever asks for what has changed since would miss it.
                modified_ms = max(self.now_ms, facts.modified_ms + 1)
                self.facts[item.key] = replace(self.facts[item.key], metadata=sealed.digest, modified_ms=modified_ms)


def _items(pulled: Pulled) -> Iterable[Item]:
    yield from pulled.members
    yield from pulled.restricted or ()
    yield from pulled.forced
