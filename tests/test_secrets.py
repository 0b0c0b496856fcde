"""No secret of either process comes into a line that it logs or an answer that it gives, whatever is wrong.

Both run with everything out of reach and log all that they can; what is asked comes with tokens, cookies and passwords.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import aiohttp
import jwt
import pytest

DEADLINE_S: Final = 30.0
CATALOGS: Final = "/api/v1/enterprise-catalogs/"
HS256: Final = "hs256-secret-0123456789abcdef0123456789abcdef"
ISSUER: Final = "https://lms.test/oauth2"
NOWHERE: Final = "127.0.0.1:1"
# What must be seen nowhere; each stands in exactly one of the settings or requests below.
SECRETS: Final = {
    "store": "store-password-1",
    "registry": "registry-password-2",
    "client": "client-secret-3",
    "hs256": HS256,
    "cookie": "cookie-value-4",
    "query": "password-in-a-query-5",
    "basic": "basic-password-6",
}


def token(**claims: Any) -> str:
    """A token that both processes trust, of somebody who may do everything."""
    body = {"iss": ISSUER, "aud": "lms", "exp": int(time.time()) + 600, "iat": 1, "preferred_username": "operator"}
    roles = {"roles": ["enterprise_catalog_admin:*", "enterprise_openedx_operator:*"]}
    return jwt.encode(body | roles | claims, HS256, "HS256")


class Process:
    """One of the two, and all that it has said and answered."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.port = 0
        self.lines: list[dict[str, Any]] = []
        self.seen = ""
        self._news = asyncio.Event()

    async def read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.seen += line.decode()
            self.lines.append(json.loads(line))
            self._news.set()

    async def says(self, event: str) -> dict[str, Any]:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                self._news.clear()
                found = [line for line in self.lines if line["event"] == event]
                if found:
                    return found[0]
                await self._news.wait()

    async def ask(self, method: str, path: str, headers: Mapping[str, str], body: Any = None) -> int:
        async with (
            asyncio.timeout(DEADLINE_S),
            aiohttp.ClientSession() as session,
            session.request(method, f"http://127.0.0.1:{self.port}{path}", headers=headers, json=body) as answer,
        ):
            self.seen += await answer.text() + str(answer.headers)
            return answer.status


@asynccontextmanager
async def started(package: str, **settings: str) -> AsyncIterator[Process]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CATALOG_")} | settings
    process = Process(
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", package, "serve"), env=environment, stderr=asyncio.subprocess.PIPE
        )
    )
    reading = asyncio.create_task(process.read())
    try:
        process.port = (await process.says("listening"))["port"]
        yield process
    finally:
        if process.process.returncode is None:
            process.process.terminate()
        async with asyncio.timeout(DEADLINE_S):
            await process.process.wait()
            await reading


def shared() -> dict[str, str]:
    """The settings of both: everything that is needed is out of reach."""
    return {
        "CATALOG_STORE_URL": f"redis://app:{SECRETS['store']}@{NOWHERE}/0",
        "CATALOG_AUTH_MODE": "jwt",
        "CATALOG_AUTH_ISSUER": ISSUER,
        "CATALOG_AUTH_AUDIENCE": "lms",
        "CATALOG_AUTH_HS256_SECRET": HS256,
        "CATALOG_LOG_FORMAT": "json",
        "CATALOG_LOG_LEVEL": "debug",
    }


def credentials() -> list[dict[str, str]]:
    """Who asks: known, with a wrong signature, with a token that is over, with cookies, with a password."""
    good = token()
    header, payload, signature = good.split(".")
    cookies = f"edx-jwt-cookie-header-payload={header}.{payload}; edx-jwt-cookie-signature={signature}"
    return [
        {"Authorization": f"JWT {good}"},
        {"Authorization": f"JWT {good[:-6]}AAAAAA"},
        {"Authorization": f"JWT {token(exp=1)}"},
        {"Authorization": f"JWT {token(iss='https://other.test')}"},
        {"Cookie": f"{cookies}; sessionid={SECRETS['cookie']}", "USE-JWT-COOKIE": "true"},
        {"Authorization": f"Basic {SECRETS['basic']}"},
    ]


def forbidden(asked: list[dict[str, str]]) -> list[str]:
    """The secrets, and of every token the parts that make it one."""
    values = [value for headers in asked for value in headers.values()]
    parts = {part for value in values for part in value.replace("=", " ").replace(";", " ").replace(".", " ").split()}
    # The first part of all tokens is the same, and says nothing.
    return [*SECRETS.values(), *(part for part in parts if len(part) > 20 and not part.startswith("eyJhbGci"))]


async def ask_everything(process: Process, asked: list[dict[str, str]]) -> set[int]:
    one = f"{CATALOGS}{UUID(int=1)}/"
    password = f"?password={SECRETS['query']}"
    statuses = set()
    for headers in asked:
        for method, path, body in (
            ("GET", one + password, None),
            ("GET", f"{one}contains_content_items/{password}&course_run_ids=a", None),
            ("POST", CATALOGS + password, {"enterprise_customer": "no uuid", "content_filter": 7}),
            ("PATCH", one + password, {"title": "other"}),
            ("DELETE", one + password, None),
            ("GET", "/api/v1/academies/" + password, None),
            ("GET", "/api/v1/pulls/x/" + password, None),
            ("GET", "/health", None),
            ("GET", "/metrics", None),
        ):
            statuses.add(await process.ask(method, path, headers, body))
    return statuses


async def test_the_sidecar_tells_none(tmp_path: Path) -> None:
    asked = credentials()
    settings = {
        "CATALOG_SIDECAR_DISK": str(tmp_path / "disk.db"),
        "CATALOG_SIDECAR_PORT": "0",
        "CATALOG_SIDECAR_INDEXER_URL": f"http://{NOWHERE}",
        "CATALOG_UPSTREAM_URL": f"http://{NOWHERE}",
    }
    async with started("sidecar", **shared(), **settings) as process:
        assert await ask_everything(process, asked) >= {200, 401, 503}
        await process.says("the store cannot be read; what is loaded goes on being served")
        line = await process.says("a write got no answer from the indexer")
        assert line["request_id"]
    assert [secret for secret in forbidden(asked) if secret in process.seen] == []


async def test_the_indexer_tells_none(tmp_path: Path) -> None:
    asked = credentials()
    settings = {
        "CATALOG_REGISTRY_URL": f"sqlite+aiosqlite:///{tmp_path / 'registry.db'}",
        "CATALOG_INDEXER_PORT": "0",
        "CATALOG_SOURCE_KIND": "discovery",
        "CATALOG_SOURCE_URL": f"http://{NOWHERE}",
        "CATALOG_SOURCE_OAUTH_URL": f"http://{NOWHERE}/oauth2/access_token",
        "CATALOG_SOURCE_OAUTH_CLIENT_ID": "catalog",
        "CATALOG_SOURCE_OAUTH_CLIENT_SECRET": SECRETS["client"],
        "CATALOG_LMS_URL": f"http://{NOWHERE}",
    }
    async with started("indexer", **shared(), **settings) as process:
        assert await ask_everything(process, asked) >= {200, 400, 401, 404}
        await process.says("cannot lead for now")
    assert [secret for secret in forbidden(asked) if secret in process.seen] == []


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+asyncpg://app:{}@127.0.0.1:1/catalog",
        "postgresql+asyncpg://127.0.0.1:1/catalog?user=app&password={}",
        "mysql+asyncmy://app:{}@127.0.0.1:1/catalog",
        "sqlite+aiosqlite:////proc/nowhere/registry.db?password={}",
        "postgresql+nothing://app:{}@127.0.0.1:1/catalog",
    ],
)
async def test_a_registry_that_cannot_be_had_is_told_without_its_password(url: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CATALOG_")}
    environment |= shared() | {
        "CATALOG_REGISTRY_URL": url.format(SECRETS["registry"]),
        "CATALOG_SOURCE_CORPUS": str(tmp_path / "corpus.json"),
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "indexer", "status"),
        env=environment,
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE_S):
        told, said = await process.communicate()
    assert process.returncode != 0
    assert said
    assert [secret for secret in SECRETS.values() if secret in (told + said).decode()] == []
