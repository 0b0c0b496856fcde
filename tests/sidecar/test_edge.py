"""Whatever goes wrong inside leaves as JSON, and is counted."""

import re

import pytest
import structlog
from aiohttp import web
from aiohttp.test_utils import TestClient
from pytest_aiohttp import AiohttpClient
from structlog.testing import capture_logs

from sidecar.edge import measured
from sidecar.intake import REQUEST_ID
from sidecar.log import add_request_id
from sidecar.metrics import Metrics
from tests.sidecar.fakes import FakeClock


async def defect(_: web.Request) -> web.Response:
    raise ZeroDivisionError


async def test_a_defect_costs_one_answer_and_names_it(aiohttp_client: AiohttpClient) -> None:
    metrics = Metrics()
    app = web.Application(middlewares=[measured(metrics, FakeClock())])
    app.router.add_get("/defect", defect)
    client: TestClient[web.Request, web.Application] = await aiohttp_client(app)
    with capture_logs([add_request_id]) as logs:
        answer = await client.get("/defect")
    body = await answer.json()
    assert (answer.status, body["detail"]) == (500, "A server error occurred.")
    assert [(entry["request_id"], entry["path"]) for entry in logs] == [(body["request_id"], "/defect")]
    labels = {"route": "/defect", "status": "500"}
    assert metrics.registry.get_sample_value("catalog_sidecar_requests_total", labels) == 1


async def logging(_: web.Request) -> web.Response:
    structlog.get_logger().info("something happened")
    return web.Response()


@pytest.mark.parametrize("given", ["r-1", "4bf92f35:00f0=7/@a+b._", "x" * 128])
async def test_a_request_is_logged_under_the_id_that_its_sender_gave(aiohttp_client: AiohttpClient, given: str) -> None:
    app = web.Application(middlewares=[measured(Metrics(), FakeClock())])
    app.router.add_get("/logging", logging)
    client: TestClient[web.Request, web.Application] = await aiohttp_client(app)
    with capture_logs([add_request_id]) as logs:
        answer = await client.get("/logging", headers={REQUEST_ID: given})
        assert REQUEST_ID not in answer.headers
    assert [entry["request_id"] for entry in logs] == [given]


@pytest.mark.parametrize("given", [None, "", "x" * 129, "a b", "a\tb", '"', "é", "{}", "a;b"])
async def test_a_request_without_a_sane_id_is_given_one_of_its_own(
    aiohttp_client: AiohttpClient, given: str | None
) -> None:
    app = web.Application(middlewares=[measured(Metrics(), FakeClock())])
    app.router.add_get("/logging", logging)
    client: TestClient[web.Request, web.Application] = await aiohttp_client(app)
    with capture_logs([add_request_id]) as logs:
        # Over one connection, and so in one task: the id of the one is gone when the other comes.
        for _ in range(2):
            await client.get("/logging", headers={} if given is None else {REQUEST_ID: given})
        structlog.get_logger().info("nobody asks any more")
    first, second, last = (entry.get("request_id") for entry in logs)
    assert re.fullmatch("[0-9a-f]{32}", str(first))
    assert re.fullmatch("[0-9a-f]{32}", str(second))
    assert first != second
    assert last is None
