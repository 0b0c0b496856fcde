"""Answers as XML: what today's service writes, and well-formed whatever is in them."""

import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.xml import to_xml

HEAD = '<?xml version="1.0" encoding="utf-8"?>\n'
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=12,
)


@pytest.mark.parametrize(
    "value, text",
    [
        ({"contains_content_items": True}, "<contains_content_items>True</contains_content_items>"),
        ({"next": None, "count": 8}, "<next></next><count>8</count>"),
        (
            {"results": [{"a": 1.5}, "b"]},
            "<results><list-item><a>1.5</a></list-item><list-item>b</list-item></results>",
        ),
        ({"next": "http://h/?page=2&page_size=1"}, "<next>http://h/?page=2&amp;page_size=1</next>"),
        ({"a": "<é>"}, "<a>&lt;é&gt;</a>"),
        ({"a": "x\0\x1fy"}, "<a>xy</a>"),
        ({"course-v1:A+B": 1, "1": 2, "": 3}, "<course-v1:A_B>1</course-v1:A_B><_1>2</_1><_>3</_>"),
        ({}, ""),
    ],
)
def test_as_todays_service_writes_it(value: Any, text: str) -> None:
    assert to_xml(value).decode() == f"{HEAD}<root>{text}</root>"


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), values, max_size=4))
def test_is_well_formed(value: dict[str, Any]) -> None:
    text = to_xml(value).decode()
    # A name with a colon has a prefix that nobody declares, which a parser of namespaces does not take.
    ElementTree.fromstring(text.replace(":", "_"))
