"""Writing documents: what a catalog, its customer and the settings put into the places, and what stands there else."""

import json
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from sidecar.contract.records import (
    Activity,
    CatalogRecord,
    CustomerRecord,
    Enrollment,
    Marketing,
    Metadata,
    Modified,
    RunEnrollment,
)
from sidecar.contract.words import ContentType, slugify
from sidecar.documents import JOINED_BYTES, Links, Values, buffers_of, values_of, written
from sidecar.settings import LinksSettings

CATALOG_UUID, CUSTOMER_UUID = UUID(int=1), UUID(int=2)
CATALOG = CatalogRecord(
    uuid=CATALOG_UUID.bytes,
    number=1,
    wanted=bytes(16),
    serving=None,
    customer=CUSTOMER_UUID.bytes,
    customer_name="Söns & Co",
    title="t",
    course_modes="[]",
    audit_urls=False,
    created_ms=9_000,
    modified_ms=2_000,
)
AUDIT = replace(CATALOG, audit_urls=True)
PORTAL = CustomerRecord(CUSTOMER_UUID.bytes, "the-slug", True, "Another Name", 3_000)
NO_PORTAL = replace(PORTAL, portal=False)
LINKS = Links("https://lms", "https://portal", "https://shop")
UTM = "utm_medium=enterprise&utm_source=sons-co"

COURSE = Enrollment(False, b"C", None, b"T", None)
RUN = Enrollment(False, b"C", b"R%2B", b"R+", None)
EXECUTIVE = Enrollment(True, b"C", None, b"T", b"S%2B")
NESTED = RunEnrollment(b"C", b"R%2B", b"R+")
DOCUMENT = Metadata(
    "C",
    ContentType.COURSE,
    (
        b'{"content_last_modified":',
        Modified(),
        b',"marketing_url":',
        Marketing(b"plain", b"head?utm_source=", b"&tail"),
        b',"course_runs":[{"key":"R+"',
        NESTED,
        b"}]",
        Activity(b"course/C"),
        COURSE,
        b"}",
    ),
)


def values(catalog: CatalogRecord = CATALOG, customer: CustomerRecord | None = PORTAL, links: Links = LINKS) -> Values:
    return values_of(catalog, customer, links)


def read(metadata: Metadata, values_: Values | None, *, modified_ms: int = 0, urls: bool = True) -> Any:
    return json.loads(b"".join(written(metadata, modified_ms, values_, urls=urls)))


def member(place: Enrollment | RunEnrollment | Activity, values_: Values | None, *, urls: bool = True) -> Any:
    return read(Metadata("k", ContentType.COURSE, (b'{"a":1', place, b"}")), values_, urls=urls)


def url(place: Enrollment | RunEnrollment, values_: Values) -> Any:
    return member(place, values_)["enrollment_url"]


def test_a_document_of_a_catalog_has_its_values() -> None:
    assert read(DOCUMENT, values()) == {
        "content_last_modified": "1970-01-01T00:00:03Z",
        "marketing_url": "head?utm_source=sons-co&tail",
        "course_runs": [
            {
                "key": "R+",
                "enrollment_url": f"https://portal/the-slug/course/C?course_run_key=R%2B&{UTM}",
                "parent_content_key": "C",
            }
        ],
        "xapi_activity_id": "https://lms/xapi/activities/course/C",
        "enrollment_url": f"https://portal/the-slug/course/C?{UTM}",
    }


def test_a_document_of_no_catalog_has_none() -> None:
    assert read(DOCUMENT, None, modified_ms=1_001) == {
        "content_last_modified": "1970-01-01T00:00:01.001000Z",
        "marketing_url": "plain",
        "course_runs": [{"key": "R+"}],
    }


def test_without_urls_the_link_to_enrol_by_is_null_and_runs_have_none() -> None:
    assert read(DOCUMENT, values(), urls=False) == {
        **read(DOCUMENT, values()),
        "course_runs": [{"key": "R+"}],
        "enrollment_url": None,
    }


def test_the_time_is_the_latest_of_content_catalog_and_customer() -> None:
    def shown(content_ms: int, catalog_ms: int, customer_ms: int) -> Any:
        made = values(replace(CATALOG, modified_ms=catalog_ms), replace(PORTAL, modified_ms=customer_ms))
        return read(DOCUMENT, made, modified_ms=content_ms)["content_last_modified"]

    for order in ((3_000, 2_000, 1_000), (1_000, 3_000, 2_000), (2_000, 1_000, 3_000)):
        assert shown(*order) == "1970-01-01T00:00:03Z"
    unknown = read(DOCUMENT, values(customer=None), modified_ms=1_000)
    assert unknown["content_last_modified"] == "1970-01-01T00:00:02Z"


def test_links_to_the_portal() -> None:
    base = "https://portal/the-slug"
    for catalog, audit in ((CATALOG, ""), (AUDIT, "audit=true&")):
        made = values(catalog)
        assert url(COURSE, made) == f"{base}/course/C?{audit}{UTM}"
        assert url(RUN, made) == url(NESTED, made) == f"{base}/course/C?{audit}course_run_key=R%2B&{UTM}"
        assert url(EXECUTIVE, made) == f"{base}/executive-education-2u/course/C?{audit}{UTM}"


def test_the_portal_needs_no_sku() -> None:
    assert url(EXECUTIVE._replace(sku=None), values()) == url(EXECUTIVE, values())


def test_links_to_the_lms_where_there_is_no_portal() -> None:
    base = f"https://lms/enterprise/{CUSTOMER_UUID}/course"
    login = "https://lms/enterprise/proxy-login/?enterprise_slug=the-slug&next="
    for catalog, audit in ((CATALOG, ""), (AUDIT, "audit=true&")):
        made = values(catalog, NO_PORTAL)
        assert url(COURSE, made) == f"{base}/T/enroll/?{audit}catalog={CATALOG_UUID}&{UTM}"
        assert url(RUN, made) == url(NESTED, made) == f"{base}/R+/enroll/?{audit}catalog={CATALOG_UUID}&{UTM}"
        assert url(EXECUTIVE, made) == f"{login}https://shop/executive-education-2u/checkout?{audit}sku=S%2B&{UTM}"


def test_executive_education_without_a_portal_and_a_sku_has_no_link() -> None:
    assert url(EXECUTIVE._replace(sku=None), values(customer=NO_PORTAL)) is None


def test_an_unknown_customer_has_no_links() -> None:
    made = values(customer=None)
    for place in (COURSE, RUN, EXECUTIVE, NESTED):
        assert url(place, made) is None
    assert member(NESTED, made)["parent_content_key"] == "C"
    assert read(DOCUMENT, made)["marketing_url"] == "head?utm_source=sons-co&tail"
    assert read(DOCUMENT, made)["xapi_activity_id"] == "https://lms/xapi/activities/course/C"


@pytest.mark.parametrize("customer", [PORTAL, NO_PORTAL])
def test_a_link_whose_base_is_not_set_is_null(customer: CustomerRecord) -> None:
    nothing = values(customer=customer, links=Links("", "", ""))
    for place in (COURSE, RUN, EXECUTIVE, NESTED):
        assert url(place, nothing) is None
    assert member(Activity(b"course/C"), nothing)["xapi_activity_id"] is None


def test_the_shop_is_needed_for_executive_education_without_a_portal_alone() -> None:
    links = Links("https://lms", "https://portal", "")
    assert url(EXECUTIVE, values(customer=NO_PORTAL, links=links)) is None
    assert url(COURSE, values(customer=NO_PORTAL, links=links)) == url(COURSE, values(customer=NO_PORTAL))
    for place in (COURSE, RUN, EXECUTIVE):
        assert url(place, values(links=links)) == url(place, values())


def test_base_urls_may_end_in_a_slash() -> None:
    settings = LinksSettings(lms="https://lms/", learner_portal="https://portal", ecommerce="https://shop/a//")
    assert Links.of(settings) == Links("https://lms", "https://portal", "https://shop/a")
    assert Links.of(LinksSettings()) == Links("", "", "")


def test_what_has_to_be_escaped_in_json_is() -> None:
    odd = 'a"\\b\u00fc\n'
    made = values(customer=replace(PORTAL, slug=odd), links=Links(odd, odd, odd))
    assert url(COURSE, made) == f"{odd}/{odd}/course/C?{UTM}"
    assert member(Activity(b"course/C"), made)["xapi_activity_id"] == f"{odd}/xapi/activities/course/C"
    made = values(customer=replace(NO_PORTAL, slug=odd), links=Links(odd, odd, odd))
    assert url(EXECUTIVE, made).startswith(f"{odd}/enterprise/proxy-login/?enterprise_slug={odd}&next={odd}/exec")


def test_the_source_is_the_name_in_the_catalog_and_the_path_the_slug_in_the_lms() -> None:
    made = values(replace(CATALOG, customer_name="Old Name"), replace(PORTAL, slug="new", name="New Name"))
    assert url(COURSE, made) == "https://portal/new/course/C?utm_medium=enterprise&utm_source=old-name"


@pytest.mark.parametrize(
    "name, slug",
    [
        ("Customer 03 & Söns, Inc.", "customer-03-sons-inc"),
        ("Hello, World!", "hello-world"),
        ("  a  -  b  ", "a-b"),
        ("a_b", "a_b"),
        ("_-a-_b-_", "a-_b"),
        ("--", ""),
        ("", ""),
        ("日本", ""),
        ("Ｆｕｌｌ ﬁ ½ ª", "full-fi-12-a"),
        ("İstanbul ß Ø", "istanbul"),
        ("a\tb\nc\u00a0d\u2003e", "a-b-c-d-e"),
        ("a–b—c", "abc"),
        ("a/b?c=d&e", "abcde"),
        ("A--B- -C", "a-b-c"),
        ("  a  b--c_ ", "a-b-c"),
        ("ÀÉ_1", "ae_1"),
        ("-x-", "x"),
    ],
)
def test_slugs_are_djangos(name: str, slug: str) -> None:
    assert slugify(name) == slug


def test_to_be_sent_short_pieces_are_joined_and_long_ones_stay_where_they_are() -> None:
    long, also_long = bytes(JOINED_BYTES), bytes(2 * JOINED_BYTES)
    parts = (long, Modified(), b"short", NESTED, also_long, also_long, Activity(b"course/C"), b"}")
    metadata = Metadata("C", ContentType.COURSE, parts)
    for made in (values(), None):
        buffers = buffers_of(metadata, 0, made)
        assert b"".join(buffers) == b"".join(written(metadata, 0, made)) + b","
        assert [buffer is part for buffer, part in zip(buffers, (long, None, also_long, also_long), strict=False)] == [
            True,
            False,
            True,
            True,
        ]
        assert len(buffers) == 5


def test_a_document_of_short_pieces_is_one_buffer() -> None:
    assert buffers_of(DOCUMENT, 0, values()) == (b"".join(written(DOCUMENT, 0, values())) + b",",)


def test_other_values_have_another_key_and_the_same_values_the_same() -> None:
    made = [
        values(catalog, customer, links)
        for catalog in (CATALOG, AUDIT, replace(CATALOG, modified_ms=9_000), replace(CATALOG, customer_name="Other"))
        for customer in (PORTAL, NO_PORTAL, None)
        for links in (LINKS, Links("", "https://portal", ""))
    ]
    for one in made:
        for other in made:
            assert (one.key == other.key) == (one == other)
    assert values(replace(CATALOG, title="other", created_ms=1)).key == values().key
