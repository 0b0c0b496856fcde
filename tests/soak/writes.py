"""What changes all the time: catalogs, through every sidecar; the content, and the pulls that somebody asks for.

A catalog has one write under way at a time. One that was answered "cannot be told", or not at all, rests for longer
than it could still be made, and is then repeated as the answer says, with the same body.
"""

import asyncio
import json
import os
import random
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from tests.fakes import Json
from tests.soak.judge import Judge
from tests.soak.model import FRESH_ORGS, HOLDERS, ORGS, Named, Value, beginnings, corpus
from tests.soak.tally import Clock, Tally
from tests.soak.traffic import API, CATALOGS, Traffic
from tests.soak.wire import Door, NoAnswer, Reply

UNKNOWN_FOR_S: Final = 15.0
"""How long a write may still be made after nobody could tell: a sidecar has given up on it, and SQLite has long let it
through."""
SHOWN_WITHIN_S: Final = 90.0
"""How long a write that was answered "pending" may take to be shown by both sidecars; faults last for a third of it."""
NEWCOMERS: Final = 6
MADE: Final[Mapping[str, tuple[int, ...]]] = {"POST": (201,), "PATCH": (200,), "DELETE": (204,)}
REPEATED: Final[Mapping[str, tuple[int, ...]]] = {"POST": (200, 201), "PATCH": (200,), "DELETE": (204, 404)}
UNCHANGED: Final = "nothing was changed"


@dataclass(slots=True)
class Pending:
    """A write that is to be repeated."""

    method: str
    body: Json | None
    step: int
    value: Value | None


@dataclass(slots=True)
class Slot:
    """A catalog that is written to, and where it stands as far as its writer knows."""

    named: Named
    value: Value | None = None
    writes: int = 0
    busy: bool = False
    due_s: float | None = None
    """When the write was meant to be sent that is under way."""
    not_before_s: float = 0.0
    again: Pending | None = None


@dataclass(slots=True)
class Writes:
    """The writers of one soak."""

    traffic: Traffic
    corpus: Path
    pull_of: Callable[[str], Awaitable[Json | None]]
    """How the pull of a task goes, as an indexer says; None if nobody can tell."""
    slots: list[Slot] = field(default_factory=list)
    tasks: dict[str, str] = field(default_factory=dict)
    """Every pull that was promised, by task, and its organisation."""
    is_empty: bool = False
    """Whether the source finds nothing of what everybody serves."""
    numbers: int = 0
    under_way: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def judge(self) -> Judge:
        return self.traffic.judge

    @property
    def tally(self) -> Tally:
        return self.traffic.tally

    @property
    def rng(self) -> random.Random:
        return self.traffic.rng

    @property
    def now_s(self) -> Clock:
        return self.traffic.now_s

    async def begin(self) -> None:
        """Makes the catalogs of the beginning."""
        for named, value in beginnings():
            self.judge.introduce(named)
            slot = Slot(named)
            await self._create(slot, value, self._door())
            if named.customer != HOLDERS:
                self.slots.append(slot)
        self.slots += [self._newcomer() for _ in range(NEWCOMERS)]

    def write_content(self) -> None:
        """Replaces the content by its next version, in one step; not while there is none."""
        if self.is_empty:
            return
        version = len(self.traffic.versions_ms)
        for org in (*ORGS, *FRESH_ORGS):
            self.judge.contents[org].step(self.judge.newest)
        put_content(self.corpus, version)
        self.traffic.versions_ms.append(round(time.time() * 1000))

    @contextmanager
    def nothing_found(self) -> Iterator[None]:
        """Has the source find nothing of the organisations that have content: an answer in full, and a wrong one."""
        self.is_empty = True
        version = len(self.traffic.versions_ms) - 1
        put(self.corpus, corpus(version, FRESH_ORGS))
        try:
            yield
        finally:
            self.is_empty = False
            self.write_content()

    async def run(self, per_s: float, stop: asyncio.Event) -> None:
        """Writes so often a second, and asks for a pull for every fourth of them, until it is told to stop."""
        began_s, sent = self.now_s(), 0
        while not stop.is_set():
            due_s = began_s + sent / per_s
            if (early_s := due_s - self.now_s()) > 0:
                await asyncio.sleep(early_s)
            self._start(self._any(due_s))
            if sent % 4 == 0:
                self._start(self._refresh())
            sent += 1
        await asyncio.gather(*self.under_way)

    async def finish(self) -> None:
        """Repeats what is to be repeated, until nothing is open, with the fleet well. Call after run() has returned."""
        for slot in self.slots:
            while slot.again is not None:
                if not await self._send(slot, slot.again, self._door(), repeated=True):
                    await asyncio.sleep(1)

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        assert isinstance(task, asyncio.Task)
        self.under_way.add(task)
        task.add_done_callback(self.under_way.discard)

    async def _any(self, due_s: float) -> None:
        free = [slot for slot in self.slots if not slot.busy and slot.not_before_s <= due_s]
        if not free:
            return
        slot = self.rng.choice(free)
        slot.busy, slot.due_s = True, due_s
        try:
            await self._write(slot)
        finally:
            slot.busy = False

    async def _write(self, slot: Slot) -> None:
        door = self._door()
        if slot.again is not None:
            await self._send(slot, slot.again, door, repeated=True)
        elif slot.value is None:
            org = self.rng.choice(FRESH_ORGS if slot.named.fresh else ORGS)
            await self._create(slot, Value(self._title(slot), org, self._number(slot)), door)
        elif self.rng.random() < 0.15:
            await self._change(slot, "DELETE", None, None, door)
        elif slot.named.fresh:
            # Its query is its own, and is changed in place.
            value = Value(self._title(slot), slot.value.org, self._number(slot))
            body: Json = {"title": value.title, "content_filter": value.content_filter}
            await self._change(slot, "PATCH", body, value, door)
        elif self.rng.random() < 0.3:
            value = Value(self._title(slot), slot.value.org)
            await self._change(slot, "PATCH", {"title": value.title}, value, door)
        else:
            value = Value(self._title(slot), self.rng.choice(ORGS))
            # Without a query's uuid the catalog moves, and leaves the query to the others.
            body = {"title": value.title, "content_filter": value.content_filter, "catalog_query_uuid": None}
            await self._change(slot, "PATCH", body, value, door)

    async def _create(self, slot: Slot, value: Value, door: Door) -> None:
        step = self.judge.write(slot.named.uuid, value)
        await self._send(slot, Pending("POST", slot.named.body(value), step, value), door)

    async def _change(self, slot: Slot, method: str, body: Json | None, value: Value | None, door: Door) -> bool:
        return await self._send(slot, Pending(method, body, self.judge.write(slot.named.uuid, value), value), door)

    async def _send(self, slot: Slot, write: Pending, door: Door, *, repeated: bool = False) -> bool:
        """Sends it; whether it was acknowledged."""
        uuid, since_s = slot.named.uuid, self.now_s()
        target = CATALOGS if write.method == "POST" else f"{CATALOGS}{uuid}/"
        title = None if write.value is None else write.value.title
        asked = f"{write.method} {slot.named.name} ({title!r}, step {write.step}) through {door.name}"
        self.tally.requests["write"] += 1
        try:
            reply, _ = await door.ask(write.method, target, write.body)
        except NoAnswer as error:
            self.tally.fail(
                "no answer", door.sidecar, "no answer to a write", f"{asked}: {error}", since_s, self.now_s()
            )
            self._open(slot, write, made=None if error.sent else False, repeated=repeated, asked=asked)
            return False
        finally:
            if slot.due_s is not None:
                self.tally.writes.add(self.now_s() - slot.due_s)
                slot.due_s = None
        asked = f"{asked}: {reply.status} {reply.body[:200]!r}"
        if reply.status == 503:
            self.tally.fail("write", door.sidecar, f"503 to a write ({_gist(reply)})", asked, since_s, self.now_s())
            unchanged = UNCHANGED in reply.body.decode().lower()
            self._open(slot, write, made=False if unchanged else None, repeated=repeated, asked=asked)
            return False
        if reply.status not in (REPEATED if repeated else MADE)[write.method]:
            self.judge.unanswerable("a write that cannot be answered so", self.judge.newest, asked)
            self._open(slot, write, made=None, repeated=repeated, asked=asked)
            return False
        slot.value, slot.again = write.value, None
        await self._acknowledged(slot, write, door, reply, asked)
        if write.value is None and slot.named.fresh:
            self.judge.dismiss(uuid)
            self.slots[self.slots.index(slot)] = self._newcomer()
        return True

    def _open(self, slot: Slot, write: Pending, *, made: bool | None, repeated: bool, asked: str) -> None:
        # What is repeated may have been made the first time.
        if made is False and not repeated:
            self.judge.refused(slot.named.uuid, write.step, asked)
            return
        slot.again, slot.not_before_s = write, self.now_s() + UNKNOWN_FOR_S

    async def _acknowledged(self, slot: Slot, write: Pending, door: Door, reply: Reply, asked: str) -> None:
        pending = reply.headers.get("x-catalog-published") == "pending"
        generation = None if pending or reply.status == 404 else reply.generation or None
        self.judge.written(slot.named.uuid, write.step, generation, asked)
        if generation is None:
            if pending:
                self.tally.requests["write, answered pending"] += 1
            await self._until_shown(slot, write, asked)
            return
        floors = self.traffic.floors
        floors[door.sidecar] = max(floors[door.sidecar], generation)
        other = self.rng.choice([one for one in self.traffic.doors if one.sidecar != door.sidecar])
        await self._look(slot.named.uuid, other, {"X-Min-Generation": str(generation)})

    async def _until_shown(self, slot: Slot, write: Pending, asked: str) -> None:
        """Waits until every sidecar shows a write that no generation was told of."""
        uuid, until_s = slot.named.uuid, self.now_s() + SHOWN_WITHIN_S
        for door in {one.sidecar: one for one in self.traffic.doors}.values():
            while (found := await self._look(uuid, door)) != write.step:
                if self.now_s() > until_s:
                    self.judge.lose(uuid, f"{door.name} shows step {found} after {SHOWN_WITHIN_S:g} s", asked)
                    return
                await asyncio.sleep(0.3)
        # Both have shown it in some generation up to now: whatever comes later has it.
        self.judge.written(uuid, write.step, self.judge.newest, asked)

    async def _look(self, uuid: str, door: Door, headers: dict[str, str] | None = None) -> int | None:
        """The step at which a sidecar shows a catalog to be, the last one of which it may be; None: cannot be told."""
        target = f"{CATALOGS}{uuid}/"
        reply = await self.traffic.get(door, "one, after a write", target, self.now_s(), headers=headers)
        if reply is None or reply.status == 503:
            return None
        asked = f"GET {target} of {door.name}, {headers or ''}: {reply.status} {reply.body[:200]!r}"
        self.traffic.shown_one(uuid, reply, asked)
        possible = self.judge.catalogs[uuid].possible(reply.generation)
        exists = reply.status == 200
        matching = [n for n in possible if (self.judge.catalogs[uuid].steps[n].value is not None) == exists]
        return matching[-1] if matching else None

    async def _refresh(self) -> None:
        """Asks for a pull, and reads what it found, through any door."""
        org = self.rng.choice(ORGS)
        uuid = Named(f"holder {org}", HOLDERS).uuid
        door, since_s = self._door(), self.now_s()
        self.tally.requests["refresh"] += 1
        asked = f"POST refresh_metadata of holder {org} through {door.name}"
        try:
            reply, _ = await door.ask("POST", f"{CATALOGS}{uuid}/refresh_metadata/")
        except NoAnswer as error:
            self.tally.fail(
                "no answer", door.sidecar, "no answer to a write", f"{asked}: {error}", since_s, self.now_s()
            )
            return
        if reply.status == 503:
            asked = f"{asked}: {reply.body!r}"
            self.tally.fail("write", door.sidecar, f"503 to a write ({_gist(reply)})", asked, since_s, self.now_s())
            return
        if reply.status != 200:
            self.judge.unanswerable(f"{reply.status} {reply.body!r}", self.judge.newest, asked)
            return
        task = str(reply.json()["async_task_id"])
        self.tasks[task] = org
        target = f"{API}/enterprise-catalogs/{uuid}/contains_content_items/?course_run_ids={org}%2Bbase0"
        headers = {"X-After-Task": task}
        shown = await self.traffic.get(self._door(), "after a refresh", target, self.now_s(), headers=headers)
        pull = None if shown is None or shown.status != 200 else await self.pull_of(task)
        if shown is not None and pull is not None and pull["state"] == "passed":
            asked = f"GET {target} after task {task}: {pull}"
            # It may have joined a pull that was under way: what there was when that was asked for, it has found.
            requested_ms = datetime.fromisoformat(pull["requested"]).timestamp() * 1000
            version = bisect_left(self.traffic.versions_ms, requested_ms) - 1
            if problem := self.judge.contents[org].acknowledge(version, shown.generation):
                self.judge.went_back(f"version {version} of {org}: {problem}", shown.generation, asked)

    def _unanswered(self, door: Door, asked: str, error: NoAnswer, since_s: float) -> None:
        asked = f"{asked}: {error}"
        self.tally.fail("no answer", door.sidecar, "no answer to a write", asked, since_s, self.now_s())

    def _door(self) -> Door:
        return self.rng.choice(self.traffic.doors)

    def _newcomer(self) -> Slot:
        self.numbers += 1
        named = Named(f"n{self.numbers}", "Newcomers", fresh=True)
        self.judge.introduce(named)
        return Slot(named)

    def _title(self, slot: Slot) -> str:
        slot.writes += 1
        return f"{slot.named.name} w{slot.writes + 1}"

    def _number(self, slot: Slot) -> int | None:
        if not slot.named.fresh:
            return None
        self.numbers += 1
        return self.numbers


def put_content(path: Path, version: int) -> None:
    """Has a corpus file say what this version of the content has."""
    put(path, corpus(version))


def put(path: Path, content: Json) -> None:
    """Has a corpus file say this; whoever reads it sees all of it or nothing."""
    made = path.with_suffix(".new")
    made.write_text(json.dumps(content))
    os.replace(made, path)


def _gist(reply: Reply) -> str:
    text = reply.body.decode(errors="replace")
    for gist in ("cannot be reached", "did not answer", "registry is out of reach", "Too many large writes"):
        if gist in text:
            return gist
    return text[:80]
