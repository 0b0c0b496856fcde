"""Queries are listed, found and hashed from the index as recorded, each caller seeing its own."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from sidecar.contract.words import query_hash
from tests.sidecar.replayed import ALL_SEEING, BODIES, Json, Judge, Rig, exchanges, read, replaying

LIST = "/api/v1/catalog-queries/"
HASH = f"{LIST}get_content_filter_hash"
DISTINCT = "/api/v1/distinct-catalog-queries/"
ACTORS = read("actors")


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with replaying(tmp_path) as here:
        yield here


def required(exchange: Json, recorded: list[Json]) -> Json | None:
    """The answer that is wanted: who administers every customer sees what a superuser sees (difference 12)."""
    if exchange["actor"] != "operator" or exchange["status"] != 403 or not exchange["path"].startswith(LIST):
        return exchange
    same = ("method", "path", "query", "request_body")
    twins = (e for e in recorded if e["actor"] == "superuser" and [e[n] for n in same] == [exchange[n] for n in same])
    return next(twins, None)


async def test_everything_is_answered_as_it_was_recorded(rig: Rig) -> None:
    judge, recorded, wrong, asked = Judge(), exchanges("07_catalog_queries"), {}, 0
    for exchange in recorded:
        wanted = required(exchange, recorded)
        if exchange["actor"] not in ALL_SEEING or wanted is None:
            continue
        asked += 1
        if said := await judge.wrong(wanted, await rig.send(exchange)):
            wrong[exchange["id"]] = said
    assert wrong == {}
    assert asked == 27


async def test_the_pages_of_queries_are_all_of_them(rig: Rig) -> None:
    found, count = await rig.walk(LIST, "page_size=3")
    assert len(found) == len(set(found)) == count == len({b["catalog_query_uuid"] for b in BODIES.values()})
    for number in range(1, count + 1):
        status, body = await rig.get(f"{LIST}{number}/")
        assert (status, body["uuid"]) == (200, found[number - 1])
        assert body["content_filter_hash"] == query_hash(body["content_filter"]).hex()
        assert (await rig.get(f"{LIST}get_query_by_hash/", f"hash={body['content_filter_hash'].upper()}")) == (
            200,
            body,
        )
    assert (await rig.get(f"{LIST}{count + 1}/"))[0] == 404


@pytest.mark.parametrize("text", ["0", "-1", "x", "1.0", "%D9%A1", "9" * 5000])
async def test_what_is_no_id_is_not_found(rig: Rig, text: str) -> None:
    assert (await rig.get(f"{LIST}{text}/"))[0] == 404


async def hashed(rig: Rig, body: bytes, content_type: str) -> tuple[int, Any]:
    answer = await rig.client.request("GET", HASH, data=body, headers={"Content-Type": content_type})
    return answer.status, await answer.json()


def as_form(content_filter: Json) -> bytes:
    """What the client library of today's callers makes of a filter."""
    pairs = []
    for name, value in content_filter.items():
        pairs += [(name, v) for v in (value if isinstance(value, (list, dict)) else [value]) if v is not None]
    return urlencode(pairs).encode()


async def test_the_form_of_a_known_filter_has_its_hash(rig: Rig) -> None:
    for body in BODIES.values():
        want = query_hash(body["content_filter"]).hex()
        assert await hashed(rig, as_form(body["content_filter"]), "application/x-www-form-urlencoded") == (200, want)


async def test_the_form_of_an_unknown_filter_is_read_plainly(rig: Rig) -> None:
    want = query_hash({"a": ["x", "y"], "b": "é +"}).hex()
    form = b"a=x&b=%C3%A9+%2B&a=y"
    assert await hashed(rig, form, "application/x-www-form-urlencoded; charset=utf-8") == (200, want)


@pytest.mark.parametrize(
    "body, content_type, status",
    [
        (b"{}", "text/plain", 415),
        (b"\xff", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"a": NaN}', "application/json", 400),
        (b'{"a": "\\ud800", "n": 123456789012345678901234567890}', "application/json", 200),
    ],
)
async def test_no_body_is_an_error_of_ours(rig: Rig, body: bytes, content_type: str, status: int) -> None:
    got, said = await hashed(rig, body, content_type)
    assert got == status
    if got == 200:
        assert said == query_hash(json.loads(body)).hex()


async def test_a_nesting_too_deep_to_write_is_a_bad_request(rig: Rig) -> None:
    for depth in (100, 990, 1020):
        status, _ = await hashed(rig, b"[" * depth + b"]" * depth, "application/json")
        assert status == 200 or (depth > 100 and status == 400)


async def test_catalogs_that_share_a_query_are_told_together(rig: Rig) -> None:
    answer = await rig.client.post(DISTINCT, json={"enterprise_catalog_uuids": [*BODIES, *BODIES]})
    body = await answer.json()
    groups = {tuple(sorted(uuids)) for uuids in body["catalog_uuids_by_catalog_query_id"].values()}
    by_query: dict[str, list[str]] = {}
    for uuid, made in BODIES.items():
        by_query.setdefault(json.dumps(made["content_filter"], sort_keys=True), []).append(uuid)
    assert groups == {tuple(sorted(uuids)) for uuids in by_query.values()}
    assert body["num_distinct_query_ids"] == len(groups)


@pytest.mark.parametrize(
    "given", [[], "x", {"enterprise_catalog_uuids": ["x"]}, {"enterprise_catalog_uuids": {"a": 1}}]
)
async def test_what_names_no_catalogs_is_a_bad_request(rig: Rig, given: Any) -> None:
    assert (await rig.client.post(DISTINCT, json=given)).status == 400
