"""The sample of the demo: invented content in discovery's shapes, catalogs over it, and questions to ask of them.

Pure and deterministic: the same reference date, size and seed give the same bytes. Nothing here reads a clock; past,
current and future runs are counted in days from the reference date. The first courses are the special ones (executive
education, restricted runs, a key outside ASCII, content that is left out on ingest, …), so that every sample has them.
"""

import datetime
import functools
import itertools
import json
import random
import re
import unicodedata
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from indexer.documents import is_let_in
from indexer.filters import compile_filter

Json = dict[str, Any]
Corpus = dict[str, list[Json]]

# fmt: off
ORGS = {
    "AlderX": "Alder University", "NordhavnX": "Nordhavn Institute of Technology", "QuayX": "Quayside College",
    "MesaX": "Mesa State University", "LindenX": "Linden School of Economics", "KitakazeX": "Kitakaze University",
    "ÅsgårdX": "Åsgård Folk University", "StrandX": "Strand Business School",
}
# A course code, a subject, the title of its program, its topics.
SUBJECTS = [line.split(": ") for line in """
ENG: Engineering: Coasts and Structures: Tidal Energy Systems, Bridge Inspection, Railway Signalling, Timber Structures
CS: Computer Science: Dependable Software: Distributed Databases, Compiler Construction, Web Accessibility, Testing
DS: Data Analysis & Statistics: Numbers for Decisions: Survey Sampling, Time Series Forecasting, Causal Reasoning
BUS: Business & Management: Managing Change: Supply Chain Resilience, Service Design, Cooperative Governance
EC: Economics & Finance: Money and Risk: Credit Risk, Insurance Pricing, Public Finance, Household Economics
BIO: Biology & Life Sciences: Living Landscapes: Marine Ecology, Plant Genetics, Soil Microbiology, Bird Migration
MED: Medicine: Care Close to Home: Infection Control, Clinical Trials, Palliative Care, Patient Safety
LAW: Law: Law at Work: Contract Drafting, Maritime Law, Data Protection, Workplace Mediation
HUM: Humanities: Collections and Stories: Medieval Trade Routes, Oral History, Museum Curation, Literary Translation
""".strip().splitlines()]
SKILLS = ("Planning", "Field Research", "Negotiation", "Modelling", "Technical Writing", "Risk Assessment", "Reporting")
TITLES = {
    "Introductory": ("Introduction to {topic}", "Foundations of {topic}", "{topic} for Beginners"),
    "Intermediate": ("{topic} in Practice", "{topic}", "Working with {topic}"),
    "Advanced": ("Advanced {topic}", "{topic} at Scale", "{topic}: Research and Methods"),
}
SUMMARIES = (
    "What {topic} is for, how it is measured, and where to begin.",
    "Six cases from {org} show how {topic} succeeds, and how it fails.",
)
DESCRIPTIONS = (
    "Every week pairs a short lecture with a case from the field, so that ideas about {topic} meet real constraints.",
    "Teachers at {org} wrote it together with people who work on {topic} every day.",
)
OUTCOME = "Explain the ideas behind {topic}, weigh the evidence, and plan a first project."
SYLLABUS = "<ul><li>What {topic} is for</li><li>Measuring {topic}</li><li>A case from {org}</li></ul>"
TEACHERS = ("Ingrid Halvorsen", "Tomás Ibarra", "Akiko Morimoto", "Leila Farahani", "Owen Prescott", "Chiara Bellini")
LANGUAGES = {"English": "en-us", "Spanish": "es-es", "French": "fr-fr", "German": "de-de"}
PRICES = (49, 99, 149, 199, 299, 499)
PROGRAM_TYPES = ("Professional Certificate", "XSeries", "MicroMasters", "MicroBachelors")
PATHWAYS = ("Building Things That Last", "Running a Fair Organization", "Evidence for Better Care")
SOURCES = {"edx": "edX", "2u": "2U", "lumenlearn": "LumenLearn"}
HAS_PORTAL = {
    "Harbour & Stone Insurance": True, "Meridian Health Trust": True, "Kestrel Manufacturing": True,
    "Söderberg & Söner Logistik": False, "Bluefield City Council": True,
}
# fmt: on
EXECUTIVE, RESTRICTED = "executive-education-2u", "custom-b2b-enterprise"
SMALLEST_SAMPLE, DAYS_OF_A_RUN, DAYS_BETWEEN_RUNS = 40, 150, 365


@dataclass(frozen=True)
class Question:
    """Something to ask the running demo, and the exact body that it must answer."""

    title: str
    path: str
    answer: str
    method: str = "GET"
    body: Json | None = None


@dataclass(frozen=True)
class _Plan:
    """What is decided about a course before its documents are written; `starts` is its last public run's first day."""

    index: int
    org: str
    number: str
    runs: int
    starts: int
    restricted: int = 0
    active: bool = True
    type: str = "verified-audit"
    source: str = "edx"


_SPECIAL = (
    _Plan(0, "StrandX", "EE100", 1, 45, type=EXECUTIVE, source="2u"),
    _Plan(1, "StrandX", "EE101", 2, 60, type=EXECUTIVE, source="2u"),
    _Plan(2, "StrandX", "BC100", 1, 30, type="bootcamp-2u", source="2u"),
    _Plan(3, "MesaX", "LL100", 1, -30, source="lumenlearn"),
    _Plan(4, "AlderX", "RES100", 2, -40, restricted=2),
    _Plan(5, "QuayX", "RES101", 1, 20, restricted=1),
    _Plan(6, "QuayX", "RES102", 0, 0, restricted=1),
    _Plan(7, "ÅsgårdX", "FJÄLL100", 2, -20),
    _Plan(8, "LindenX", "PLAN100", 0, 0),
    _Plan(9, "NordhavnX", "OLD100", 2, -900, active=False),
)


def sample_corpus(reference: datetime.date, courses: int = 300, seed: str = "sample") -> Corpus:
    """Courses, programs, pathways, reviews and customers, as a corpus file holds them."""
    if courses < SMALLEST_SAMPLE:
        raise ValueError(f"courses = {courses}: the smallest sample has {SMALLEST_SAMPLE}")
    made = [_Course(reference, seed, plan).documents() for plan in _plans(courses)]
    taught = [course for course in _shown(made) if not course["full"]["entitlements"]]
    shown = [[c for c in taught if subject in c["search"]["subjects"]] for _, subject, *_ in SUBJECTS]
    kinds = itertools.cycle(PROGRAM_TYPES)
    programs = [
        _program(reference, seed, next(kinds), title, found[:5])
        for (_, _, title, _), found in zip(SUBJECTS, shown, strict=True)
    ]
    pathways = [_pathway(reference, seed, title, shown[3 * n][:4], programs[3 * n]) for n, title in enumerate(PATHWAYS)]
    reviews = [_review(n, course["full"]["key"]) for n, course in enumerate(made[::4])]
    customers = [_customer(reference, seed, name) for name in HAS_PORTAL]
    return {"courses": made, "programs": programs, "pathways": pathways, "reviews": reviews, "customers": customers}


def sample_catalogs(corpus: Corpus) -> list[Json]:
    """A dozen catalogs of the corpus's customers, in order of creation, as bodies of the catalog API."""
    private = {course["search"]["key"]: runs for course in corpus["courses"] if (runs := _private_runs(course))}
    picks = [course["search"]["key"] for course in _shown(corpus["courses"])[3:23:2]]
    allowed = {f"course:{key}": runs[:1] for key, runs in private.items()}
    courses = {"content_type": "course"}
    soon = {"availability": ["Current", "Starting Soon"]}
    definitions: list[tuple[int, str, str, Json]] = [
        (0, "All courses", "Every course", {**courses, "partner": "edx"}),
        (0, "Onboarding picks", "Ten chosen courses", {**courses, "key": picks}),
        (0, "Alder runs", "Runs of AlderX", {"content_type": "courserun", "org": "AlderX"}),
        (1, "Open library", "Every course", {**courses, "partner": "edx"}),
        (1, "Programs", "Every program", {"content_type": "program"}),
        (1, "Partners", "Two organizations", {**courses, "org": ["QuayX", "ÅsgårdX"]}),
        (2, "Executive education", "Executive education", {**courses, "course_type": EXECUTIVE}),
        (2, "Up to 149 dollars", "Cheap courses", {**courses, "first_enrollable_paid_seat_price__lte": "149"}),
        (
            2,
            "Private runs",
            "Courses with private runs",
            {**courses, "key": [*private], "restricted_runs_allowed": allowed},
        ),
        (3, "First steps", "Easy", {**courses, "level_type": "Introductory", "languages": ["English", "German"]}),
        (3, "Guided paths", "Every pathway", {"content_type": "learnerpathway"}),
        (4, "Starting now", "Current or soon, without StrandX", {**courses, **soon, "org__exclude": "StrandX"}),
    ]
    owners = corpus["customers"]
    return [_catalog(owners[n], title, query, content_filter) for n, title, query, content_filter in definitions]


def sample_questions(corpus: Corpus, catalogs: list[Json]) -> list[Question]:
    """Three questions whose answers follow from the corpus: a run, a customer's catalogs, a list of keys to filter."""
    shown = [course for course in _shown(corpus["courses"]) if course["search"]["key"].isascii()]
    members = {catalog["uuid"]: _members(corpus, catalog["content_filter"]) for catalog in catalogs}
    names = {catalog["enterprise_customer"]: catalog["enterprise_customer_name"] for catalog in catalogs}
    holders = {name: {c["search"]["key"]: _holders(c, name, catalogs, members) for c in shown} for name in names}
    several = [course for course in shown if len(course["runs"]) > 1]
    asked, its = next((k, c) for k in reversed(catalogs) for c in several if c["search"]["key"] in members[k["uuid"]])
    run = its["runs"][0]["key"]
    lister, twice = next((who, key) for who, held in holders.items() for key, uuids in held.items() if len(uuids) == 2)
    chooser, held = next((who, held) for who, held in holders.items() if any(held.values()) and not all(held.values()))
    inside, outside = [key for key in held if held[key]], next(key for key in held if not held[key])
    one_run = urlencode({"course_run_ids": run})
    listing = urlencode({"course_run_ids": twice, "get_catalogs_containing_specified_content_ids": "true"})
    # fmt: off
    return [
        Question(f"Is the run {run} in the catalog {asked['title']!r}? Only its course is a member.",
                 f"/api/v1/enterprise-catalogs/{asked['uuid']}/contains_content_items/?{one_run}",
                 _answer(contains_content_items=True)),
        Question(f"Which catalogs of {names[lister]} contain the course {twice}?",
                 f"/api/v1/enterprise-customer/{lister}/contains_content_items/?{listing}",
                 _answer(contains_content_items=True, catalog_list=holders[lister][twice])),
        Question(f"Which of these three courses are in a catalog of {names[chooser]}?",
                 f"/api/v1/enterprise-customer/{chooser}/filter_content_items/",
                 _answer(filtered_content_keys=[inside[-1], inside[0]]), "POST",
                 {"content_keys": [inside[-1], outside, inside[0]]}),
    ]
    # fmt: on


def _answer(**body: object) -> str:
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False)


def _members(corpus: Corpus, content_filter: Json) -> set[str]:
    entries = [*corpus["courses"], *corpus["programs"], *corpus["pathways"]]
    searched = [entry["search"] for entry in entries] + [run for entry in corpus["courses"] for run in entry["runs"]]
    matches = compile_filter(content_filter).matches
    return {found.get("key") or found["uuid"] for found in searched if is_let_in(found) and matches(found)}


def _holders(course: Json, customer: str, catalogs: list[Json], members: dict[str, set[str]]) -> list[str]:
    """The customer's catalogs of which the course, or one of its runs, is a member."""
    keys = {course["search"]["key"], *(run["key"] for run in course["runs"])}
    return [c["uuid"] for c in catalogs if c["enterprise_customer"] == customer and keys & members[c["uuid"]]]


def _private_runs(course: Json) -> list[str]:
    return [run["key"] for run in course["runs"] if run["restriction_type"]]


def _shown(courses: list[Json]) -> list[Json]:
    """The courses that anybody may find: let in, with an advertised run, and with no restricted one."""
    found = [course for course in courses if is_let_in(course["search"]) and not _private_runs(course)]
    return [course for course in found if course["search"]["advertised_course_run_uuid"]]


def _plans(courses: int) -> Iterable[_Plan]:
    yield from _SPECIAL
    orgs = [org for org in ORGS if org != "StrandX"]
    for index in range(len(_SPECIAL), courses):
        active = index % 12 != 0
        starts = (-75, 20, -40, 120)[index % 4] if active else -600
        number = f"{SUBJECTS[index % len(SUBJECTS)][0]}{100 + index}"
        yield _Plan(index, orgs[index % len(orgs)], number, (1, 2, 1, 3, 2, 1, 4)[index % 7], starts, active=active)


# fmt: off
# The documents below are tables of fields; one field a line would make them three times as long.
_NESTED_IN_SEARCH = (
    "key", "enrollment_start", "enrollment_end", "go_live_date", "start", "end", "modified", "availability", "status",
    "pacing_type", "enrollment_mode", "min_effort", "max_effort", "weeks_to_complete", "estimated_hours",
    "first_enrollable_paid_seat_price", "is_enrollable", "restriction_type",
)
_SHARED_BY_RUNS = (
    "key", "uuid", "title", "status", "start", "end", "enrollment_start", "enrollment_end", "availability",
    "pacing_type", "type", "min_effort", "max_effort", "first_enrollable_paid_seat_price", "short_description",
    "marketing_url", "mobile_available", "weeks_to_complete", "restriction_type", "is_enrollable", "is_marketable",
)
_COURSE_IN_PROGRAM = ("key", "uuid", "title", "entitlements", "owners", "image", "short_description")
_RUN_IN_PROGRAM = ("key", "uuid", "title", "start", "end", "status", "seats")


class _Course:
    """Writes one course's documents: what search/all, courses/ and search/all's runs say of it must agree."""

    def __init__(self, reference: datetime.date, seed: str, plan: _Plan) -> None:
        chance = random.Random(f"{seed}-{plan.index}")
        _, self.subject, _, topics = SUBJECTS[plan.index % len(SUBJECTS)]
        topic = topics.split(", ")[plan.index // len(SUBJECTS) % len(topics.split(", "))]
        words = {"topic": topic.lower(), "org": ORGS[plan.org]}
        self.reference, self.seed, self.plan = reference, seed, plan
        self.key, self.executive = f"{plan.org}+{plan.number}", plan.type == EXECUTIVE
        self.level = chance.choice(list(TITLES))
        self.title = chance.choice(TITLES[self.level]).format(topic=topic)
        self.summary = chance.choice(SUMMARIES).format(**words)
        self.description = " ".join(DESCRIPTIONS).format(**words)
        self.outcome, self.syllabus = OUTCOME.format(**words), SYLLABUS.format(**words)
        self.skills = [{"name": s, "description": f"{s} in {topic.lower()}."} for s in chance.sample(SKILLS, 2)]
        self.language = "English" if self.executive else chance.choice(["English", "English", *LANGUAGES])
        self.source = {"name": SOURCES[plan.source], "slug": plan.source}
        self.time = functools.partial(_time, reference)
        self.price = 2900 if self.executive else chance.choice(PRICES)
        self.teacher = chance.choice(TEACHERS)
        self.uuid = _uuid(seed, "course", self.key)
        self.marketing_url = f"https://www.example.test/course/{_slug(self.title)}"

    def documents(self) -> Json:
        plan, first = self.plan, self.plan.starts - DAYS_BETWEEN_RUNS * (self.plan.runs - 1)
        public = [self.run(first + DAYS_BETWEEN_RUNS * n) for n in range(plan.runs)]
        runs = public + [self.run(30 + 10 * n, f"_B2B{n + 1}") for n in range(plan.restricted)]
        shared = {
            "key": self.key, "uuid": self.uuid, "title": self.title, "short_description": self.summary,
            "level_type": self.level, "course_type": plan.type, "skills": self.skills,
            "skill_names": [skill["name"] for skill in self.skills],
            "product_source": {**self.source, "description": f"Courses from {SOURCES[plan.source]}"},
            "image_url": _image("course", self.uuid)["src"], "card_image_url": _image("card", self.uuid)["src"],
            "first_enrollable_paid_seat_price": self.price,
            "advertised_course_run_uuid": public[-1]["uuid"] if public and plan.active else None,
        }
        return {
            "search": shared | self.search_fields(runs, public),
            "full": shared | self.full_fields(runs, public) | (self.executive_fields(runs) if self.executive else {}),
            "runs": [self.run_document(run) for run in runs],
        }

    def search_fields(self, runs: list[Json], public: list[Json]) -> Json:
        return self.indexed("course") | {
            "full_description": self.description, "outcome": self.outcome, "course_length": "short",
            "course_runs": [{name: run[name] for name in _NESTED_IN_SEARCH} for run in runs],
            "seat_types": [seat["type"] for seat in self.seats("", None)], "prices": [f"{self.price}.00"],
            "languages": [self.language], "availability": sorted({run["availability"] for run in public}),
            "status": "published" if self.plan.active else "archived", "enterprise_catalog_visible": True,
            "course_ends": "Future" if self.plan.active else "Past",
            "end_date": max((run["end"] for run in runs), default=None),
            "enterprise_subscription_inclusion": self.plan.index % 4 != 0,
        }

    def full_fields(self, runs: list[Json], public: list[Json]) -> Json:
        index, org = self.plan.index, self.plan.org
        return {
            "video": None, "original_image": None, "extra_description": None, "number_in_series": None,
            "location_restriction": None, "additional_information": "", "faq": "", "learner_testimonials": "",
            "prerequisites_raw": "", "prerequisites": [], "expected_learning_items": [], "sponsors": [], "topics": [],
            "programs": [], "entitlements": [], "editable": False, "excluded_from_search": False,
            "excluded_from_seo": False, "full_description": f"<p>{self.description}</p>",
            "outcome": f"<p>{self.outcome}</p>", "syllabus_raw": self.syllabus, "course_runs": runs,
            "course_run_keys": [run["key"] for run in runs],
            "course_run_statuses": sorted({run["status"] for run in runs}),
            "canonical_course_run_key": (public or runs)[-1]["key"] if runs else None,
            "owners": [{
                "uuid": _uuid(self.seed, "org", org), "key": org, "name": ORGS[org], "slug": _slug(org),
                "logo_image_url": _image("org", _slug(org))["src"], "description": f"{ORGS[org]} teaches online.",
                "certificate_logo_image_url": None, "banner_image_url": None, "marketing_url": None,
                "homepage_url": None, "enterprise_subscription_inclusion": True,
            }], "subjects": [{
                "uuid": _uuid(self.seed, "subject", self.subject), "name": self.subject, "slug": _slug(self.subject),
                "subtitle": None, "description": None, "banner_image_url": None, "card_image_url": None,
            }],
            "image": _image("course", self.uuid), "marketing_url": f"{self.marketing_url}?utm_source=discovery",
            "url_slug": _slug(self.title), "modified": self.time(-20 - index % 60, "10:00:00"),
            "enrollment_count": 400 + 31 * index, "recent_enrollment_count": 3 * index % 301,
        }

    def executive_fields(self, runs: list[Json]) -> Json:
        variant, sku = runs[-1]["variant_id"], f"EE{self.plan.index:05d}"
        sold = {"mode": "paid-executive-education", "price": f"{self.price}.00", "currency": "USD", "sku": sku}
        return {"entitlements": [sold | {"expires": None}], "additional_metadata": {
            "external_identifier": _uuid(self.seed, "external", self.key), "variant_id": variant,
            "external_url": f"https://www.example.test/executive-education/{_slug(self.title)}",
            "registration_deadline": runs[-1]["enrollment_end"], "start_date": runs[-1]["start"],
        }}

    def run(self, starts: int, suffix: str = "") -> Json:
        """The run as courses/ nests it; a suffix makes it a restricted one. Days count from the reference date."""
        index, ends = self.plan.index, starts + DAYS_OF_A_RUN
        day = self.reference + datetime.timedelta(days=starts)
        key = f"course-v1:{self.key}+{1 + (day.month - 1) // 4}T{day.year}{suffix}"
        run_uuid, is_open, code = _uuid(self.seed, "run", key), self.plan.active and ends >= 0, LANGUAGES[self.language]
        when = "Archived" if ends < 0 else "Current" if starts <= 0 else "Starting Soon" if starts <= 60 else "Upcoming"
        status = "published" if starts > -2 * DAYS_BETWEEN_RUNS else "unpublished"
        given, _, family = self.teacher.partition(" ")
        return {
            "key": key, "uuid": run_uuid, "course_uuid": self.uuid, "title": self.title, "external_key": None,
            "short_description": self.summary, "marketing_url": self.marketing_url, "image": _image("run", run_uuid),
            "start": self.time(starts, "15:00:00"), "end": self.time(ends, "23:59:00"), "enrollment_start": None,
            "enrollment_end": self.time(starts - 7, "23:59:59") if self.executive else None, "go_live_date": None,
            "modified": self.time(-10 - index % 60, "09:00:00.000001"), "availability": when,
            "status": status if self.plan.active else "archived", "restriction_type": RESTRICTED if suffix else None,
            "is_enrollable": is_open, "is_marketable": is_open and not suffix, "is_marketable_external": False,
            "pacing_type": "self_paced" if index % 2 else "instructor_paced", "type": "verified",
            "enrollment_mode": "verified", "run_type": _uuid(self.seed, "run type", self.plan.type),
            "variant_id": _uuid(self.seed, "variant", key) if self.executive else None, "fixed_price_usd": None,
            "min_effort": 2 + index % 3, "max_effort": 5 + index % 4, "weeks_to_complete": 4 + index % 9,
            "seats": self.seats(run_uuid, None if self.executive else self.time(ends - 10, "23:59:00")),
            "first_enrollable_paid_seat_price": self.price, "estimated_hours": 0, "transcript_languages": [code],
            "content_language": code, "content_language_search_facet_name": self.language, "staff": [{
                "uuid": _uuid(self.seed, "staff", self.teacher), "given_name": given, "family_name": family,
                "salutation": None, "bio": f"<p>{given} writes and teaches.</p>", "slug": _slug(self.teacher),
                "position": {"title": "Professor", "organization_name": ORGS[self.plan.org]},
            }],
            "mobile_available": False, "hidden": False, "reporting_type": "mooc", "has_ofac_restrictions": False,
            "eligible_for_financial_aid": not self.executive, "enrollment_count": 100 + 17 * index,
            "recent_enrollment_count": index % 97,
        }

    def run_document(self, run: Json) -> Json:
        """The same run as search/all returns it."""
        return {name: run[name] for name in _SHARED_BY_RUNS} | self.indexed("courserun") | {
            "number": self.plan.number, "published": run["status"] == "published", "level_type": self.level,
            "course_type": self.plan.type, "product_source": {**self.source, "description": None}, "subject_uuids": [],
            "has_enrollable_seats": run["is_enrollable"], "has_enrollable_paid_seats": run["is_enrollable"],
            "first_enrollable_paid_seat_sku": run["seats"][-1]["sku"], "paid_seat_enrollment_end": None,
            "seat_types": [seat["type"] for seat in run["seats"]], "image_url": run["image"]["src"],
            "full_description": self.description, "staff_uuids": [person["uuid"] for person in run["staff"]],
            "transcript_languages": [self.language],
        }

    def indexed(self, content_type: str) -> Json:
        return {
            "content_type": content_type, "aggregation_key": f"{content_type}:{self.key}", "partner": "edx",
            "org": self.plan.org, "organizations": [f"{self.plan.org}: {ORGS[self.plan.org]}"],
            "subjects": [self.subject], "language": self.language, "program_types": [],
        }

    def seats(self, run_uuid: str, upgrade_deadline: str | None) -> list[Json]:
        sku, both = run_uuid[:7].upper(), {"currency": "USD", "credit_provider": None, "credit_hours": None}
        free = both | {"price": "0.00", "bulk_sku": None, "upgrade_deadline": None, "upgrade_deadline_override": None}
        paid = free | {"price": f"{self.price}.00", "bulk_sku": f"B{sku}", "upgrade_deadline": upgrade_deadline}
        if self.executive:
            return [free | {"type": "unpaid-executive-education", "sku": f"X{sku}"}]
        return [free | {"type": "audit", "sku": f"A{sku}"}, paid | {"type": "verified", "sku": f"V{sku}"}]


def _program(reference: datetime.date, seed: str, kind: str, title: str, courses: list[Json]) -> Json:
    """The program's documents; its courses are told that they belong to it."""
    program_uuid, found, first = _uuid(seed, "program", title), courses[0]["search"], courses[0]["full"]
    named = {
        "uuid": program_uuid, "title": title, "type": kind,
        "marketing_url": f"https://www.example.test/{_slug(kind)}/{program_uuid[:8]}",
    }
    attributes = {"uuid": _uuid(seed, "type", kind), "slug": _slug(kind), "coaching_supported": False}
    typed = {"type_attrs": attributes, "marketing_slug": program_uuid[:8]}
    shared = named | {
        "subtitle": f"{len(courses)} courses, beginning with {first['title']}.", "status": "active", "hidden": False,
        "authoring_organizations": [{name: first["owners"][0][name] for name in ("uuid", "key", "name")}],
        "card_image_url": _image("card", program_uuid)["src"], "min_hours_effort_per_week": 2,
        "max_hours_effort_per_week": 8,
    }
    for course in courses:
        course["full"]["programs"].append(named | typed | {"number_of_courses": len(courses)})
        course["search"]["program_types"].append(kind)
    return {
        "search": shared | {
            "content_type": "program", "aggregation_key": f"program:{program_uuid}", "partner": "edx",
            "published": True, "organizations": found["organizations"], "language": ["English"],
            "is_program_eligible_for_one_click_purchase": True, "level_type": first["level_type"],
            "subjects": found["subjects"], "seat_types": ["verified", "audit"], "weeks_to_complete_min": 4,
            "weeks_to_complete_max": 12, "search_card_ranking": None, "product_source": found["product_source"],
        },
        "full": shared | typed | {
            "banner_image": {}, "languages": ["en-us"], "courses": [
                {name: course["full"][name] for name in _COURSE_IN_PROGRAM} | {"course_runs": [
                    {name: run[name] for name in _RUN_IN_PROGRAM} for run in course["full"]["course_runs"]
                ]} for course in courses
            ],
            "overview": f"<p>{first['short_description']}</p>", "total_hours_of_effort": None, "weeks_to_complete": 8,
            "price_ranges": [{"currency": "USD", "min": 49.0, "max": 499.0, "total": 199.0 * len(courses)}],
            "expected_learning_items": [f"Use what {course['full']['title']} teaches" for course in courses],
            "faq": [], "credit_backing_organizations": [], "corporate_endorsements": [], "job_outlook_items": [],
            "individual_endorsements": [], "subjects": [], "staff": [], "instructor_ordering": [], "topics": [],
            "applicable_seat_types": ["verified", "professional"], "credit_redemption_overview": "",
            "enrollment_count": 4000, "data_modified_timestamp": _time(reference, -40, "00:00:00"),
        },
    }


def _pathway(reference: datetime.date, seed: str, title: str, courses: list[Json], program: Json) -> Json:
    """Two steps: half of the courses, then the other half or the program."""
    pathway_uuid = _uuid(seed, "pathway", title)
    fulls = [(c["full"]["key"], c["full"]["title"], c["full"]["course_run_keys"]) for c in courses]
    nested = [{"key": key, "title": name, "course_runs": [{"key": run} for run in runs]} for key, name, runs in fulls]
    part = {name: program["search"][name] for name in ("uuid", "title", "content_type")}
    document = {
        "uuid": pathway_uuid, "title": title, "name": title, "content_type": "learnerpathway",
        "aggregation_key": f"learnerpathway:{pathway_uuid}", "status": "active", "partner": "edx", "published": True,
        "visible_via_association": True, "overview": "Two steps, each with a choice.", "steps": [
            {"uuid": _uuid(pathway_uuid, 1), "min_requirement": 1, "courses": nested[::2], "programs": []},
            {"uuid": _uuid(pathway_uuid, 2), "min_requirement": 1, "courses": nested[1::2], "programs": [part]},
        ],
        "card_image": {"card": {"url": _image("card", pathway_uuid)["src"], "width": 378, "height": 225}},
        "created": _time(reference, -400, "00:00:00"),
    }
    return {"search": document, "full": document}


def _review(n: int, key: str) -> Json:
    learners = {"reviews_count": 12 + 7 * n, "confident_learners_percentage": f"{80 + n % 15}.0"}
    return {"course_key": key, "avg_course_rating": f"4.{n % 10}00000", **learners}


def _catalog(customer: Json, title: str, query_title: str, content_filter: Json) -> Json:
    return {
        "uuid": _uuid("catalog", customer["uuid"], title), "title": title, "enterprise_customer": customer["uuid"],
        "enterprise_customer_name": customer["name"], "publish_audit_enrollment_urls": title == "Open library",
        "enabled_course_modes": ["verified", "professional", "no-id-professional", "audit"],
        "content_filter": content_filter, "query_title": query_title, "catalog_query_uuid": _uuid("query", query_title),
    }


def _customer(reference: datetime.date, seed: str, name: str) -> Json:
    return {
        "uuid": _uuid(seed, "customer", name), "name": name, "slug": _slug(name), "active": True,
        "enable_learner_portal": HAS_PORTAL[name], "modified": _time(reference, -30, "08:00:00.123456"),
        "created": _time(reference, -1500, "00:00:00"),
    }


# fmt: on


def _image(kind: str, name: str) -> Json:
    return {"src": f"https://cdn.example.test/{kind}/{name}.jpg", "description": None, "height": None, "width": None}


def _time(reference: datetime.date, days: int, clock: str) -> str:
    return f"{reference + datetime.timedelta(days=days)}T{clock}Z"


def _uuid(*parts: object) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "|".join(map(str, parts))))


def _slug(text: str) -> str:
    folded = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return "-".join(re.findall(r"[a-z0-9]+", folded.lower()))
