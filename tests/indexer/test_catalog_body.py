"""Bodies of catalogs: every field, in the words of today's service; and that whatever passes can be stored."""

from typing import Any

import pytest

from indexer.catalog_body import BadCatalog, from_form, read_catalog, read_fields
from tests.fakes import Json, catalog_body, uuid_of

COURSES = {"content_type": "course"}
REQUIRED = [
    *("title", "enterprise_customer", "enterprise_customer_name"),
    *("enabled_course_modes", "publish_audit_enrollment_urls", "content_filter"),
]


def refused(body: object, *, whole: bool = True) -> dict[str, list[str]]:
    with pytest.raises(BadCatalog) as caught:
        read_fields(body, whole=whole, new=True)
    str(caught.value).encode()
    return caught.value.body


def nested(levels: int) -> object:
    """An object in an object in an object."""
    inner: object = 1
    for _ in range(levels):
        inner = {"a": inner}
    return inner


def test_a_whole_body_is_read() -> None:
    body = read_catalog(
        {
            "uuid": "0123456789ABCDEF0123456789ABCDEF",
            "title": "  Ours ",
            "enterprise_customer": uuid_of("Acme").upper(),
            "enterprise_customer_name": "Acme",
            "enabled_course_modes": {"any": ["json"]},
            "publish_audit_enrollment_urls": True,
            "content_filter": COURSES,
            "catalog_query_uuid": uuid_of("q"),
            "query_title": "Everything",
            "something_else": 1,
            "catalog_modified": "2020-01-01T00:00:00Z",
        }
    )
    assert body.uuid == "01234567-89ab-cdef-0123-456789abcdef"
    assert body.customer == uuid_of("Acme")
    assert (body.title, body.customer_name, body.course_modes) == ("Ours", "Acme", '{"any": ["json"]}')
    assert body.audit_urls is True
    assert (body.content_filter, body.query_uuid, body.query_title) == (COURSES, uuid_of("q"), "Everything")


def test_the_uuids_and_the_query_title_may_be_left_out() -> None:
    body = read_catalog({name: value for name, value in catalog_body("a", COURSES).items() if name in REQUIRED})
    assert (body.uuid, body.query_uuid, body.query_title) == (None, None, None)


def test_the_query_uuid_and_the_query_title_may_be_null() -> None:
    given = read_fields({"catalog_query_uuid": None, "query_title": None}, whole=False)
    assert given == {"query_uuid": None, "query_title": None}


def test_all_that_is_missing_is_named_at_once_and_in_order() -> None:
    assert refused({}) == {name: ["This field is required."] for name in REQUIRED}
    assert list(refused({})) == REQUIRED


def test_of_a_change_nothing_is_required() -> None:
    assert read_fields({}, whole=False) == {}
    assert read_fields({"title": "b"}, whole=False) == {"title": "b"}


@pytest.mark.parametrize("name", [*REQUIRED, "uuid"])
def test_null_is_refused_where_it_means_nothing(name: str) -> None:
    assert refused({name: None}, whole=False) == {name: ["This field may not be null."]}


@pytest.mark.parametrize(
    "body, kind", [(None, "NoneType"), ([], "list"), ([catalog_body("a", {})], "list"), ("a", "str"), (1, "int")]
)
def test_only_an_object_is_a_catalog(body: object, kind: str) -> None:
    text = f"Invalid data. Expected a dictionary, but got {kind}."
    assert refused(body) == {"non_field_errors": [text]}


@pytest.mark.parametrize("name", ["title", "enterprise_customer_name", "query_title"])
@pytest.mark.parametrize(
    "value, text",
    [
        ("", "This field may not be blank."),
        (" \t", "This field may not be blank."),
        ("x" * 256, "Ensure this field has no more than 255 characters."),
        ("a\0b", "Null characters are not allowed."),
        ("half a pair: \ud800", "Surrogate characters are not allowed: U+D800."),
        (True, "Not a valid string."),
        (["a"], "Not a valid string."),
        ({}, "Not a valid string."),
    ],
)
def test_a_text_that_cannot_be_taken(name: str, value: object, text: str) -> None:
    assert refused({name: value}, whole=False) == {name: [text]}


@pytest.mark.parametrize("value, read", [(5, "5"), (1.5, "1.5"), ("x" * 255, "x" * 255), (f"  {'x' * 255}", "x" * 255)])
def test_a_text_that_can(value: object, read: str) -> None:
    assert read_fields({"title": value}, whole=False) == {"title": read}


@pytest.mark.parametrize("name", ["uuid", "enterprise_customer", "catalog_query_uuid"])
@pytest.mark.parametrize("value", ["nope", "", 7, True, [], {}, uuid_of("a")[:-1], uuid_of("a") + "0"])
def test_what_is_no_uuid(name: str, value: object) -> None:
    assert refused({name: value}, whole=False) == {name: ["Must be a valid UUID."]}


@pytest.mark.parametrize(
    "value, read",
    [
        *((value, True) for value in (True, 1, 1.0, "true", "True", "TRUE", "t", "yes", "on", "1")),
        *((value, False) for value in (False, 0, "false", "False", "n", "off", "0")),
    ],
)
def test_todays_clients_send_the_audit_flag_in_many_ways(value: object, read: bool) -> None:
    assert read_fields({"publish_audit_enrollment_urls": value}, whole=False)["audit_urls"] is read


@pytest.mark.parametrize("value", ["maybe", "", 2, -1, [], {}, [True]])
def test_what_is_no_boolean(value: object) -> None:
    text = "Must be a valid boolean."
    assert refused({"publish_audit_enrollment_urls": value}, whole=False) == {"publish_audit_enrollment_urls": [text]}


@pytest.mark.parametrize(
    "name, attribute", [("content_filter", "content_filter"), ("enabled_course_modes", "course_modes")]
)
def test_a_field_of_json_takes_any(name: str, attribute: str) -> None:
    for value in ([], "text", 5, 1.5, True, {}, {"a": {"b": [None, {"c": "é\ud800"}]}}, nested(99)):
        assert attribute in read_fields({name: value}, whole=False)


@pytest.mark.parametrize("name", ["content_filter", "enabled_course_modes"])
@pytest.mark.parametrize(
    "value, problem",
    [
        (nested(100), "Nested more than 100 levels deep."),
        (nested(50_000), "Nested more than 100 levels deep."),
        ({"key": ["x" * 1_100_000]}, "1100013 bytes of JSON; the limit is 1048576."),
        ({"first_enrollable_paid_seat_price__lte": float("nan")}, "nan is no number of JSON's."),
        ([float("-inf")], "-inf is no number of JSON's."),
    ],
    ids=["deep", "very deep", "large", "nan", "infinity"],
)
def test_json_that_not_everybody_could_read_again(name: str, value: Any, problem: str) -> None:
    assert refused({name: value}, whole=False) == {name: [problem]}


def test_a_form_spells_json_as_text() -> None:
    form = {"title": "a", "content_filter": '{"org": ["b"]}', "enabled_course_modes": "[]"}
    assert from_form(form) == {"title": "a", "content_filter": {"org": ["b"]}, "enabled_course_modes": []}
    with pytest.raises(BadCatalog) as caught:
        from_form({"content_filter": "{", "enabled_course_modes": "x"})
    assert caught.value.body == {
        name: ["Value must be valid JSON."] for name in ("content_filter", "enabled_course_modes")
    }


def test_a_message_names_field_value_and_problem_and_is_short() -> None:
    with pytest.raises(BadCatalog) as caught:
        read_catalog(catalog_body("x" * 100_000, {}))
    assert str(caught.value).startswith("title = 'xxx")
    assert str(caught.value).endswith("Ensure this field has no more than 255 characters.")
    assert len(str(caught.value)) < 300


def test_everything_that_is_wrong_is_in_one_message() -> None:
    body: Json = {"uuid": 1, "enabled_course_modes": None, "publish_audit_enrollment_urls": "x", "query_title": []}
    with pytest.raises(BadCatalog) as caught:
        read_fields(body, whole=False, new=True)
    assert [problem.field for problem in caught.value.problems] == list(body)


@pytest.mark.parametrize("uuid", ["nope", None, 7, uuid_of("b")])
def test_the_uuid_of_a_catalog_that_there_is_does_not_count(uuid: object) -> None:
    assert read_fields({"uuid": uuid, "title": "a"}, whole=False) == {"title": "a"}


def test_a_form_has_blanks_where_a_body_has_null_or_nothing() -> None:
    assert from_form({"uuid": "", "catalog_query_uuid": "", "query_title": "", "title": ""}) == {
        "catalog_query_uuid": None,
        "query_title": None,
        "title": "",
    }
