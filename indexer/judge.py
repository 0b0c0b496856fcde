"""Two answers to one question, theirs and ours, judged: equal, different for a known reason, or different. Pure.

The other service is today's enterprise-catalog, or one like us. What is different on purpose has a number and a
sentence, below; a difference is explained by one of them only if the question and both answers bear it out, and
whatever else differs is unexplained. That includes what two answers cannot show: a containment that the other side has
cached for half an hour, a run that it has forgotten, a course's field that it took once and never again.

No answer is no difference, and never equality: such a question could not be compared.
"""

import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

DIFFERENCES: Final[Mapping[int, str]] = {
    1: "a run that is nested in a member course is contained here, with no search document of its own",
    3: "pages are in another order, which here stays the same from one generation to the next",
    6: "ids that commas join in one value are taken apart here",
    7: "bad input is refused here, and an error of the server there",
    9: "catalog_query_uuid and query_title of a catalog are always null there",
    12: "catalog-queries is forbidden there to those who administer every customer",
    15: "content_last_modified moves at every refresh there, and here when the content's bytes change",
    16: "nested runs have enrollment_url and parent_content_key here, with no search document of their own",
    20: "a catalog that was never pulled contains nothing there; here it cannot be told yet",
    22: "a catalog whose filter was changed goes on serving its last content here, until the new one is pulled",
}
# Of each sort, by the number that explains it or by none.
MAX_FINDINGS: Final = 20
SHOWN_CHARACTERS: Final = 120
# What is told of whoever cannot be asked, rather than of what was asked.
_OUT_OF_REACH: Final = frozenset({401, 408, 429, 502, 503, 504})
# Of a run that has no row of its own on the other side.
_RUN_LINKS: Final = ("enrollment_url", "parent_content_key")
_MOVING_TIMES: Final = frozenset({"content_last_modified", "date_updated"})
_LINKS_TO_PAGES: Final = frozenset({"next", "previous"})
_NEVER_TOLD: Final = frozenset({"catalog_query_uuid", "query_title"})
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_MILLISECOND: Final = timedelta(milliseconds=1)


class Kind(StrEnum):
    """What a question is about: the route that it is asked of."""

    CATALOG_CONTAINS = "catalog contains"
    CUSTOMER_CONTAINS = "customer contains"
    FILTER = "filter_content_items"
    PAGE = "get_content_metadata"
    DIFF = "generate_diff"
    DOCUMENT = "customer's document"
    CATALOG = "catalog"
    CATALOGS = "list of catalogs"
    QUERY = "catalog query"
    ERROR = "unknown and malformed"


class Outcome(StrEnum):
    """What came of a question; the words are those of the metric."""

    EQUAL = "equal"
    EXPLAINED = "explained"
    UNEXPLAINED = "unexplained"
    NOT_COMPARED = "not compared"


@dataclass(frozen=True, slots=True)
class Known:
    """What our index knows of a question, and what may therefore explain that we answer something else.

    `nested`: the runs that are asked about and contained as runs of a member course alone, with their courses.
    `otherwise`: whether anything else that is asked about is contained. `commas`: ids are joined by commas.
    `never_pulled`, `changed`: a catalog that is asked waits for its first pull, or for that of another filter.
    `bad`: the input is one that today's service breaks at.
    """

    nested: Mapping[str, str] = field(default_factory=dict)
    otherwise: bool = False
    commas: bool = False
    never_pulled: bool = False
    changed: bool = False
    bad: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """A request for both sides: its path with its query string, and the JSON to post, if it posts some."""

    kind: Kind
    path: str
    body: object = None
    known: Known = field(default_factory=Known)

    def __str__(self) -> str:
        return f"{'GET' if self.body is None else 'POST'} {self.path}"


@dataclass(frozen=True, slots=True)
class Told:
    """An answer."""

    status: int
    value: Any = None


@dataclass(frozen=True, slots=True)
class Untold:
    """No answer, and why."""

    why: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference: where, what either side says, and the number that explains it, if one does."""

    at: str
    theirs: str
    ours: str
    number: int | None = None

    def __str__(self) -> str:
        return f"{self.at}: {self.theirs} there, {self.ours} here"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a question; why not, if it could not be compared; and what differs."""

    outcome: Outcome
    why: str = ""
    findings: tuple[Finding, ...] = ()

    @property
    def numbers(self) -> frozenset[int]:
        """The differences that explain something here."""
        return frozenset(finding.number for finding in self.findings if finding.number is not None)

    @property
    def unexplained(self) -> list[Finding]:
        """What nothing explains."""
        return [finding for finding in self.findings if finding.number is None]


def judge(question: Question, theirs: Told | Untold, ours: Told | Untold) -> Verdict:
    """Judges two answers to a question."""
    for side, answer in (("the other service", theirs), ("our sidecar", ours)):
        if isinstance(answer, Untold):
            return Verdict(Outcome.NOT_COMPARED, f"{side}: {answer.why}")
    assert isinstance(theirs, Told)
    assert isinstance(ours, Told)
    waits = ours.status == HTTPStatus.SERVICE_UNAVAILABLE and question.known.never_pulled
    # What contains nothing there: false, an empty page, and no document.
    if waits and theirs.status == (HTTPStatus.NOT_FOUND if question.kind is Kind.DOCUMENT else HTTPStatus.OK):
        return _verdict([_status(theirs, ours, 20)])
    for side, answer in (("the other service", theirs), ("our sidecar", ours)):
        if answer.status in _OUT_OF_REACH:
            return Verdict(Outcome.NOT_COMPARED, f"{side} answers {answer.status}")
    if theirs.status == ours.status:
        if theirs.status == HTTPStatus.FORBIDDEN or theirs.status >= 500:
            return Verdict(Outcome.NOT_COMPARED, f"both answer {ours.status}")
        explained = 22 if question.known.changed and question.kind in _OF_CONTENT else None
        found = _bodies(question, theirs, ours)
        return _verdict(f if f.number or not explained else _because(f, explained) for f in found)
    return _verdict([_status(theirs, ours, _reason(question, theirs, ours))])


def _verdict(findings: Iterable[Finding]) -> Verdict:
    """All findings are looked at, so that many that are explained hide none that is not; of each sort some are kept."""
    kept: dict[int | None, list[Finding]] = {}
    for finding in findings:
        alike = kept.setdefault(finding.number, [])
        if len(alike) < MAX_FINDINGS:
            alike.append(finding)
    if not kept:
        return Verdict(Outcome.EQUAL)
    outcome = Outcome.UNEXPLAINED if None in kept else Outcome.EXPLAINED
    return Verdict(outcome, findings=tuple(itertools.chain(*kept.values())))


def _because(finding: Finding, number: int) -> Finding:
    return Finding(finding.at, finding.theirs, finding.ours, number)


def _status(theirs: Told, ours: Told, number: int | None) -> Finding:
    told = [f"{answer.status}{_detail(answer.value)}" for answer in (theirs, ours)]
    return Finding("status", told[0], told[1], number)


def _detail(value: object) -> str:
    detail = value.get("detail") if isinstance(value, Mapping) else None
    return f" {_shown(detail)}" if detail is not None else ""


def _reason(question: Question, theirs: Told, ours: Told) -> int | None:
    """What explains two statuses."""
    known, statuses = question.known, (theirs.status, ours.status)
    if known.bad and theirs.status == 500 and ours.status in (400, 404):
        return 7
    if question.kind is Kind.QUERY and theirs.status == 403 and ours.status in (200, 400, 404):
        return 12
    if question.kind is not Kind.DOCUMENT:
        return None
    if statuses == (404, 200) and known.nested and not known.otherwise:
        return 1
    return 22 if known.changed and set(statuses) == {200, 404} else None


def _bodies(question: Question, theirs: Told, ours: Told) -> Iterator[Finding]:
    """Every difference of two answers of one status."""
    a, b = theirs.value, ours.value
    read = _READERS.get(question.kind)
    if ours.status != HTTPStatus.OK or read is None or not isinstance(a, dict) or not isinstance(b, dict):
        yield from _values("", a, b)
        return
    yield from read(question, a, b)


def _contains(question: Question, theirs: dict[str, Any], ours: dict[str, Any]) -> Iterator[Finding]:
    known = question.known
    more = 6 if known.commas else 1 if known.nested else None
    for name in _names(theirs, ours):
        a, b = theirs.get(name, _ABSENT), ours.get(name, _ABSENT)
        if name == "catalog_list" and _are_texts(a) and _are_texts(b):
            for uuid in sorted(set(a) ^ set(b)):
                yield _one_sided(f"{name} {uuid}", uuid in a, None if uuid in a else more)
        elif name == "contains_content_items" and (a, b) == (False, True):
            yield Finding(name, "false", "true", more if known.commas or not known.otherwise else None)
        else:
            yield from _values(name, a, b)


def _filtered(_: Question, theirs: dict[str, Any], ours: dict[str, Any]) -> Iterator[Finding]:
    name = "filtered_content_keys"
    yield from _sets(name, theirs, ours)
    yield from _values("", _without(theirs, name), _without(ours, name))


def _diff(_: Question, theirs: dict[str, Any], ours: dict[str, Any]) -> Iterator[Finding]:
    lists = ("items_not_found", "items_not_included", "items_found")
    for name in lists:
        a, b = (_by(side.get(name), "content_key") for side in (theirs, ours))
        if a is None or b is None:
            yield from _values(name, theirs.get(name, _ABSENT), ours.get(name, _ABSENT))
            continue
        for key in sorted(a.keys() ^ b.keys()):
            yield _one_sided(f"{name} {key}", key in a)
        for key in sorted(a.keys() & b.keys()):
            yield from _values(f"{name} {key}", a[key], b[key])
    yield from _values("", _without(theirs, *lists), _without(ours, *lists))


def _page(question: Question, theirs: dict[str, Any], ours: dict[str, Any]) -> Iterator[Finding]:
    a, b = (_by(side.get("results"), "key", "uuid") for side in (theirs, ours))
    if a is None or b is None:
        yield from _values("", theirs, ours)
        return
    head = _without(theirs, "results")
    asked = {value for name, value in parse_qsl(urlsplit(question.path).query) if name == "content_keys"}
    if asked:
        by_course = set(question.known.nested.values()) - asked
        more = [key for key in b if key not in a and key in by_course]
        if more and isinstance(head.get("count"), int):
            head["count"] += len(more)
        for key in sorted(a.keys() ^ b.keys()):
            yield _one_sided(f"results {key}", key in a, 1 if key in more else None)
    elif len(a) != len(b):
        yield Finding("results", f"{len(a)} documents", f"{len(b)} documents")
    elif set(a) != set(b):
        first = next(key for key in b if key not in a)
        yield Finding("results", f"without {first}", f"with {first}", 3)
    if list(a) != list(b) and set(a) == set(b):
        yield Finding("results", "in one order", "in another", 3)
    yield from _values("", head, _without(ours, "results"))
    for key in b:
        if key in a:
            yield from _document(f"results {key}", a[key], b[key])


def _one_document(_: Question, theirs: dict[str, Any], ours: dict[str, Any]) -> Iterator[Finding]:
    yield from _document("", theirs, ours)


def _document(at: str, theirs: dict[str, Any], ours: dict[str, Any]) -> Iterator[Finding]:
    """A document, which here has links of nested runs that it may lack there."""
    a, b = (_by(side.get("course_runs"), "key") for side in (theirs, ours))
    runs = []
    for key, run in (b or {}).items():
        has = [name for name in _RUN_LINKS if name in run]
        if a and key in a and has and not any(name in a[key] for name in has):
            its_course = run.get("parent_content_key", ours.get("key")) == ours.get("key")
            lacks, shows = f"without {' and '.join(has)}", "with it" if len(has) == 1 else "with both"
            yield Finding(_join(at, f"course_runs {key}"), lacks, shows, 16 if its_course else None)
            run = _without(run, *has)
        runs.append(run)
    yield from _values(at, theirs, {**ours, "course_runs": runs} if b else ours)


def _record(question: Question, theirs: dict[str, Any], ours: dict[str, Any]) -> Iterator[Finding]:
    """A catalog, of whose content nobody can tell when it changed before the first pull."""
    for finding in _values("", theirs, ours):
        waits = question.known.never_pulled and finding.at == "content_last_modified" and ours.get(finding.at) is None
        yield _because(finding, 20) if waits else finding


_READERS: Final[Mapping[Kind, Callable[[Question, dict[str, Any], dict[str, Any]], Iterator[Finding]]]] = {
    Kind.CATALOG_CONTAINS: _contains,
    Kind.CUSTOMER_CONTAINS: _contains,
    Kind.FILTER: _filtered,
    Kind.PAGE: _page,
    Kind.DIFF: _diff,
    Kind.DOCUMENT: _one_document,
    Kind.CATALOG: _record,
}
# What depends on what a catalog contains.
_OF_CONTENT: Final = frozenset(_READERS) - {Kind.CATALOG}
_ABSENT: Final = object()


def _values(at: str, theirs: Any, ours: Any) -> Iterator[Finding]:
    """Every place where two JSON values differ."""
    name = at.rpartition(".")[2].rpartition(" ")[2]
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for inner in _names(theirs, ours):
            yield from _values(_join(at, inner), theirs.get(inner, _ABSENT), ours.get(inner, _ABSENT))
    elif isinstance(theirs, list) and isinstance(ours, list):
        if len(theirs) != len(ours):
            yield Finding(at, f"{len(theirs)} of them", f"{len(ours)} of them")
            return
        for place, (a, b) in enumerate(zip(theirs, ours, strict=True)):
            yield from _values(f"{at}[{place}]", a, b)
    elif not _is_same(name, theirs, ours):
        yield Finding(at, _shown(theirs), _shown(ours), _leaf_reason(name, theirs, ours))


def _is_same(name: str, theirs: Any, ours: Any) -> bool:
    """Whether two values of a name say the same. In Python a bool is a number; in JSON it is not."""
    if isinstance(theirs, bool) is isinstance(ours, bool) and theirs == ours:
        return True
    if name in _LINKS_TO_PAGES and isinstance(theirs, str) and isinstance(ours, str):
        # Each service calls itself by a name of its own.
        a, b = (sorted(parse_qsl(urlsplit(link).query, keep_blank_values=True)) for link in (theirs, ours))
        return a == b
    # A time of ours has milliseconds, and one of theirs may have more.
    return _is_time(theirs) and _is_time(ours) and abs(_moment(theirs) - _moment(ours)) < _MILLISECOND


def _leaf_reason(name: str, theirs: Any, ours: Any) -> int | None:
    """What explains two values of a name that differ."""
    if name in _MOVING_TIMES and _is_time(theirs) and _is_time(ours):
        return 15
    return 9 if name in _NEVER_TOLD and theirs is None and isinstance(ours, str) else None


def _names(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys((*theirs, *ours)))


def _sets(name: str, theirs: dict[str, Any], ours: dict[str, Any]) -> Iterator[Finding]:
    a, b = theirs.get(name, _ABSENT), ours.get(name, _ABSENT)
    if _are_texts(a) and _are_texts(b):
        for text in sorted(set(a) ^ set(b)):
            yield _one_sided(f"{name} {text}", text in a)
        if len(a) != len(b) and set(a) == set(b):
            yield Finding(name, f"{len(a)} of them", f"{len(b)} of them")
    else:
        yield from _values(name, a, b)


def _one_sided(at: str, is_theirs: bool, number: int | None = None) -> Finding:
    return Finding(at, *(("present", "absent") if is_theirs else ("absent", "present")), number)


def _by(items: object, *names: str) -> dict[str, Any] | None:
    """Objects by the first of these names that they have; None if they are no such list, or one comes twice."""
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        return None
    keys = [next((item[name] for name in names if isinstance(item.get(name), str)), None) for item in items]
    if None in keys or len(set(keys)) != len(keys):
        return None
    return {str(key): item for key, item in zip(keys, items, strict=True)}


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _without(value: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: inner for name, inner in value.items() if name not in names}


def _join(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def _is_time(value: object) -> bool:
    return isinstance(value, str) and _TIME.fullmatch(value) is not None


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)


def _shown(value: object) -> str:
    text = "nothing" if value is _ABSENT else repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def told_of(numbers: Collection[int]) -> list[str]:
    """The sentences of differences, by number."""
    return [f"{number}: {DIFFERENCES[number]}" for number in sorted(numbers)]
