"""Files of catalogs: bodies in the API's fields, or dumps of the tables of either service."""

import json
from typing import Any

import pytest

from indexer.catalog_body import read_catalog
from indexer.catalog_file import ABSENT, NO_NAME, NO_QUERY, NotCatalogs, read_bodies, read_offers
from indexer.offer import DEFAULTS, time_ms
from tests.fakes import Json, catalog_body, uuid_of

BODY = catalog_body("a", {"key": "A+1"})
UUID = BODY["uuid"]


def offers(value: object) -> list[Any]:
    return read_offers(json.dumps(value).encode(), "file.json")


def row(model: str, pk: object, **fields: object) -> Json:
    return {"model": model, "pk": pk, "fields": fields}


def catalog_row(uuid: str = UUID, **fields: object) -> Json:
    """A catalog in a dump of enterprise-catalog."""
    whole = {
        "title": "a",
        "enterprise_uuid": uuid_of("Acme"),
        "enterprise_name": "Acme",
        "catalog_query": 7,
        "enabled_course_modes": '["verified"]',
        "publish_audit_enrollment_urls": True,
        "created": "2020-01-01T00:00:00Z",
        "modified": "2021-01-01T00:00:00Z",
    }
    return row("catalog.enterprisecatalog", uuid, **(whole | fields))


def query_row(pk: int = 7, **fields: object) -> Json:
    """A query in a dump of enterprise-catalog."""
    whole = {"uuid": uuid_of("q"), "title": "t", "content_filter": '{"key": "A+1"}'}
    return row("catalog.catalogquery", pk, **(whole | fields))


class TestBodies:
    @pytest.mark.parametrize(
        "wrapped", [BODY, [BODY], {"catalogs": [BODY]}, {"catalogs": [{"body": BODY}]}, [{"body": BODY}]]
    )
    def test_are_read_from_any_of_the_forms(self, wrapped: object) -> None:
        assert read_bodies(json.dumps(wrapped).encode(), "x") == [BODY]
        (offer,) = offers(wrapped)
        assert (offer.name, offer.body, offer.guessed, offer.lacks) == (UUID, BODY, {}, None)

    def test_may_leave_out_what_has_a_default_and_offers_say_so(self) -> None:
        short = {name: value for name, value in BODY.items() if name not in DEFAULTS}
        (offer,) = offers(short)
        assert (offer.body, offer.guessed) == (short | dict(DEFAULTS), dict.fromkeys(DEFAULTS, ABSENT))

    def test_without_a_uuid_are_called_by_their_place(self) -> None:
        assert [offer.name for offer in offers([BODY, {"uuid": "x"}, 7])] == [UUID, "catalog 2", "catalog 3"]

    @pytest.mark.parametrize("text", [b"", b"{", b"[" * 100_000, b'{"a": NaN}', b'{"a": 1e999}', b"\xff"])
    def test_that_are_no_json_are_refused_with_the_files_name(self, text: bytes) -> None:
        for read in (read_bodies, read_offers):
            with pytest.raises(NotCatalogs, match=r"^file\.json: not JSON: "):
                read(text, "file.json")


class TestDumps:
    def test_of_enterprise_catalog_tell_everything(self) -> None:
        (offer,) = offers([query_row(), catalog_row()])
        assert offer.body == BODY | {
            "publish_audit_enrollment_urls": True,
            "catalog_query_uuid": uuid_of("q"),
            "query_title": "t",
        }
        assert (offer.name, offer.guessed, offer.changed_ms) == (UUID, {}, 1_609_459_200_000)
        read_catalog(offer.body)

    def test_of_the_lms_take_customers_and_queries_from_their_tables(self) -> None:
        rows = [
            row("enterprise.enterprisecustomer", uuid_of("Acme"), name="Acme", slug="acme"),
            row("enterprise.enterprisecatalogquery", 7, uuid=uuid_of("q"), title="t", content_filter={"key": "A+1"}),
            row(
                "enterprise.enterprisecustomercatalog",
                UUID,
                title="a",
                enterprise_customer=uuid_of("Acme"),
                enterprise_catalog_query=7,
                enabled_course_modes=["verified"],
                publish_audit_enrollment_urls=False,
            ),
        ]
        (offer,) = offers(rows)
        assert offer.body == BODY | {"catalog_query_uuid": uuid_of("q"), "query_title": "t"}
        assert offer.guessed == {}
        (offer,) = offers(rows[1:])
        assert offer.guessed == {"enterprise_customer_name": NO_NAME}
        assert offer.body["enterprise_customer_name"] == uuid_of("Acme")

    def test_of_the_lms_may_have_a_filter_of_the_catalogs_own(self) -> None:
        (offer,) = offers(
            [
                row(
                    "enterprise.enterprisecustomercatalog",
                    UUID,
                    title="a",
                    enterprise_customer=uuid_of("Acme"),
                    enterprise_catalog_query=None,
                    content_filter={"key": "B+1"},
                )
            ]
        )
        assert (offer.body["content_filter"], offer.body["catalog_query_uuid"]) == ({"key": "B+1"}, None)

    def test_are_read_in_order_of_creation(self) -> None:
        late, early = uuid_of("late"), uuid_of("early")
        rows = [
            catalog_row(late, created="2022-01-01T00:00:00Z"),
            catalog_row(early, created="2019-01-01T00:00:00Z"),
            query_row(),
        ]
        assert [offer.name for offer in offers(rows)] == [early, late]

    def test_may_have_json_as_text_of_text(self) -> None:
        rows = [query_row(), catalog_row(enabled_course_modes=json.dumps(json.dumps(["audit"])))]
        assert offers(rows)[0].body["enabled_course_modes"] == ["audit"]

    def test_tell_catalogs_without_a_query(self) -> None:
        (offer,) = offers([catalog_row(catalog_query=None)])
        assert offer.lacks == NO_QUERY
        (offer,) = offers([catalog_row()])
        assert offer.lacks == "the dump does not have its query, 7"

    def test_of_other_tables_are_refused(self) -> None:
        with pytest.raises(NotCatalogs, match=r"a dump of auth\.user; it must have catalog\.enterprisecatalog with"):
            offers([row("auth.user", 1)])


@pytest.mark.parametrize("text", ["yesterday", "", None, 7, "1969-01-01T00:00:00Z"])
def test_what_is_no_time_is_none(text: object) -> None:
    assert time_ms(text) is None
