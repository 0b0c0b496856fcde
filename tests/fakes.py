"""Fakes that tests pass in: a clock that is set by hand, a source over a corpus in memory, and content to put in it."""

import asyncio
import json
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from indexer.source import CustomerDetails, Pulled, SourceError
from indexer.source.file import read_corpus, search

Json = dict[str, Any]
RESTRICTED = "custom-b2b-enterprise"


def uuid_of(name: str) -> str:
    """A uuid that stands for a name."""
    return str(uuid5(NAMESPACE_URL, name))


class FakeClock:
    """Implements Clock; time stands still until it is moved."""

    def __init__(self, now_ms: int = 1_800_000_000_000) -> None:
        self.wall_ms = now_ms
        self.steady_s = 0.0

    def now_ms(self) -> int:
        return self.wall_ms

    def monotonic(self) -> float:
        return self.steady_s

    def advance(self, seconds: float) -> None:
        """Lets time pass on both clocks."""
        self.wall_ms += round(seconds * 1000)
        self.steady_s += seconds

    async def sleep(self, seconds: float) -> None:
        """Lets time pass instead of waiting."""
        self.advance(seconds)


class FakeSource:
    """Implements Source over `courses`, `programs` and `customers`, which may be changed between pulls.

    `failure`, while set, is what every pull fails with; `searches` counts pulls.
    """

    def __init__(self, *courses: Json, programs: tuple[Json, ...] = (), customers: tuple[Json, ...] = ()) -> None:
        self.courses = list(courses)
        self.programs = list(programs)
        self.customers = list(customers)
        self.failure: SourceError | None = None
        self.searches = 0

    async def pull(self, content_filter: object, *, since_ms: int = 0) -> Pulled:
        self.searches += 1
        if self.failure is not None:
            raise self.failure
        corpus = {
            "courses": self.courses,
            "programs": self.programs,
            "pathways": [],
            "reviews": [],
            "customers": self.customers,
        }
        return search(read_corpus(json.dumps(corpus).encode(), "fake"), content_filter)

    async def customer(self, uuid: str) -> CustomerDetails | None:
        if self.failure is not None:
            raise self.failure
        for c in self.customers:
            if c["uuid"] == uuid:
                return CustomerDetails(uuid, c["slug"], c["enable_learner_portal"], c["name"], c["modified"])
        return None

    async def close(self) -> None:
        pass


class SlowSource(FakeSource):
    """A source that says when it is asked, and answers when the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()

    async def pull(self, content_filter: object, *, since_ms: int = 0) -> Pulled:
        self.begun.set()
        await self.gate.wait()
        return await super().pull(content_filter, since_ms=since_ms)


def run(key: str, *, active: bool = True, restricted: bool = False) -> Json:
    """A course run as it is nested in a course's full document."""
    return {
        "key": key,
        "uuid": uuid_of(key),
        "status": "published" if active else "archived",
        "availability": "Current" if active else "Archived",
        "is_enrollable": active,
        "is_marketable": active,
        "is_marketable_external": False,
        "restriction_type": RESTRICTED if restricted else None,
    }


def course(key: str, *runs: Json, indexed: tuple[str, ...] = (), title: str = "A course", **search_fields: Any) -> Json:
    """A course of a corpus: its search/all and full documents, and search/all documents of the runs in `indexed`."""
    searched = {
        "key": key,
        "uuid": uuid_of(key),
        "title": title,
        "content_type": "course",
        "aggregation_key": f"course:{key}",
        "org": key.partition("+")[0],
        "partner": "edx",
        "course_type": "verified-audit",
        "product_source": "edx",
        "course_runs": [{"key": r["key"], "restriction_type": r["restriction_type"]} for r in runs],
        **search_fields,
    }
    full = {"key": key, "uuid": uuid_of(key), "title": title, "course_runs": list(runs)}
    full["course_run_keys"] = [r["key"] for r in runs]
    own = [
        {
            "key": r["key"],
            "uuid": r["uuid"],
            "content_type": "courserun",
            "aggregation_key": f"courserun:{key}",
            "org": searched["org"],
            "partner": "edx",
            "restriction_type": r["restriction_type"],
        }
        for r in runs
        if r["key"] in indexed
    ]
    return {"search": searched, "full": full, "runs": own}


def program(name: str, *courses: str) -> Json:
    """A program of a corpus."""
    uuid = uuid_of(name)
    searched = {"uuid": uuid, "title": name, "content_type": "program", "aggregation_key": f"program:{uuid}"}
    return {"search": searched, "full": {"uuid": uuid, "title": name, "courses": [{"key": key} for key in courses]}}


def customer(name: str) -> Json:
    """A customer of a corpus."""
    return {
        "uuid": uuid_of(name),
        "name": name,
        "slug": name.lower(),
        "enable_learner_portal": True,
        "modified": "2026-01-01T00:00:00Z",
    }


def catalog_body(title: str, content_filter: object, *, of: str = "Acme", **fields: Any) -> Json:
    """The body that creates a catalog named `title` for the customer named `of`."""
    return {
        "uuid": uuid_of(f"catalog {title}"),
        "title": title,
        "enterprise_customer": uuid_of(of),
        "enterprise_customer_name": of,
        "enabled_course_modes": ["verified"],
        "publish_audit_enrollment_urls": False,
        "content_filter": content_filter,
        **fields,
    }
