"""What every database must keep: text to the byte, numbers that are never given again, much at once; and what is left
of a transaction when its server dies."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from indexer.catalog_body import MAX_JSON_BYTES, read_catalog
from indexer.ingest import Facts, Ingested, StoredDocument
from indexer.registry import Registry, RegistryError, catalogs, generations, pulls, schema
from indexer.registry.catalogs import RegisteredCatalog
from sidecar.contract.records import Bitmap
from sidecar.contract.words import ContentType
from tests.databases import SERVERS, Databases, Server, databases
from tests.fakes import FakeClock, catalog_body

ALIKE = ("a", "A", "á", "a ", " a", "a\u0301", "ａ", "ß", "ss", "𝒂", "😀", "😁", "a\t")
MIB = 1024 * 1024


async def create(
    registry: Registry, title: str, content_filter: object, query_title: str | None = None
) -> RegisteredCatalog:
    async with registry.write() as tx:
        body = read_catalog(catalog_body(title, content_filter, query_title=query_title))
        return (await catalogs.create(tx, body, "test"))[0]


async def clock_of(registry: Registry) -> int:
    async with registry.read() as connection:
        return await generations.clock(connection)


async def accept(registry: Registry, hash_: str, ingested: Ingested) -> None:
    async with registry.write() as tx:
        task = await pulls.start(tx.connection, hash_, "due", 1)
        await pulls.accept(tx, task, hash_, ingested, members=1)


class TestText:
    async def test_of_content_keys_is_compared_to_the_byte(self, registry: Registry) -> None:
        """Two keys that a database takes for one would be a pull that can never pass."""
        row = await create(registry, "a", {})
        facts = [Facts(n, key, ContentType.COURSE) for n, key in enumerate(ALIKE)]
        await accept(registry, row.wanted, Ingested(facts=facts, members=pulls.EMPTY, forced=pulls.EMPTY))
        async with registry.read() as connection:
            known = await pulls.known(connection, ALIKE)
            assert {key: f.ordinal for key, f in known.facts.items()} == {key: n for n, key in enumerate(ALIKE)}
            assert set((await pulls.known(connection, ["A "])).facts) == set()

    async def test_of_query_titles_is_compared_to_the_byte(self, registry: Registry) -> None:
        titles = [text for text in ALIKE if text == text.strip()]
        for n, title in enumerate(titles):
            await create(registry, f"{n}", {"key": n}, title)
        async with registry.read() as connection:
            assert [t.title for t in await pulls.targets(connection)] == titles

    async def test_of_every_column_takes_any_character_and_comes_back_as_it_was(self, registry: Registry) -> None:
        text = "".join(ALIKE)
        async with registry.plain() as connection:
            for table in schema.metadata.sorted_tables:
                for column in table.columns:
                    if isinstance(column.type, schema.Exact | schema.LongText):
                        long = text[: getattr(column.type, "length", 99)]
                        cast = sa.select(sa.literal(long, column.type))
                        assert await connection.scalar(cast) == long
            written = sa.update(schema.state).values(holder=text, renderer=text)
            await connection.execute(written)
        async with registry.read() as connection:
            row = (await connection.execute(sa.select(schema.state.c.holder, schema.state.c.renderer))).one()
        assert tuple(row) == (text, text)

    async def test_may_fill_its_column_with_the_widest_characters(self, registry: Registry) -> None:
        row = await create(registry, "😀" * 255, {}, "😁" * 255)
        assert (row.title, row.query_title) == ("😀" * 255, "😁" * 255)
        key = "😀" * 255
        done = Ingested(facts=[Facts(0, key, ContentType.COURSE)], members=pulls.EMPTY, forced=pulls.EMPTY)
        await accept(registry, row.wanted, done)
        async with registry.read() as connection:
            assert set((await pulls.known(connection, [key])).facts) == {key}

    @pytest.mark.parametrize("text", ["a\0b", "a\ud800b"])
    async def test_that_a_database_cannot_keep_is_refused_as_an_error_of_the_registry(
        self, registry: Registry, text: str
    ) -> None:
        async def write() -> str:
            async with registry.plain() as connection:
                await connection.execute(sa.update(schema.state).values(holder=text))
                return str((await connection.execute(sa.select(schema.state.c.holder))).scalar_one())

        [ended] = await asyncio.gather(write(), return_exceptions=True)
        assert ended == text or isinstance(ended, RegistryError)


class TestSizes:
    async def test_of_a_filter_may_reach_what_bodies_may_have(self, registry: Registry) -> None:
        filter_ = {"key": ["x" * (MAX_JSON_BYTES - 20)]}
        row = await create(registry, "a", filter_)
        assert catalogs.as_body(row)["content_filter"] == filter_

    async def test_of_documents_and_bitmaps_may_be_megabytes(self, registry: Registry) -> None:
        row = await create(registry, "a", {})
        facts = [Facts(n, f"{n}", ContentType.COURSE) for n in range(3)]
        # Of all bytes: no charset touches them.
        body = bytes(range(256)) * (MIB // 256) + os.urandom(MIB)
        documents = [StoredDocument(n, 0, bytes([n]) * 32, body) for n in range(3)]
        members = Bitmap.of(range(0, 8 * MIB, 3)).encode()
        await accept(registry, row.wanted, Ingested(facts, documents, members=members, forced=pulls.EMPTY))
        async with registry.read() as connection:
            bodies = await connection.scalars(sa.select(schema.document.c.body))
            assert [bytes(each) == body for each in bodies] == [True] * 3
            kept = await connection.scalar(sa.select(schema.result.c.members))
        assert kept is not None
        assert bytes(kept) == members

    async def test_of_digests_are_kept_to_the_last_byte(self, registry: Registry) -> None:
        """Also where it is a space or a zero, which some types of columns cut off."""
        row = await create(registry, "a", {})
        digests = [b"\1" * 31 + last for last in (b" ", b"\0", b"\xff")]
        facts = [Facts(n, f"{n}", ContentType.COURSE, metadata=digest) for n, digest in enumerate(digests)]
        await accept(registry, row.wanted, Ingested(facts, members=pulls.EMPTY, forced=pulls.EMPTY))
        async with registry.read() as connection:
            known = await pulls.known(connection, ["0", "1", "2"])
        assert [known.facts[f"{n}"].metadata for n in range(3)] == digests


class TestNumbers:
    async def test_of_removed_catalogs_are_not_given_again(self, registry: Registry, registry_url: str) -> None:
        await create(registry, "a", {})
        last = await create(registry, "b", {})
        async with registry.write() as tx:
            await catalogs.remove(tx, last.uuid, "test")
        await registry.close()
        again = Registry(registry_url, FakeClock())
        try:
            assert (await create(again, "c", {})).number > last.number
        finally:
            await again.close()

    async def test_that_exceed_32_bits_are_kept(self, registry: Registry) -> None:
        async with registry.plain() as connection:
            await connection.execute(sa.update(schema.state).values(clock=2**62, epoch=2**62))
        assert await clock_of(registry) == 2**62


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """A server of the kind that the tests run on, to be killed."""
    server = SERVERS[databases.kind]()
    yield server
    server.remove()


@pytest.fixture
async def on_it(own_server: Server, tmp_path: Path) -> AsyncIterator[Registry]:
    """A registry on a server that has just been started anew."""
    own_server.kill()
    own_server.start()
    registry = Registry(await Databases(own_server.url).url(tmp_path), FakeClock())
    try:
        yield registry
    finally:
        await registry.close()


@pytest.mark.server
class TestAServer:
    async def test_that_was_restarted_between_two_transactions_is_not_noticed(
        self, own_server: Server, on_it: Registry
    ) -> None:
        async with on_it.write():
            pass
        own_server.kill()
        own_server.start()
        async with on_it.write() as tx:
            assert tx.clock == 2
        own_server.kill()
        own_server.start()
        assert await clock_of(on_it) == 2

    async def test_that_is_away_is_an_error_of_the_registry_until_it_is_back(
        self, own_server: Server, on_it: Registry
    ) -> None:
        assert await clock_of(on_it) == 0
        own_server.kill()
        for _ in range(2):
            with pytest.raises(RegistryError):
                await clock_of(on_it)
        own_server.start()
        assert await clock_of(on_it) == 0

    async def test_that_dies_under_a_reader_ends_it_with_an_error_of_the_registry(
        self, own_server: Server, on_it: Registry
    ) -> None:
        async def read() -> None:
            async with on_it.read() as connection:
                assert await generations.clock(connection) == 0
                own_server.kill()
                await generations.clock(connection)

        with pytest.raises(RegistryError):
            await read()
        own_server.start()
        assert await clock_of(on_it) == 0

    @pytest.mark.parametrize("at", ["a statement", "the commit"])
    async def test_that_dies_under_a_writer_has_nothing_of_it(
        self, own_server: Server, on_it: Registry, at: str
    ) -> None:
        async def write() -> None:
            async with on_it.write() as tx:
                own_server.kill()
                if at == "a statement":
                    await generations.clock(tx.connection)

        with pytest.raises(RegistryError):
            await write()
        own_server.start()
        assert await clock_of(on_it) == 0

    async def test_gives_no_number_again_after_a_restart(self, own_server: Server, on_it: Registry) -> None:
        last = await create(on_it, "a", {})
        async with on_it.write() as tx:
            await catalogs.remove(tx, last.uuid, "test")
        own_server.kill()
        own_server.start()
        assert (await create(on_it, "b", {})).number > last.number

    async def test_without_the_database_or_the_password_is_an_error_of_the_registry(self, own_server: Server) -> None:
        for url in (f"{own_server.url}_missing", own_server.url.replace("//catalog@", "//nobody:hunter2@")):
            registry = Registry(url, FakeClock())
            with pytest.raises(RegistryError) as caught:
                await clock_of(registry)
            await registry.close()
            assert "hunter2" not in str(caught.value)
