"""Query hashes, folded keys and uuids: the same on both sides, and the same as in today's service."""

import hashlib
import json
import unicodedata
import uuid
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.contract.words import (
    ContentType,
    PullState,
    canonical_uuid,
    fold,
    has_ended,
    iso_time,
    pull_of,
    query_hash,
    requested_ms,
    task_id,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    "content_filter, md5",
    [
        ({}, "99914b932bd37a50b983c5e7c90ae93b"),
        ({"content_type": "course"}, "030f6213522a24bfdc11eb0988adee2c"),
        ({"b": [1, 2], "a": "é"}, "7160e6d138d033d1df85e875208a68b2"),
    ],
)
def test_query_hash_of_a_known_filter(content_filter: object, md5: str) -> None:
    assert query_hash(content_filter).hex() == md5


def test_query_hash_does_not_depend_on_the_order_of_keys_but_on_that_of_lists() -> None:
    assert query_hash({"a": 1, "b": {"c": 2, "d": 3}}) == query_hash({"b": {"d": 3, "c": 2}, "a": 1})
    assert query_hash({"a": [1, 2]}) != query_hash({"a": [2, 1]})


def test_query_hash_tells_numbers_from_text_and_true_from_one() -> None:
    assert len({query_hash({"a": value}) for value in (1, "1", True, 1.0, None, "true")}) == 6


@given(JSON)
def test_query_hash_is_md5_of_sorted_json_and_survives_a_round_trip(value: object) -> None:
    text = json.dumps(value, sort_keys=True)
    assert query_hash(value) == hashlib.md5(text.encode("utf-8")).digest()
    assert query_hash(json.loads(text)) == query_hash(value)


@pytest.mark.parametrize(
    "key, folded",
    [
        ("edX+DemoX", "edx+demox"),
        ("course-v1:edX+DemoX+2026_T1", "course-v1:edx+demox+2026_t1"),
        ("École+Été", "ecole+ete"),
        ("E\u0301cole", "ecole"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("İstanbul", "istanbul"),
        ("ΣΊΣΥΦΟΣ", "σισυφοσ"),
        ("σίσυφος", "σισυφοσ"),
        ("ﬁne", "fine"),
        ("Ａ１", "a1"),
        ("Å", "a"),
        ("\u212b", "a"),
        ("日本", "日本"),
        ("", ""),
    ],
)
def test_folding(key: str, folded: str) -> None:
    assert fold(key) == folded


@given(st.text())
def test_folding_forgets_the_normal_form(key: str) -> None:
    forms = {fold(unicodedata.normalize(form, key)) for form in ("NFC", "NFD", "NFKC", "NFKD")}
    assert forms == {fold(key)}


@given(st.text(st.characters(codec="ascii")))
def test_folding_ascii_is_folding_by_the_definition(key: str) -> None:
    decomposed = unicodedata.normalize("NFKD", key)
    assert fold(key) == "".join(c for c in decomposed if not unicodedata.combining(c)).casefold()
    assert fold(key) == fold(key.upper()) == fold(key.lower()) == fold(fold(key))


@given(st.text(st.characters(min_codepoint=0xC0, max_codepoint=0x17F, exclude_characters="ı")))
def test_folding_forgets_case_in_european_letters(key: str) -> None:
    assert fold(key) == fold(key.upper()) == fold(key.lower())


@given(st.uuids(), st.booleans(), st.booleans())
def test_a_uuid_is_known_with_and_without_dashes_and_in_any_case(uuid: UUID, dashed: bool, upper: bool) -> None:
    text = str(uuid) if dashed else uuid.hex
    assert canonical_uuid(text.upper() if upper else text) == str(uuid)


GOOD = "2f1b9f9c-5d0e-4c8e-9d57-3b9f0f6f0001"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "edX+DemoX",
        GOOD[:-1],
        GOOD + "0",
        GOOD + "\n",
        " " + GOOD,
        "{" + GOOD + "}",
        "urn:uuid:" + GOOD,
        GOOD.replace("2", "g"),
        GOOD.replace("-", "_"),
        GOOD.replace("-", "", 1),
        GOOD[:-1] + "\u0661",
        GOOD[:-1] + "\uff11",
        "-".join(GOOD.replace("-", "")[i : i + 8] for i in range(0, 32, 8)),
    ],
)
def test_what_is_not_a_uuid_is_none(text: str) -> None:
    assert canonical_uuid(text) is None


@given(st.text())
def test_any_text_is_a_uuid_or_none(text: str) -> None:
    found = canonical_uuid(text)
    assert found is None or found == str(UUID(text))


def test_the_bytes_of_types_and_states_are_those_of_the_specification() -> None:
    assert [(t.value, t.name) for t in ContentType] == [
        (1, "COURSE"),
        (2, "COURSE_RUN"),
        (3, "PROGRAM"),
        (4, "PATHWAY"),
    ]
    assert [(s.value, s.name) for s in PullState] == [
        (0, "DUE"),
        (1, "FRESH"),
        (2, "FAILING"),
        (3, "UNPULLABLE"),
        (4, "QUARANTINED"),
    ]


@pytest.mark.parametrize(
    "ms, text",
    [
        (0, "1970-01-01T00:00:00Z"),
        (1, "1970-01-01T00:00:00.001000Z"),
        (1_795_335_087_735, "2026-11-22T08:11:27.735000Z"),
        (1_795_335_088_000, "2026-11-22T08:11:28Z"),
    ],
)
def test_times_are_written_as_python_does(ms: int, text: str) -> None:
    assert iso_time(ms) == text


class TestATaskId:
    @given(st.binary(min_size=16, max_size=16), st.integers(0, 2**48 - 1))
    def test_is_a_uuid_of_version_8_that_tells_of_which_query_it_is(self, hash_: bytes, ms: int) -> None:
        task = task_id(hash_, ms)
        assert (task.version, task.variant) == (8, uuid.RFC_4122)
        assert pull_of(task) == pull_of(task_id(hash_, 0))
        assert pull_of(task) != pull_of(task_id(bytes([hash_[0] ^ 1]) + hash_[1:], ms))
        assert requested_ms(task) == ms

    def test_has_ended_once_a_later_one_of_its_query_has(self) -> None:
        hash_ = bytes(range(16))
        first, second = task_id(hash_, 1), task_id(hash_, 2)
        assert has_ended(first, first)
        assert has_ended(first, second)
        assert not has_ended(second, first)

    def test_of_another_kind_is_known_by_itself_alone(self) -> None:
        other, last = uuid.uuid4(), task_id(bytes(16), 2**47)
        assert not has_ended(last, other)
        assert has_ended(other, other)
