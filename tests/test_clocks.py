"""Two real indexers, of which one has a wrong wall clock, take over from one another, both ways."""

import json
import signal
import time
from pathlib import Path
from typing import Final

import pytest

from indexer.registry import Registry, pulls
from indexer.registry.pulls import Target
from sidecar.clock import SystemClock
from tests.fakes import catalog_body, course, run, uuid_of
from tests.fleet import CATALOGS, Fleet, Process, fleet

YEAR_S: Final = 365 * 86_400
# Content that has just been pulled by a right clock is not older than the test.
RECENT_S: Final = 600


async def create(through: Process, title: str) -> None:
    status, _, _ = await through.ask("POST", CATALOGS, json=catalog_body(title, {"content_type": "course", "n": title}))
    assert status == 201


async def age_s(sidecar: Process, title: str) -> int | None:
    """How old the answer says to be; None if there is none yet. It is the right one."""
    path = f"{CATALOGS}{uuid_of(f'catalog {title}')}/contains_content_items/"
    status, body, headers = await sidecar.get(path, params={"course_run_ids": "run-1"})
    if status != 200:
        assert status in (404, 503)
        return None
    assert body["contains_content_items"] is True
    return int(headers["X-Catalog-Age"])


async def until_recent(it: Fleet, *titles: str) -> None:
    (sidecar,) = it.sidecars

    async def recent() -> bool:
        ages = [await age_s(sidecar, title) for title in titles]
        assert all(age is None or age >= 0 for age in ages)
        return all(age is not None and age < RECENT_S for age in ages)

    await sidecar.until(recent)


async def targets(it: Fleet) -> list[Target]:
    registry = Registry(it.registry_url, SystemClock())
    try:
        async with registry.read() as connection:
            return await pulls.targets(connection)
    finally:
        await registry.close()


async def until_leads(indexer: Process) -> None:
    async def leads() -> bool:
        return bool((await indexer.health())["leading"])

    await indexer.until(leads)


@pytest.mark.parametrize("ahead_s", [YEAR_S, -YEAR_S], ids=["a year ahead", "a year behind"])
async def test_a_wrong_clock_of_one_of_two_indexers_stops_no_pull_and_no_takeover(tmp_path: Path, ahead_s: int) -> None:
    corpus = tmp_path / "corpus.json"
    content = {"courses": [course("Org+1", run("run-1"))], "programs": [], "pathways": [], "reviews": []}
    corpus.write_text(json.dumps({**content, "customers": []}))
    async with fleet(tmp_path, {"kind": "file", "path": str(corpus)}, indexers=2) as it:
        right, wrong = it.indexers
        await wrong.end()
        wrong.ahead_s = ahead_s
        await wrong.start()
        await until_leads(right)
        await create(right, "a")
        await until_recent(it, "a")
        epoch = (await right.health())["epoch"]

        # Two leases on a steady clock, and no year of anybody's.
        await right.end(signal.SIGKILL)
        began_s = time.monotonic()
        await until_leads(wrong)
        assert time.monotonic() - began_s < 60
        assert (await wrong.health())["epoch"] > epoch
        await create(wrong, "b")
        (sidecar,) = it.sidecars

        async def answered() -> bool:
            ages = [await age_s(sidecar, "a"), await age_s(sidecar, "b")]
            return None not in ages

        await sidecar.until(answered)
        if ahead_s < 0:
            # It says that its content is of a year ago, and is believed: too old is said too soon rather than too late.
            assert (await sidecar.health())["stale_queries"] > 0

        await wrong.end(signal.SIGKILL)
        await right.start()
        await until_leads(right)
        await until_recent(it, "a", "b")
        await create(right, "c")
        await until_recent(it, "a", "b", "c")

        async def all_pulled_by_the_right_clock() -> bool:
            health, now_ms = await right.health(), time.time() * 1000
            at_ms = [target.pulled_at_ms or 0 for target in await targets(it)]
            return bool(health["status"] == "ok" and all(now_ms - RECENT_S * 1000 < ms <= now_ms for ms in at_ms))

        await right.until(all_pulled_by_the_right_clock)
        await wrong.start()
