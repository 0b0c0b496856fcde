"""Dumping: every type of object is readable data, and JSON."""

import json
from dataclasses import fields

import pytest

from indexer.dump import find, find_record, readable
from indexer.render import metadata_of
from sidecar.contract.objects import HEADER, ObjectType
from sidecar.contract.words import ContentType, query_hash
from sidecar.errors import NotAnObject, ObjectMissing, WrongDigest
from sidecar.store.memory import MemoryStore
from tests.fakes import FakeSource, course, customer, run, uuid_of
from tests.world import World

COURSES = {"content_type": "course"}


@pytest.fixture
async def store(here: World) -> MemoryStore:
    assert isinstance(here.source, FakeSource)
    assert isinstance(here.store, MemoryStore)
    here.source.courses = [course("A+1", run("a1")), course("Å+1", run("x1", restricted=True))]
    here.source.customers = [customer("Acme")]
    await here.add("a", COURSES, catalog_query_uuid=uuid_of("q"), query_title="t")
    await here.add("b", {**COURSES, "restricted_runs_allowed": {"course:Å+1": ["x1"]}})
    await here.build()
    return here.store


async def test_every_object_of_a_tree_is_readable_as_json(store: MemoryStore) -> None:
    kinds = set()
    for digest, data in store.objects.items():
        name, record = await find(store, digest.hex())
        assert name == digest.hex()
        kinds.add(record.TYPE)
        assert HEADER.unpack_from(data)[2] == record.TYPE
        shown = json.loads(json.dumps(readable(record)))
        assert set(shown) == (
            {"key", "type", "document", "places"}
            if record.TYPE is ObjectType.METADATA
            else {f.name for f in fields(record)}
        )
    assert kinds == set(ObjectType)


def test_a_document_is_shown_as_no_catalog_has_it_and_its_places_after_it() -> None:
    content = {"marketing_url": 'https://x.test/"', "course_runs": [{"key": "Å 1"}]}
    shown = readable(metadata_of("Å+1", ContentType.COURSE, content))
    assert shown["document"]["marketing_url"] == content["marketing_url"]
    assert shown["document"]["course_runs"] == content["course_runs"]
    assert shown["document"]["content_last_modified"] is None
    assert "enrollment_url" not in shown["document"]
    assert shown["places"] == [
        {"place": "Modified"},
        {
            "place": "Marketing",
            "plain": content["marketing_url"],
            "head": 'https://x.test/"?utm_medium=enterprise&utm_source=',
            "tail": "",
        },
        {"place": "RunEnrollment", "course": "Å+1", "run": "%C3%85+1", "target": "Å 1"},
        {"place": "Activity", "activity": "course/Å+1"},
        {"place": "Enrollment", "executive": False, "course": "Å+1", "run": None, "target": "Å+1", "sku": None},
    ]


async def test_records_are_found_by_what_people_have_at_hand(store: MemoryStore) -> None:
    async def kinds(what: str) -> list[str]:
        return [record["record"] for record in await find_record(store, what)]

    assert await kinds(uuid_of("catalog a")) == ["catalog"]
    assert await kinds(query_hash(COURSES).hex()) == ["query", "freshness"]
    assert await kinds(uuid_of("q")) == ["query"]
    assert await kinds(uuid_of("Acme")) == ["customer"]


async def test_a_digest_is_found_by_its_beginning(store: MemoryStore) -> None:
    root, record = await find(store, "root")
    assert record.TYPE is ObjectType.ROOT
    below = {digest.hex() for _, digest in record.references()}
    for kind, inner in record.references():
        if kind is ObjectType.BRANCH:
            _, branch = await find(store, inner.hex())
            below |= {child.hex() for _, child in branch.references()}
    for digest in below:
        found, _ = await find(store, digest[:16])
        assert found == digest
    with pytest.raises(ObjectMissing, match=f"{len(below)} objects below the root"):
        await find(store, "")
    assert root not in below


async def test_what_is_not_there_or_not_sound_is_said(store: MemoryStore) -> None:
    digest = next(iter(store.objects))
    for data, error in ((b"ECAT", NotAnObject), (b"ECAT\1\77" + bytes(20), NotAnObject)):
        good = store.objects[digest]
        store.objects[digest] = data
        with pytest.raises(error):
            await find(store, digest.hex())
        store.objects[digest] = good
    good = store.objects[digest]
    store.objects[digest] = good[:-1] + b"?"
    with pytest.raises(WrongDigest):
        await find(store, digest.hex())
    store.objects[digest] = good
    with pytest.raises(ObjectMissing):
        await find_record(store, uuid_of("nothing"))
