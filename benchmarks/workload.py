"""The content that benchmarks run over when none is given: the demo's invented corpus, larger, with many queries."""

import datetime
import random
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from indexer.sample import sample_corpus

REFERENCE = datetime.date(2026, 1, 1)
Json = dict[str, Any]


def corpus(courses: int) -> Json:
    """A corpus of so many courses with their runs, a program for every few of them, and customers."""
    return sample_corpus(REFERENCE, courses)


def catalogs(content: Json, queries: int = 50, count: int = 200) -> list[Json]:
    """Catalog bodies over a corpus: queries of ten courses up to everything, each shared by a few catalogs."""
    rnd = random.Random("benchmarks")
    keys = [course["search"]["key"] for course in content["courses"]]
    filters: list[Json] = [
        {"content_type": "course", "partner": "edx"},
        {"content_type": ["course", "program"]},
        {"content_type": "courserun"},
        {"content_type": "program"},
    ]
    while len(filters) < queries:
        size = min(len(keys), rnd.choice((10, 25, 50, 100, 200, 400, 800, 1500)))
        filters.append({"content_type": "course", "key": sorted(rnd.sample(keys, size))})
    customers = content["customers"]
    bodies = []
    for n in range(count):
        customer = customers[n % len(customers)]
        which = n % len(filters)
        bodies.append(
            {
                "uuid": _uuid("catalog", n),
                "title": f"catalog {n:03d}",
                "enterprise_customer": customer["uuid"],
                "enterprise_customer_name": customer["name"],
                "enabled_course_modes": ["verified", "audit"],
                "publish_audit_enrollment_urls": n % 9 == 0,
                "content_filter": filters[which],
                "catalog_query_uuid": _uuid("query", which),
                "query_title": f"query {which:02d}",
            }
        )
    return bodies


def _uuid(*parts: object) -> str:
    return str(uuid5(NAMESPACE_URL, "/".join(map(str, parts))))
