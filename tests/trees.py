"""Whole generations from plain data, for tests of what answers from them: courses with runs, selections, catalogs.

What a selection contains is worked out here from the definition alone, over sets of keys: by no code of the project.
"""

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import NamedTuple
from uuid import UUID

from sidecar.contract.objects import ObjectType
from sidecar.contract.records import Branch, FreshnessShard, Root, open_record, seal_record
from sidecar.contract.words import ContentType, PullState, query_hash
from sidecar.store import Pointer, Store
from tests.sidecar.contract.tree import Answers, Item, Query, Tree, build
from tests.sidecar.contract.tree import Catalog as CatalogRow

PULLED_MS = 1_700_000_000_000
CUSTOMER = UUID(int=0xC0)


@dataclass(frozen=True)
class Selection:
    """What discovery returned for a query, and when; without a time it was never pulled. `allowed`: restricted runs."""

    members: Set[str] = frozenset()
    pulled_at_ms: int | None = PULLED_MS
    allowed: Set[str] = frozenset()
    content_filter: object = None
    state: PullState | None = None


class Catalog(NamedTuple):
    """A catalog of a customer over the selection of this name."""

    uuid: UUID
    selection: str
    customer: UUID = CUSTOMER


@dataclass(frozen=True)
class World:
    """Everything that a generation says. Keys are given in this order: courses with their runs, then programs."""

    courses: Mapping[str, Sequence[str]] = field(default_factory=dict)
    programs: Sequence[str] = ()
    restricted: Set[str] = frozenset()
    selections: Mapping[str, Selection] = field(default_factory=dict)
    catalogs: Sequence[Catalog] = ()

    @property
    def keys(self) -> list[str]:
        return [key for course, runs in self.courses.items() for key in (course, *runs)] + list(self.programs)

    def members(self, selection: str, *, restricted: bool) -> set[str]:
        """What discovery returned, without the restricted runs that this version of the API does not show."""
        chosen = self.selections[selection]
        return set(chosen.members) - self._hidden(chosen, restricted)

    def contained(self, selection: str, *, restricted: bool) -> set[str]:
        """Members, the courses of member runs, and the runs of member courses."""
        members = self.members(selection, restricted=restricted)
        found = set(members)
        for course, runs in self.courses.items():
            if course in members:
                found.update(runs)
            if members.intersection(runs):
                found.add(course)
        return found - self._hidden(self.selections[selection], restricted)

    def never_pulled(self, selection: str) -> bool:
        return self.selections[selection].pulled_at_ms is None

    def _hidden(self, chosen: Selection, restricted: bool) -> set[str]:
        return set(self.restricted) - (set(chosen.allowed) if restricted else set())

    def tree(self, *, epoch: int = 1, generation: int = 1, published_at_ms: int = PULLED_MS) -> Tree:
        """The generation; every key but runs has a document that names it."""
        content = []
        for course, runs in self.courses.items():
            content.append(Item(course, ContentType.COURSE, document=_document(course)))
            content += [Item(run, ContentType.COURSE_RUN, parent=course) for run in runs]
        content += [Item(program, ContentType.PROGRAM, document=_document(program)) for program in self.programs]
        queries = [
            Query(self._filter(name), self._answers(name, restricted=False), self._answers(name, restricted=True))
            for name in self.selections
        ]
        rows = [
            CatalogRow(
                uuid=catalog.uuid,
                wanted=self._filter(catalog.selection),
                serving=None if self.never_pulled(catalog.selection) else self._filter(catalog.selection),
                customer=catalog.customer,
            )
            for catalog in self.catalogs
        ]
        tree = build(content, queries, rows, epoch=epoch, generation=generation)
        return self._dated(tree, published_at_ms)

    def _answers(self, name: str, *, restricted: bool) -> Answers | None:
        if self.never_pulled(name):
            return None
        members = self.members(name, restricted=restricted)
        # Runs have no document of their own, and what has none is on no page.
        listed = members.difference(*self.courses.values())
        return Answers(members, self.contained(name, restricted=restricted), listed)

    def _filter(self, name: str) -> object:
        return self.selections[name].content_filter or {"title": name}

    def _dated(self, tree: Tree, published_at_ms: int) -> Tree:
        """The tree with the times of its pulls, which change freshness and root alone."""
        chosen = {query_hash(self._filter(name)): selection for name, selection in self.selections.items()}
        objects = dict(tree.objects)
        root = open_record(tree.root, objects.pop(tree.root).data, ObjectType.ROOT)
        assert isinstance(root, Root)
        freshness = {}
        for number, digest in root.freshness.items():
            branch = open_record(digest, objects.pop(digest).data, ObjectType.BRANCH)
            assert isinstance(branch, Branch)
            children = {}
            for place, child in branch.children.items():
                shard = open_record(child, objects.pop(child).data, ObjectType.FRESHNESS)
                assert isinstance(shard, FreshnessShard)
                records = []
                for record in shard.records:
                    at_ms, state = chosen[record.hash].pulled_at_ms, chosen[record.hash].state
                    records.append(replace(record, pulled_at_ms=at_ms, state=record.state if state is None else state))
                sealed = seal_record(FreshnessShard(tuple(records)))
                objects[sealed.digest] = sealed
                children[place] = sealed.digest
            sealed = seal_record(Branch(ObjectType.FRESHNESS, children))
            objects[sealed.digest] = sealed
            freshness[number] = sealed.digest
        sealed = seal_record(replace(root, freshness=freshness, published_at_ms=published_at_ms))
        return Tree(sealed.digest, {**objects, sealed.digest: sealed})


async def publish(store: Store, tree: Tree) -> Pointer:
    """Writes the tree, then moves the pointer to where its root says that it is."""
    root = open_record(tree.root, tree.objects[tree.root].data, ObjectType.ROOT)
    assert isinstance(root, Root)
    await store.put(tree.objects.values())
    pointer = Pointer(root.epoch, root.generation, tree.root)
    await store.move(pointer)
    return pointer


def selections(**members: Iterable[str]) -> dict[str, Selection]:
    return {name: Selection(frozenset(keys)) for name, keys in members.items()}


def _document(key: str) -> bytes:
    return json.dumps({"key": key}).encode()
