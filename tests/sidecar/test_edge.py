"""Whatever goes wrong inside leaves as JSON, and is counted."""

from aiohttp import web
from aiohttp.test_utils import TestClient
from pytest_aiohttp import AiohttpClient
from structlog.testing import capture_logs

from sidecar.edge import measured
from sidecar.metrics import Metrics
from tests.sidecar.fakes import FakeClock


async def defect(_: web.Request) -> web.Response:
    raise ZeroDivisionError


async def test_a_defect_costs_one_answer_and_names_it(aiohttp_client: AiohttpClient) -> None:
    metrics = Metrics()
    app = web.Application(middlewares=[measured(metrics, FakeClock())])
    app.router.add_get("/defect", defect)
    client: TestClient[web.Request, web.Application] = await aiohttp_client(app)
    with capture_logs() as logs:
        answer = await client.get("/defect")
    body = await answer.json()
    assert (answer.status, body["detail"]) == (500, "A server error occurred.")
    assert [(entry["request_id"], entry["path"]) for entry in logs] == [(body["request_id"], "/defect")]
    labels = {"route": "/defect", "status": "500"}
    assert metrics.registry.get_sample_value("catalog_sidecar_requests_total", labels) == 1
