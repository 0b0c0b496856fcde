"""A sample of what is published: which keys of which catalogs, and what is known of them."""

from random import Random

import pytest

from indexer import published
from indexer.published import sample
from indexer.questions import Holding, Key
from sidecar.contract.words import ContentType, query_hash
from sidecar.errors import ObjectMissing
from tests.fakes import course, customer, run, uuid_of
from tests.world import World

COURSES = {"content_type": "course"}


@pytest.fixture
async def filled(here: World) -> World:
    """Three catalogs of two customers over two courses, one with a run that has no search document."""
    here.source.courses = [course("A+1", run("a1")), course("B+1", run("b1"), indexed=("b1",))]  # type: ignore[attr-defined]
    here.source.customers = [customer("Acme"), customer("Other")]  # type: ignore[attr-defined]
    await here.add("a", {"key": "A+1"})
    await here.add("b", COURSES)
    await here.add("c", {"key": "B+1"}, of="Other")
    await here.build()
    return here


async def test_has_members_nested_runs_and_keys_of_other_catalogs(filled: World) -> None:
    cases = {case.uuid: case for case in await sample(filled.store, 10, Random(1))}
    assert set(cases) == {uuid_of(f"catalog {name}") for name in "abc"}
    a = cases[uuid_of("catalog a")]
    assert (a.customer, a.query) == (uuid_of("Acme"), query_hash({"key": "A+1"}).hex())
    assert Key("A+1", ContentType.COURSE) in a.keys
    assert Key("a1", ContentType.COURSE_RUN, "A+1") in a.keys
    assert set(a.v1) == {uuid_of("catalog a"), uuid_of("catalog b")}
    assert a.v1[a.uuid] == Holding(frozenset({"A+1"}), frozenset({"A+1", "a1"}))
    assert a.v2 == a.v1
    assert (a.never_pulled, a.changed) == (frozenset(), frozenset())


async def test_is_the_same_for_the_same_chance_and_no_larger_than_wanted(filled: World) -> None:
    samples = [await sample(filled.store, 2, Random(seed)) for seed in (1, 1)]
    assert samples[0] == samples[1]
    assert len(samples[0]) == 2


async def test_knows_which_catalogs_wait_for_a_pull(filled: World) -> None:
    await filled.add("d", {"key": "D+1"})
    await filled.add("e", {"key": "A+1", "partner": "x"}, of="Other", catalog_query_uuid=uuid_of("q"))
    await filled.publish()
    cases = {case.uuid: case for case in await sample(filled.store, 10, Random(1))}
    d, e = uuid_of("catalog d"), uuid_of("catalog e")
    assert cases[uuid_of("catalog a")].never_pulled == {d}
    assert cases[d].never_pulled == {d}
    assert cases[uuid_of("catalog c")].never_pulled == {e}
    assert cases[d].v1[d] == Holding()


async def test_leaves_out_customers_of_too_many_catalogs(filled: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "MOST_CATALOGS", 1)
    cases = {case.uuid: case for case in await sample(filled.store, 10, Random(1))}
    assert cases[uuid_of("catalog a")].customer is None
    assert set(cases[uuid_of("catalog a")].v1) == {uuid_of("catalog a")}
    assert cases[uuid_of("catalog c")].customer == uuid_of("Other")


async def test_of_nothing_is_refused(here: World) -> None:
    with pytest.raises(ObjectMissing, match="nothing was ever published here"):
        await sample(here.store, 1, Random(1))
    await here.publish()
    assert await sample(here.store, 1, Random(1)) == []
