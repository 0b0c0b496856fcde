"""search/all's filter language over one document: pure, no I/O, no clock.

`compile_filter` reads a content filter once and refuses what it cannot evaluate; `Compiled.matches` then answers for
any number of documents and never raises. The language, key by key, is the table `_KEYS`:

* Keys are ANDed. A list value is OR, and a scalar is a list of one. An empty list is therefore OR of nothing: it
  matches no document, and as `__exclude` it drops none. (search/all loses such a key on its way into a query string
  and answers with everything; an allow-list that somebody emptied must not become a catalog of the whole site.)
* A comparison (`__gt`, `__gte`, `__lt`, `__lte`) with a list takes the last value. A date without a time is its
  midnight, and one without a zone is UTC.
* A document's field may be a list: it matches if any of its values does. A value that is missing, null or of the wrong
  type matches nothing; `__exclude` is the exact negation, so it keeps a document without the field.
* A key that search/all does not know is ignored by it, and so by us, but is named in `Compiled.ignored` for the caller
  to warn about. A key that search/all knows and this evaluator does not is `Unfaithful`: a guess would change catalogs.
"""

import datetime
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Predicate = Callable[[Mapping[str, Any]], bool]
Comparable = str | bool | float | datetime.datetime
Reader = Callable[[object], Comparable | None]

RESTRICTED_RUNS_KEY = "restricted_runs_allowed"
FORCED_COURSES_KEY = "enterprise_force_include_aggregation_keys"
PSEUDO_KEYS = frozenset({RESTRICTED_RUNS_KEY, FORCED_COURSES_KEY})
"""Keys of a content filter that are instructions to us: never sent to search/all, and no condition on a document."""

UNFAITHFUL_KEYS = frozenset(
    {
        "q",
        "short_description",
        "first_enrollable_paid_seat_price__in",
        "first_enrollable_paid_seat_price__range",
    }
)

_COURSE_PREFIX = "course:"
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_SHOWN_CHARACTERS = 80


class FilterError(Exception):
    """Raised when a content filter cannot be evaluated here; says which key, which value, and what to do about it."""

    def __init__(self, key: str, value: object, problem: str, remedy: str) -> None:
        super().__init__(f"{key} = {value!r:.{_SHOWN_CHARACTERS}}: {problem}; {remedy}")
        self.key = key
        self.value = value


class BadFilter(FilterError):
    """Raised when a value in a content filter is not what its key asks for."""


class Unfaithful(FilterError):
    """Raised when search/all would understand a key or a value and this evaluator cannot."""

    def __init__(self, key: str, value: object) -> None:
        super().__init__(
            key, value, "only search/all itself can evaluate this", "use the discovery source, or take it out"
        )


@dataclass(frozen=True, slots=True)
class Compiled:
    """A content filter made ready: `ignored` are its keys that search/all does not know, in the filter's order."""

    predicates: tuple[Predicate, ...]
    ignored: tuple[str, ...]

    def matches(self, document: Mapping[str, Any]) -> bool:
        return all(predicate(document) for predicate in self.predicates)


def matches(content_filter: Mapping[str, object], document: Mapping[str, Any]) -> bool:
    """Whether search/all would return this document for this filter. For many documents, compile the filter once."""
    return compile_filter(content_filter).matches(document)


def compile_filter(content_filter: Mapping[str, object]) -> Compiled:
    """Reads the filter; raises `BadFilter` or `Unfaithful`, and whatever passes here never raises later."""
    predicates: list[Predicate] = []
    ignored: list[str] = []
    for key, value in _as_object(content_filter).items():
        if key in PSEUDO_KEYS:
            continue
        if key in UNFAITHFUL_KEYS:
            raise Unfaithful(key, value)
        name = key.partition("__")[0]
        lookup = key.removeprefix(name)
        known = _KEYS.get(name)
        if known is None or lookup not in known.lookups:
            ignored.append(key)
        elif lookup in _COMPARISONS:
            predicates.append(_compares(known, key, _COMPARISONS[lookup], value))
        elif lookup == "__exclude":
            predicates.append(_negated(_is_one_of(known, key, value)))
        else:
            predicates.append(_is_one_of(known, key, value))
    return Compiled(tuple(predicates), tuple(ignored))


def allowed_restricted_runs(content_filter: Mapping[str, object]) -> frozenset[str]:
    """The keys of the restricted runs that the filter allows; absent or null allows none."""
    allowed = _as_object(content_filter).get(RESTRICTED_RUNS_KEY)
    if allowed is None:
        return frozenset()
    if not isinstance(allowed, Mapping):
        raise BadFilter(RESTRICTED_RUNS_KEY, allowed, "not an object", 'write {"course:KEY": ["run key", …]}')
    runs: set[str] = set()
    for course, keys in allowed.items():
        if not _names_course(course) or not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise BadFilter(
                RESTRICTED_RUNS_KEY, {course: keys}, "not the runs of a course", 'write {"course:KEY": ["run key", …]}'
            )
        runs.update(keys)
    return frozenset(runs)


def forced_courses(content_filter: Mapping[str, object]) -> tuple[str, ...]:
    """The course keys that the filter adds as members, once each and in its order; absent or null adds none."""
    forced = _as_object(content_filter).get(FORCED_COURSES_KEY)
    if forced is None:
        return ()
    if not isinstance(forced, list):
        raise BadFilter(FORCED_COURSES_KEY, forced, "not a list", 'write ["course:KEY", …]')
    for entry in forced:
        if not _names_course(entry):
            raise BadFilter(FORCED_COURSES_KEY, entry, "not a course's aggregation key", 'write "course:KEY"')
    return tuple(dict.fromkeys(entry.removeprefix(_COURSE_PREFIX) for entry in forced))


def _as_object(content_filter: object) -> Mapping[str, object]:
    if not isinstance(content_filter, Mapping):
        raise BadFilter("content_filter", content_filter, "not a JSON object", "give an object of search/all's keys")
    return content_filter


def _names_course(entry: object) -> bool:
    return isinstance(entry, str) and entry.startswith(_COURSE_PREFIX) and entry != _COURSE_PREFIX


def _is_one_of(known: "_Key", key: str, value: object) -> Predicate:
    wanted = frozenset(_wanted(known, key, item) for item in (value if isinstance(value, list) else [value]))
    field, read = known.field, known.read

    def predicate(document: Mapping[str, Any]) -> bool:
        have = document.get(field)
        if isinstance(have, list):
            return any(read(item) in wanted for item in have)
        return read(have) in wanted

    return predicate


def _negated(predicate: Predicate) -> Predicate:
    return lambda document: not predicate(document)


def _compares(known: "_Key", key: str, holds: Callable[[Any, Any], bool], value: object) -> Predicate:
    last = value[-1] if isinstance(value, list) and value else value
    if known.read is _instant and isinstance(last, str) and (last.startswith("now") or "||" in last):
        # Date math ("now-30d", "2026-01-01||+1M") is legal in Elasticsearch; it needs a clock, and there is none here.
        raise Unfaithful(key, last)
    bound = _wanted(known, key, last)
    field, read = known.field, known.read

    def predicate(document: Mapping[str, Any]) -> bool:
        have = document.get(field)
        for item in have if isinstance(have, list) else (have,):
            found = read(item)
            if found is not None and holds(found, bound):
                return True
        return False

    return predicate


def _wanted(known: "_Key", key: str, value: object) -> Comparable:
    """A filter's own value, read as the document's values will be. Only documents hold objects."""
    read = None if isinstance(value, Mapping) else known.read(value)
    if read is None:
        raise BadFilter(key, value, f"not {known.expects}", f"give {known.expects}, or a list of them")
    return read


def _word(value: object) -> str | None:
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | float) else None


def _folded(value: object) -> str | None:
    word = _word(value)
    return None if word is None else word.lower()


def _slug(value: object) -> str | None:
    return _word(value.get("slug") if isinstance(value, Mapping) else value)


def _organization(value: object) -> str | None:
    """A full document's organization is an object; search/all's index has it as "key: name"."""
    if isinstance(value, Mapping):
        key, name = _folded(value.get("key")), _folded(value.get("name"))
        return None if key is None or name is None else f"{key}: {name}"
    return _folded(value)


def _truth(value: object) -> bool | None:
    if isinstance(value, bool):
        return value
    return {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and not _DECIMAL.fullmatch(value):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _instant(value: object) -> datetime.datetime | None:
    if not isinstance(value, str):
        return None
    try:
        instant = datetime.datetime.fromisoformat(value)
    except ValueError:
        return None
    return instant if instant.tzinfo else instant.replace(tzinfo=datetime.UTC)


@dataclass(frozen=True, slots=True)
class _Key:
    """What search/all does with one key: which field it looks at, how it reads a value, which lookups it has."""

    field: str
    read: Reader
    expects: str
    lookups: frozenset[str]


_COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "__gt": operator.gt,
    "__gte": operator.ge,
    "__lt": operator.lt,
    "__lte": operator.le,
}

_PLAIN = frozenset({""})
_EXCLUDABLE = frozenset({"", "__exclude"})
_ORDERED = frozenset(_COMPARISONS)

_KEYS: Mapping[str, _Key] = {
    "aggregation_key": _Key("aggregation_key", _word, "a text", _EXCLUDABLE),
    "course_type": _Key("course_type", _word, "a text", _EXCLUDABLE),
    "key.raw": _Key("key", _word, "a text", _EXCLUDABLE),
    "key": _Key("key", _folded, "a text", _PLAIN),
    "org": _Key("org", _folded, "a text", _EXCLUDABLE),
    "authoring_organizations": _Key("authoring_organizations", _organization, "a text", _EXCLUDABLE),
    "partner": _Key("partner", _folded, "a text", _PLAIN),
    "type": _Key("type", _folded, "a text", _PLAIN),
    "enrollment_mode": _Key("type", _folded, "a text", _PLAIN),
    "product_source": _Key("product_source", _slug, "a text", _PLAIN),
    "first_enrollable_paid_seat_price": _Key(
        "first_enrollable_paid_seat_price", _number, "a number", _PLAIN | _ORDERED
    ),
    "active": _Key("is_active", _truth, "true or false", _PLAIN),
    **{
        name: _Key(name, _word, "a text", _PLAIN)
        for name in (
            "content_type",
            "availability",
            "level_type",
            "course_ends",
            "languages",
            "number",
            "pacing_type",
            "external_course_marketing_type",
            "skill_names",
            "subject_uuids",
            "authoring_organization_uuids",
            "status",
        )
    },
    **{
        name: _Key(name, _truth, "true or false", _PLAIN)
        for name in ("published", "hidden", "has_enrollable_seats", "is_active", "enterprise_subscription_inclusion")
    },
    **{name: _Key(name, _instant, "an ISO 8601 date", _ORDERED) for name in ("start", "end", "end_date")},
}

FIELDS = tuple(sorted({known.field for known in _KEYS.values()}))
"""Every field of a document that some filter can look at; a source need keep no others to evaluate filters."""
