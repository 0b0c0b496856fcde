"""An indexer and course-discovery, its tokens and the LMS; and the two services that it compares: what is between them
fails."""

from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest

from indexer.compare import Comparer, Comparison
from indexer.judge import Outcome
from indexer.published import sample
from indexer.questions import questions
from indexer.source import SourceError
from indexer.source.discovery import DiscoverySource
from sidecar.settings import LmsSettings, SourceSettings
from tests.discovery import CLIENT_ID, SECRET, TOKEN, FakeDiscovery, RecordingClock, served
from tests.fakes import FakeClock, Json, course, customer, program, run, uuid_of
from tests.fault_proxy import HOST, FaultProxy, between
from tests.neighbour import neighbour
from tests.sidecar.replayed import replaying
from tests.wires import Harm, every_harm, recovered, within

TIMEOUT_S: Final = 0.2
RETRIES: Final = 1
COURSES: Final = 130
# Two pages of courses and one of runs, a listing taken again, documents in three batches, reviews: each with its tries.
PULL_S: Final = 16 * (1 + RETRIES) * TIMEOUT_S
ALL: Final[Json] = {}


@pytest.fixture
async def fake() -> AsyncIterator[FakeDiscovery]:
    courses = [course(f"Org+{n:03d}", run(f"run-{n:03d}"), indexed=(f"run-{n:03d}",)) for n in range(COURSES)]
    content = {
        "courses": courses,
        "programs": [program("P", "Org+001")],
        "pathways": [],
        "reviews": [],
        "customers": [customer("Acme")],
    }
    async with served(content) as made:
        yield made


@pytest.fixture
async def proxy(fake: FakeDiscovery) -> AsyncIterator[FaultProxy]:
    async with between((HOST, int(fake.url.rpartition(":")[2]))) as made:
        # Pages lead to the next ones through the proxy, too.
        fake.next_base = made.url
        yield made


def source_over(*, discovery: str, tokens: str, lms: str) -> DiscoverySource:
    section = SourceSettings(
        kind="discovery",
        url=discovery,
        oauth_url=tokens + TOKEN,
        oauth_client_id=CLIENT_ID,
        oauth_client_secret=SECRET,
        timeout_s=TIMEOUT_S,
        retries=RETRIES,
    )
    return DiscoverySource(section, LmsSettings(url=lms), RecordingClock())


@pytest.mark.parametrize("between_them", ["discovery", "tokens"])
@every_harm
async def test_a_pull_is_complete_or_it_is_nothing_and_ends(
    fake: FakeDiscovery, proxy: FaultProxy, between_them: str, harm: Harm
) -> None:
    urls: Any = {"discovery": fake.url, "tokens": fake.url, "lms": fake.url} | {between_them: proxy.url}
    source = source_over(**urls)
    right = await source.pull(ALL)
    assert len(right.members) == 2 * COURSES + 1
    # Another process, which has neither a token nor a document yet.
    await source.close()
    source = source_over(**urls)
    harm.on(proxy)
    async with within(PULL_S):
        with suppress(SourceError):
            # JSON whose bit was flipped may be JSON: discovery's answers are what TLS makes of them.
            assert (await source.pull(ALL)).members == right.members or harm.flips
    proxy.clear()
    await source.close()
    source = source_over(**urls)
    assert (await source.pull(ALL)).members == right.members
    await source.close()


@every_harm
async def test_a_customer_is_known_unknown_or_an_error_in_time(
    fake: FakeDiscovery, proxy: FaultProxy, harm: Harm
) -> None:
    source = source_over(discovery=fake.url, tokens=fake.url, lms=proxy.url)
    right = await source.customer(uuid_of("Acme"))
    assert right is not None
    harm.on(proxy)
    async with within((1 + RETRIES) * TIMEOUT_S):
        with suppress(SourceError):
            assert await source.customer(uuid_of("Acme")) == right or harm.flips
    async with within((1 + RETRIES) * TIMEOUT_S):
        with suppress(SourceError):
            assert await source.customer(uuid_of("Nobody")) is None or harm.flips
    proxy.clear()
    assert await source.customer(uuid_of("Acme")) == right
    await source.close()


@pytest.mark.parametrize("side", ["theirs", "ours"])
@every_harm
async def test_no_answer_is_never_taken_for_an_equal_one(tmp_path: Path, side: str, harm: Harm) -> None:
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    async with replaying(tmp_path / "ours") as ours, neighbour(tmp_path / "theirs") as (_, theirs):
        urls = {"ours": str(ours.client.make_url("")).rstrip("/"), "theirs": theirs.url.rstrip("/")}
        async with between((HOST, int(urls[side].rpartition(":")[2]))) as proxy:
            urls[side] = proxy.url
            comparer = Comparer(urls["theirs"], urls["ours"], 1000.0, FakeClock(), None, timeout_s=TIMEOUT_S)
            asked = list(questions(await sample(ours.store, 2, Random(7))))[:2]

            async def compared() -> Comparison:
                told = Comparison(7)
                async with within(len(asked) * 2 * 3 * TIMEOUT_S):
                    await comparer.ask(asked, told.note)
                return told

            async def equal() -> bool:
                return (await compared()).total(Outcome.EQUAL) == len(asked)

            assert await equal()
            harm.on(proxy)
            told = await compared()
            assert sum(told.total(outcome) for outcome in Outcome) == len(asked)
            if not harm.flips:
                assert told.total(Outcome.UNEXPLAINED) == told.total(Outcome.EXPLAINED) == 0
                assert told.is_sound == (told.total(Outcome.EQUAL) > 0)
            proxy.clear()
            await recovered(equal)
            await comparer.close()
