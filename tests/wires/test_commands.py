"""Commands of the indexer whose registry's server is a black hole: they say so, and end."""

import asyncio
import sys
from pathlib import Path

import pytest

from indexer.registry.deadlines import DEADLINES
from tests.fault_proxy import HOST, BlackHole, Fault, Unanswered, between
from tests.wires import within

ROOT = Path(__file__).parent.parent.parent
# Of a process that has to begin.
BEGIN_S = 10.0
DRIVERS = ("postgresql+asyncpg", "mysql+asyncmy")


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("fault", [BlackHole(), Unanswered()], ids=["black hole", "unanswered"])
async def test_status_of_a_registry_that_says_nothing_is_an_error_in_time(
    tmp_path: Path, driver: str, fault: Fault
) -> None:
    # Nobody is behind it: nothing would come either way.
    async with between((HOST, 9)) as proxy:
        proxy.set(fault)
        config = tmp_path / "config.toml"
        config.write_text(f'[registry]\nurl = "{driver}://catalog:secret@{HOST}:{proxy.port}/catalog"\n')
        async with within(BEGIN_S + DEADLINES.connect_s):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "indexer", "status", "--config", str(config)),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=ROOT,
            )
            out, said = await process.communicate()
    assert (process.returncode, out) == (2, b"")
    assert b"registry" in said
    assert b"Traceback" not in said
    assert b"secret" not in said
