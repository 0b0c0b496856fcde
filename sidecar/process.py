"""The process that answers: its event loop, its signals, and the end of it. Alone; of several, `workers/` knows.

Raises Unusable if settings that looked right one by one turn out not to work.
"""

import asyncio
import signal
import sys
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import uvloop

from sidecar import collector
from sidecar.app import serve
from sidecar.clock import SystemClock
from sidecar.errors import StoreError
from sidecar.keys import KeysUnusable
from sidecar.settings import Settings, Unusable
from sidecar.store.urls import open_store

# A generation is opened and joined in a thread, and each request waits so long for its turn: CPython's own is 5 ms. The
# thread gets no less done for it, measured down to half of this.
SWITCH_INTERVAL_S: Final = 0.0001

T = TypeVar("T")


def answer(settings: Settings) -> None:
    """Answers until SIGTERM or SIGINT. Raises Unusable and CannotListen."""
    run(_answer(settings))


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs what answers, on an event loop that is made for it. Raises Unusable, and whatever the work raises."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    collector.take_over()
    try:
        return uvloop.run(work)
    except (StoreError, KeysUnusable) as error:
        raise Unusable(str(error)) from error


def told_to_stop() -> asyncio.Event:
    """What SIGTERM and SIGINT set from now on."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def _answer(settings: Settings) -> None:
    await serve(settings, open_store(settings.store.url, writable=False), SystemClock(), told_to_stop())
