"""An index that is made from the one before is the index that would be made from nothing, whatever has changed."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.contract.dictionary import Dictionary
from sidecar.contract.held import Held, index_references
from sidecar.contract.index import Catalog, Content, Index, Query
from sidecar.contract.records import Record, Segment
from sidecar.contract.words import ContentType
from sidecar.current import Generation
from sidecar.errors import Malformed
from sidecar.store import Pointer
from tests.sidecar.contract.tree import Answers, Item, Tree, build, lookups_stay_inside
from tests.sidecar.contract.tree import Catalog as CatalogRow
from tests.sidecar.contract.tree import Query as QueryRow

RUN = ContentType.COURSE_RUN


@st.composite
def states(draw: st.DrawFn, before: "State | None" = None) -> "State":
    """A registry's state; after another one that mostly says the same."""
    content = list(() if before is None else before.content)
    if draw(st.integers(0, 7)) == 0:
        # Another registry: keys have other ordinals.
        content = []
    for number in range(len(content), len(content) + draw(st.integers(0, 4))):
        courses = [item.key for item in content if item.type is not RUN]
        kind = draw(st.sampled_from((ContentType.COURSE, RUN)))
        name = f"{draw(st.sampled_from('aAé'))}{number}"
        content.append(Item(name, kind, draw(st.sampled_from([None, *courses])) if kind is RUN else None))
    keys = [item.key for item in content]
    sets = st.frozensets(st.sampled_from(keys), max_size=4) if keys else st.just(frozenset[str]())
    answers = st.builds(Answers, sets, sets, sets)
    queries = {n: q for n, q in (() if before is None else before.queries) if _fits(q, keys) and draw(st.booleans())}
    for number in draw(st.sets(st.integers(0, 5))):
        if number not in queries:
            v1 = draw(st.none() | answers)
            queries[number] = QueryRow({"q": number}, v1, None if v1 is None else draw(st.none() | answers))
    pulled = [n for n, query in queries.items() if query.v1 is not None]
    catalogs = {}
    for number, row in () if before is None else before.catalogs:
        fits = row.wanted["q"] in queries and (row.serving is None or row.serving["q"] in pulled)
        if fits and draw(st.integers(0, 3)):
            catalogs[number] = row
    if queries:
        for number in draw(st.sets(st.integers(0, 9), max_size=4)):
            wanted = draw(st.sampled_from(sorted(queries)))
            serving = draw(st.sampled_from([None, *pulled]))
            catalogs[number] = CatalogRow(
                UUID(int=number << 120 | number),
                {"q": wanted},
                None if serving is None else {"q": serving},
                UUID(int=draw(st.integers(0, 2)) << 124),
            )
    customers = draw(st.sets(st.integers(0, 3)))
    return State(tuple(content), tuple(sorted(queries.items())), tuple(sorted(catalogs.items())), frozenset(customers))


class State:
    """What a generation says."""

    def __init__(self, content: Any, queries: Any, catalogs: Any, customers: frozenset[int]) -> None:
        self.content: Sequence[Item] = content
        self.queries: Sequence[tuple[int, QueryRow]] = queries
        self.catalogs: Sequence[tuple[int, CatalogRow]] = catalogs
        self.customers = customers

    def tree(self, generation: int) -> Tree:
        return build(
            self.content,
            [query for _, query in self.queries],
            [catalog for _, catalog in self.catalogs],
            [UUID(int=n << 124 | n) for n in self.customers],
            generation=generation,
        )


def _fits(query: QueryRow, keys: Sequence[str]) -> bool:
    known = set(keys)
    return all(part <= known for answers in (query.v1, query.v2) if answers is not None for part in answers)


def told(index: Index) -> dict[str, Any]:
    """Everything that an index says, as plain values."""
    dictionary = index.dictionary
    count = len(dictionary)
    return {
        "root": (index.digest, index.root, index.shards, index.content),
        "records": dict(index.records),
        "keys": dictionary.keys[:count],
        "types": bytes(dictionary.types[:count]),
        "parents": dictionary.parents[:count],
        "uuids": dictionary.uuids[:count],
        "found": {
            form: dictionary.find(form)
            for key in [*dictionary.keys, *(f"{c}{n}" for c in "aAé" for n in range(40))]
            for form in (key, key.upper(), key.lower())
        },
        "queries": {hash_: query_told(query) for hash_, query in index.queries.items()},
        "catalogs": {uuid: catalog_told(catalog) for uuid, catalog in index.catalogs.items()},
        "customers": index.customers,
        "of": {customer: [c.uuid for c in theirs] for customer, theirs in index.of_customer.items()},
        "users": {hash_: sorted(c.uuid for c in index.users(hash_)) for hash_ in index.queries},
    }


def query_told(query: Query) -> Any:
    def sets(content: Content | None) -> Any:
        return None if content is None else (content.members, content.contained, content.listed, content.unlisted)

    return (replace(query, v1=None, v2=None), sets(query.v1), sets(query.v2))


def catalog_told(catalog: Catalog) -> Any:
    serving = None if catalog.serving is None else catalog.serving.hash
    return (catalog.uuid, catalog.customer, catalog.record, catalog.wanted.hash, serving)


def worked_out(generation: Generation) -> Any:
    uuids = [catalog.uuid for catalog in generation.catalogs]
    return (uuids, generation.pulls_ms, generation.never_pulled, generation.ended)


@st.composite
def histories(draw: st.DrawFn) -> list[State]:
    first = draw(states())
    found = [first]
    for _ in range(draw(st.integers(1, 6))):
        # A rollback is a state of before, under a new number.
        found.append(draw(st.sampled_from(found)) if draw(st.integers(0, 5)) == 0 else draw(states(found[-1])))
    return found


@settings(max_examples=300, deadline=None)
@given(histories())
def test_following_changes_gives_what_is_made_from_nothing(history: list[State]) -> None:
    index: Index | None = None
    served: Generation | None = None
    kept: list[tuple[Index, dict[str, Any]]] = []
    for number, state in enumerate(history, 1):
        tree = state.tree(number)
        of_index = _of_index(tree)
        lacking = {d: r for d, r in of_index.items() if index is None or d not in index.records}
        index = Index.assemble(tree.root, lacking, index)
        alone = Index.assemble(tree.root, of_index)
        assert told(index) == told(alone)
        lookups_stay_inside(index)
        assert all(catalog is index.catalogs[catalog.uuid] for them in index.of_customer.values() for catalog in them)
        pointer = Pointer(1, number, tree.root)
        served = Generation.of(pointer, index, served)
        assert worked_out(served) == worked_out(Generation.of(pointer, alone))
        assert all(catalog is index.catalogs[catalog.uuid] for catalog in served.catalogs)
        kept.append((index, told(index)))
    for each, was in kept:
        found = told(each)
        # Asked for keys that have come since, an earlier one finds nothing under them.
        assert {form: found["found"][form] for form in was["found"]} == was["found"]
        assert all(not found["found"][form] for form in found["found"].keys() - was["found"].keys())
        assert {name: found[name] for name in was if name != "found"} == {n: was[n] for n in was if n != "found"}


def _of_index(tree: Tree) -> dict[bytes, Record]:
    records = tree.records()
    wanted = {tree.root} | {digest for record in records.values() for _, digest in index_references(record)}
    return {digest: records[digest] for digest in wanted}


def test_what_has_not_changed_is_the_same_object() -> None:
    content = [Item(f"org+{n}") for n in range(20)]
    queries = [QueryRow({"q": n}, Answers({f"org+{n}"}, {f"org+{n}"}, {f"org+{n}"})) for n in range(3)]
    rows = [CatalogRow(UUID(int=n << 120), {"q": n}, {"q": n}, UUID(int=n)) for n in range(3)]
    first = build(content, queries, rows).assembled()
    changed = [replace(queries[0], v1=Answers({"new"}, {"new"}, {"new"})), *queries[1:]]
    tree = build([*content, Item("new")], changed, rows, generation=2)
    second = Index.assemble(tree.root, tree.records(), first)
    assert second.changed is not None
    assert len(second.changed.queries) == 1
    assert second.changed.catalogs == {str(rows[0].uuid)}
    assert second.dictionary.ordinals is first.dictionary.ordinals
    for row in rows[1:]:
        assert second.catalogs[str(row.uuid)] is first.catalogs[str(row.uuid)]
        assert second.of_customer[str(row.customer)] is first.of_customer[str(row.customer)]
    third = Index.assemble(tree.root, {}, second)
    assert third.queries is second.queries
    assert third.catalogs is second.catalogs
    assert third.dictionary is second.dictionary


def test_a_generation_that_is_refused_leaves_the_one_before_as_it_was() -> None:
    content = [Item("a"), Item("b")]
    first = build(content).assembled()
    was = told(first)
    bad = build([*content, Item("c"), Item("d", RUN, "c")], generation=2)
    records = bad.records()
    place = next(d for d, r in records.items() if isinstance(r, Segment))
    segment = records[place]
    assert isinstance(segment, Segment)
    records[place] = replace(segment, parents=(None, None, None, 1_000))
    with pytest.raises(Malformed):
        Index.assemble(bad.root, records, first)
    found = told(first)
    assert {n: found[n] for n in was if n != "found"} == {n: was[n] for n in was if n != "found"}
    assert first.dictionary.find("c") == first.dictionary.find("C") == ()
    # What the refused one said of later ordinals binds nobody.
    for keys in (("c", "e"), ("x", "c"), ("c", "d", "e")):
        tree = build([*content, *map(Item, keys)], generation=3)
        index = Index.assemble(tree.root, tree.records(), first)
        assert told(index) == told(tree.assembled())


def test_a_record_that_is_missing_from_the_change_is_noticed() -> None:
    first = build([Item("a")]).assembled()
    tree = build([Item("a"), Item("b")], generation=2)
    for missing in _of_index(tree).keys() - first.records.keys():
        records = _of_index(tree)
        del records[missing]
        with pytest.raises(Malformed, match="among the records"):
            Index.assemble(tree.root, records, first)


def test_records_come_and_go_one_by_one() -> None:
    one, two = build([Item("a")]), build([Item("a"), Item("b")], generation=2)
    first = Held().after(one.root, one.records())
    second = first.after(two.root, two.records())
    assert set(second.without(first)) == second.came.keys() == set(second) - set(first)
    assert set(first.without(second)) == second.gone == set(first) - set(second)
    assert len(second) == len(set(second))
    again = second.after(one.root, first)
    assert dict(again) == dict(first)
    assert again.without(first) == []


def test_a_uuid_that_comes_late_is_found_from_then_on() -> None:
    def segment(*uuids: bytes | None) -> Segment:
        count = len(uuids)
        return Segment(0, bytes([1]) * count, tuple("abcdef"[:count]), (None,) * count, uuids)

    one, two = UUID(int=1), UUID(int=2)
    first = Dictionary().after((segment(two.bytes, None),), 2)
    second = first.after((segment(two.bytes, one.bytes, two.bytes),), 3)
    third = second.after((segment(None, one.bytes, two.bytes),), 3)
    assert [each.of_uuid(str(two)) for each in (first, second, third)] == [0, 0, 2]
    assert [each.of_uuid(str(one)) for each in (first, second, third)] == [None, 1, 1]
    assert first.uuids[:2] == [two.bytes, None]
