"""What is asked about one key, and how its answer is read, beside what is asked about many."""

from typing import Any, Final

import pytest

from sidecar.client import BadRequest, CannotTell, NotFound
from sidecar.client.exchange import UNKNOWN, Answer, Call
from sidecar.client.operations import Operations, contained_of
from tests.fakes import uuid_of

CATALOG: Final = uuid_of("catalog all")
CALL: Final = Call("GET", "/")


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("ids", ["course-v1:Org+1+2", ["course-v1:Org+1+2"], ["Ö rg&=%"], ""])
def test_one_key_is_asked_about_as_the_only_one_of_many_is(version: Any, ids: Any) -> None:
    operations = Operations(version)
    assert operations.catalog_contains_one(CATALOG, ids) == next(operations.catalog_contains(CATALOG, ids))


@pytest.mark.parametrize("ids", [[], ["a", "b"], ("a",), iter("a"), [b"a"], b"a", None])
def test_what_is_not_one_key_is_no_single_request(ids: Any) -> None:
    assert Operations("v1").catalog_contains_one(CATALOG, ids) is None


@pytest.mark.parametrize("space", [b"", b" "])
@pytest.mark.parametrize("word, contained", [(b"true", True), (b"false", False)])
def test_an_answer_says_the_same_however_its_json_is_written(space: bytes, word: bytes, contained: bool) -> None:
    body = b'{"contains_content_items":%b%b}' % (space, word)
    assert contained_of(CALL, Answer(200, {}, body, UNKNOWN)) is contained


@pytest.mark.parametrize("status, error", [(302, CannotTell), (400, BadRequest), (404, NotFound), (503, CannotTell)])
@pytest.mark.parametrize("word", [b"true", b"false"])
def test_an_error_is_one_whatever_its_body_says(status: int, error: type[Exception], word: bytes) -> None:
    with pytest.raises(error):
        contained_of(CALL, Answer(status, {}, b'{"contains_content_items":%b}' % word, UNKNOWN))
