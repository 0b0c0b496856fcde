"""What there is to be known, in plain Python: what a version of the content has, what a catalog may be, what is asked.

The content is made so that every answer tells what it was made of. Each of the ORGS has, in version n of the content:

    <org>+base0 … +base11   courses of every version, with one run each: the anchors; their titles say "v<n>"
    <org>+v<n>              a course, with one run, of this version alone: the marker
    <org>+odd               a course, with one run, of odd versions: it goes and comes back

so that a page shows one version whole, and a key is contained or not by a rule of one line. A catalog's title says
which write made it: "m3 w17". Nothing here imports the compiler, the evaluator of filters, or any other code that is
judged with it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from tests.fakes import Json, catalog_body, course, customer, run, uuid_of

ORGS: Final = tuple(f"Org{n}" for n in range(6))
"""Each has one query, which a catalog that nobody changes keeps wanted: whoever moves there has content at once."""
FRESH_ORGS: Final = tuple(f"New{n}" for n in range(3))
"""Their catalogs get filters that nobody has asked for before, so that content has to be pulled first."""
ANCHORS: Final = 12
HOLDERS: Final = "Holders"
CUSTOMERS: Final = (HOLDERS, *(f"Movers{n}" for n in range(4)), "Newcomers")


def runs_key(key: str) -> str:
    """The one run of a course."""
    return f"course-v1:{key}+R"


def courses_of(org: str, version: int) -> list[str]:
    """The keys of an organisation's courses in a version of the content."""
    odd = [f"{org}+odd"] if version % 2 else []
    return [*(f"{org}+base{n}" for n in range(ANCHORS)), f"{org}+v{version}", *odd]


def has(org: str, version: int, key: str) -> bool:
    """Whether a catalog of this organisation, with this version of the content, contains a key."""
    owner, _, name = key.removeprefix("course-v1:").removesuffix("+R").partition("+")
    if owner != org:
        return False
    return name.startswith("base") or name == f"v{version}" or (name == "odd" and version % 2 == 1)


def corpus(version: int, orgs: Iterable[str] = (*ORGS, *FRESH_ORGS)) -> Json:
    """All content of a version, as a corpus file has it; or that of some organisations."""
    courses = [
        course(key, run(runs_key(key)), title=f"{key} v{version}") for org in orgs for key in courses_of(org, version)
    ]
    customers = [customer(name) for name in CUSTOMERS]
    return {"courses": courses, "programs": [], "pathways": [], "reviews": [], "customers": customers}


def shown(documents: list[Json]) -> tuple[str, int] | None:
    """The organisation and version of which these are all documents; None if they are of no one version."""
    titles = {str(document["key"]): str(document["title"]) for document in documents}
    for key, title in titles.items():
        org, version = key.partition("+")[0], title.rpartition(" v")[2]
        if version.isdigit():
            wanted = {key: f"{key} v{version}" for key in courses_of(org, int(version))}
            if titles == wanted and len(documents) == len(wanted):
                return org, int(version)
        return None
    return None


@dataclass(frozen=True, slots=True)
class Value:
    """A catalog as a write leaves it; `org` is the organisation whose content it is about, `number` its filter's."""

    title: str
    org: str
    number: int | None = None

    @property
    def content_filter(self) -> Json:
        found: Json = {"content_type": "course", "org": [self.org]}
        # Nothing has such a key: it makes a query of its own, which finds the same.
        return found if self.number is None else found | {"key__exclude": [f"nothing+{self.number}"]}


@dataclass(frozen=True, slots=True)
class Named:
    """A catalog by its name, from which its uuid is made, and its customer."""

    name: str
    customer: str
    fresh: bool = False

    @property
    def uuid(self) -> str:
        return uuid_of(f"catalog {self.name}")

    def body(self, value: Value) -> Json:
        """The body that creates it."""
        return catalog_body(value.title, value.content_filter, of=self.customer, uuid=self.uuid)


def beginnings() -> Iterator[tuple[Named, Value]]:
    """The catalogs of the beginning: one for each organisation, which stays, and three of each customer, which move."""
    for org in ORGS:
        yield Named(f"holder {org}", HOLDERS), Value(f"holder {org} w1", org)
    for number, name in enumerate(name for name in CUSTOMERS[1:-1] for _ in range(3)):
        yield Named(f"m{number}", name), Value(f"m{number} w1", ORGS[number % len(ORGS)])
