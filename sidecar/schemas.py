"""The words in which a route tells what it takes and answers, and the JSON schemas of what several routes show. Pure.

Schemas are those of JSON Schema 2020-12, as OpenAPI 3.1 has them. One that has a `title` is told once, under that name.
Objects that are made here are told whole and closed. Content documents are open: discovery decides what is in them, and
what is told of them is what is known, and what is made of it here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sidecar.parameters import JSON_TYPE

Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Parameter:
    """Something that a request may bring beside its path and body: `place` is query, header or path."""

    name: str
    description: str
    schema: Schema
    place: str = "query"
    required: bool = False


@dataclass(frozen=True, slots=True)
class Body:
    """What a request may bring in its body: the schema of its JSON, and of the texts of a form."""

    description: str
    json: Schema
    form: Schema
    required: bool = True


@dataclass(frozen=True, slots=True)
class Operation:
    """What one method of a route takes, and the answers that only it gives: the schema of each status, None for no
    body at all.
    """

    summary: str
    answers: Mapping[int, Schema | None]
    parameters: tuple[Parameter, ...] = ()
    body: Body | None = None
    type: str = JSON_TYPE


def nullable(type: str, **more: Any) -> Schema:
    """A value of a type, or null."""
    return {"type": [type, "null"], **more}


def listed(items: Schema, **more: Any) -> Schema:
    """A list of such values."""
    return {"type": "array", "items": items, **more}


def closed(title: str, members: Mapping[str, Schema], *, optional: tuple[str, ...] = ()) -> Schema:
    """An object that has these members and no other."""
    return {
        "title": title,
        "type": "object",
        "properties": dict(members),
        "required": [name for name in members if name not in optional],
        "additionalProperties": False,
    }


def opened(title: str, members: Mapping[str, Schema], *, required: tuple[str, ...] = (), text: str = "") -> Schema:
    """An object that may have these members, and any other."""
    told = {"description": text} if text else {}
    return {"title": title, "type": "object", **told, "properties": dict(members), "required": list(required)}


def one_of(*schemas: Schema) -> Schema:
    """A value of any of these."""
    return schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}


TEXT: Final[Schema] = {"type": "string"}
BOOLEAN: Final[Schema] = {"type": "boolean"}
UUID: Final[Schema] = {"type": "string", "format": "uuid"}
UUID_OR_NULL: Final = nullable("string", format="uuid")
TIME: Final[Schema] = {"type": "string", "format": "date-time"}
TIME_OR_NULL: Final = nullable("string", format="date-time")
TEXT_OR_NULL: Final = nullable("string")
NUMBER: Final[Schema] = {"type": "integer", "minimum": 0}
ANYTHING: Final[Schema] = {}
KEYS: Final = listed(TEXT)

# Why something was refused.
DETAIL: Final = closed("Detail", {"detail": TEXT})
REASONS: Final = {"title": "Reasons", **listed(TEXT, minItems=1, maxItems=1)}
REASON: Final[Schema] = {"title": "Reason", "type": "string"}
OF_FIELDS: Final[Schema] = {
    "title": "FieldErrors",
    "description": "What is wrong, by the field or parameter that it is wrong with.",
    "type": "object",
    "additionalProperties": listed(TEXT, minItems=1),
    "minProperties": 1,
}

IDS: Final = (
    Parameter(
        "course_run_ids",
        "Keys of courses and course runs. May be repeated; a comma separates keys; a plus is a plus, escaped or not. "
        "This or `program_uuids` has to be given; they are one union.",
        KEYS,
    ),
    Parameter("program_uuids", "Uuids of programs. May be repeated; a comma separates them.", KEYS),
)
CONTAINS: Final = closed("Contains", {"contains_content_items": BOOLEAN})


def pages(max_size: int) -> tuple[Parameter, ...]:
    """The parameters of a list in pages."""
    last: Schema = {"const": "last"}
    return (
        Parameter(
            "page",
            "Which page, from 1, or `last`; one that there is not is a 404.",
            {"anyOf": [{"type": "integer", "minimum": 1}, last], "default": 1},
        ),
        Parameter(
            "page_size",
            f"How much is on a page: more than {max_size} is taken as {max_size}, and nonsense as 10.",
            {"type": "integer", "minimum": 1, "maximum": max_size, "default": 10},
        ),
    )


_LINK: Final = nullable("string", description="An absolute url, by the Host header of the request.")
_SHORT_HEAD: Final[Mapping[str, Schema]] = {"count": NUMBER, "next": _LINK, "previous": _LINK}
_HEAD: Final[Mapping[str, Schema]] = {
    "next": _LINK,
    "previous": _LINK,
    "count": NUMBER,
    "num_pages": {"type": "integer", "minimum": 1},
    "current_page": {"type": "integer", "minimum": 1},
    "start": NUMBER,
}


def short_page(title: str, results: Schema) -> Schema:
    """A page of a list whose head says no more than how many there are, and where the others are."""
    return closed(title, {**_SHORT_HEAD, "results": listed(results)})


def page(title: str, results: Schema, tail: Mapping[str, Schema] | None = None) -> Schema:
    """A page of a list, and what stands behind its results."""
    return closed(title, {**_HEAD, "results": listed(results), **(tail or {})})


def _document(title: str, type: str, members: Mapping[str, Schema], *, required: tuple[str, ...] = ()) -> Schema:
    always: dict[str, Schema] = {
        "content_type": {"const": type},
        "content_last_modified": {
            **TIME,
            "description": "When the content, or the catalog or customer that shows it, last changed.",
        },
        "parent_content_key": {**TEXT_OR_NULL, "description": "Of a run: the key of its course."},
    }
    return opened(title, {**always, **members}, required=(*always, *required))


_NAMED: Final[Mapping[str, Schema]] = {
    "uuid": TEXT,
    "title": TEXT_OR_NULL,
    "aggregation_key": TEXT,
    "partner": TEXT_OR_NULL,
    "status": TEXT_OR_NULL,
}
_LINKS: Final[Mapping[str, Schema]] = {
    "marketing_url": {**TEXT_OR_NULL, "description": "With the parameters `utm_medium` and `utm_source` of a catalog."},
    "enrollment_url": {
        **TEXT_OR_NULL,
        "description": "Where learners enrol; null where no link can be made, absent outside of catalogs.",
    },
    "xapi_activity_id": {**TEXT_OR_NULL, "description": "Absent outside of catalogs."},
}
_SOURCE: Final = {
    "product_source": {
        "anyOf": [
            opened("ProductSource", {"name": TEXT, "slug": TEXT_OR_NULL, "description": TEXT_OR_NULL}),
            {"type": "null"},
        ]
    }
}
NORMALIZED: Final = closed(
    "NormalizedMetadata",
    {
        "start_date": TEXT_OR_NULL,
        "end_date": TEXT_OR_NULL,
        "enroll_by_date": TEXT_OR_NULL,
        "enroll_start_date": TEXT_OR_NULL,
        "content_price": {"type": "number"},
    },
)
NESTED_RUN: Final = opened(
    "NestedRun",
    {
        "key": TEXT,
        "uuid": TEXT,
        "title": TEXT_OR_NULL,
        "status": TEXT_OR_NULL,
        "availability": TEXT_OR_NULL,
        "start": TEXT_OR_NULL,
        "end": TEXT_OR_NULL,
        "enrollment_start": TEXT_OR_NULL,
        "enrollment_end": TEXT_OR_NULL,
        "is_enrollable": nullable("boolean"),
        "is_marketable": nullable("boolean"),
        "restriction_type": TEXT_OR_NULL,
        "seats": nullable("array"),
        "enrollment_url": TEXT_OR_NULL,
        "parent_content_key": TEXT_OR_NULL,
    },
    text="A run within its course's document; in catalogs it has an enrollment_url, unless it is executive education.",
)
_COURSE: Final[Mapping[str, Schema]] = {
    "key": TEXT,
    **_NAMED,
    "course_type": TEXT_OR_NULL,
    "short_description": TEXT_OR_NULL,
    "full_description": TEXT_OR_NULL,
    "organizations": nullable("array"),
    "owners": nullable("array"),
    "entitlements": nullable("array"),
    "image_url": TEXT_OR_NULL,
    "card_image_url": TEXT_OR_NULL,
    "skill_names": nullable("array"),
    "programs": nullable("array", description="Each has `aggregation_key` and `content_type`."),
    "advertised_course_run_uuid": TEXT_OR_NULL,
    "first_enrollable_paid_seat_price": nullable("number"),
    "course_runs": nullable("array", items=NESTED_RUN),
    "course_run_keys": nullable("array", items=TEXT),
    "course_run_statuses": nullable("array", items=TEXT),
    "reviews_count": {**nullable("integer"), "description": "Where a review exists."},
    "avg_course_rating": {"type": ["string", "number", "null"], "description": "Where a review exists."},
    **_SOURCE,
    **_LINKS,
}
_COURSE_RUN: Final[Mapping[str, Schema]] = {
    "key": TEXT,
    **_NAMED,
    "org": TEXT_OR_NULL,
    "number": TEXT_OR_NULL,
    "start": TEXT_OR_NULL,
    "end": TEXT_OR_NULL,
    "enrollment_start": TEXT_OR_NULL,
    "enrollment_end": TEXT_OR_NULL,
    "availability": TEXT_OR_NULL,
    "pacing_type": TEXT_OR_NULL,
    "has_enrollable_seats": nullable("boolean"),
    "is_enrollable": nullable("boolean"),
    "is_marketable": nullable("boolean"),
    "restriction_type": TEXT_OR_NULL,
    **_SOURCE,
    **_LINKS,
}
_PROGRAM: Final[Mapping[str, Schema]] = {
    **_NAMED,
    "subtitle": TEXT_OR_NULL,
    "type": TEXT_OR_NULL,
    "authoring_organizations": nullable("array"),
    "is_program_eligible_for_one_click_purchase": nullable("boolean"),
    "courses": nullable("array"),
    **_SOURCE,
    **_LINKS,
}
_PATHWAY: Final[Mapping[str, Schema]] = {
    **_NAMED,
    "name": TEXT_OR_NULL,
    "overview": TEXT_OR_NULL,
    "steps": nullable("array"),
}
ACTIVE: Final = {**BOOLEAN, "description": "Whether some run can be enrolled in, and is published and marketed."}
DOCUMENT: Final[Schema] = {
    "title": "ContentMetadata",
    "description": "A content document. It has whatever discovery tells of the content beside what is named here.",
    "anyOf": [
        _document(
            "Course",
            "course",
            {
                **_COURSE,
                "active": ACTIVE,
                "normalized_metadata": {
                    "description": "Of the advertised run; with none all null, and the price 0.0.",
                    "allOf": [NORMALIZED],
                },
                "normalized_metadata_by_run": {"type": "object", "additionalProperties": NORMALIZED},
            },
            required=("active", "normalized_metadata", "normalized_metadata_by_run"),
        ),
        _document("CourseRun", "courserun", _COURSE_RUN),
        _document("Program", "program", {**_PROGRAM, "number_of_courses": NUMBER}, required=("number_of_courses",)),
        _document("LearnerPathway", "learnerpathway", _PATHWAY),
    ],
}
# The old API's forms of them, which have no times of change; links are of its own form.
OLD_COURSE: Final = opened(
    "OldCourse",
    {
        **_COURSE,
        "content_type": {"const": "course"},
        "active": {**BOOLEAN, "description": "In a list: whether a run can be enrolled in now."},
        "end_date": TEXT_OR_NULL,
    },
    required=("enrollment_url",),
)
OLD_RUN: Final = opened(
    "OldCourseRun",
    {**_COURSE_RUN, "content_type": {"const": "courserun"}, "parent_content_key": TEXT_OR_NULL},
    required=("content_type", "enrollment_url"),
)
OLD_PROGRAM: Final = opened(
    "OldProgram",
    {**_PROGRAM, "content_type": {"const": "program"}, "courses": listed(OLD_COURSE)},
    required=("content_type", "enrollment_url"),
)
OLD_DOCUMENT: Final = one_of(OLD_COURSE, OLD_RUN, OLD_PROGRAM)
