"""Generations that are made beforehand over one that was built, each with content of its own, by the real compiler.

A generation is the one before it, with one query's members changed by a hundredth and newly pulled, and five documents
changed. In every other one five new courses are known as well, which are in that query, and which make a reader work on
its dictionary. What is changed is the mirror of the registry, in memory: no registry is written.
"""

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from pyroaring import BitMap

from indexer.compiler import Compiler, Texts
from indexer.mirror import Changes, Mirror
from sidecar.contract.objects import Sealed
from sidecar.contract.records import Metadata, seal_record
from sidecar.contract.words import ContentType
from sidecar.store import Pointer

NEW_COURSES: Final = 5
CHANGED_DOCUMENTS: Final = 5
EVERY_MS: Final = 2_000
"""How far apart they say that they were published."""


class Generations:
    """Makes one after another. The mirror is theirs from then on."""

    def __init__(self, mirror: Mirror, texts: Texts, documents: Mapping[int, Metadata], published: Pointer) -> None:
        """`texts`: all that the compiler may want. `documents`: those that will change, by ordinal. `published`: what
        the mirror is the registry of.
        """
        self._rnd = random.Random("generations")
        self._mirror = mirror
        self._texts = texts
        self._documents = dict(documents)
        self._pointer = published
        self._hashes = sorted(h for h in mirror.used() if mirror.results[h].members)
        self._published_at_ms = max(result.pulled_at_ms or 0 for result in mirror.results.values())
        self._compiler = Compiler(mirror)
        # All of it is in the store.
        self._objects(mirror.everything())

    def next(self) -> tuple[Pointer, list[Sealed]]:
        """The pointer to one more generation, and its objects that the one before it does not have."""
        epoch, last, digest = self._pointer
        number = last + 1
        self._published_at_ms += EVERY_MS
        changed = self._rnd.sample(sorted(self._documents), CHANGED_DOCUMENTS)
        sealed = [self._change(ordinal) for ordinal in changed]
        new = BitMap(self._add_courses(number) if number % 2 else ())
        hash_ = self._hashes[number % len(self._hashes)]
        self._pull(hash_, new)
        sealed += self._objects(Changes(content=BitMap(changed) | new, facts=new, hashes={hash_}))
        root = self._compiler.root(epoch=epoch, generation=number, published_at_ms=self._published_at_ms, parent=digest)
        sealed.append(seal_record(root))
        self._pointer = Pointer(epoch, number, sealed[-1].digest)
        return self._pointer, sealed

    def _objects(self, changes: Changes) -> list[Sealed]:
        return list(self._compiler.update(changes, self._compiler.outdated(changes), self._texts))

    def _change(self, ordinal: int) -> Sealed:
        document = self._documents[ordinal]
        opening, *rest = document.parts
        assert isinstance(opening, bytes)
        # A space where JSON may have one: other bytes, and still the same document.
        self._documents[ordinal] = replace(document, parts=(opening.replace(b"{", b"{ ", 1), *rest))
        sealed = seal_record(self._documents[ordinal])
        self._mirror.metadata[ordinal] = sealed.digest
        self._mirror.modified_ms[ordinal] = self._published_at_ms
        return sealed

    def _add_courses(self, number: int) -> range:
        mirror = self._mirror
        ordinals = range(len(mirror.keys), len(mirror.keys) + NEW_COURSES)
        for ordinal in ordinals:
            key = f"edX+New{number}.{ordinal}"
            mirror.keys.append(key)
            mirror.ordinals[key] = ordinal
            mirror.types.append(ContentType.COURSE)
            mirror.parents.append(None)
            mirror.uuids.append(self._rnd.randbytes(16))
            mirror.metadata.append(None)
            mirror.modified_ms.append(0)
        mirror.courses |= BitMap(ordinals)
        return ordinals

    def _pull(self, hash_: bytes, new: BitMap) -> None:
        result = self._mirror.results[hash_]
        members = result.members or BitMap()
        gone = BitMap(self._rnd.sample(list(members), -(-len(members) // 100)))
        self._mirror.results[hash_] = replace(
            result,
            members=(members - gone) | new,
            pulled_at_ms=self._published_at_ms,
            task=self._rnd.randbytes(16),
        )
