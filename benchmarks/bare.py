"""A peer: an ordinary aiohttp application under uvloop whose one handler gives the answer that it was started with.

    python -m benchmarks.bare PORT HEADERS.json BODY

It looks nothing up, and checks no token: what is left is what aiohttp takes for any answer.
"""

import asyncio
import json
import sys
from pathlib import Path

import uvloop
from aiohttp import web

from benchmarks.processes import HOST


async def _serve(port: int, headers: dict[str, str], body: bytes) -> None:
    async def contains(_: web.Request) -> web.Response:
        return web.Response(body=body, headers=headers)

    app = web.Application()
    app.add_routes([web.get("/api/v1/enterprise-catalogs/{uuid}/contains_content_items/", contains)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, HOST, port).start()
    await asyncio.Event().wait()


def main() -> None:
    """Serves until it is killed."""
    port, headers, body = sys.argv[1:]
    uvloop.run(_serve(int(port), json.loads(Path(headers).read_text()), body.encode()))


if __name__ == "__main__":
    main()
