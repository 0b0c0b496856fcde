"""Decisions are kept with who and why, newest first."""

from pathlib import Path

from indexer.registry import decisions
from indexer.registry.decisions import MAX_WHO, Action, Decision
from tests.world import world


async def test_decisions_are_told_newest_first(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        them = [Decision(n, Action.PIN, str(n), "cli:ada", f"reason {n}") for n in range(3)]
        async with here.registry.plain() as connection:
            for each in them:
                await decisions.note(connection, each)
        async with here.registry.read() as connection:
            assert await decisions.made(connection) == them[::-1]
            assert await decisions.made(connection, 1) == them[2:]


async def test_a_name_that_is_too_long_is_cut(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        async with here.registry.plain() as connection:
            await decisions.note(connection, Decision(1, Action.UNPIN, "1", "x" * 1000, ""))
        async with here.registry.read() as connection:
            [made] = await decisions.made(connection)
        assert made.who == "x" * MAX_WHO
