"""Asking another service and our sidecar the same questions, side by side and at a pace; what came of it, counted.

1. `published` samples catalogs, `questions` makes questions of them, `judge` judges each pair of answers.
2. What is unexplained is asked once more: a generation may have been swapped in between the two answers.
3. Where several questions in a row are not answered at all, the rest is given up: nobody is there.

`Comparing` does that again and again beside a leader. It reads the store and asks over HTTP, and nothing that fails in
here ends it, or reaches whoever started it.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from random import Random
from typing import Any, Final

import structlog

from indexer.judge import DIFFERENCES, Kind, Outcome, Question, Told, Untold, Verdict, judge, told_of
from indexer.metrics import Metrics
from indexer.published import sample
from indexer.questions import questions, sent
from indexer.source import SourceError
from indexer.source.upstream import Credentials, Door, Limits, Request, Tally, Unwanted
from indexer.wiring import Parts, open_credentials, read_token
from sidecar.clock import Clock
from sidecar.errors import CatalogError
from sidecar.settings import Settings
from sidecar.store import Store

CATALOGS_A_ROUND: Final = 20
AGAIN_AFTER_S: Final = 2.0
GIVE_UP: Final = 10
GIVEN_UP: Final = f"given up: {GIVE_UP} questions in a row were not answered"
KEPT: Final = 1_000
SHOWN: Final = 50
SHOWN_FINDINGS: Final = 5
LOGGED_A_ROUND: Final = 20
# After a round that could not be begun: nothing is published yet, or the token file is missing.
RETRY_S: Final = 60
TIMEOUT_S: Final = 30.0
# Theirs may be busy for a moment; whatever ours says at once is its answer, a 503 that has a reason included.
THEIRS: Final = Limits(TIMEOUT_S, retries=1, concurrency=1)
OURS: Final = Limits(TIMEOUT_S, retries=0, concurrency=1, pauses=False)

log = structlog.get_logger(__name__)
Heard = Callable[[Question, Verdict], None]


@dataclass(slots=True)
class Count:
    """What came of the questions of one kind; `numbers` counts the differences that answers rest on."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    numbers: Counter[int] = field(default_factory=Counter)

    @property
    def asked(self) -> int:
        """How many questions there were."""
        return sum(self.outcomes.values())


@dataclass(slots=True)
class Comparison:
    """What came of all questions. Of those that are unexplained or were not compared, the first are kept."""

    seed: int
    kinds: dict[Kind, Count] = field(default_factory=dict)
    unexplained: list[tuple[Question, Verdict]] = field(default_factory=list)
    not_compared: list[tuple[Question, Verdict]] = field(default_factory=list)

    def note(self, question: Question, verdict: Verdict) -> None:
        """Counts a question."""
        count = self.kinds.setdefault(question.kind, Count())
        count.outcomes[verdict.outcome] += 1
        count.numbers.update(verdict.numbers)
        kept = {Outcome.UNEXPLAINED: self.unexplained, Outcome.NOT_COMPARED: self.not_compared}.get(verdict.outcome)
        if kept is not None and len(kept) < KEPT:
            kept.append((question, verdict))

    def total(self, outcome: Outcome) -> int:
        """How many questions came to this, over all kinds."""
        return sum(count.outcomes[outcome] for count in self.kinds.values())

    @property
    def is_sound(self) -> bool:
        """Whether something was compared, and nothing is unexplained."""
        compared = self.total(Outcome.EQUAL) + self.total(Outcome.EXPLAINED)
        return compared > 0 and self.total(Outcome.UNEXPLAINED) == 0

    def as_json(self) -> dict[str, Any]:
        def shown(question: Question, verdict: Verdict) -> dict[str, Any]:
            findings = [
                {"at": f.at, "theirs": f.theirs, "ours": f.ours, "explained_by": f.number} for f in verdict.findings
            ]
            asked = {"kind": question.kind, "question": str(question), "body": question.body}
            return {**asked, "why": verdict.why, "findings": findings}

        return {
            "seed": self.seed,
            "kinds": {
                kind: {
                    "asked": count.asked,
                    **{outcome: count.outcomes[outcome] for outcome in Outcome},
                    "explained_by": dict(sorted(count.numbers.items())),
                }
                for kind, count in self.kinds.items()
            },
            "differences": {number: DIFFERENCES[number] for number in sorted(self._numbers())},
            "unexplained": [shown(*one) for one in self.unexplained],
            "not_compared": [shown(*one) for one in self.not_compared],
        }

    def as_text(self) -> str:
        """For people: a table by kind, the sentences of what explains, then whatever is unexplained."""
        lines = [f"{'':24}{'asked':>7}{'equal':>7}{'explained':>11}{'unexplained':>13}{'not compared':>14}  by"]
        for kind, count in self.kinds.items():
            told = [count.outcomes[o] for o in Outcome]
            by = ", ".join(f"{number} ({times})" for number, times in sorted(count.numbers.items()))
            row = f"{kind:24}{count.asked:>7}{told[0]:>7}{told[1]:>11}{told[2]:>13}{told[3]:>14}  {by}"
            lines.append(row.rstrip())
        lines += ["", *(f"difference {sentence}" for sentence in told_of(self._numbers()))]
        for question, verdict in self.unexplained[:SHOWN]:
            lines += [f"unexplained: {question}", *(f"    {f}" for f in verdict.unexplained[:SHOWN_FINDINGS])]
        reasons = Counter(verdict.why for _, verdict in self.not_compared)
        lines += [f"not compared, {times} times: {why}" for why, times in reasons.most_common(SHOWN)]
        left = self.total(Outcome.UNEXPLAINED) - SHOWN
        if left > 0:
            lines.append(f"and {left} more that are unexplained; --json names {KEPT}")
        lines.append(f"the same questions again: --seed {self.seed}")
        return "\n".join(lines)

    def _numbers(self) -> set[int]:
        return {number for count in self.kinds.values() for number in count.numbers}


class Comparer:
    """Both sides. A token goes to both."""

    def __init__(
        self,
        theirs: str,
        ours: str,
        per_second: float,
        clock: Clock,
        tokens: Credentials | None,
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._theirs = Door(theirs, replace(THEIRS, timeout_s=timeout_s), clock, tokens)
        self._ours = Door(ours, replace(OURS, timeout_s=timeout_s), clock, tokens)
        self._pause_s = 1 / per_second
        self._clock = clock
        self._next_s = 0.0

    async def ask(self, asked: Sequence[Question], heard: Heard) -> None:
        """Asks both, one question after the other; `heard` is told what comes of each."""
        in_a_row = 0
        for question in asked:
            if in_a_row >= GIVE_UP:
                heard(question, Verdict(Outcome.NOT_COMPARED, GIVEN_UP))
                continue
            verdict, is_there = await self._compare(question)
            if verdict.outcome is Outcome.UNEXPLAINED:
                await self._clock.sleep(AGAIN_AFTER_S)
                verdict, is_there = await self._compare(question)
            in_a_row = 0 if is_there else in_a_row + 1
            heard(question, verdict)

    async def close(self) -> None:
        """Ends every connection."""
        await self._theirs.close()
        await self._ours.close()

    async def _compare(self, question: Question) -> tuple[Verdict, bool]:
        """What comes of a question, and whether both sides were there and let us in."""
        wait_s = self._next_s - self._clock.monotonic()
        if wait_s > 0:
            await self._clock.sleep(wait_s)
        self._next_s = self._clock.monotonic() + self._pause_s
        answers = await _told(self._theirs, question), await _told(self._ours, question)
        is_there = all(isinstance(one, Told) and one.status != HTTPStatus.UNAUTHORIZED for one in answers)
        return judge(question, *answers), is_there


async def _told(door: Door, question: Question) -> Told | Untold:
    body = sent(question)
    request = Request(question.kind, "GET" if body is None else "POST", question.path, json=body)
    try:
        return Told(200, await door.ask(request, Tally()))
    except Unwanted as unwanted:
        try:
            return Told(unwanted.status, json.loads(unwanted.content))
        except ValueError:
            # A page for people, as servers show it with an error: its status is the answer.
            return Told(unwanted.status) if unwanted.status >= 300 else Untold(str(unwanted))
    except SourceError as error:
        return Untold(str(error))


class Comparing:
    """Compares a new sample each `compare.every_s`, counts what comes of it, and logs what is unexplained."""

    def __init__(self, parts: Parts, metrics: Metrics) -> None:
        self._parts = parts
        self._settings = parts.settings.compare
        self._metrics = metrics
        self._random = Random()

    async def run(self) -> None:
        """For ever, until cancelled."""
        while True:
            begun = await self.once()
            every_s = self._settings.every_s
            await self._parts.clock.sleep(every_s if begun else min(every_s, RETRY_S))

    async def once(self) -> Comparison | None:
        """One round; None if it could not even be begun."""
        seed = self._random.randrange(1 << 32)
        told = Comparison(seed)

        def heard(question: Question, verdict: Verdict) -> None:
            told.note(question, verdict)
            self._metrics.compared.labels(verdict.outcome.value).inc()
            if verdict.outcome is Outcome.UNEXPLAINED and told.total(Outcome.UNEXPLAINED) <= LOGGED_A_ROUND:
                found = [str(finding) for finding in verdict.unexplained[:SHOWN_FINDINGS]]
                log.warning("the other service answers something else", question=str(question), found=found)

        try:
            file = self._settings.token_file
            token = read_token(Path(file)) if file else ""
            await compare(self._parts.settings, self._parts.store, self._parts.clock, told, heard, token=token)
        except (SourceError, CatalogError) as error:
            log.warning("answers could not be compared", reason=str(error))
            return None
        counts = {outcome.value.replace(" ", "_"): told.total(outcome) for outcome in Outcome}
        log.info("answers compared", seed=seed, **counts)
        return told


async def compare(
    settings: Settings,
    store: Store,
    clock: Clock,
    told: Comparison,
    heard: Heard,
    *,
    token: str,
    catalogs: int = CATALOGS_A_ROUND,
    planned: Callable[[int], None] = lambda _: None,
) -> None:
    """One comparison by the settings of [compare]; `planned` hears how many questions there will be.

    Raises CatalogError if our own store cannot be sampled.
    """
    cases = await sample(store, catalogs, Random(told.seed))
    asked = list(questions(cases))
    planned(len(asked))
    tokens = open_credentials(settings, token, clock)
    sides = settings.compare
    comparer = Comparer(sides.url, sides.base, sides.per_second, clock, tokens)
    try:
        await comparer.ask(asked, heard)
    finally:
        await comparer.close()
        if tokens is not None:
            await tokens.close()
