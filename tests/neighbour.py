"""Another service for tests: a second instance of the project over the recorded corpus, behind a proxy.

The instance is real to the last byte: its own registry, store and sidecar. The proxy passes every request on, notes it,
and hands each answer to `alter`, which may make another one of it.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from tests.fakes import Json
from tests.sidecar.replayed import Rig, replaying

Answer = tuple[int, Any]
Alter = Callable[[web.Request, int, Any], Answer]


def _as_it_is(_: web.Request, status: int, value: Any) -> Answer:
    return status, value


class Proxy:
    """Stands in front of a service. `asked` has the path and query of every request; `tokens` what each carried."""

    def __init__(self, behind: str) -> None:
        self.alter: Alter = _as_it_is
        self.asked: list[str] = []
        self.tokens: list[str | None] = []
        self.url = ""
        self._behind = behind.rstrip("/")
        self.app = web.Application()
        self.app.router.add_route("*", "/{path:.*}", self._pass_on)
        self.app.cleanup_ctx.append(self._connected)

    def change(self, path: str, alter: Callable[[Json], object]) -> None:
        """Lets answers of 200 to paths that have this in them be altered in place."""

        def altered(request: web.Request, status: int, value: Any) -> Answer:
            if path in request.raw_path and status == 200:
                alter(value)
            return status, value

        self.alter = altered

    def answer(self, path: str, status: int, value: Any = None) -> None:
        """Gives requests for paths that have this in them one answer."""
        given = status, {"detail": "altered"} if value is None else value
        self.alter = lambda request, *told: given if path in request.raw_path else told

    async def _connected(self, _: web.Application) -> AsyncIterator[None]:
        async with aiohttp.ClientSession() as self._session:
            yield

    async def _pass_on(self, request: web.Request) -> web.Response:
        self.asked.append(request.raw_path)
        self.tokens.append(request.headers.get("Authorization"))
        headers = {name: request.headers[name] for name in ("Authorization", "Content-Type") if name in request.headers}
        url = URL(self._behind + request.raw_path, encoded=True)
        body = await request.read()
        async with self._session.request(
            request.method, url, data=body or None, headers=headers, allow_redirects=False
        ) as told:
            status, value = self.alter(request, told.status, await told.json())
        return web.json_response(value, status=status)


@asynccontextmanager
async def proxied(behind: str) -> AsyncIterator[Proxy]:
    """A proxy that is served, in front of a base url."""
    proxy = Proxy(behind)
    async with TestServer(proxy.app) as server:
        proxy.url = str(server.make_url("")).rstrip("/")
        yield proxy


@asynccontextmanager
async def neighbour(path: Path, **arguments: Any) -> AsyncIterator[tuple[Rig, Proxy]]:
    """The instance, in a folder of its own, and a proxy in front of it. `arguments` are those of the instance."""
    async with replaying(path, **arguments) as rig, proxied(str(rig.client.make_url(""))) as proxy:
        yield rig, proxy
