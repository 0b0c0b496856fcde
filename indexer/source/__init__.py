"""Where content comes from: the protocol of a source, and what one pull brings.

A pull is complete or it fails with a SourceError that says why; there is no partial result.
"""

from dataclasses import dataclass
from typing import Protocol

from indexer.documents import Item
from sidecar.contract.words import canonical_uuid


class SourceError(Exception):
    """Raised when a source cannot be read, or its answer is not whole; the last good content stays."""


class Unpullable(SourceError):
    """Raised when no pull of this content filter can ever pass at this source, until somebody changes the filter."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a content filter finds: exactly what search/all returns, and the courses that the filter forces in.

    `restricted` is the same search with restricted runs shown, for a filter that allows some; else None. Its items
    leave out the restricted runs that the filter does not allow, but their documents still show them. `requests` is
    how many requests the upstream was sent for it.
    """

    members: tuple[Item, ...]
    restricted: tuple[Item, ...] | None = None
    forced: tuple[Item, ...] = ()
    warnings: tuple[str, ...] = ()
    requests: int = 0


@dataclass(frozen=True, slots=True)
class CustomerDetails:
    """What the LMS says of an enterprise customer."""

    uuid: str
    slug: str
    portal: bool
    name: str
    modified: str


def read_customer(details: object, what: str) -> CustomerDetails:
    """The details in the LMS's document of a customer. Raises SourceError, beginning with `what`, for another shape."""
    if not isinstance(details, dict):
        raise SourceError(f"{what}: it is {details!r:.80}, and not an object")
    uuid = details.get("uuid")
    canonical = canonical_uuid(uuid) if isinstance(uuid, str) else None
    if canonical is None:
        raise SourceError(f"{what}: its uuid is {uuid!r:.80}")
    slug, name, modified = (details.get(field) for field in ("slug", "name", "modified"))
    portal = details.get("enable_learner_portal")
    if not (isinstance(slug, str) and isinstance(name, str) and isinstance(modified, str) and isinstance(portal, bool)):
        raise SourceError(f"{what}: slug, name and modified must be texts, and enable_learner_portal a boolean")
    return CustomerDetails(canonical, slug, portal, name, modified)


class Source(Protocol):
    """One upstream. Every method raises SourceError when the upstream does not answer, or not wholly."""

    async def pull(self, content_filter: object, *, since_ms: int = 0) -> Pulled:
        """Everything that a content filter finds now. Raises Unpullable for one that this source cannot evaluate.

        Full documents may be older than the search: they are shared by all pulls, but none is used that was fetched
        before `since_ms`.
        """
        ...

    async def customer(self, uuid: str) -> CustomerDetails | None:
        """The details of an enterprise customer; None if the upstream does not know it."""
        ...

    async def close(self) -> None:
        """Ends every connection."""
        ...
