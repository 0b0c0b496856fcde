"""How long a request may take, whatever its handler waits for."""

import time

from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from indexer.patience import answer_in_time

WITHIN_S = 0.01


async def test_an_answer_that_is_there_is_given_however_long_it_kept_the_loop() -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        time.sleep(2 * WITHIN_S)  # noqa: ASYNC251
        return web.Response(status=204)

    answer = await answer_in_time(make_mocked_request("GET", "/"), handler, WITHIN_S)
    assert answer.status == 204
