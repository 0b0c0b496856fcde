"""Pages of a list: which part of it was asked for, and the links to its neighbours. Pure; knows no index, no server.

The rules are those of Django REST framework's pages, which callers follow from link to link: a page is asked for by
`page` and `page_size`, and a link is the url of the request with `page` replaced.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeVar
from urllib.parse import parse_qs, urlencode

from sidecar.parameters import Refusal

DEFAULT_SIZE: Final = 10
LAST: Final = "last"
# Whoever walks asks for the same pages as everybody else who does, and a link takes longer to make than to look up:
# 15 us. Whole baskets of keys are in longer urls, and asked for once.
KEPT_URL: Final = 512
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page:
    """One of the pages of a list of `count` items; they are numbered from 1, and an empty list has one, too."""

    count: int
    number: int
    size: int
    pages: int

    @property
    def start(self) -> int:
        """The place of its first item in the list, from 0."""
        return (self.number - 1) * self.size

    def cut(self, items: Sequence[T]) -> Sequence[T]:
        """Its items, out of all."""
        return items[self.start : self.start + self.size]

    def next(self, url: str) -> str | None:
        """The link to the page after it; `url` is absolute, that of the request, its query as it was sent."""
        return _link(url, self.number + 1) if self.number < self.pages else None

    def previous(self, url: str) -> str | None:
        """The link to the page before it."""
        return _link(url, self.number - 1) if self.number > 1 else None

    def head(self, url: str) -> dict[str, str | int | None]:
        """What an answer says of the page before its `results`, in the order of the API."""
        return {
            "next": self.next(url),
            "previous": self.previous(url),
            "count": self.count,
            "num_pages": self.pages,
            "current_page": self.number,
            "start": self.start,
        }


def asked_size(parameters: Mapping[str, str], *, max_size: int) -> int:
    """The size of pages that the parameters ask for; the default, if it is no number above 0."""
    size = _whole(parameters.get("page_size", ""))
    return DEFAULT_SIZE if size is None or size < 1 else min(size, max_size)


def is_first(parameters: Mapping[str, str]) -> bool:
    """Whether it is the first page that the parameters ask for."""
    return _whole(parameters.get("page") or "1") == 1


def asked_page(count: int, parameters: Mapping[str, str], *, max_size: int, pages: int | None = None) -> Page:
    """The page that the parameters ask for. A 404 if there is none. `pages`: how many, if not as many as needed."""
    size = asked_size(parameters, max_size=max_size)
    pages = max(1, -(-count // size)) if pages is None else pages
    text = parameters.get("page") or "1"
    number = pages if text == LAST else _whole(text)
    if number is None or not 1 <= number <= pages:
        raise Refusal(404, {"detail": "Invalid page."})
    return Page(count, number, size, pages)


def _whole(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _link(url: str, number: int) -> str:
    return _kept_link(url, number) if len(url) <= KEPT_URL else _made_link(url, number)


def _made_link(url: str, number: int) -> str:
    base, _, query = url.encode(errors="surrogateescape").decode(errors="replace").partition("?")
    parameters = parse_qs(query, keep_blank_values=True)
    parameters.pop("page", None)
    if number > 1:
        parameters["page"] = [str(number)]
    query = urlencode(sorted(parameters.items()), doseq=True)
    return f"{base}?{query}" if query else base


_kept_link = lru_cache(maxsize=1024)(_made_link)
