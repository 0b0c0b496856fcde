"""Taking catalogs over from elsewhere: which are new, which are there already, which say something else.

An offer is a catalog as the other side has it. What of it is only guessed is never compared with, or written over, what
a catalog that exists here says: a second run with the same offers changes nothing, however little is known by then.
Nothing that is here is changed unless that was asked for, no shared query either.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from indexer.catalog_body import ATTRIBUTES, BadCatalog, CatalogBody, read_catalog
from indexer.offer import Offer
from indexer.registry import Registry, Transaction, catalogs
from indexer.registry.catalogs import QueryClash

SHOWN: Final = 50
NO_UUID: Final = "it has no uuid, and so it could not be told from one that was taken over before"


@dataclass(frozen=True, slots=True)
class Guess:
    """A value that the other side does not tell, and where it is from."""

    catalog: str
    field: str
    value: object
    why: str


@dataclass(frozen=True, slots=True)
class Left:
    """A catalog that was left as it is, here or there, and why."""

    catalog: str
    why: str


@dataclass(slots=True)
class Report:
    """What became of every offer; all but `guessed` are in order of the offers."""

    taken: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    conflicts: list[Left] = field(default_factory=list)
    not_taken: list[Left] = field(default_factory=list)
    guessed: list[Guess] = field(default_factory=list)
    dry_run: bool = False

    @property
    def changes(self) -> int:
        """How many catalogs were made or changed, or would be."""
        return len(self.taken) + len(self.updated)

    @property
    def is_whole(self) -> bool:
        """Whether everything that was offered is here now as it was offered."""
        return not self.conflicts and not self.not_taken

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def as_text(self) -> str:
        """For people: the numbers, what is left to do, and guesses of one kind together."""
        would = " (nothing was written: this was a dry run)" if self.dry_run else ""
        done = f"{len(self.taken)} catalogs taken over, {len(self.updated)} updated, {len(self.unchanged)} unchanged"
        left = f"{len(self.conflicts)} conflicts, {len(self.not_taken)} could not be taken over"
        lines = [f"{done}, {left}{would}"]
        for title, those in (("conflict", self.conflicts), ("not taken", self.not_taken)):
            lines += [f"  {title}  {one.catalog}  {one.why}" for one in those[:SHOWN]]
            if len(those) > SHOWN:
                lines.append(f"  {title}  and {len(those) - SHOWN} more; --json names all")
        kinds = Counter((guess.field, guess.why) for guess in self.guessed)
        lines += [f"  guessed  {name} of {number} catalogs: {why}" for (name, why), number in kinds.items()]
        return "\n".join(lines)


class _Undone(Exception):
    """Raised to leave the registry as it was."""


async def take_over(
    registry: Registry, offers: Sequence[Offer], who: str, *, update: bool = False, dry_run: bool = False
) -> Report:
    """Makes every catalog that is offered and not here, in their order, in one transaction.

    `update`: also changes those that say something else. `dry_run`: writes nothing, and reports what would be.
    """
    report = Report(dry_run=dry_run)
    try:
        async with registry.write() as tx:
            for offer in offers:
                await _take(tx, offer, who, update, report)
            if dry_run or not report.changes:
                # Not even the registry's clock moves, and so nothing is published.
                raise _Undone
    except _Undone:
        pass
    return report


async def _take(tx: Transaction, offer: Offer, who: str, update: bool, report: Report) -> None:
    if offer.lacks is not None:
        report.not_taken.append(Left(offer.name, offer.lacks))
        return
    try:
        body = read_catalog(offer.body)
    except BadCatalog as error:
        report.not_taken.append(Left(offer.name, str(error)))
        return
    uuid = body.uuid
    if uuid is None:
        report.not_taken.append(Left(offer.name, NO_UUID))
        return
    row = await catalogs.find(tx.connection, uuid)
    if row is not None:
        body = dataclasses.replace(body, **{ATTRIBUTES[name]: getattr(row, ATTRIBUTES[name]) for name in offer.guessed})
        differing = catalogs.differing(row, body)
        if not differing:
            report.unchanged.append(uuid)
            return
        if not update:
            report.conflicts.append(Left(uuid, f"it exists with another {', '.join(differing)}"))
            return
    elif not update and (query := await catalogs.query_changed_by(tx, body)) is not None:
        why = f"its query, {query}, exists with another uuid, title or filter, and belongs to other catalogs"
        report.conflicts.append(Left(uuid, why))
        return
    try:
        if row is None:
            await catalogs.create(tx, body, who, offer.changed_ms)
        else:
            await catalogs.change(tx, uuid, _fields(body), who)
    except QueryClash as error:
        report.not_taken.append(Left(uuid, f"its query clashes with another one: {error}"))
        return
    (report.taken if row is None else report.updated).append(uuid)
    if row is None:
        values = offer.body if isinstance(offer.body, Mapping) else {}
        report.guessed += [Guess(uuid, name, values.get(name), why) for name, why in offer.guessed.items()]


def _fields(body: CatalogBody) -> dict[str, Any]:
    return {one.name: getattr(body, one.name) for one in dataclasses.fields(body) if one.name != "uuid"}
