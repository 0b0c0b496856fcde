"""What is done with workers, and when: started, given sockets, ended. Pure; time is passed in, and nothing is awaited.

Each event (a worker is ready, has ended, a signal, time that passed) gives the actions that follow from it, in order.
Whoever carries them out calls `tick` at `due_s`, seconds of the monotonic clock.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar

# A worker that has come up and is not ready is given its slot after this long, if nobody is: it can say so itself.
PATIENCE_S: Final = 3.0
# An exchange is given up if the new worker is not ready after this long.
READY_S: Final = 60.0
# Longer than a worker may take to end by its own deadlines, in a hurry and not.
END_S: Final = 30.0
DRAIN_END_S: Final = 100.0
# One that ran this long is started again at once.
STABLE_S: Final = 10.0
FIRST_PAUSE_S: Final = 0.5
MAX_PAUSE_S: Final = 30.0
# The exit code of a worker that cannot work with its settings.
UNUSABLE: Final = 2

T = TypeVar("T")


class Start(NamedTuple, Generic[T]):
    """Start a worker."""

    worker: int
    slot: int
    settings: T


class Accept(NamedTuple):
    """Have a worker take connections from these slots and no others."""

    worker: int
    slots: tuple[int, ...]


class Finish(NamedTuple):
    """Have a worker end; `drain`: after its connections have, which others still ask over."""

    worker: int
    drain: bool


class Kill(NamedTuple):
    """End a worker that did not end by itself."""

    worker: int


class Note(NamedTuple):
    """Write a line to the log."""

    level: Literal["info", "warning", "error"]
    event: str
    fields: dict[str, Any]


Action = Start[T] | Accept | Finish | Kill | Note


@dataclass(slots=True)
class _Worker(Generic[T]):
    id: int
    slot: int
    settings: T
    started_s: float
    up_s: float | None = None
    state: Literal["coming", "serving", "ending"] = "coming"
    ready: bool = False
    accepts: tuple[int, ...] = ()
    kill_s: float | None = None


@dataclass(slots=True)
class _Slot(Generic[T]):
    settings: T
    serving: _Worker[T] | None = None
    coming: _Worker[T] | None = None
    failures: int = 0
    start_s: float | None = None


@dataclass(slots=True)
class _Roll(Generic[T]):
    """An exchange that is under way: at which slot it is, and the worker that must come or go before the next."""

    settings: T
    slot: int = -1
    waits_for: int = 0


@dataclass(slots=True)
class Plan(Generic[T]):
    """The workers of all slots; `T` is what a worker is started with."""

    count: int
    settings: T
    now_s: Callable[[], float]
    # Why no worker can work, if that was so from the beginning.
    unusable: bool = False
    stopping: bool = False
    # How many ended that were not told to.
    deaths: int = 0
    _slots: list[_Slot[T]] = field(init=False)
    _workers: dict[int, _Worker[T]] = field(default_factory=dict)
    _actions: list[Action[T]] = field(default_factory=list)
    _roll: _Roll[T] | None = None
    _again: tuple[T] | None = None
    _last_id: int = 0
    _worked: bool = False

    def __post_init__(self) -> None:
        self._slots = [_Slot(self.settings) for _ in range(self.count)]

    @property
    def over(self) -> bool:
        """Whether it was told to stop and nobody is left."""
        return self.stopping and not self._workers

    @property
    def serving(self) -> list[int]:
        """The workers that have a slot."""
        return [slot.serving.id for slot in self._slots if slot.serving is not None]

    @property
    def due_s(self) -> float | None:
        """When something is to be done if nothing happens until then."""
        times = [slot.start_s for slot in self._slots]
        times += [worker.kill_s for worker in self._workers.values()]
        times += [self._deadline_s(worker) for worker in self._workers.values()]
        return min((time for time in times if time is not None), default=None)

    def begin(self) -> list[Action[T]]:
        """Starts a worker for every slot."""
        for number in range(self.count):
            self._start(number, self._slots[number].settings)
        return self._take()

    def up(self, id: int) -> list[Action[T]]:
        """A worker can work with its settings, and begins to."""
        self._workers[id].up_s = self.now_s()
        self._worked = True
        return self._take()

    def ready(self, id: int) -> list[Action[T]]:
        """A worker serves a generation."""
        worker = self._workers[id]
        worker.ready = True
        if worker.state == "coming":
            self._give_slot(worker)
        if self._roll is not None and self._roll.waits_for == id and worker.state == "serving":
            self._go_on()
        return self._take()

    def ended(self, id: int, code: int) -> list[Action[T]]:
        """A worker is no more; the code is negative after a signal."""
        worker = self._workers.pop(id)
        slot = self._slots[worker.slot]
        awaited = self._roll is not None and self._roll.waits_for == id
        if worker.state == "ending":
            if awaited:
                self._go_on()
            return self._take()
        if worker is slot.serving:
            slot.serving = None
        else:
            slot.coming = None
        self.deaths += 1
        self._note("error", "a worker ended", worker=worker.slot + 1, code=code)
        if code == UNUSABLE and not self._worked:
            self.unusable = True
            return self.stop()
        if slot.serving is None and slot.coming is None:
            self._start_again(slot, 0.0 if worker.up_s is None else self.now_s() - worker.up_s)
        self._cover()
        if awaited:
            self._give_up(worker, "it ended")
        return self._take()

    def roll(self, settings: T) -> list[Action[T]]:
        """Exchanges all workers for such with these settings, one by one; after the exchange that is under way."""
        if self.stopping:
            return []
        if self._roll is not None:
            self._again = (settings,)
        else:
            self._roll = _Roll(settings)
            self._note("info", "workers are exchanged")
            self._next_slot()
        return self._take()

    def stop(self) -> list[Action[T]]:
        """Ends all workers."""
        self.stopping, self._roll, self._again = True, None, None
        for slot in self._slots:
            slot.start_s = None
        for worker in self._workers.values():
            self._end(worker, drain=False)
        return self._take()

    def tick(self) -> list[Action[T]]:
        """Does what is due by now."""
        now_s = self.now_s()
        for number, slot in enumerate(self._slots):
            if slot.start_s is not None and slot.start_s <= now_s:
                self._start(number, slot.settings)
        for worker in list(self._workers.values()):
            if worker.kill_s is not None and worker.kill_s <= now_s:
                worker.kill_s = None
                self._note("error", "a worker does not end; it is killed", worker=worker.slot + 1)
                self._actions.append(Kill(worker.id))
            deadline_s = self._deadline_s(worker)
            if deadline_s is None or deadline_s > now_s:
                continue
            if self._roll is not None and self._roll.waits_for == worker.id:
                self._give_up(worker, f"it was not ready within {READY_S:g} s")
            else:
                self._give_slot(worker)
        return self._take()

    def _deadline_s(self, worker: _Worker[T]) -> float | None:
        """When a worker that is not ready by then is to be dealt with."""
        if worker.state == "ending" or worker.ready:
            return None
        if self._roll is not None and self._roll.waits_for == worker.id:
            return worker.started_s + READY_S
        covered = any(slot.serving is not None and slot.serving.ready for slot in self._slots)
        if worker.state == "serving" or worker.up_s is None or covered:
            return None
        return worker.up_s + PATIENCE_S

    def _start(self, number: int, settings: T) -> _Worker[T]:
        self._last_id += 1
        worker = _Worker(self._last_id, number, settings, self.now_s())
        self._workers[worker.id] = worker
        self._slots[number].coming, self._slots[number].start_s = worker, None
        self._actions.append(Start(worker.id, number, settings))
        return worker

    def _start_again(self, slot: _Slot[T], lived_s: float) -> None:
        slot.failures = 0 if lived_s >= STABLE_S else slot.failures + 1
        pause_s = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2 ** (slot.failures - 1)) if slot.failures else 0.0
        slot.start_s = self.now_s() + pause_s

    def _give_slot(self, worker: _Worker[T]) -> None:
        slot = self._slots[worker.slot]
        old, slot.serving, slot.coming = slot.serving, worker, None
        slot.settings = worker.settings
        worker.state = "serving"
        self._cover()
        if old is not None:
            self._end(old, drain=True)

    def _end(self, worker: _Worker[T], *, drain: bool) -> None:
        worker.state = "ending"
        slot = self._slots[worker.slot]
        slot.serving = None if slot.serving is worker else slot.serving
        slot.coming = None if slot.coming is worker else slot.coming
        worker.kill_s = self.now_s() + (DRAIN_END_S if drain else END_S)
        self._actions.append(Finish(worker.id, drain))

    def _cover(self) -> None:
        """Has every slot somebody who takes its connections: its own worker, else the next slot's that there is."""
        accepts: dict[int, list[int]] = {}
        for number in range(self.count):
            around = (self._slots[(number + step) % self.count].serving for step in range(self.count))
            if owner := next((worker for worker in around if worker is not None), None):
                accepts.setdefault(owner.id, []).append(number)
        for id, slots in accepts.items():
            worker = self._workers[id]
            if worker.accepts != tuple(slots):
                worker.accepts = tuple(slots)
                self._actions.append(Accept(id, worker.accepts))

    def _next_slot(self) -> None:
        assert self._roll is not None
        self._roll.slot += 1
        if self._roll.slot == self.count:
            self._note("info", "workers were exchanged")
            self._roll_ended()
            return
        coming = self._slots[self._roll.slot].coming
        if coming is not None:
            self._end(coming, drain=False)
        self._roll.waits_for = self._start(self._roll.slot, self._roll.settings).id

    def _go_on(self) -> None:
        """The new worker has its slot: the old one's end is waited for, so that there is never more than one too many;
        then comes the next slot.
        """
        assert self._roll is not None
        here = (worker for worker in self._workers.values() if worker.slot == self._roll.slot)
        leaving = next((worker for worker in here if worker.state == "ending"), None)
        if leaving is not None:
            self._roll.waits_for = leaving.id
        else:
            self._next_slot()

    def _give_up(self, worker: _Worker[T], reason: str) -> None:
        slot = self._slots[worker.slot]
        if worker is slot.coming and slot.serving is not None:
            self._end(worker, drain=False)
        self._note("error", "the exchange of workers is given up", worker=worker.slot + 1, reason=reason)
        self._roll_ended()

    def _roll_ended(self) -> None:
        again, self._roll, self._again = self._again, None, None
        if again is not None:
            self._roll = _Roll(again[0])
            self._next_slot()

    def _note(self, level: Literal["info", "warning", "error"], event: str, **fields: Any) -> None:
        self._actions.append(Note(level, event, fields))

    def _take(self) -> list[Action[T]]:
        actions, self._actions = self._actions, []
        return actions
