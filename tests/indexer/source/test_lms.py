"""Customers: what the LMS says of them, what it does not know, and what is refused."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from indexer.source import SourceError
from indexer.source.discovery import DiscoverySource
from indexer.source.file import FileSource
from tests.discovery import SEARCH, TOKEN, FakeDiscovery, RecordingClock, served, source_over
from tests.fakes import customer, uuid_of

ACME = f"/enterprise/api/v1/enterprise-customer/{uuid_of('Acme')}/"


@pytest.fixture
async def fake() -> AsyncIterator[FakeDiscovery]:
    corpus = {"courses": [], "programs": [], "pathways": [], "reviews": [], "customers": [customer("Acme")]}
    async with served(corpus) as made:
        yield made


@pytest.fixture
async def source(fake: FakeDiscovery) -> AsyncIterator[DiscoverySource]:
    async with source_over(fake, RecordingClock()) as made:
        yield made


async def test_its_details_are_those_of_the_file_source(
    fake: FakeDiscovery, source: DiscoverySource, tmp_path: Path
) -> None:
    (tmp_path / "corpus.json").write_text(json.dumps(fake.corpus))
    wanted = await FileSource(tmp_path / "corpus.json").customer(uuid_of("Acme"))
    assert wanted is not None
    assert await source.customer(uuid_of("Acme")) == wanted
    assert [asked.path for asked in fake.asked] == [TOKEN, ACME]
    assert fake.asked[1].authorization == f"JWT {fake.token}"


async def test_one_that_the_lms_does_not_know_is_none(source: DiscoverySource) -> None:
    assert await source.customer(uuid_of("nobody")) is None


async def test_one_for_whom_no_token_is_issued_is_not_unknown(fake: FakeDiscovery, source: DiscoverySource) -> None:
    fake.fail(TOKEN, 404)
    with pytest.raises(SourceError, match=r"^access token: POST /oauth2/access_token: 404 Not Found"):
        await source.customer(uuid_of("Acme"))


async def test_without_an_lms_all_are_none_and_nothing_is_asked(fake: FakeDiscovery) -> None:
    async with source_over(fake, RecordingClock(), lms=False) as source:
        assert await source.customer(uuid_of("Acme")) is None
    assert fake.asked == []


async def test_passing_troubles_are_tried_again_and_others_are_not(
    fake: FakeDiscovery, source: DiscoverySource
) -> None:
    fake.fail(ACME, 500, 429)
    assert await source.customer(uuid_of("Acme")) is not None
    fake.fail(ACME, 403)
    with pytest.raises(SourceError, match=rf"^customer {uuid_of('Acme')}: GET {ACME}: 403 Forbidden"):
        await source.customer(uuid_of("Acme"))
    assert fake.times(ACME) == 4


async def test_asking_takes_nothing_from_discoverys_budget(fake: FakeDiscovery) -> None:
    clock = RecordingClock()
    async with source_over(fake, clock, requests_per_hour=1) as source:
        for _ in range(5):
            await source.customer(uuid_of("Acme"))
        await source.pull({})
        assert clock.slept == []
        assert fake.times(SEARCH) == 1
        await source.pull({})
        assert clock.slept == [3600]


@pytest.mark.parametrize(
    "answer, reason",
    [
        (["Acme"], r"it is \['Acme'\], and not an object"),
        ({}, "its uuid is None"),
        ({"uuid": 5}, "its uuid is 5"),
        ({"uuid": uuid_of("Other")}, "the answer is about "),
        ({"slug": None}, "must be texts"),
        ({"name": 5}, "must be texts"),
        ({"modified": None}, "must be texts"),
        ({"enable_learner_portal": "yes"}, "a boolean"),
    ],
)
async def test_an_answer_of_another_shape_is_refused(
    fake: FakeDiscovery, source: DiscoverySource, answer: Any, reason: str
) -> None:
    def spoil(request: object, details: Any) -> Any:
        return {**details, **answer} if isinstance(answer, dict) and answer else answer

    await source.pull({})
    fake.spoil = spoil
    with pytest.raises(SourceError, match=f"^customer {uuid_of('Acme')}: .*{reason}"):
        await source.customer(uuid_of("Acme"))


async def test_any_spelling_of_its_uuid_will_do(fake: FakeDiscovery, source: DiscoverySource) -> None:
    await source.pull({})
    fake.spoil = lambda request, details: details | {"uuid": details["uuid"].upper()}
    found = await source.customer(uuid_of("Acme"))
    assert found is not None
    assert found.uuid == uuid_of("Acme")
