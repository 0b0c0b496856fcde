"""The LMS's client and its sidecar, over a port and over a unix socket: what is between them fails."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from sidecar.client import CatalogClient, ClientError
from sidecar.client.asynchronous import AsyncCatalogClient
from tests.fakes import uuid_of
from tests.fault_proxy import HOST, FaultProxy, Target, between
from tests.sidecar.test_client import rigged
from tests.wires import Harm, every_harm, recovered, within

TIMEOUT_S: Final = 0.25
ALL: Final = uuid_of("catalog all")
ASKED: Final = 2
Contains = Callable[[str], Awaitable[bool]]
WAYS: Final = ("blocking, port", "blocking, socket", "asyncio, port", "asyncio, socket")


@asynccontextmanager
async def client(way: str, proxy: FaultProxy, own: Path) -> AsyncIterator[Contains]:
    """What asks one client whether the catalog of everything contains a key."""
    url = f"unix://{own}" if way.endswith("socket") else proxy.url
    if way.startswith("asyncio"):
        async with AsyncCatalogClient(url, timeout_s=TIMEOUT_S) as asking:
            yield lambda key: asking.contains_content_items(ALL, [key])
    else:
        with CatalogClient(url, timeout_s=TIMEOUT_S) as blocking:
            yield lambda key: asyncio.to_thread(blocking.contains_content_items, ALL, [key])


@pytest.mark.parametrize("way", WAYS)
@every_harm
async def test_a_question_is_answered_rightly_or_cannot_be_told_in_time(tmp_path: Path, way: str, harm: Harm) -> None:
    async with rigged(tmp_path) as rig:
        own = tmp_path / "between"
        target: Target = (HOST, rig.port) if way.endswith("port") else Path(rig.socket)
        async with between(target, own if way.endswith("socket") else None) as proxy, client(way, proxy, own) as ask:

            async def told(key: str) -> bool | None:
                try:
                    return await ask(key)
                except ClientError:
                    return None

            async def works() -> bool:
                return (await told("Org+1"), await told("Nowhere+1")) == (True, False)

            assert await works()
            harm.on(proxy)
            for _ in range(ASKED):
                async with within(TIMEOUT_S):
                    # A question that was flipped is another question. On loopback and sockets no bit does that by
                    # itself; over a network it is TCP's checksum that is to notice.
                    assert await told("Org+1") in ((True, False, None) if harm.flips else (True, None))
                async with within(TIMEOUT_S):
                    assert await told("Nowhere+1") in (False, None)
            proxy.clear()
            await recovered(works)
