"""docs/clients.md is true: its snippets run, in order, against a sidecar and an indexer, and do what the page says."""

import asyncio
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from sidecar.client import CannotTell, NotFound
from sidecar.inprocess import CatalogIndex, NotReady
from tests.fakes import Json, course, customer, run, uuid_of
from tests.fleet import fleet

PAGE: Final = (Path(__file__).parent.parent / "docs" / "clients.md").read_text()
URL: Final = "http://127.0.0.1:18160"
DISK: Final = "/var/lib/catalog/sidecar.db"
ACME: Final = uuid_of("Acme")
FIRST: Final = uuid_of("catalog first")
RUN: Final = "course-v1:Org+1+1"


class ServiceUnavailable(Exception):
    """What the LMS answers 503 with."""

    def __init__(self, retry_after: float | None) -> None:
        super().__init__(retry_after)


class ValidationError(Exception):
    """What the LMS answers 400 with."""


class Retry(Exception):
    """What ends a task that is to be run again."""


def retried(exc: Exception, countdown: float) -> Retry:
    assert isinstance(exc, CannotTell)
    return Retry(countdown)


def snippets(url: str, disk: Path, enrolled: list[Any]) -> Json:
    """All that the page defines."""
    namespace: Json = {
        "worker_token": lambda: "token",
        "ServiceUnavailable": ServiceUnavailable,
        "ValidationError": ValidationError,
        "enrol": lambda user, course_id: enrolled.append((user, course_id)),
    }
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == PAGE.count("```") // 2
    for block in blocks:
        here = block.replace(URL, url).replace(DISK, str(disk))
        exec(compile(here, "docs/clients.md", "exec"), namespace)
    return namespace


def acme(page: Json) -> Any:
    made = page["EnterpriseCustomer"]()
    made.uuid = ACME
    made.enforces_data_sharing_consent = lambda when: when == "at_enrollment"
    return made


async def holds(index: CatalogIndex, generation: int) -> bool:
    """Whether the disk copy has come as far as the sidecar, whose generation this is."""
    try:
        index.load()
    except NotReady:
        return False
    return index.generation == generation


def asked_of_a_sidecar(page: Json, enrolled: list[Any]) -> None:
    """What the functions of the page come to while all is well."""
    ours = acme(page)
    assert (ours.catalog_contains_course(RUN), ours.catalog_contains_course("nothing")) == (True, False)

    consent = SimpleNamespace(granted=False, enterprise_customer=ours, course_id=RUN)
    assert page["consent_required"](consent) is True
    assert page["consent_required"](SimpleNamespace(**vars(consent) | {"course_id": "nothing"})) is False

    assert page["validate_course_run_id"](ours, RUN) == RUN
    with pytest.raises(ValidationError):
        page["validate_course_run_id"](ours, "nothing")

    user = SimpleNamespace(enterprise_customer=ours)
    for course_id in (RUN, "nothing"):
        page["create_enterprise_enrollment"](None, course_id, user)
    assert enrolled == [(user, RUN)]

    catalog = SimpleNamespace(uuid=FIRST, enterprise_customer=ours)
    assert page["get_course"](catalog, "Org+1")["title"] == "Course 1"
    assert page["get_course"](catalog, "nothing") is None
    assert page["export"](ours, catalog, ["Org+1", "gone"]) == ({f"Org+{n}": f"Course {n}" for n in range(3)}, ["gone"])
    assert len(list(page["catalogs"].iterate_content_metadata(catalog))) == 3
    assert [page["contains"](catalog, key) for key in (RUN, "nothing")] == [True, False]
    assert page["catalogs_with"](ours, [RUN]) == [FIRST]
    with pytest.raises(NotFound):
        page["contains"](SimpleNamespace(uuid=uuid_of("nobody's")), RUN)
    assert asyncio.run(page["contained"](ACME, [RUN])) == [FIRST]


def asked_of_nobody(page: Json) -> None:
    """What they come to while nobody answers: never false. The worker's own index answers on."""
    ours = acme(page)
    consent = SimpleNamespace(granted=False, enterprise_customer=ours, course_id=RUN)
    user, task = SimpleNamespace(enterprise_customer=ours), SimpleNamespace(retry=retried)
    catalog = SimpleNamespace(uuid=FIRST, enterprise_customer=ours)
    attempts: tuple[tuple[type[Exception], Callable[[], object]], ...] = (
        (CannotTell, lambda: page["consent_required"](consent)),
        (ServiceUnavailable, lambda: page["validate_course_run_id"](ours, RUN)),
        (Retry, lambda: page["create_enterprise_enrollment"](task, RUN, user)),
        (CannotTell, lambda: page["get_course"](catalog, "Org+1")),
        (CannotTell, lambda: page["export"](ours, catalog, [])),
        (CannotTell, lambda: page["update_enterprise_catalog_data"](catalog, {})),
        (CannotTell, lambda: asyncio.run(page["contained"](ACME, [RUN]))),
    )
    for error, attempt in attempts:
        with pytest.raises(error):
            attempt()
    assert [page["contains"](catalog, key) for key in (RUN, "nothing")] == [True, False]
    with pytest.raises(CannotTell):
        page["contains"](SimpleNamespace(uuid=uuid_of("nobody's")), RUN)


async def test_the_snippets_do_what_the_page_says(tmp_path: Path) -> None:
    corpus = {
        "courses": [course(f"Org+{n}", run(f"course-v1:Org+{n}+1"), title=f"Course {n}") for n in range(3)],
        "customers": [customer("Acme")],
        "programs": [],
        "pathways": [],
        "reviews": [],
    }
    (tmp_path / "corpus.json").write_text(json.dumps(corpus))
    fields = {
        "enterprise_customer": ACME,
        "enterprise_customer_name": "Acme",
        "title": "first",
        "content_filter": {"content_type": "course"},
        "enabled_course_modes": ["verified"],
        "publish_audit_enrollment_urls": False,
        "catalog_query_uuid": None,
    }
    async with fleet(tmp_path, {"kind": "file", "path": str(tmp_path / "corpus.json")}) as it:
        (sidecar,) = it.sidecars
        await sidecar.until(sidecar.ready)
        enrolled: list[Any] = []
        page = snippets(sidecar.url, tmp_path / "sidecar0.db", enrolled)
        saved, instance = page["update_enterprise_catalog_data"], SimpleNamespace(uuid=FIRST)
        with page["catalogs"]:
            # It is made, and the second time changed; both times it is pulled.
            for title in ("first", "renamed"):
                task = await asyncio.to_thread(saved, instance, fields | {"title": title})
                assert isinstance(task, str)
                read = await asyncio.to_thread(page["catalogs"].get_enterprise_catalog, FIRST)
                assert read["title"] == title
            await it.settle()
            served = (await sidecar.health())["generation"]
            await sidecar.until(partial(holds, page["index"], served))
            await asyncio.to_thread(asked_of_a_sidecar, page, enrolled)
            await sidecar.end()
            await asyncio.to_thread(asked_of_nobody, page)
