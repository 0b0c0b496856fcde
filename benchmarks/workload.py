"""The content that benchmarks run over when none is given: the demo's invented corpus, larger, with many queries."""

import datetime
import json
import random
from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

from indexer.sample import sample_corpus

REFERENCE = datetime.date(2026, 1, 1)
CUSTOMERS: Final = 40
"""Each has five of 200 catalogs."""
RUNS_OF_A_COURSE: Final = 3
SYLLABUS_LENGTH: Final = 3_500
"""With it a document has some 15 kB, which is what the larger ones have in public discovery services."""
Json = dict[str, Any]


def corpus(courses: int) -> Json:
    """A corpus of so many courses with their runs, a program for every few of them, and customers."""
    content = sample_corpus(REFERENCE, courses)
    for course in content["courses"]:
        _enlarge(course)
    named = content["customers"]
    for number in range(len(named), CUSTOMERS):
        name = f"Customer {number:02d}"
        more = {"uuid": _uuid("customer", number), "name": name, "slug": name.lower().replace(" ", "-")}
        named.append(named[number % len(named)] | more)
    return content


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


def _enlarge(course: Json) -> None:
    """Gives a course the runs and the text that a real one has: earlier runs like its last one, and a long syllabus."""
    full, runs = course["full"], course["runs"]
    for number in range(len(runs), RUNS_OF_A_COURSE if runs else 0):
        key, uuid = runs[0]["key"], runs[0]["uuid"]
        for place in (runs, full["course_runs"]):
            text = json.dumps(place[0]).replace(key, f"{key}_{number}").replace(uuid, _uuid("run", key, number))
            place.append(json.loads(text))
        full["course_run_keys"].append(f"{key}_{number}")
    words = f"{full['full_description']} ".split()
    rnd = random.Random(full["key"])
    full["syllabus_raw"] = " ".join(rnd.choices(words, k=SYLLABUS_LENGTH // 6))


def _uuid(*parts: object) -> str:
    return str(uuid5(NAMESPACE_URL, "/".join(map(str, parts))))
