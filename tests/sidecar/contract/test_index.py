"""The index: what a generation answers, measured against plain sets, and which generations are refused as a whole."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.contract.index import IN_INDEX, Content, Index, check_content, index_references
from sidecar.contract.objects import ObjectType, seal
from sidecar.contract.records import (
    BRANCH_CHILDREN,
    Bitmap,
    Branch,
    CatalogShard,
    ContentSet,
    ContentShard,
    CustomerShard,
    FreshnessShard,
    QueryShard,
    Record,
    Root,
    Segment,
    branches_of,
    open_record,
    seal_record,
)
from sidecar.contract.words import ContentType, PullState, fold, query_hash
from sidecar.errors import ContractError, Malformed
from tests.sidecar.contract.tree import (
    Answers,
    Catalog,
    Item,
    Query,
    Tree,
    build,
    everything_below,
    lookups_stay_inside,
)

R = TypeVar("R")

RUN = ContentType.COURSE_RUN
ALL, SOME, NEVER = {"content_type": "course"}, {"key": ["edX+DemoX"]}, {"key": ["never"]}
CONTENT = [
    Item("edX+DemoX", document=b'{"key":"edX+DemoX"}'),
    Item("course-v1:edX+DemoX+1", RUN, "edX+DemoX"),
    Item("course-v1:edX+DemoX+2", RUN, "edX+DemoX"),
    Item("École+Été", document=b"{}"),
    Item("ecole+ete"),
    Item("0f2d4e4e-0000-4000-8000-000000000001", ContentType.PROGRAM),
    Item("0f2d4e4e-0000-4000-8000-000000000002", ContentType.PATHWAY),
    Item("course-v1:lost+run+1", RUN),
]
KEYS = [item.key for item in CONTENT]
QUERIES = [
    Query(
        ALL,
        Answers({"edX+DemoX", "École+Été"}, set(KEYS[:4]), {"edX+DemoX"}),
        overrides_v1={"edX+DemoX": b"{1}", "École+Été": b"{2}"},
    ),
    Query(
        SOME,
        Answers({KEYS[1]}, {KEYS[0], KEYS[1]}, {KEYS[1]}),
        Answers({KEYS[1], KEYS[2]}, set(KEYS[:3]), set()),
        overrides_v2={"edX+DemoX": b"{3}"},
    ),
    Query(NEVER),
]
CUSTOMERS = [UUID(int=(n << 120) + n) for n in (0x00, 0x0F, 0x10, 0xFF)]
CATALOGS = [
    Catalog(UUID(int=0xA0 << 120), ALL, ALL, CUSTOMERS[1]),
    Catalog(UUID(int=(0xA0 << 120) + 1), NEVER, None, CUSTOMERS[1]),
    Catalog(UUID(int=0), NEVER, SOME, CUSTOMERS[2]),
    Catalog(UUID(int=0x01 << 120), ALL, ALL, UUID(int=77)),
]


def small() -> Tree:
    return build(CONTENT, QUERIES, CATALOGS, CUSTOMERS)


def keys_in(index: Index, content: Content | None) -> Answers | None:
    """The content of a query as an Answers of content keys."""
    if content is None:
        return None
    members, contained, listed = (
        {index.dictionary.keys[ordinal] for ordinal in bitmap}
        for bitmap in (content.members, content.contained, content.listed)
    )
    return Answers(members, contained, listed)


def test_an_index_answers_what_it_was_built_from() -> None:
    tree = small()
    index = tree.assembled()
    lookups_stay_inside(index)
    assert index.digest == tree.root
    assert index.dictionary.keys == KEYS
    assert list(index.dictionary.types) == [item.type for item in CONTENT]
    assert index.dictionary.parents == [None, 0, 0, None, None, None, None, None]
    for query in QUERIES:
        found = index.queries[query_hash(query.content_filter)]
        assert keys_in(index, found.v1) == query.v1
        assert keys_in(index, found.v2) == (query.v2 or query.v1)
        assert (found.pulled_at_ms, found.state, found.task_id) == (
            (None, PullState.DUE, None) if query.v1 is None else (1, PullState.FRESH, None)
        )
    assert set(index.customers) == {str(customer) for customer in CUSTOMERS}
    assert index.customers[str(CUSTOMERS[3])].slug == f"slug-{CUSTOMERS[3].int}"


def test_a_query_without_a_second_set_answers_both_versions_from_one() -> None:
    index = small().assembled()
    same, other = index.queries[query_hash(ALL)], index.queries[query_hash(SOME)]
    assert same.v1 is same.v2
    assert other.v1 is not other.v2


def test_a_catalog_serves_one_query_and_may_want_another() -> None:
    index = small().assembled()
    catalog = index.catalogs[str(UUID(int=0))]
    assert catalog.wanted is index.queries[query_hash(NEVER)]
    assert catalog.serving is index.queries[query_hash(SOME)]
    assert catalog.customer == str(CUSTOMERS[2])


def test_a_catalog_that_was_never_pulled_serves_nothing() -> None:
    index = small().assembled()
    catalog = index.catalogs[str(CATALOGS[1].uuid)]
    assert catalog.serving is None
    assert catalog.wanted.v1 is None
    assert catalog.wanted.v2 is None


def test_the_catalogs_of_a_customer_come_in_the_order_of_their_creation() -> None:
    customer = CUSTOMERS[0]
    later = [Catalog(UUID(int=n << 120), NEVER, None, customer) for n in (9, 3, 200, 1)]
    index = build(queries=[Query(NEVER)], catalogs=later).assembled()
    assert [c.uuid for c in index.of_customer[str(customer)]] == [str(c.uuid) for c in later]
    assert set(small().assembled().of_customer) == {str(c.customer) for c in CATALOGS}


def test_a_dictionary_of_the_same_segments_is_not_made_again() -> None:
    before = small().assembled()
    same, more = build(CONTENT, QUERIES[:1], CATALOGS[:1]), build([*CONTENT, Item("new")], QUERIES, CATALOGS)
    assert Index.assemble(same.root, same.records(), before).dictionary is before.dictionary
    after = Index.assemble(more.root, more.records(), before)
    assert (after.dictionary.find("new"), before.dictionary.find("new")) == ((len(CONTENT),), ())


def test_an_index_of_nothing_knows_nothing() -> None:
    index = build().assembled()
    lookups_stay_inside(index)
    assert (len(index.dictionary), index.queries, index.catalogs, index.customers) == (0, {}, {}, {})
    assert index.dictionary.find("edX+DemoX") == ()
    assert index.dictionary.find("") == ()


def test_an_index_needs_no_documents() -> None:
    tree = small()
    records: dict[bytes, Record] = {}
    wanted = [(ObjectType.ROOT, tree.root)]
    for kind, digest in wanted:
        records[digest] = open_record(digest, tree.objects[digest].data, kind)
        wanted += index_references(records[digest])
    assert {record.TYPE for record in records.values()} == IN_INDEX
    lookups_stay_inside(Index.assemble(tree.root, records))
    assert {ObjectType.CONTENT, ObjectType.METADATA}.isdisjoint(IN_INDEX)


def test_a_generation_holds_no_object_that_it_does_not_reach() -> None:
    tree = small()
    assert everything_below(tree.root, tree.records()) == set(tree.objects)


@pytest.mark.parametrize(
    "key, found",
    [
        ("edX+DemoX", [0]),
        ("EDX+demox", [0]),
        ("éDX+dÉmox", [0]),
        ("course-V1:edx+DEMOX+2", [2]),
        ("École+Été", [3]),
        ("ecole+ete", [4]),
        ("ECOLE+ETE", [3, 4]),
        ("E\u0301cole+E\u0301te\u0301", [3, 4]),
        ("0F2D4E4E-0000-4000-8000-000000000001", [5]),
        ("edX+Demo", []),
        ("edX+DemoX ", []),
        ("", []),
    ],
)
def test_a_key_is_found_as_it_is_written_or_else_folded(key: str, found: list[int]) -> None:
    assert small().assembled().dictionary.find(key) == tuple(found)


@pytest.mark.parametrize("ordinals", [1, 255, 256, 257, 511, 512, 513, 1023, 1024, 1025, 1281, 2500])
def test_a_dictionary_of_any_size_finds_every_key(ordinals: int) -> None:
    tree = build([Item(f"org+{n}") for n in range(ordinals)])
    index = tree.assembled()
    assert len(index.dictionary) == ordinals == index.root.ordinals
    for n in (0, ordinals // 2, ordinals - 1):
        assert index.dictionary.find(f"org+{n}") == index.dictionary.find(f"ORG+{n}") == (n,)
    assert index.dictionary.find(f"org+{ordinals}") == ()


# Against plain sets.

ALPHABET = "aAéÉßsSſ+"


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[Item], list[Query], list[Catalog]]:
    """Content with courses, runs and programs; queries over any of it; catalogs that serve and want any of those."""
    names = draw(st.lists(st.text(ALPHABET, min_size=1, max_size=4), unique=True, max_size=25))
    content: list[Item] = []
    for name in names:
        kind = draw(st.sampled_from(ContentType))
        courses = [item.key for item in content if item.type is ContentType.COURSE]
        parent = draw(st.sampled_from([None, *courses])) if kind is RUN else None
        content.append(Item(name, kind, parent))
    sets = st.sets(st.sampled_from(names)) if names else st.just(set[str]())
    answers = st.builds(Answers, sets, sets, sets)
    queries = []
    for n in range(draw(st.integers(0, 5))):
        v1 = draw(st.none() | answers)
        queries.append(Query({"q": n}, v1, None if v1 is None else draw(st.none() | answers)))
    catalogs = []
    if queries:
        wanted = st.sampled_from([query.content_filter for query in queries])
        serving = st.sampled_from([None, *(query.content_filter for query in queries if query.v1 is not None)])
        uuids = draw(st.sets(st.uuids(), max_size=5))
        catalogs = [Catalog(uuid, draw(wanted), draw(serving), UUID(int=uuid.int % 2)) for uuid in uuids]
    return content, queries, catalogs


@given(worlds(), st.lists(st.text(ALPHABET, max_size=4), max_size=10))
def test_every_answer_is_that_of_plain_sets(
    world: tuple[list[Item], list[Query], list[Catalog]], unknown: Sequence[str]
) -> None:
    content, queries, catalogs = world
    index = build(content, queries, catalogs).assembled()
    lookups_stay_inside(index)
    by_filter = {query.content_filter["q"]: query for query in queries}
    keys = [item.key for item in content]
    assert index.dictionary.keys == keys
    for key in [*keys, *unknown, *map(str.upper, keys)]:
        expected = [key] if key in keys else [known for known in keys if fold(known) == fold(key)]
        assert [keys[ordinal] for ordinal in index.dictionary.find(key)] == expected
    for catalog in catalogs:
        found = index.catalogs[str(catalog.uuid)]
        if catalog.serving is None:
            assert found.serving is None
            continue
        assert found.serving is not None
        query = by_filter[catalog.serving["q"]]
        for bitmaps, plain in ((found.serving.v1, query.v1), (found.serving.v2, query.v2 or query.v1)):
            assert bitmaps is not None
            assert plain is not None
            for ordinal, key in enumerate(keys):
                assert (ordinal in bitmaps.members) is (key in plain.members)
                assert (ordinal in bitmaps.contained) is (key in plain.contained)
                assert (ordinal in bitmaps.listed) is (key in plain.members & plain.listed)
    assert len(index.catalogs) == len(catalogs)
    assert sum(map(len, index.of_customer.values())) == len(catalogs)


# Generations that break what a reader may rely on.


FIELDS = {
    "queries": ObjectType.QUERIES,
    "freshness": ObjectType.FRESHNESS,
    "catalogs": ObjectType.CATALOGS,
    "customers": ObjectType.CUSTOMERS,
}


class Broken:
    """A complete generation of which records are changed, with every reference to them left as it was."""

    def __init__(self, tree: Tree) -> None:
        self.root = tree.root
        self.records = tree.records()

    def of(self, kind: type[R]) -> list[R]:
        return [record for record in self.records.values() if isinstance(record, kind)]

    def change(self, kind: type[R], change: Callable[[R], R], number: int = 0) -> None:
        """Puts a changed record in the place of one of the records of this kind."""
        places = [digest for digest, record in self.records.items() if isinstance(record, kind)]
        changed: Any = change(cast(R, self.records[places[number]]))
        self.records[places[number]] = changed

    def shards(self, field: str) -> dict[int, bytes]:
        """The digests of shards of a field of the root, by their numbers."""
        fan: Mapping[int, bytes] = getattr(self.of(Root)[0], field)
        if field == "customers":
            return dict(fan)
        found: dict[int, bytes] = {}
        for number, digest in fan.items():
            branch = self.records[digest]
            assert isinstance(branch, Branch)
            found.update((number * BRANCH_CHILDREN + place, child) for place, child in branch.children.items())
        return found

    def put_shards(self, field: str, kind: ObjectType, shards: Mapping[int, bytes]) -> None:
        """Has the root refer to these shards."""
        fan = dict(shards)
        if field != "customers":
            fan = {}
            for number, branch in branches_of(kind, shards).items():
                fan[number] = seal_record(branch).digest
                self.records[fan[number]] = branch
        rows: Mapping[str, Any] = {field: fan}
        self.change(Root, lambda root: replace(root, **rows))

    def refused(self) -> str:
        with pytest.raises(Malformed) as caught:
            Index.assemble(self.root, self.records)
        return str(caught.value)


def broken() -> Broken:
    return Broken(small())


def test_the_generation_that_is_broken_below_is_sound_before() -> None:
    whole = broken()
    lookups_stay_inside(Index.assemble(whole.root, whole.records))


def test_a_generation_without_a_root_is_refused() -> None:
    whole = broken()
    del whole.records[whole.root]
    assert "no root" in whole.refused()
    whole.root = next(digest for digest, record in whole.records.items() if isinstance(record, Segment))
    assert "no root" in whole.refused()


def test_a_generation_that_lacks_any_record_of_the_index_is_refused() -> None:
    tree = small()
    for missing in everything_below(tree.root, tree.records()):
        whole = Broken(tree)
        record = whole.records.pop(missing)
        if record.TYPE in IN_INDEX:
            whole.refused()
        else:
            Index.assemble(whole.root, whole.records)


def test_a_generation_with_a_record_of_another_type_in_the_place_of_any_is_refused() -> None:
    tree = small()
    other = {ObjectType.BITMAP: Segment(0, b"", (), (), ())}
    for place, record in tree.records().items():
        if record.TYPE in IN_INDEX:
            whole = Broken(tree)
            whole.records[place] = other.get(ObjectType(record.TYPE), Bitmap.of([]))
            whole.refused()


@pytest.mark.parametrize("field", ["members", "contained", "unlisted"])
@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("ordinal", [len(KEYS), 70_000, 0xFFFF_FFFF])
def test_a_bitmap_with_an_ordinal_outside_of_the_dictionary_is_refused(field: str, version: str, ordinal: int) -> None:
    whole = broken()
    shard = next(s for s in whole.of(QueryShard) if any(r.v2 is not None for r in s.records))
    content_set = getattr(next(r for r in shard.records if r.v2 is not None), version)
    place = getattr(content_set, field)
    was = whole.records[place]
    assert isinstance(was, Bitmap)
    whole.records[place] = Bitmap.of({*was.ordinals, ordinal})
    assert "bitmap" in whole.refused()


@pytest.mark.parametrize("overrides", ["overrides_v1", "overrides_v2"])
@pytest.mark.parametrize("ordinal", [len(KEYS), 0xFFFF_FFFF])
def test_an_override_of_an_ordinal_that_is_not_in_the_dictionary_is_refused(overrides: str, ordinal: int) -> None:
    whole = broken()

    def change(shard: QueryShard) -> QueryShard:
        rows: Mapping[str, Any] = {overrides: ((ordinal, bytes(32)),)}
        return QueryShard(tuple(replace(record, **rows) for record in shard.records))

    whole.change(QueryShard, change)
    assert "override" in whole.refused()


def _with_parent(parents: Mapping[int, int | None]) -> Callable[[Segment], Segment]:
    return lambda s: replace(s, parents=tuple(parents.get(n, parent) for n, parent in enumerate(s.parents)))


@pytest.mark.parametrize(
    "child, parent",
    [
        pytest.param(1, len(KEYS), id="just outside of the dictionary"),
        pytest.param(1, 0xFFFF_FFFF, id="far outside of the dictionary"),
        pytest.param(1, 2, id="a run"),
        pytest.param(1, 1, id="itself"),
        pytest.param(1, 5, id="a program"),
        pytest.param(1, 6, id="a pathway"),
        pytest.param(0, 3, id="of a course"),
        pytest.param(5, 0, id="of a program"),
    ],
)
def test_a_parent_that_is_not_the_course_of_a_run_is_refused(child: int, parent: int) -> None:
    whole = broken()
    whole.change(Segment, _with_parent({child: parent}))
    assert "dictionary" in whole.refused()


def test_a_key_in_two_segments_is_refused() -> None:
    whole = Broken(build([Item(f"org+{n}") for n in range(300)]))
    first = next(s for s in whole.of(Segment) if s.first == 0)
    number = next(n for n, s in enumerate(whole.of(Segment)) if s.first)
    whole.change(Segment, lambda s: replace(s, keys=(*s.keys[:-1], first.keys[7])), number)
    assert "two ordinals" in whole.refused()


def _columns(segment: Segment, count: int) -> Segment:
    """The segment with its columns cut or made longer."""
    keys = [*segment.keys, *(f"more {n}" for n in range(count))][:count]
    nothing = (None,) * count
    return Segment(segment.first, bytes([1]) * count, tuple(keys), nothing, nothing)


@pytest.mark.parametrize("count", [0, 1, len(KEYS) - 1, len(KEYS) + 1, 256, 1024])
def test_a_segment_of_another_size_than_the_root_says_is_refused(count: int) -> None:
    whole = broken()
    whole.change(Segment, lambda segment: _columns(segment, count))
    assert "where there are" in whole.refused()


@pytest.mark.parametrize("first", [1, 8, 256, 1024, 0xFFFF_FFFF])
def test_a_segment_that_begins_elsewhere_is_refused(first: int) -> None:
    whole = broken()
    whole.change(Segment, lambda segment: replace(segment, first=first))
    assert "where there are" in whole.refused()


def test_segments_in_another_order_are_refused() -> None:
    whole = Broken(build([Item(f"org+{n}") for n in range(600)]))
    (place,) = whole.of(Root)[0].dictionary
    branch = whole.records[place]
    assert isinstance(branch, Branch)
    segments = tuple(branch.children.values())
    for order in itertools.permutations(segments):
        whole.records[place] = Branch(ObjectType.SEGMENT, dict(enumerate(order)))
        if order == segments:
            Index.assemble(whole.root, whole.records)
        else:
            whole.refused()


@pytest.mark.parametrize("field", ["wanted", "serving"])
def test_a_catalog_of_a_query_that_has_no_record_is_refused(field: str) -> None:
    whole = broken()

    def change(shard: CatalogShard) -> CatalogShard:
        rows: Mapping[str, Any] = {field: bytes(16)}
        return CatalogShard(tuple(replace(record, **rows) for record in shard.records))

    whole.change(CatalogShard, change)
    assert "rests on a query" in whole.refused()


def test_a_catalog_that_serves_a_query_without_content_is_refused() -> None:
    whole = broken()
    never = query_hash(NEVER)
    whole.change(CatalogShard, lambda s: CatalogShard(tuple(replace(record, serving=never) for record in s.records)))
    assert "rests on a query" in whole.refused()


def test_a_query_that_is_gone_while_a_catalog_needs_it_is_refused() -> None:
    for gone in (ALL, SOME, NEVER):
        whole = broken()
        byte = query_hash(gone)[0]
        for field in ("queries", "freshness"):
            left = {number: digest for number, digest in whole.shards(field).items() if number != byte}
            whole.put_shards(field, FIELDS[field], left)
        assert "rests on a query" in whole.refused()


def test_a_query_without_a_freshness_record_is_refused() -> None:
    whole = broken()
    whole.change(FreshnessShard, lambda _: FreshnessShard(()))
    assert "no freshness" in whole.refused()


def test_a_freshness_record_without_a_query_is_refused() -> None:
    whole = Broken(build(queries=[Query(NEVER), Query(ALL)]))
    whole.change(QueryShard, lambda _: QueryShard(()))
    assert "have no record" in whole.refused()


@pytest.mark.parametrize("field", FIELDS)
def test_a_shard_under_another_byte_is_refused(field: str) -> None:
    whole = broken()
    shards = whole.shards(field)
    byte = next(iter(shards))
    free = next(b for b in range(256) if b not in shards)
    whole.put_shards(field, FIELDS[field], {**shards, free: shards.pop(byte)})
    assert "shard" in whole.refused()


def test_a_branch_over_objects_of_another_kind_is_refused() -> None:
    for field, other in (("queries", "catalogs"), ("dictionary", "content")):
        whole = broken()
        rows: Mapping[str, Any] = {field: getattr(whole.of(Root)[0], other)}
        whole.change(Root, lambda root, rows=rows: replace(root, **rows))  # type: ignore[misc]
        assert "is referenced" in whole.refused()


def test_a_list_with_a_gap_is_refused() -> None:
    for kind in (ObjectType.SEGMENT, ObjectType.CONTENT):
        whole = Broken(build([Item(f"org+{n}") for n in range(1025)]))
        place = next(d for d, r in whole.records.items() if isinstance(r, Branch) and r.kind is kind)
        branch = whole.records[place]
        assert isinstance(branch, Branch)
        for children in ({0: branch.children[0], 2: branch.children[1]}, {0: branch.children[0]}):
            whole.records[place] = Branch(kind, children)
            assert "have a digest" in whole.refused()


@pytest.mark.parametrize("field", FIELDS)
def test_a_shard_in_two_places_is_refused(field: str) -> None:
    whole = broken()
    shards = whole.shards(field)
    free = next(b for b in range(256) if b not in shards)
    whole.put_shards(field, FIELDS[field], {**shards, free: next(iter(shards.values()))})
    whole.refused()


def test_the_customers_whose_uuids_begin_with_the_same_four_bits_lie_together() -> None:
    whole = broken()
    assert set(whole.of(Root)[0].customers) == {0x0, 0x1, 0xF}
    shard = next(s for s in whole.of(CustomerShard) if len(s.records) == 2)
    assert [record.uuid[0] for record in shard.records] == [0x00, 0x0F]


# Content shards are opened one by one, after the index.


def test_the_content_shards_of_a_generation_pass() -> None:
    tree = build([Item(f"org+{n}", document=b"{}") for n in range(1100)])
    index = tree.assembled()
    shards = [tree.records()[digest] for digest in index.content]
    for number, shard in enumerate(shards):
        assert isinstance(shard, ContentShard)
        check_content(index, number, shard)
    assert len(shards) == 3


@pytest.mark.parametrize(
    "number, first, ordinals",
    [
        pytest.param(0, 512, 512, id="that of another place, of the same size"),
        pytest.param(1, 0, 512, id="that of the place before"),
        pytest.param(0, 0, 511, id="too short"),
        pytest.param(0, 0, 513, id="too long"),
        pytest.param(0, 0, 0, id="empty"),
        pytest.param(0, 1, 512, id="not at the start"),
        pytest.param(2, 1024, 512, id="beyond the end of the dictionary"),
        pytest.param(2, 1024, 75, id="short of the end of the dictionary"),
        pytest.param(3, 1536, 0, id="of a place that is not there"),
        pytest.param(2, 0, 76, id="the tail with another start"),
    ],
)
def test_a_content_shard_of_other_ordinals_than_those_of_its_place_is_refused(
    number: int, first: int, ordinals: int
) -> None:
    index = build([Item(f"org+{n}") for n in range(1100)]).assembled()
    with pytest.raises(Malformed):
        check_content(index, number, ContentShard(first, (None,) * ordinals, (0,) * ordinals))


# Damage of which nothing is known, in objects whose digests are right.


def test_any_flipped_bit_of_any_object_gives_a_refusal_or_answers_inside_of_the_dictionary() -> None:
    """A record is opened from changed bytes; all others, and the references to the changed one, are as they were."""
    tree = build(CONTENT[:4], QUERIES[:1], CATALOGS[:1], CUSTOMERS[:1])
    good = tree.records()
    refused = taken = 0
    for digest, record in good.items():
        payload = record.encode()
        for bit in range(len(payload) * 8):
            flipped = bytearray(payload)
            flipped[bit // 8] ^= 1 << bit % 8
            sealed = seal(record.TYPE, bytes(flipped))
            try:
                index = Index.assemble(tree.root, good | {digest: open_record(sealed.digest, sealed.data, record.TYPE)})
            except ContractError:
                refused += 1
                continue
            taken += 1
            lookups_stay_inside(index)
    assert refused
    assert taken


small_ordinals = st.integers(0, 12) | st.integers(0, 0xFFFF_FFFF)


@given(
    st.lists(small_ordinals, max_size=3),
    st.none() | small_ordinals,
    st.integers(0, 7),
    st.lists(small_ordinals, unique=True, max_size=2),
    st.sampled_from([query_hash(ALL), query_hash(SOME), query_hash(NEVER), bytes(16)]),
)
def test_any_records_that_do_not_fit_give_a_refusal_or_answers_inside_of_the_dictionary(
    members: Sequence[int], parent: int | None, child: int, overridden: Sequence[int], serving: bytes
) -> None:
    whole = broken()
    whole.change(Bitmap, lambda _: Bitmap.of(set(members)))
    whole.change(Segment, _with_parent({child: parent}))
    whole.change(CatalogShard, lambda s: CatalogShard(tuple(replace(r, serving=serving) for r in s.records)))
    rows = tuple((ordinal, bytes(32)) for ordinal in sorted(overridden))
    pulled = next(n for n, s in enumerate(whole.of(QueryShard)) if all(r.v1 is not None for r in s.records))
    whole.change(QueryShard, lambda s: QueryShard(tuple(replace(r, overrides_v1=rows) for r in s.records)), pulled)
    try:
        index = Index.assemble(whole.root, whole.records)
    except Malformed:
        return
    lookups_stay_inside(index)


def test_a_content_set_may_name_one_bitmap_three_times() -> None:
    index = build(CONTENT, [Query(ALL, Answers({KEYS[0]}, {KEYS[0]}, set()))]).assembled()
    record = index.queries[query_hash(ALL)].record
    assert isinstance(record.v1, ContentSet)
    assert len({record.v1.members, record.v1.contained, record.v1.unlisted}) == 1
