"""Pages are those of Django REST framework, and following their links visits every item once."""

from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.pages import Page, asked_page
from sidecar.parameters import Refusal

BASE = "http://catalog.example.test/api/v1/enterprise-catalogs/"
MAX = 100
TEXTS = st.text(st.characters(codec="utf-8"), max_size=4)


def at(url: str, count: int) -> Page:
    """The page that a url asks for."""
    return asked_page(count, dict(parse_qsl(urlsplit(url).query, keep_blank_values=True)), max_size=MAX)


@given(
    items=st.lists(st.integers(), max_size=250),
    size=st.one_of(st.integers(-1, 120).map(str), TEXTS),
    more=st.dictionaries(TEXTS.filter(lambda name: name not in ("page", "page_size")), TEXTS, max_size=2),
)
def test_walking_the_links_either_way_visits_every_item_once(items: list[int], size: str, more: dict[str, str]) -> None:
    url = f"{BASE}?{urlencode({**more, 'page_size': size})}"
    page = at(url, len(items))
    seen, forth = list(page.cut(items)), [page]
    while (following := page.next(url)) is not None:
        url, page = following, at(following, len(items))
        seen += page.cut(items)
        forth.append(page)
    assert seen == items
    assert page.number == page.pages
    back = [page]
    while (preceding := page.previous(url)) is not None:
        url, page = preceding, at(preceding, len(items))
        back.append(page)
    assert back == forth[::-1]
    assert dict(parse_qsl(urlsplit(url).query, keep_blank_values=True)) == {**more, "page_size": size}


@pytest.mark.parametrize(
    "query, next, previous",
    [
        # As recorded.
        ("", "?page=2", None),
        ("page_size=3", "?page=2&page_size=3", None),
        ("page_size=3&page=2", "?page=3&page_size=3", "?page_size=3"),
        ("page_size=0", "?page=2&page_size=0", None),
        ("page_size=-1", "?page=2&page_size=-1", None),
        ("page_size=abc", "?page=2&page_size=abc", None),
        ("enterprise_customer=", "?enterprise_customer=&page=2", None),
        ("page=last&page_size=25", None, "?page=2&page_size=25"),
        # As its replace_query_param and remove_query_param make them.
        ("page=2", "?page=3", ""),
        ("page=3&page=2", "?page=3", ""),
        ("page=3&page_size=5&b=2&a=1&b=1", "?a=1&b=2&b=1&page=4&page_size=5", "?a=1&b=2&b=1&page=2&page_size=5"),
        ("page=", "?page=2", None),
        ("x", "?page=2&x=", None),
        ("&x=1&&", "?page=2&x=1", None),
        ("x=a+b%20c%2Bd", "?page=2&x=a+b+c%2Bd", None),
        ("x=%C3%A9", "?page=2&x=%C3%A9", None),
        ("x=é", "?page=2&x=%C3%A9", None),
        ("x=%FF", "?page=2&x=%EF%BF%BD", None),
        ("x=\udcff", "?page=2&x=%EF%BF%BD", None),
        ("x=a?b=c;d", "?page=2&x=a%3Fb%3Dc%3Bd", None),
        ("x=~-_./", "?page=2&x=~-_.%2F", None),
    ],
)
def test_links_are_written_as_they_always_were(query: str, next: str | None, previous: str | None) -> None:
    url = f"{BASE}?{query}"
    page = at(url, 55)
    assert page.next(url) == (None if next is None else BASE + next)
    assert page.previous(url) == (None if previous is None else BASE + previous)


@pytest.mark.parametrize(
    "size, taken",
    [("3", 3), ("100", 100), ("101", 100), ("0", 10), ("-1", 10), ("", 10), ("abc", 10), ("1.5", 10), ("9" * 5000, 10)],
)
def test_the_size_of_a_page(size: str, taken: int) -> None:
    assert asked_page(1_000, {"page_size": size}, max_size=MAX).size == taken


@pytest.mark.parametrize("page", ["0", "-1", "7", "99", "abc", "1.0", "Last", "9" * 5000])
def test_a_page_that_is_not_there(page: str) -> None:
    with pytest.raises(Refusal) as refused:
        asked_page(55, {"page": page}, max_size=MAX)
    assert (refused.value.status, refused.value.body) == (404, {"detail": "Invalid page."})


def test_an_empty_list_has_one_page() -> None:
    for asked in ({}, {"page": "1"}, {"page": "last"}):
        page = asked_page(0, asked, max_size=MAX)
        assert (page.number, page.pages, page.start, page.cut([])) == (1, 1, 0, [])
        assert (page.next(BASE), page.previous(BASE)) == (None, None)


def test_the_last_page_by_name() -> None:
    page = asked_page(55, {"page": "last", "page_size": "25"}, max_size=MAX)
    assert (page.number, page.pages, page.start, list(page.cut(range(55)))) == (3, 3, 50, [50, 51, 52, 53, 54])
