"""What a worker knows of the others is what its supervisor says; what it cannot know it does not make up."""

import asyncio
import socket

import pytest

from sidecar.settings import AuthSettings, Settings, SidecarSettings
from sidecar.store import Pointer
from sidecar.workers.channel import Channel, plain, settings_of
from sidecar.workers.page import Family
from sidecar.workers.page import plain as plain_families
from sidecar.workers.siblings import Alone, Among, NoPage


async def pair() -> tuple[Channel, Channel]:
    ours, theirs = socket.socketpair()
    return await Channel.over(ours), await Channel.over(theirs)


async def test_a_process_alone_is_all_there_is() -> None:
    alone = Alone()
    assert (alone.standing, alone.token) == ((1, 1, 1), "")
    await alone.serve(Pointer(9, 9, b""))
    assert await alone.page(lambda: b"mine") == b"mine"


async def test_a_worker_knows_how_many_there_are_from_what_it_is_told() -> None:
    worker, supervisor = await pair()
    among = Among(worker, 2, 3, "token")
    assert among.standing == (2, 3, 0)
    among.hear({"is": "state", "running": 3, "least": [1, 1]})
    assert among.standing == (2, 3, 3)
    await worker.close()
    await supervisor.close()


async def test_a_generation_is_waited_for_until_all_serve_it_or_a_later_one() -> None:
    worker, supervisor = await pair()
    among = Among(worker, 1, 2, "token")
    waits = asyncio.create_task(among.serve(Pointer(1, 7, b"")))
    for least, done in (([1, 6], False), ([2, 1], True)):
        among.hear({"is": "state", "running": 2, "least": least})
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert waits.done() is done
    await among.serve(Pointer(1, 9, b""))
    await worker.close()
    await supervisor.close()


async def test_the_page_is_the_supervisors_and_each_goes_to_whoever_asked_for_it() -> None:
    worker, supervisor = await pair()
    among = Among(worker, 1, 2, "token")
    asked = [asyncio.create_task(among.page(lambda: b"mine")) for _ in range(2)]
    for count in (10, 20):
        message = await supervisor.receive()
        assert message is not None
        assert message["is"] == "scrape"
        family = Family("counter", "Counts.", {("n_total", ()): float(count)})
        among.hear({"is": "page", "ask": message["ask"], "families": plain_families({"n": family})})
    pages = await asyncio.gather(*asked)
    assert [page.decode().splitlines()[-1] for page in pages] == ["n_total 10.0", "n_total 20.0"]
    await worker.close()
    await supervisor.close()


async def test_without_an_answer_there_is_no_page() -> None:
    worker, supervisor = await pair()
    among = Among(worker, 1, 2, "token", page_s=0.0)
    with pytest.raises(NoPage):
        await among.page(lambda: b"mine")
    # An answer that comes too late is nobody's.
    among.hear({"is": "page", "ask": 1, "families": {}})
    await worker.close()
    await supervisor.close()


async def test_settings_pass_a_channel_unchanged() -> None:
    settings = Settings(
        sidecar=SidecarSettings(workers=3, disk="ä \udcff"), auth=AuthSettings(hs256_secret="quite secret")
    )
    worker, supervisor = await pair()
    supervisor.send("hello", settings=plain(settings))
    hello = await worker.receive()
    assert hello is not None
    assert settings_of(hello["settings"]) == settings
    await supervisor.close()
    assert await worker.receive() is None
    worker.send("up")
    await worker.close()
