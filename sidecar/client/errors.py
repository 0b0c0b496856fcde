"""Every error that a call of the client can end with, and which answer becomes which. Nothing here does I/O.

The line that matters runs between CannotTell and the others: those are answers, and this is none.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Final

from sidecar.client.exchange import Answer, Call

_SHOWN_LENGTH: Final = 300
# Refusals that say nothing of what was asked: later it may be answered.
_LATER: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})


class ClientError(Exception):
    """Base of all of these. `status` and `body` (JSON, or else text) are those of the answer, None without one;
    `retry_after_s` is what it asked for.
    """

    def __init__(
        self, text: str, status: int | None = None, body: object = None, retry_after_s: float | None = None
    ) -> None:
        # All of it, so that a task queue can pickle it.
        super().__init__(text, status, body, retry_after_s)
        self.status = status
        self.body = body
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return str(self.args[0])


class CannotTell(ClientError):
    """Raised when there is no answer: nobody listens, the deadline passed, the connection broke, 503 or another 5xx,
    or what came is not what was asked for. Of a write: whether it was made is not known, unless the text says so.
    """


class BadRequest(ClientError):
    """Raised when the service refuses what it was sent: 400, 409 (a uuid or title is taken), and every 4xx below."""


class NotAuthenticated(BadRequest):
    """Raised when there is no token, or no good one (401)."""


class Forbidden(BadRequest):
    """Raised when the roles of the token do not reach this far (403)."""


class NotFound(BadRequest):
    """Raised when the service knows no such catalog, query or content (404)."""


_OF_STATUS: Final[Mapping[int, type[ClientError]]] = {
    HTTPStatus.UNAUTHORIZED: NotAuthenticated,
    HTTPStatus.FORBIDDEN: Forbidden,
    HTTPStatus.NOT_FOUND: NotFound,
}


def error_of(call: Call, answer: Answer) -> ClientError | None:
    """The error that an answer means; None for a success."""
    if 200 <= answer.status < 300:
        return None
    kind = _OF_STATUS.get(answer.status, BadRequest)
    if not HTTPStatus.BAD_REQUEST <= answer.status < HTTPStatus.INTERNAL_SERVER_ERROR or answer.status in _LATER:
        kind = CannotTell
    text = answer.body.decode(errors="replace")
    body: object = text
    with suppress(ValueError, RecursionError):
        body = json.loads(text)
    retry_after_s: float | None = None
    with suppress(ValueError):
        # The other form, a date, is sent by no part of this service.
        retry_after_s = float(answer.headers.get("retry-after", ""))
    return kind(f"{call}: {answer.status} {text[:_SHOWN_LENGTH]}", answer.status, body, retry_after_s)
