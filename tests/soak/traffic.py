"""What asks all the time: reads at a constant rate, through every door, of everything that there is, each one judged.

A request is sent when it is due, however many are still under way, and its latency counts from when it was due: a
fleet that stands still for a second has a second's worth of slow answers, and not one.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import urlencode

from tests.fakes import Json, uuid_of
from tests.soak.judge import Claim, Judge, Outcome
from tests.soak.model import ANCHORS, CUSTOMERS, FRESH_ORGS, ORGS, runs_key, shown
from tests.soak.tally import Clock, Failure, Tally
from tests.soak.wire import Door, NoAnswer, Reply

API: Final = "/api/v1"
CATALOGS: Final = f"{API}/enterprise-catalogs/"
WEIGHTS: Final = {"contains": 50, "customer": 20, "which catalogs": 4, "page": 8, "traversal": 4, "list": 6, "one": 8}


@dataclass(frozen=True, slots=True)
class Question:
    """One read. `judged` is given an answer that is no 5xx; `never`: what one claims that says "never pulled"."""

    kind: str
    target: str
    judged: Callable[[Reply, str], None]
    never: Callable[[Reply], Claim] | None = None


@dataclass(slots=True)
class Traffic:
    """Reads, and what each sidecar has let somebody read of their own writes."""

    doors: Sequence[Door]
    judge: Judge
    tally: Tally
    rng: random.Random
    now_s: Clock
    floors: list[int]
    """For each sidecar, the highest generation that a write was answered with through it since it was started."""
    versions_ms: list[int] = field(default_factory=lambda: [0])
    """When each version of the content was there to be pulled, by the wall clock."""
    under_way: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self, per_s: float, stop: asyncio.Event) -> None:
        """Asks so many questions a second until it is told to stop, and returns when all are answered."""
        began_s, sent = self.now_s(), 0
        while not stop.is_set():
            due_s = began_s + sent / per_s
            if (early_s := due_s - self.now_s()) > 0:
                await asyncio.sleep(early_s)
            self.tally.late_s = max(self.tally.late_s, self.now_s() - due_s)
            task = asyncio.create_task(self.ask(self.question(), self.rng.choice(self.doors), due_s))
            self.under_way.add(task)
            task.add_done_callback(self.under_way.discard)
            sent += 1
        await asyncio.gather(*self.under_way)

    async def ask(self, question: Question, door: Door, due_s: float) -> None:
        """Asks and has the answer judged."""
        calm = self.tally.is_calm(due_s)
        reply = await self.get(door, question.kind, question.target, due_s, documents=question.kind in DOCUMENTS)
        taken_s = self.now_s() - due_s
        self.tally.reads.add(taken_s)
        if calm:
            self.tally.calm.add(taken_s)
        if reply is None:
            return
        asked = f"GET {question.target} of {door.name}: {reply.status} {reply.body[:200]!r}"
        if reply.status == 503:
            assert question.never is not None
            self.judge.claim(reply.generation, question.never(reply), "never pulled", asked)
        else:
            question.judged(reply, asked)

    async def get(
        self,
        door: Door,
        kind: str,
        target: str,
        due_s: float,
        *,
        headers: dict[str, str] | None = None,
        documents: bool = False,
    ) -> Reply | None:
        """The answer, from a generation that may be answered from; a 503 only of a catalog that was never pulled.

        None: there was no answer, or none that could be given, which is counted. `documents`: it takes some to answer.
        """
        self.tally.requests[kind] += 1
        floor, asked = self.floors[door.sidecar], f"GET {target} of {door.name}"
        try:
            reply, before = await door.ask("GET", target, headers=headers)
        except NoAnswer as error:
            self.tally.fail("no answer", door.sidecar, "no answer", f"{asked}: {error}", due_s, self.now_s())
            return None
        detail = _detail(reply) if reply.status >= 500 else ""
        asked = f"{asked}: {reply.status} {detail or reply.body[:200]!r}"
        if reply.status == 503 and "never pulled" in detail and reply.generation:
            self.tally.failures["503: a new catalog that was never pulled"] += 1
            self.judge.see(reply.generation)
            return reply
        if reply.status == 503 and headers and "is not served here yet" in detail:
            self.tally.failures["503: it was asked for a state that was not there in time"] += 1
            return None
        if reply.status >= 500:
            failure: Failure = "documents" if documents and reply.status == 503 else "no answer"
            self.tally.fail(failure, door.sidecar, str(reply.status), asked, due_s, self.now_s())
            return None
        if not reply.generation:
            self.judge.unanswerable("an answer that names no generation", 0, asked)
            return None
        self.judge.see(reply.generation)
        if reply.generation < before:
            self.judge.went_back(f"generation {before} had come over this connection", reply.generation, asked)
        if reply.generation < floor and floor <= self.floors[door.sidecar]:
            self.judge.went_back(f"this sidecar had answered a write by generation {floor}", reply.generation, asked)
        return reply

    def question(self) -> Question:
        """Any question, as often as its weight says."""
        kind = self.rng.choices(tuple(WEIGHTS), tuple(WEIGHTS.values()))[0]
        match kind:
            case "list":
                return Question(kind, f"{CATALOGS}?page_size=1000", self._list)
            case "customer" | "which catalogs":
                return self._customer(kind)
        # Those that were removed, too, now and then.
        there = sorted(self.judge.there(self.judge.newest)) if self.rng.random() < 0.97 else list(self.judge.catalogs)
        uuid = self.rng.choice(there)
        match kind:
            case "one":
                return Question(kind, f"{CATALOGS}{uuid}/", lambda reply, asked: self.shown_one(uuid, reply, asked))
            case "page" | "traversal":
                more = "?traverse_pagination=true" if kind == "traversal" else "?page_size=100"
                target = f"{CATALOGS}{uuid}/get_content_metadata/{more}"
                never = Claim((uuid,), (), "one")
                return Question(kind, target, lambda reply, asked: self._page(uuid, reply, asked), lambda _: never)
        keys = self._keys(self._org_of(uuid))
        claim = Claim((uuid,), keys, "one")
        target = f"/api/{self._version()}/enterprise-catalogs/{uuid}/contains_content_items/?{_asked(keys)}"
        return Question(kind, target, lambda reply, asked: self._contains(claim, reply, asked), lambda _: claim)

    def _customer(self, kind: str) -> Question:
        name = self.rng.choice(CUSTOMERS)
        theirs = sorted(self.judge.there(self.judge.newest, name))
        org = self._org_of(self.rng.choice(theirs)) if theirs else self.rng.choice(ORGS)
        keys = self._keys(org)
        target = f"/api/{self._version()}/enterprise-customer/{uuid_of(name)}/contains_content_items/?{_asked(keys)}"
        if kind == "which catalogs":
            target += "&get_catalogs_containing_specified_content_ids=true"

        def claim(reply: Reply) -> Claim:
            return Claim(tuple(sorted(self.judge.there(reply.generation, name))), keys, "any")

        def judged(reply: Reply, asked: str) -> None:
            if kind == "customer":
                self._contains(claim(reply), reply, asked)
            elif (body := self._body(reply, asked)) is not None:
                listed, there = set(body["catalog_list"]), self.judge.there(reply.generation, name)
                if listed - there or body["contains_content_items"] != bool(listed):
                    self.judge.unanswerable("catalogs that the customer does not have", reply.generation, asked)
                for uuid in there:
                    # Whoever is not listed does not contain it, or does not exist.
                    outcome: Outcome = "yes" if uuid in listed else "no"
                    self.judge.claim(reply.generation, Claim((uuid,), keys, "all"), outcome, asked)

        if kind == "customer":
            return Question(kind, target, judged, claim)
        return Question(kind, target, judged, lambda reply: replace(claim(reply), asked="all"))

    def _contains(self, claim: Claim, reply: Reply, asked: str) -> None:
        if reply.status == 404 and claim.asked == "one":
            self.judge.claim(reply.generation, Claim(claim.catalogs, (), "one"), "unknown catalog", asked)
        elif (body := self._body(reply, asked)) is not None:
            said = body.get("contains_content_items")
            if not isinstance(said, bool):
                self.judge.unanswerable("neither true nor false", reply.generation, asked)
                return
            self.judge.claim(reply.generation, claim, "yes" if said else "no", asked)

    def _list(self, reply: Reply, asked: str) -> None:
        body = self._body(reply, asked)
        if body is not None:
            titles = [(str(found["uuid"]), str(found["title"])) for found in body["results"]]
            if body["count"] != len(titles):
                self.judge.unanswerable("a list that is not whole", reply.generation, asked)
            self.judge.titles(reply.generation, titles, asked, all_of_them=True)

    def shown_one(self, uuid: str, reply: Reply, asked: str) -> None:
        if reply.status == 404:
            self.judge.claim(reply.generation, Claim((uuid,), (), "one"), "unknown catalog", asked)
        elif (body := self._body(reply, asked)) is not None:
            self.judge.titles(reply.generation, [(uuid, str(body["title"]))], asked, all_of_them=False)

    def _page(self, uuid: str, reply: Reply, asked: str) -> None:
        self.shown_one(uuid, reply, asked)
        body = self._body(reply, asked) if reply.status == 200 else None
        if body is not None:
            documents: list[Json] = body["results"]
            if body["count"] != len(documents):
                self.judge.unanswerable("a page that is not whole", reply.generation, asked)
            self.judge.content_of(reply.generation, uuid, shown(documents), asked)

    def _body(self, reply: Reply, asked: str) -> Any:
        if reply.status == 200:
            try:
                return reply.json()
            except ValueError:
                self.judge.unanswerable("no JSON", reply.generation, asked)
                return None
        self.judge.unanswerable("an answer that this question does not have", reply.generation, asked)
        return None

    def _keys(self, org: str) -> tuple[str, ...]:
        """One or two keys of which it is not plain whether they are contained."""
        newest = len(self.versions_ms) - 1
        other = self.rng.choice((*ORGS, *FRESH_ORGS))
        candidates = (
            f"{org}+base{self.rng.randrange(ANCHORS)}",
            f"{org}+v{max(0, newest - self.rng.randrange(3))}",
            f"{org}+odd",
            f"{other}+base0",
            f"{other}+v{newest}",
            f"{org}+v{newest + 1}",
        )
        keys = self.rng.sample(candidates, self.rng.choice((1, 1, 1, 2)))
        return tuple(runs_key(key) if self.rng.random() < 0.5 else key for key in keys)

    def _org_of(self, uuid: str) -> str:
        """The organisation that a catalog was about when it last existed."""
        values = (step.value for step in reversed(self.judge.catalogs[uuid].steps))
        return next((value.org for value in values if value is not None), ORGS[0])

    def _version(self) -> str:
        return self.rng.choice(("v1", "v1", "v1", "v2"))


DOCUMENTS: Final = ("page", "traversal")


def _asked(keys: Sequence[str]) -> str:
    return urlencode([("course_run_ids", key) for key in keys])


def _detail(reply: Reply) -> str:
    try:
        body = reply.json()
    except ValueError:
        return repr(reply.body[:200])
    return str(body.get("detail")) if isinstance(body, dict) else str(body)
