"""The supervisor: carries out what `plan.py` decides, and stands between the workers. It answers no request itself.

Nothing of what answers is imported here.
"""

import asyncio
import secrets
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from socket import socketpair
from typing import Any, Final

import structlog

from sidecar.clock import Clock, SystemClock
from sidecar.log import configure
from sidecar.settings import Settings, SettingsError, Unusable, load
from sidecar.sockets import Bound, bound
from sidecar.workers import page
from sidecar.workers.channel import Channel, Message, plain
from sidecar.workers.plan import Accept, Action, Finish, Kill, Note, Plan, Start

COLLECT_S: Final = 1.0
# What decides where it listens and how often: sockets and slots are made once.
FIXED: Final = ("host", "port", "socket", "workers")
NOTHING: Final = (0, 0)
DIED: Final = "catalog_sidecar_worker_deaths"
_log = structlog.get_logger(__name__)


def supervise(settings: Settings, config: Path | None, environ: Mapping[str, str]) -> None:
    """Keeps the workers running until SIGTERM or SIGINT. Raises CannotListen, and Unusable if none of them can work."""
    its = settings.sidecar
    with bound(its.host, its.port, its.socket, its.workers, section="sidecar") as sockets:
        asyncio.run(Supervisor(settings, sockets, lambda: load(config, environ), SystemClock()).run())


@dataclass(slots=True)
class Child:
    """A worker as the supervisor knows it: what it said of itself, and what it is asked just now."""

    slot: int
    process: Process
    channel: Channel
    up: bool = False
    serves: tuple[int, int] = NOTHING
    ready: bool = False
    told: dict[str, page.Family] = field(default_factory=dict)
    asked: dict[int, asyncio.Future[None]] = field(default_factory=dict)


def oldest_answered(children: Mapping[int, Child], serving: Collection[int]) -> tuple[int, int]:
    """The oldest state that anybody is answered from; `serving` are the workers that have a slot.

    A worker that gave its slot away answers on over the connections that it has, until it has said its last: a write
    that did not wait for it could not be read back there.
    """
    answering = [child for id, child in children.items() if id in serving or (child.ready and not child.channel.ended)]
    return min((child.serves for child in answering), default=NOTHING)


class Supervisor:
    """The workers of one sidecar. `read` gives the settings as they are now, for an exchange; raises SettingsError."""

    def __init__(self, settings: Settings, sockets: Bound, read: Callable[[], Settings], clock: Clock) -> None:
        self._settings = settings
        self._sockets = sockets
        self._read = read
        self._plan = Plan(len(sockets.slots), settings, clock.monotonic)
        self._clock = clock
        # What tells the workers of this sidecar from those of another one.
        self._token = secrets.token_hex(16)
        self._children: dict[int, Child] = {}
        # What is to be said to those that are being started.
        self._unsaid: dict[int, list[tuple[str, dict[str, Any]]]] = {}
        # What workers have counted that are no more.
        self._counted: dict[str, page.Family] = {}
        self._asks = 0
        self._refusal = ""
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Until all workers have ended because they were told to. Raises Unusable."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._exchange)
        where = self._sockets.listening
        _log.info("listening", host=where.host, port=where.port, socket=where.socket, workers=len(self._sockets.slots))
        self._do(self._plan.begin())
        await self._over.wait()
        await asyncio.gather(*self._tasks)
        if self._plan.unusable:
            raise Unusable(self._refusal)

    def _stop(self) -> None:
        _log.info("stopping")
        self._do(self._plan.stop())

    def _exchange(self) -> None:
        try:
            settings = self._read()
        except SettingsError as error:
            _log.error("no worker is exchanged", reason=str(error))
            return
        fixed = {name: getattr(self._settings.sidecar, name) for name in FIXED}
        changed = [f"sidecar.{name}" for name in FIXED if getattr(settings.sidecar, name) != fixed[name]]
        if changed:
            _log.warning("changed settings need a restart", settings=changed)
        configure(settings.log)
        self._do(self._plan.roll(replace(settings, sidecar=replace(settings.sidecar, **fixed))))

    def _do(self, actions: list[Action[Settings]]) -> None:
        for action in actions:
            match action:
                case Start():
                    self._unsaid[action.worker] = []
                    self._task(self._look_after(action))
                case Note(level, event, fields):
                    getattr(_log, level)(event, **fields)
                case Accept(worker, slots):
                    self._say(worker, "accept", slots=slots)
                case Finish(worker, drain):
                    self._say(worker, "drain" if drain else "finish")
                case Kill(worker):
                    self._kill(worker)
        if (id := self._next_ready()) is not None:
            self._children[id].ready = True
            self._do(self._plan.ready(id))
            return
        self._tell_state()
        if self._timer is not None:
            self._timer.cancel()
        due_s = self._plan.due_s
        if due_s is not None:
            pause_s = max(0.0, due_s - self._clock.monotonic())
            self._timer = asyncio.get_running_loop().call_later(pause_s, lambda: self._do(self._plan.tick()))
        if self._plan.over:
            self._over.set()

    async def _look_after(self, start: Start[Settings]) -> None:
        """One worker, from its start to its end."""
        code = 1
        try:
            child = await self._started(start)
        except OSError as error:
            del self._unsaid[start.worker]
            _log.error("a worker cannot be started", worker=start.slot + 1, error=str(error))
        else:
            while (message := await child.channel.receive()) is not None:
                self._hear(start.worker, child, message)
            code = await child.process.wait()
            await child.channel.close()
            del self._children[start.worker]
            self._counted = page.added([self._counted, child.told])
            for asked in child.asked.values():
                asked.cancel()
        self._do(self._plan.ended(start.worker, code))

    async def _started(self, start: Start[Settings]) -> Child:
        ours, theirs = socketpair()
        slots = [[one.fileno() for one in own] for own in self._sockets.slots]
        unix = None if self._sockets.unix is None else self._sockets.unix.fileno()
        descriptors = [theirs.fileno(), *(one for own in slots for one in own), *([] if unix is None else [unix])]
        with theirs:
            # -P: from where this was imported, and not from the working directory. A group of its own: Ctrl-C is for
            # the supervisor, which tells them.
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "sidecar.workers.worker", str(theirs.fileno())),
                stdin=DEVNULL,
                pass_fds=descriptors,
                process_group=0,
            )
        child = Child(start.slot, process, await Channel.over(ours))
        self._children[start.worker] = child
        _log.info("worker started", worker=start.slot + 1, pid=process.pid)
        child.channel.send(
            "hello",
            settings=plain(start.settings),
            number=start.slot + 1,
            wanted=len(slots),
            token=self._token,
            slots=slots,
            unix=unix,
        )
        for kind, fields in self._unsaid.pop(start.worker):
            child.channel.send(kind, **fields)
        return child

    def _hear(self, id: int, child: Child, message: Message) -> None:
        match message:
            case {"is": "up"}:
                child.up = True
                self._do(self._plan.up(id))
            case {"is": "refused", "text": str(text)}:
                child.channel.end()
                self._refusal = text
                _log.error("a worker cannot work with the settings", worker=child.slot + 1, reason=text)
            case {"is": "serves", "epoch": int(epoch), "generation": int(generation)}:
                child.serves = (epoch, generation)
                self._do([])
            case {"is": "last", "families": families}:
                child.channel.end()
                child.told = page.families_of(families)
            case {"is": "collected", "ask": int(ask), "families": families}:
                child.told = page.families_of(families)
                if (asked := child.asked.pop(ask, None)) is not None and not asked.done():
                    asked.set_result(None)
            case {"is": "scrape", "ask": int(ask)}:
                self._task(self._answer(child, ask))

    async def _answer(self, child: Child, ask: int) -> None:
        """The page for the worker that was asked for it."""
        serving = set(self._plan.serving)
        answered = await self._collect()
        telling = [self._children[id].told for id in answered & serving if id in self._children]
        deaths = page.Family("counter", "", {(f"{DIED}_total", ()): self._plan.deaths})
        counting = [*(each.told for each in self._children.values()), self._counted, {DIED: deaths}]
        child.channel.send("page", ask=ask, families=page.plain(page.one_page(counting, telling)))

    async def _collect(self) -> set[int]:
        """Has all workers tell what they count; those that did in time."""
        self._asks += 1
        ask = self._asks
        waits: dict[asyncio.Future[None], int] = {}
        for id, child in self._children.items():
            if child.up and not child.channel.ended:
                child.asked[ask] = asyncio.get_running_loop().create_future()
                waits[child.asked[ask]] = id
                child.channel.send("collect", ask=ask)
        if not waits:
            return set()
        done, silent = await asyncio.wait(waits, timeout=COLLECT_S)
        for wait in silent:
            wait.cancel()
        return {waits[one] for one in done if not one.cancelled()}

    def _next_ready(self) -> int | None:
        """A worker that has come to serve what the others do: with an older state, as from a disk copy that lags
        behind, it would have callers see time go back.
        """
        least = self._least()
        for id, child in self._children.items():
            if not child.ready and child.serves != NOTHING and child.serves >= least:
                return id
        return None

    def _least(self) -> tuple[int, int]:
        """The oldest state that is served."""
        return min((child.serves for child in self._serving()), default=NOTHING)

    def _serving(self) -> list[Child]:
        return [child for id in self._plan.serving if (child := self._children.get(id)) is not None]

    def _tell_state(self) -> None:
        running, least = len(self._serving()), oldest_answered(self._children, self._plan.serving)
        for child in self._children.values():
            child.channel.send("state", running=running, least=least)

    def _say(self, id: int, kind: str, **fields: Any) -> None:
        if id in self._unsaid:
            self._unsaid[id].append((kind, fields))
        elif id in self._children:
            self._children[id].channel.send(kind, **fields)

    def _kill(self, id: int) -> None:
        child = self._children.get(id)
        if child is not None:
            with suppress(ProcessLookupError):
                child.process.kill()

    def _task(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
