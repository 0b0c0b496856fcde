"""An indexer and its database server: what is between them fails, and nobody waits for ever or is told what is not so.

`make test-databases` runs this; a registry on SQLite has nothing between.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

import pytest
import sqlalchemy as sa
from aiohttp.test_utils import TestClient, TestServer
from sqlalchemy.engine import make_url

from indexer.catalog_body import read_catalog
from indexer.leadership import Leadership
from indexer.metrics import Metrics
from indexer.publication import Publication
from indexer.registry import Deposed, Registry, RegistryError, Undecided, catalogs, lead, schema
from indexer.registry.deadlines import Deadlines
from indexer.service import Role
from indexer.web import make_app
from indexer.wiring import Parts
from sidecar.clock import SystemClock
from sidecar.settings import Settings
from sidecar.store.memory import MemoryStore
from tests.fakes import FakeSource, catalog_body, uuid_of
from tests.fault_proxy import HOST, BlackHole, FaultProxy, Truncate, between
from tests.wires import Harm, every_harm, recovered, within

pytestmark = pytest.mark.server
DEADLINES: Final = Deadlines(connect_s=0.5, statement_s=0.5, idle_s=1.0, migrate_s=5.0)
# A look whether a kept connection lives, a new one with its greeting, and to give up each of both.
TRANSACTION_S: Final = DEADLINES.connect_s + 4 * DEADLINES.statement_s
ANSWER_S: Final = 0.5
LEASE_S: Final = 0.5
CATALOGS: Final = "/api/v1/enterprise-catalogs/"


@pytest.fixture
async def proxy(registry_url: str) -> AsyncIterator[FaultProxy]:
    port = make_url(registry_url).port
    assert port is not None
    async with between((HOST, port)) as made:
        yield made


@pytest.fixture
async def behind(registry_url: str, proxy: FaultProxy) -> AsyncIterator[Registry]:
    """The registry, with the proxy between."""
    registry = registry_behind(registry_url, proxy)
    yield registry
    async with within(20 * DEADLINES.connect_s):
        await registry.close()


def registry_behind(registry_url: str, proxy: FaultProxy) -> Registry:
    url = make_url(registry_url).set(port=proxy.port).render_as_string(hide_password=False)
    return Registry(url, SystemClock(), DEADLINES)


async def clock_of(registry: Registry) -> int:
    async with registry.read() as connection:
        return int((await connection.execute(sa.select(schema.state.c.clock))).scalar_one())


async def add(registry: Registry, title: str) -> None:
    async with registry.write() as tx:
        await catalogs.create(tx, read_catalog(catalog_body(title, {"content_type": "course"})), "test")


async def titles(registry: Registry) -> set[str]:
    async with registry.read() as connection:
        return {row.title for row in await catalogs.select(connection)}


def what_drivers_raise(harm: Harm) -> tuple[type[Exception], ...]:
    """What else may come of a statement: of bytes that are not the server's, whatever a driver makes of them."""
    return (Exception,) if harm.flips else ()


async def works(registry: Registry) -> bool:
    with suppress(RegistryError):
        await clock_of(registry)
        return True
    return False


@every_harm
async def test_a_transaction_ends_in_time_and_happens_whole_or_not_at_all(
    registry: Registry, behind: Registry, proxy: FaultProxy, harm: Harm
) -> None:
    await add(behind, "before")
    harm.on(proxy)
    for work in (clock_of(behind), add(behind, "during")):
        async with within(TRANSACTION_S):
            with suppress(RegistryError, *what_drivers_raise(harm)):
                await work
    proxy.clear()
    await recovered(lambda: works(behind))
    shown = await titles(registry)
    assert {"before"} <= shown
    if not harm.flips:
        assert shown <= {"before", "during"}
        await add(behind, "during")
        assert await titles(registry) == {"before", "during"}


@every_harm
async def test_a_fault_within_a_transaction_is_told_as_what_it_is(
    registry: Registry, behind: Registry, proxy: FaultProxy, harm: Harm
) -> None:
    """Before the commit nothing has happened; without an answer to the commit, nobody claims to know."""
    told = "made"
    async with within(TRANSACTION_S):
        try:
            async with behind.write() as tx:
                await catalogs.create(tx, read_catalog(catalog_body("a", {})), "test")
                harm.on(proxy)
        except Undecided:
            told = "unknown"
        except RegistryError:
            told = "not made"
        except what_drivers_raise(harm):
            assert harm.flips
    proxy.clear()
    await recovered(lambda: works(behind))
    if not harm.flips:
        made = "a" in await titles(registry)
        assert told in ("made" if made else "not made", "unknown")


async def test_a_commit_that_was_made_and_whose_answer_was_lost_is_not_told_to_have_failed(
    registry: Registry, behind: Registry, proxy: FaultProxy
) -> None:
    async def write() -> None:
        async with behind.write() as tx:
            await catalogs.create(tx, read_catalog(catalog_body("a", {})), "test")
            proxy.set(BlackHole(), "to client")

    with pytest.raises(Undecided, match="no answer to a commit"):
        await write()
    assert await titles(registry) == {"a"}
    proxy.clear()


async def test_the_server_takes_back_what_a_client_that_has_vanished_has_begun(
    registry: Registry, behind: Registry, proxy: FaultProxy
) -> None:
    """A leader whose machine dies in a write holds the row that the next leader needs."""
    begun, vanished = asyncio.Event(), asyncio.Event()

    async def write() -> None:
        async with behind.write():
            begun.set()
            await vanished.wait()

    writing = asyncio.create_task(write())
    await begun.wait()
    proxy.set(BlackHole())
    async with within(DEADLINES.idle_s):
        assert await lead.take(registry, await lead.observe(registry), "next", LEASE_S) is not None
    vanished.set()
    with pytest.raises(RegistryError):
        await writing
    proxy.clear()


async def test_reading_may_take_its_time_between_two_statements(registry_url: str) -> None:
    """A compiler works on what it has read for minutes, and nobody waits for that."""
    registry = Registry(registry_url, SystemClock(), DEADLINES._replace(idle_s=1.0))
    async with registry.read() as connection:
        await connection.execute(sa.select(schema.state.c.clock))
        await asyncio.sleep(1.5)
        await connection.execute(sa.select(schema.state.c.clock))
    await registry.close()


@every_harm
async def test_http_is_answered_in_time_and_what_was_not_made_is_said_of_nothing_else(
    registry: Registry, behind: Registry, proxy: FaultProxy, harm: Harm
) -> None:
    await add(behind, "before")
    parts = Parts(Settings(), SystemClock(), behind, MemoryStore(), FakeSource())
    app = make_app(parts, Role(), Publication(behind), Metrics(), answer_s=ANSWER_S, look_s=ANSWER_S, published_s=0.1)
    async with TestClient(TestServer(app)) as client:
        path = f"{CATALOGS}{uuid_of('catalog before')}/"
        harm.on(proxy)
        for get in (path, CATALOGS, "/health"):
            async with within(ANSWER_S), client.get(get) as response:
                body = await response.json()
                assert response.status in (200, 503) or harm.flips
                if response.status == 200 and not harm.flips and get == path:
                    assert body["title"] == "before"
        async with within(ANSWER_S), client.get("/metrics") as response:
            assert response.status in (200, 503) or harm.flips
        async with within(ANSWER_S + 0.1), client.patch(path, json={"title": "after"}) as response:
            status, body = response.status, await response.json()
        proxy.clear()
        await recovered(lambda: works(behind))
        if not harm.flips:
            assert status in (200, 503)
            made = await titles(registry) == {"after"}
            if status == 200:
                assert made
            elif "Nothing was changed" in body["detail"]:
                assert not made
            else:
                assert "cannot be told" in body["detail"]
        async with client.patch(path, json={"title": "after"}) as response:
            assert response.status == 200
        assert await titles(registry) == {"after"}


async def test_a_leader_stops_to_believe_that_it_leads_when_its_registry_is_a_black_hole(
    registry: Registry, behind: Registry, proxy: FaultProxy
) -> None:
    leading = Leadership(behind, SystemClock(), LEASE_S, least_wait_s=LEASE_S)
    epoch = await leading.acquire()
    proxy.set(BlackHole())
    async with within(LEASE_S * 4 / 3):
        with pytest.raises(Deposed):
            await leading.keep(epoch)
        await leading.release(epoch)
    assert await Leadership(registry, SystemClock(), LEASE_S).acquire() > epoch
    proxy.clear()


async def test_a_process_ends_though_its_registry_says_nothing(registry_url: str, proxy: FaultProxy) -> None:
    registry = registry_behind(registry_url, proxy)
    await asyncio.gather(*(clock_of(registry) for _ in range(3)))
    proxy.set(BlackHole())
    async with within(20 * DEADLINES.connect_s):
        await registry.close()


@pytest.mark.parametrize("after", [0, 5, 50])
async def test_a_registry_that_breaks_off_while_it_is_opened_is_an_error(
    registry_url: str, proxy: FaultProxy, after: int
) -> None:
    registry = registry_behind(registry_url, proxy)
    proxy.set(Truncate(after), "to client")
    async with within(TRANSACTION_S):
        with pytest.raises(RegistryError):
            await registry.open()
    proxy.clear()
    await registry.open()
    await registry.close()
