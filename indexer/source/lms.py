"""What the LMS says of a customer: one request each, through a door of its own."""

from typing import Any

from indexer.source import CustomerDetails, SourceError
from indexer.source.upstream import Door, Refused, Request, Tally
from sidecar.contract.words import canonical_uuid


class Lms:
    """Enterprise customers of one LMS."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def customer(self, uuid: str) -> CustomerDetails | None:
        """The details of a customer; None if the LMS does not know it. Raises SourceError for anything else."""
        what = f"customer {uuid}"
        request = Request(what, "GET", f"/enterprise/api/v1/enterprise-customer/{uuid}/")
        try:
            details = await self._door.ask(request, Tally())
        except Refused as refused:
            if refused.status == 404:
                return None
            raise
        return read_customer(details, uuid, what)

    async def close(self) -> None:
        await self._door.close()


def read_customer(details: Any, uuid: str, what: str) -> CustomerDetails:
    """The details in the LMS's answer. Raises SourceError if they have another shape, or are another customer's."""
    if not isinstance(details, dict):
        raise SourceError(f"{what}: the answer is {details!r:.80}, and not an object")
    found = details.get("uuid")
    if not isinstance(found, str) or canonical_uuid(found) != canonical_uuid(uuid):
        raise SourceError(f"{what}: the answer is about {found!r:.80}")
    slug, name, modified = (details.get(field) for field in ("slug", "name", "modified"))
    portal = details.get("enable_learner_portal")
    if not (isinstance(slug, str) and isinstance(name, str) and isinstance(modified, str) and isinstance(portal, bool)):
        raise SourceError(f"{what}: slug, name and modified must be texts, and enable_learner_portal a boolean")
    return CustomerDetails(canonical_uuid(uuid) or uuid, slug, portal, name, modified)
