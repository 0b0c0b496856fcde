"""What the LMS says of a customer: one request each, through a door of its own."""

from indexer.source import CustomerDetails, SourceError, read_customer
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
            details = read_customer(await self._door.ask(request, Tally()), what)
        except Refused as refused:
            if refused.status == 404:
                return None
            raise
        if details.uuid != canonical_uuid(uuid):
            raise SourceError(f"{what}: the answer is about {details.uuid}")
        return details

    async def close(self) -> None:
        await self._door.close()
