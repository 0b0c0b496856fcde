"""What callers send, odd as it is, is read as today's service reads it."""

import json
from contextlib import suppress
from urllib.parse import unquote_to_bytes
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.parameters import (
    Filter,
    Ids,
    Refusal,
    State,
    filter_body,
    ids,
    negotiate,
    pairs,
    parse_json,
    wanted_state,
)

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    "query, keys",
    [
        ("course_run_ids=MITx%2BEC001", ["MITx+EC001"]),
        ("course_run_ids=MITx+EC001", ["MITx+EC001"]),
        ("program_uuids=MITx+EC001", ["MITx EC001"]),
        ("program_uuids=MITx%2BEC001", ["MITx+EC001"]),
        ("course_run_ids=MITx%252BEC001", ["MITx%2BEC001"]),
        ("course_run_ids=a&course_run_ids=b&program_uuids=c", ["a", "b", "c"]),
        ("course_run_ids=a%2Cb,c", ["a", "b", "c"]),
        ("course_run_ids=", [""]),
        ("course_run_ids", [""]),
        ("course_run_ids=MITx%2BEC001%20", ["MITx+EC001 "]),
        ("course_run_ids=%C3%9CniX", ["ÜniX"]),
        ("course_run_ids=ÜniX", ["ÜniX"]),
        ("course_run_ids=%FF\udcff%zz", ["\ufffd\ufffd%zz"]),
        ("course%5Frun_ids=a", ["a"]),
        ("&&foo=bar&course_run_ids=a=b", ["a=b"]),
        ("", None),
        ("foo=bar", None),
    ],
)
def test_ids(query: str, keys: list[str] | None) -> None:
    assert ids(query) == Ids(keys, False)


@given(st.lists(st.sampled_from([*"%%%%aA:+&,", "3A", "2B", "25", "%3A", "%2B", "%3a", "\udcff", "é"])).map("".join))
def test_a_value_is_decoded_as_urllib_decodes_it(text: str) -> None:
    value = text.replace("&", "")
    decoded = unquote_to_bytes(value.encode(errors="surrogateescape")).decode(errors="replace")
    assert ids(f"course_run_ids={value}").keys == decoded.split(",")


@given(st.lists(st.sampled_from(["course_run_ids=", "course_run_ids", "&", "&", "a", "%", "%2", "C3", "é", ",", "="])))
def test_a_basket_is_read_as_its_parameters_one_by_one(pieces: list[str]) -> None:
    query = "".join(pieces)
    values = [value for name, value in pairs(query) if name == "course_run_ids"]
    assert ids(query).keys == ([key for value in values for key in value.split(",")] if values else None)


@pytest.mark.parametrize("name", ["get_catalogs_containing_specified_content_ids", "get_catalog_list"])
def test_any_value_but_an_empty_one_asks_for_the_catalogs(name: str) -> None:
    assert ids(f"course_run_ids=a&{name}=False").wants_catalogs
    assert ids(f"course_run_ids=a&{name}=0").wants_catalogs
    assert not ids(f"course_run_ids=a&{name}=").wants_catalogs
    assert not ids(f"course_run_ids=a&{name}=1&{name}=").wants_catalogs


@pytest.mark.parametrize(
    "body, question",
    [
        ({}, Filter([], [])),
        ({"content_keys": ["a", 1, True, None]}, Filter(["a"], [])),
        ({"content_keys": "ab"}, Filter(["a", "b"], [])),
        ({"content_keys": ["a"], "catalog_uuids": []}, Filter(["a"], [])),
        ({"content_keys": ["a"], "catalog_uuids": None}, Filter(["a"], [])),
        (
            {"content_keys": [], "catalog_uuids": ["15E117857EC54E1FBB12CBCDEB85D2FC"]},
            Filter([], ["15e11785-7ec5-4e1f-bb12-cbcdeb85d2fc"]),
        ),
    ],
)
def test_filter_bodies(body: object, question: Filter) -> None:
    assert filter_body(JSON, json.dumps(body).encode()) == question


@pytest.mark.parametrize(
    "body",
    [
        [],
        ["a"],
        "a",
        1,
        None,
        {"content_keys": None},
        {"content_keys": 1},
        {"content_keys": [["a"]]},
        {"content_keys": ["a"], "catalog_uuids": ["x"]},
        {"content_keys": ["a"], "catalog_uuids": "x"},
        {"content_keys": ["a"], "catalog_uuids": [1]},
        {"content_keys": ["a"], "catalog_uuids": 1},
    ],
)
def test_filter_bodies_that_mean_nothing_are_refused(body: object) -> None:
    with pytest.raises(Refusal) as caught:
        filter_body(JSON, json.dumps(body).encode())
    assert caught.value.status == 400
    assert isinstance(caught.value.body, dict)


def test_forms_are_read_and_their_text_is_a_list_of_characters() -> None:
    assert filter_body(FORM, b"content_keys=a%2Bb") == Filter(["a", "+", "b"], [])
    multipart = b'--x\r\nContent-Disposition: form-data; name="content_keys"\r\n\r\nab\r\n--x--\r\n'
    assert filter_body("multipart/form-data; boundary=x", multipart) == Filter(["a", "b"], [])
    with pytest.raises(Refusal, match="Invalid boundary"):
        filter_body("multipart/form-data", b"x")


def test_no_body_is_an_empty_one_whatever_its_type() -> None:
    assert filter_body("text/plain", b"") == Filter([], [])


@pytest.mark.parametrize("content_type", ["text/plain", "text/plain; charset=utf-8", ""])
def test_other_bodies_are_refused(content_type: str) -> None:
    with pytest.raises(Refusal) as caught:
        filter_body(content_type, b"x")
    assert (caught.value.status, caught.value.body) == (
        415,
        {"detail": f'Unsupported media type "{content_type}" in request.'},
    )


@pytest.mark.parametrize(
    "body, text",
    [
        (b"{bad json", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b"[1,]", None),
        (b"NaN", "Out of range float values are not JSON compliant: 'NaN'"),
        (b"\xff", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_json_errors_are_told_in_the_words_of_python(body: bytes, text: str | None) -> None:
    with pytest.raises(Refusal) as caught:
        parse_json(body)
    if text is not None:
        assert caught.value.body == {"detail": f"JSON parse error - {text}"}


def test_what_python_takes_is_taken() -> None:
    assert parse_json(b'["\\ud800", 123456789012345678901234567890]') == ["\ud800", 123456789012345678901234567890]
    for number in (2**63, 2**64 - 1, 2**64, -(2**63) - 1, 10**30):
        (read,) = parse_json(b"[%d]" % number)
        assert (read, type(read)) == (number, int)


@given(st.text())
def test_any_query_string_is_read(query: str) -> None:
    ids(query)


@given(st.binary(), st.sampled_from([JSON, FORM, "multipart/form-data; boundary=x", "text/plain"]))
def test_any_body_is_read_or_refused(body: bytes, content_type: str) -> None:
    with suppress(Refusal):
        filter_body(content_type, body)


@pytest.mark.parametrize(
    "accept, format, chosen",
    [
        (None, None, "json"),
        ("", "", "json"),
        ("*/*", None, "json"),
        ("application/*", None, "json"),
        ("Application/JSON; indent=2", None, "json"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", None, "json"),
        ("application/xml", None, "xml"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", None, "xml"),
        ("application/xml, application/json", None, "json"),
        ("application/xml;q=0.1, application/json;q=0.9", None, "json"),
        ("application/json, application/xml; charset=utf-8", None, "xml"),
        ("*/*, application/xml", None, "xml"),
        (None, "xml", "xml"),
        ("*/*", "xml", "xml"),
        ("application/json", "json", "json"),
    ],
)
def test_the_format_of_an_answer(accept: str | None, format: str | None, chosen: str) -> None:
    assert negotiate(accept, format, ("json", "xml")) == chosen


@pytest.mark.parametrize(
    "accept, format, status",
    [
        ("application/json", "xml", 406),
        ("application/xml", "json", 406),
        (None, "csv", 404),
        ("text/html", None, 406),
        ("text/html", "json", 406),
        ("nonsense", None, 406),
    ],
)
def test_formats_that_cannot_be_had_are_refused(accept: str | None, format: str | None, status: int) -> None:
    with pytest.raises(Refusal) as caught:
        negotiate(accept, format, ("json", "xml"))
    assert caught.value.status == status


def test_a_route_without_xml_has_none() -> None:
    for accept, format in (("application/xml", None), (None, "api")):
        with pytest.raises(Refusal) as caught:
            negotiate(accept, format, ("json", "api"))
        assert caught.value.status == 406


@pytest.mark.parametrize("least", ["", "-1", "1.5", "x", "٣", "9" * 19, " 1"])
def test_what_is_no_generation_is_refused(least: str) -> None:
    if least == "":
        assert wanted_state(least, None) == State(0, None)
        return
    with pytest.raises(Refusal) as refused:
        wanted_state(least, None)
    assert refused.value.body == {"detail": f"X-Min-Generation: {least!r} is not the number of a generation."}


def test_a_state_is_a_generation_and_the_end_of_a_pull() -> None:
    task = UUID(int=5)
    assert wanted_state("12", None) == State(12, None)
    assert wanted_state(None, str(task).upper()) == State(0, task)
    assert wanted_state("3", task.hex) == State(3, task)
    with pytest.raises(Refusal) as refused:
        wanted_state(None, "x")
    assert refused.value.body == {"detail": "X-After-Task: 'x' is not the id of a pull."}
