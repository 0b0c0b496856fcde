"""Structured lines on standard error, for people or for a log collector; other libraries' lines in the same form."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

import structlog
from structlog.typing import EventDict, Processor

from sidecar.settings import LogSettings

# They tell every step, some with the data that pass through them.
_TALKATIVE: Final = ("aiosqlite", "alembic", "apscheduler", "asyncio", "sqlalchemy")
# It tells of every request that is no HTTP, with a traceback and the beginning of what came: of a token, perhaps. What
# goes wrong in a handler is caught and logged where requests enter.
_INDISCREET: Final = "aiohttp.server"
_answering: ContextVar[Callable[[], str] | None] = ContextVar("answering", default=None)


@contextmanager
def logging_as(request_id: Callable[[], str]) -> Iterator[None]:
    """Within this, and in tasks that are begun within, every line has this `request_id`. It is asked for only when
    there is a line: most requests log nothing, and have no use for a number of their own.
    """
    before = _answering.set(request_id)
    try:
        yield
    finally:
        _answering.reset(before)


def add_request_id(_: object, __: str, event: EventDict) -> EventDict:
    """Adds the id of the request that is being answered, if one is."""
    request_id = _answering.get()
    if request_id is not None:
        event["request_id"] = request_id()
    return event


_SHARED: Final[tuple[Processor, ...]] = (
    add_request_id,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)


def configure(settings: LogSettings, **context: object) -> None:
    """At the start of a process; `context` is told in each of its lines."""

    def with_context(_: object, __: str, event: EventDict) -> EventDict:
        return {**context, **event}

    shared = (*_SHARED, with_context)
    last: tuple[Processor, ...] = (structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),)
    if settings.format == "json":
        last = (structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer())
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.level.upper())
    for library in _TALKATIVE:
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.getLogger(_INDISCREET).setLevel(logging.CRITICAL)
