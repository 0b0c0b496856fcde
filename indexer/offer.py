"""A catalog that can be taken over, as far as the other side tells it. Pure.

An offer says of every value whether it is known or a guess, and why.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from sidecar.contract.words import canonical_uuid

# What a catalog has unless somebody says something else.
DEFAULTS: Final[Mapping[str, object]] = {
    "enabled_course_modes": ["verified", "professional", "no-id-professional", "audit", "honor"],
    "publish_audit_enrollment_urls": False,
}


@dataclass(frozen=True, slots=True)
class Offer:
    """A catalog as the other side has it: its body in the API's fields, and when it was last changed there.

    `guessed` says of a field of the body why its value is a guess; `lacks`, why the catalog cannot be taken over.
    """

    name: str
    body: object
    changed_ms: int | None = None
    guessed: Mapping[str, str] = field(default_factory=dict)
    lacks: str | None = None


def name_of(body: object, number: int) -> str:
    """What a catalog is called in messages: by its uuid, or else by its place."""
    uuid = body.get("uuid") if isinstance(body, Mapping) else None
    return (canonical_uuid(uuid) if isinstance(uuid, str) else None) or f"catalog {number}"


def time_ms(value: object) -> int | None:
    """Milliseconds of an ISO 8601 time; None if it is none, or before 1970."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    if moment is None:
        return None
    ms = math.floor((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    return ms if ms >= 0 else None
