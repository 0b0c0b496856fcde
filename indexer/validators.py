"""Whether what a pull has found may replace what is served. Pure: content keys and their types in, objections out.

A failed upstream call that looks like an answer empties a catalog, halves it, or swaps it for another; so members are
looked at, and not only how many there are. The rules, for the members and, where both have them, for those that show
restricted runs:

    emptied    there were some, and now there is none
    shrunk     it is smaller, and more than `lost` of them are gone
    swapped    more than `lost` of them are gone, and about as many came; or of two and more not one has stayed
    grown      more than `gained` times as many came as there were, where fewer than ten count as ten
    type gone  it had two or more of a content type, and now has none, while others have stayed

Fewer than `floor` members may always go, but not the last. Where `lost` is 1, all may go: what is left of these rules
is the one about growing.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from sidecar.contract.words import ContentType

Content = Mapping[str, ContentType]
# That one item has gone says nothing of all the others.
SEVERAL: Final = 2
# What has just begun may grow to many times its size.
YOUNG: Final = 10
SHOWN: Final = {
    ContentType.COURSE: "course",
    ContentType.COURSE_RUN: "course run",
    ContentType.PROGRAM: "program",
    ContentType.PATHWAY: "pathway",
}


class Rule(StrEnum):
    """What an objection is about; the words are those of the metric."""

    EMPTIED = "emptied"
    SHRUNK = "shrunk"
    SWAPPED = "swapped"
    GROWN = "grown"
    TYPE_GONE = "type gone"


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a result may differ: shares of the members that were there, and how few that go do not count."""

    lost: float
    gained: float
    floor: int


@dataclass(frozen=True, slots=True)
class Found:
    """What a pull finds, or what is served: members, and with restricted runs shown where that was asked for."""

    members: Content
    restricted: Content | None = None


@dataclass(frozen=True, slots=True)
class Objection:
    """One reason to refuse a result. Counts are of members, of one type if `type` names one."""

    rule: Rule
    before: int
    after: int
    lost: int
    gained: int
    type: str | None = None
    restricted: bool = False

    def __str__(self) -> str:
        of = f"{self.type}s" if self.type else "members"
        shown = ", with restricted runs shown" if self.restricted else ""
        return (
            f"{self.rule}: {self.before:,} {of} before, {self.after:,} now, {self.lost:,} lost ("
            f"{self.lost / self.before:.0%}), {self.gained:,} gained{shown}"
        )


def validate(before: Found, after: Found, limits: Limits) -> list[Objection]:
    """Every objection to `after` in the place of `before`; none if it may be."""
    objections = list(_objections(before.members, after.members, limits, restricted=False))
    if before.restricted is not None and after.restricted is not None:
        objections += _objections(before.restricted, after.restricted, limits, restricted=True)
    return objections


def is_like(approved: Found, found: Found, limits: Limits) -> bool:
    """Whether whoever let the one pass has let the other pass, too: they differ no more than results may."""
    pairs = [(approved.members, found.members)]
    if approved.restricted is not None and found.restricted is not None:
        pairs.append((approved.restricted, found.restricted))
    # There are no objections to what comes after nothing; yet to let nothing pass is to let nothing else pass.
    return not any(after and not before for before, after in pairs) and not validate(approved, found, limits)


def _objections(before: Content, after: Content, limits: Limits, *, restricted: bool) -> Iterator[Objection]:
    if not before:
        return
    lost, gained = len(before.keys() - after.keys()), len(after.keys() - before.keys())

    def objection(rule: Rule) -> Objection:
        return Objection(rule, len(before), len(after), lost, gained, restricted=restricted)

    if not after:
        if limits.lost < 1:
            yield objection(Rule.EMPTIED)
        return
    none_stayed = lost == len(before) >= SEVERAL and limits.lost < 1
    if none_stayed or (lost >= limits.floor and lost > limits.lost * len(before)):
        too_few = len(before) - len(after) >= limits.floor and len(after) < len(before) * (1 - limits.lost)
        yield objection(Rule.SHRUNK if too_few else Rule.SWAPPED)
    if gained > limits.gained * max(len(before), YOUNG):
        yield objection(Rule.GROWN)
    if limits.lost < 1 and not none_stayed:
        yield from _types_gone(before, after, restricted=restricted)


def _types_gone(before: Content, after: Content, *, restricted: bool) -> Iterator[Objection]:
    left = Counter(after.values())
    for kind, count in sorted(Counter(before.values()).items()):
        if count >= SEVERAL and not left[kind]:
            yield Objection(Rule.TYPE_GONE, count, 0, count, 0, type=SHOWN[kind], restricted=restricted)


def differing(before: Content, after: Content) -> tuple[Set[str], Set[str]]:
    """The content keys that would be lost, and those that would be gained."""
    return before.keys() - after.keys(), after.keys() - before.keys()
