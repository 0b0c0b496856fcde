"""A web page of another origin asks a sidecar from a real browser, with the credentials that the browser keeps.

Chromium is no part of the environment, and so these are run by name alone: `make test-browser`.
"""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.sidecar.replayed import BODIES, Rig, replaying
from tests.tokens import StillClock, settings, token_of

CUSTOMER: Final = BODIES["cc5b5eb4-74d6-4cc6-8465-f9d4082c30a2"]["enterprise_customer"]
COURSE: Final = "MITx+EC001"
PATH: Final = f"/api/v1/enterprise-customer/{CUSTOMER}"
CONTAINS: Final = f"{PATH}/contains_content_items/?course_run_ids=MITx%2BEC001"
CHROMIUM: Final = (
    "chromium",
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
)
# How long a browser may take to start, on a machine that does other things.
PATIENCE_S: Final = 120.0
SCRIPT: Final = """
<!doctype html><script>
(async () => {
  const told = {}
  try {
    const answer = await fetch(%(url)s, %(options)s)
    Object.assign(told, {status: answer.status, generation: answer.headers.get("X-Catalog-Generation")})
    told.body = await answer.json()
  } catch (error) { told.error = error.name }
  await fetch("/told", {method: "POST", body: JSON.stringify(told)})
})()
</script>
"""
WITH_COOKIES: Final = {"credentials": "include", "headers": {"USE-JWT-COOKIE": "true"}}


class Page:
    """A web server that gives its visitors a token in cookies, and a page that asks somebody else."""

    def __init__(self, token: str) -> None:
        self._token = token
        self.question: tuple[str, object] = ("", {})
        self.told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.app = web.Application()
        self.app.add_routes([web.get("/", self.show), web.post("/told", self.hear)])

    async def show(self, _: web.Request) -> web.Response:
        url, options = self.question
        page = SCRIPT % {"url": json.dumps(url), "options": json.dumps(options)}
        response = web.Response(text=page, content_type="text/html")
        head, payload, signature = self._token.split(".")
        response.set_cookie("edx-jwt-cookie-header-payload", f"{head}.{payload}", samesite="Lax")
        response.set_cookie("edx-jwt-cookie-signature", signature, samesite="Lax", httponly=True)
        return response

    async def hear(self, request: web.Request) -> web.Response:
        self.told.put_nowait(await request.json())
        return web.Response()


class Browser:
    """Visits a page that is listed, and one that is not, each with a profile of its own."""

    def __init__(self, path: Path, rig: Rig, pages: dict[bool, tuple[Page, str]]) -> None:
        self._path, self._rig, self._pages = path, rig, pages

    async def told(self, path: str, options: object, *, listed: bool = True) -> dict[str, Any]:
        """What a page's script was told."""
        page, url = self._pages[listed]
        page.question = (str(self._rig.client.make_url(path).with_host("127.0.0.1")), options)
        profile = self._path / "profile"
        browser = await asyncio.create_subprocess_exec(
            *CHROMIUM,
            f"--user-data-dir={profile}",
            "--remote-debugging-port=0",
            url,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await page.told.get()
        finally:
            browser.kill()
            await browser.wait()
            shutil.rmtree(profile, ignore_errors=True)


@asynccontextmanager
async def showing(token: str) -> AsyncIterator[tuple[Page, str]]:
    page = Page(token)
    async with TestServer(page.app) as server:
        yield page, str(server.make_url("/"))


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Browser]:
    clock = StillClock()
    token = token_of("learner_c0", clock.now_ms())
    async with showing(token) as listed, showing(token) as other:
        origins = listed[1].removesuffix("/")
        async with replaying(tmp_path, clock=clock, auth=settings(tmp_path), origins=origins) as rig:
            yield Browser(tmp_path, rig, {True: listed, False: other})


async def test_a_listed_page_reads_containment_with_the_cookies_of_its_visitor(browser: Browser) -> None:
    told = await browser.told(CONTAINS, WITH_COOKIES)
    assert told == {"status": 200, "generation": "1", "body": {"contains_content_items": True}}


async def test_a_listed_page_sends_a_body(browser: Browser) -> None:
    headers = {"USE-JWT-COOKIE": "true", "Content-Type": "application/json"}
    body = json.dumps({"content_keys": [COURSE, "no+such"]})
    options = {"method": "POST", "credentials": "include", "headers": headers, "body": body}
    told = await browser.told(f"{PATH}/filter_content_items/", options)
    assert (told["status"], told["body"]) == (200, {"filtered_content_keys": [COURSE]})


async def test_a_listed_page_reads_why_it_was_refused(browser: Browser) -> None:
    told = await browser.told(CONTAINS, {})
    assert (told["status"], told["body"]) == (401, {"detail": "Authentication credentials were not provided."})


async def test_a_page_that_is_not_listed_reads_nothing(browser: Browser) -> None:
    assert await browser.told(CONTAINS, WITH_COOKIES, listed=False) == {"error": "TypeError"}
    assert await browser.told(CONTAINS, {}, listed=False) == {"error": "TypeError"}
    # It is the page, and not the visitor.
    assert (await browser.told(CONTAINS, WITH_COOKIES))["status"] == 200
