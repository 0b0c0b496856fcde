"""The judge: what may be answered, by the writes and versions that there were and the generations that answers name.

Every answer names the generation that it was made of, and a generation is one state. So the judge needs to know
neither when something was published nor by whom. It keeps a `Register` for each catalog (its writes, in order) and for
each organisation (the versions of its content, in order), and for every generation what is known of the step at which
the register stands in it:

    not before   a step that was taken after generation g had been seen is in none up to g
    not after    a step that was answered with generation g is in every one from g on
    facts        what an answer has shown: a title, a page of documents
    never back   of two generations the later one stands at the same step or a later one

WRONG is an answer that no state can explain which these rules leave: a title that nobody wrote, a page of two
versions, content from the future or from before what an earlier generation had, "false" for what every possible state
contains, two answers of one generation that differ, a generation that a connection or a sidecar had passed already, a
step whose write was answered "nothing was changed".
LOST is a write that was answered 2xx, and that a generation from the answer's on does not show, or that is not there in
the end. A write that was answered "pending" is waited for; one that is not shown by both sidecars in time is lost.
A write that was answered "cannot be told", or not at all, may be made or not: both are possible from then on, until it
is repeated, which must make it.

Pure: no I/O, no clock.
"""

from bisect import bisect_left, bisect_right, insort
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

from tests.soak.model import Named, Value, has

Kind = Literal["wrong", "lost"]
Outcome = Literal["yes", "no", "unknown catalog", "never pulled"]
AROUND: Final = 3


@dataclass(frozen=True, slots=True)
class Violation:
    """What was found against the rules."""

    kind: Kind
    what: str
    generation: int
    asked: str
    history: str

    def __str__(self) -> str:
        return f"{self.kind.upper()}: {self.what}\n  generation {self.generation}; {self.asked}\n{self.history}"


@dataclass(slots=True)
class Step:
    """One write or version. `after`: the highest generation that had been seen before it was sent.

    `shown`: every generation from this one on has it. `void`: it was said that nothing was changed.
    """

    after: int
    shown: int | None = None
    void: bool = False
    made: bool = False
    value: Value | None = None


class Register:
    """Something that goes through steps, one after another, and stands at one of them in every generation."""

    def __init__(self, name: str, first: Value | None = None) -> None:
        """It stands at step 0 from the first generation on."""
        self.name = name
        self.steps = [Step(after=-1, shown=0, made=True, value=first)]
        self._facts: list[tuple[int, int]] = []
        self._shown: list[tuple[int, int]] = [(0, 0)]

    def step(self, after: int, value: Value | None = None) -> int:
        """A step that is about to be taken; its number."""
        self.steps.append(Step(after, value=value))
        return len(self.steps) - 1

    def acknowledge(self, number: int, shown: int | None) -> str | None:
        """The step was taken, and generations from `shown` on have it. Returns what contradicts that."""
        self.steps[number].made = True
        if shown is None:
            return None
        known = self.steps[number].shown
        self.steps[number].shown = shown if known is None else min(known, shown)
        self._note_shown(shown, number)
        at = bisect_left(self._facts, (shown, -1))
        if at < len(self._facts) and self._facts[at][1] < number:
            seen, older = self._facts[at]
            return f"generation {seen} shows step {older}, and step {number} was answered with generation {shown}"
        return None

    def void(self, number: int) -> str | None:
        """It was said that the step was not taken. Returns what contradicts that."""
        self.steps[number].void = True
        seen = [generation for generation, step in self._facts if step == number]
        return f"generation {seen[0]} shows step {number}, of which nothing was to be changed" if seen else None

    def learn(self, generation: int, number: int) -> tuple[Kind, str] | None:
        """An answer of a generation showed this step. Returns what contradicts that."""
        if not 0 <= number < len(self.steps):
            return "wrong", f"step {number} was never taken"
        step = self.steps[number]
        if step.void:
            return "wrong", f"step {number} was answered with: nothing was changed"
        if step.after >= generation:
            return "wrong", f"step {number} was taken after generation {step.after} had been seen"
        if (least := self._acknowledged(generation)) > number:
            return "lost", f"step {least} was acknowledged by generation {self.steps[least].shown}, not {number}"
        at = bisect_left(self._facts, (generation, -1))
        if at < len(self._facts) and self._facts[at][0] == generation:
            if self._facts[at][1] != number:
                return "wrong", f"another answer of this generation showed step {self._facts[at][1]}, not {number}"
            return None
        if at and self._facts[at - 1][1] > number:
            return "wrong", f"it goes back to step {number}: generation {self._facts[at - 1]} (generation, step)"
        if at < len(self._facts) and self._facts[at][1] < number:
            return "wrong", f"it went back from step {number}: generation {self._facts[at]} (generation, step)"
        self._facts.insert(at, (generation, number))
        return None

    def possible(self, generation: int) -> list[int]:
        """The steps at which it may stand in a generation."""
        at = bisect_left(self._facts, (generation, -1))
        if at < len(self._facts) and self._facts[at][0] == generation:
            return [self._facts[at][1]]
        least = max(self._acknowledged(generation), self._facts[at - 1][1] if at else 0)
        most = self._facts[at][1] if at < len(self._facts) else len(self.steps) - 1
        return [
            number
            for number in range(least, most + 1)
            if self.steps[number].after < generation and not self.steps[number].void
        ]

    def around(self, generation: int) -> str:
        """What is known near a generation, for whoever looks into it."""
        at = bisect_left(self._facts, (generation, -1))
        facts = self._facts[max(0, at - AROUND) : at + AROUND]
        numbers = {number for _, number in facts} | set(self.possible(generation)[:AROUND])
        shown = sorted({near for number in numbers for near in (number - 1, number, number + 1)})
        steps = [f"    {n}: {self.steps[n]}" for n in shown if 0 <= n < len(self.steps)]
        return "\n".join([f"  {self.name}: (generation, step) {facts}", *steps])

    def _note_shown(self, shown: int, number: int) -> None:
        # Both rise along the list: what another entry says already is left out.
        if self._acknowledged(shown) < number:
            self._shown = [entry for entry in self._shown if entry[0] < shown or entry[1] > number]
            insort(self._shown, (shown, number))

    def _acknowledged(self, generation: int) -> int:
        at = bisect_right(self._shown, (generation, len(self.steps)))
        return self._shown[at - 1][1] if at else 0


@dataclass(frozen=True, slots=True)
class Claim:
    """What an answer said of catalogs, any of which may have any of the keys.

    `asked`: of the "one" catalog, which may not exist; whether "any" has one; or which of "all" have one, which nobody
    can tell while one was never pulled.
    """

    catalogs: tuple[str, ...]
    keys: tuple[str, ...]
    asked: Literal["one", "any", "all"]


@dataclass(slots=True)
class Judge:
    """What is known, what was claimed, and what was found against it."""

    catalogs: dict[str, Register] = field(default_factory=dict)
    contents: dict[str, Register] = field(default_factory=dict)
    named: dict[str, Named] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    newest: int = 0
    _claims: dict[int, dict[Claim, tuple[Outcome, str]]] = field(default_factory=lambda: defaultdict(dict))
    _pulled: dict[str, int] = field(default_factory=dict)
    _gone: dict[str, int] = field(default_factory=dict)
    _steps_of: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))

    def introduce(self, named: Named) -> None:
        """A catalog, before the write that is to make it."""
        self.named[named.uuid] = named
        self.catalogs[named.uuid] = Register(named.name)

    def dismiss(self, uuid: str) -> None:
        """A catalog whose removal was acknowledged, and which nobody makes again."""
        self._gone[uuid] = self.newest

    def there(self, generation: int, customer: str | None = None) -> set[str]:
        """The catalogs that a generation may have, of one customer or of all."""
        return {
            uuid
            for uuid, named in self.named.items()
            if customer in (None, named.customer) and generation <= self._gone.get(uuid, generation)
        }

    def see(self, generation: int) -> None:
        """A generation was named by an answer."""
        self.newest = max(self.newest, generation)

    def write(self, uuid: str, value: Value | None) -> int:
        """A write that is about to be sent."""
        number = self.catalogs[uuid].step(self.newest, value)
        if value is not None:
            self._steps_of[uuid][value.title] = number
        return number

    def written(self, uuid: str, number: int, generation: int | None, asked: str) -> None:
        """A write was answered 2xx."""
        if generation is not None:
            self.see(generation)
        if problem := self.catalogs[uuid].acknowledge(number, generation):
            self._violate("lost", problem, generation or 0, asked, self.catalogs[uuid])

    def refused(self, uuid: str, number: int, asked: str) -> None:
        """It was said of a write that nothing was changed."""
        if problem := self.catalogs[uuid].void(number):
            self._violate("wrong", problem, self.newest, asked, self.catalogs[uuid])

    def titles(self, generation: int, titles: Iterable[tuple[str, str]], asked: str, *, all_of_them: bool) -> None:
        """An answer showed these catalogs, by uuid and title; `all_of_them`: there are no others."""
        found = dict(titles)
        for uuid, title in found.items():
            register = self.catalogs.get(uuid)
            number = None if register is None else self._steps_of[uuid].get(title)
            if register is None or number is None:
                self._violate("wrong", f"nobody wrote {title!r} to {uuid}", generation, asked, register)
            elif problem := register.learn(generation, number):
                self._violate(problem[0], f"{title!r}: {problem[1]}", generation, asked, register)
        if all_of_them:
            for uuid in self.there(generation) - found.keys():
                self.claim(generation, Claim((uuid,), (), "one"), "unknown catalog", asked)

    def content(self, generation: int, org: str, version: int, asked: str) -> None:
        """An answer showed the content of an organisation to be of this version."""
        register = self.contents[org]
        if problem := register.learn(generation, version):
            self._violate(problem[0], f"version {version} of {org}: {problem[1]}", generation, asked, register)

    def content_of(self, generation: int, uuid: str, found: tuple[str, int] | None, asked: str) -> None:
        """A page showed a catalog, whose title is known by now, with documents of one version; None: of no one."""
        named, register = self.named[uuid], self.catalogs[uuid]
        if named.fresh:
            # Documents are shared by the pulls of an old filter and a new one: theirs may be of two versions.
            self._pulled[uuid] = min(generation, self._pulled.get(uuid, generation))
            return
        values = [register.steps[number].value for number in register.possible(generation)]
        if found is None or all(value is None or value.org != found[0] for value in values):
            self._violate("wrong", f"a page of {found}, where {values} are possible", generation, asked, register)
        else:
            self.content(generation, *found, asked)

    def claim(self, generation: int, claim: Claim, outcome: Outcome, asked: str) -> None:
        """An answer said so; it is judged by close(), with what is known then."""
        said = self._claims[generation].setdefault(claim, (outcome, asked))
        if said[0] != outcome:
            register = self.catalogs[claim.catalogs[0]] if claim.catalogs else None
            self._violate("wrong", f"{outcome!r} here, {said[0]!r} to {said[1]}", generation, asked, register)
        if outcome in ("yes", "no"):
            for uuid in claim.catalogs:
                if self.named[uuid].fresh and claim.asked == "one":
                    self._pulled[uuid] = min(generation, self._pulled.get(uuid, generation))

    def close(self, generations: Collection[int]) -> None:
        """Judges what was claimed of these generations."""
        for generation in sorted(generations):
            for claim, (outcome, asked) in self._claims.pop(generation, {}).items():
                possible = self._outcomes(generation, claim)
                self.counts["judged"] += 1
                self.counts["judged exactly"] += len(possible) == 1
                if outcome not in possible:
                    registers = [self.catalogs[uuid] for uuid in claim.catalogs]
                    orgs = {v.org for r in registers for n in r.possible(generation) if (v := r.steps[n].value)}
                    registers += [self.contents[org] for org in orgs if org in self.contents]
                    what = f"{outcome!r} to {claim}, possible: {sorted(possible)}"
                    kind: Kind = "lost" if outcome == "unknown catalog" else "wrong"
                    self._violate(kind, what, generation, asked, *registers)

    def open(self) -> list[int]:
        """The generations of which something was claimed that is not judged yet."""
        return list(self._claims)

    def went_back(self, what: str, generation: int, asked: str) -> None:
        """An answer came from a generation that whoever asked had passed already."""
        self._violate("wrong", what, generation, asked)

    def unanswerable(self, what: str, generation: int, asked: str) -> None:
        """An answer has a form that no state gives it."""
        self._violate("wrong", what, generation, asked)

    def lose(self, uuid: str, what: str, asked: str) -> None:
        """A write that was acknowledged is not there."""
        self._violate("lost", what, self.newest, asked, self.catalogs[uuid])

    def _outcomes(self, generation: int, claim: Claim) -> set[Outcome]:
        each = [self._of_one(generation, uuid, claim.keys) for uuid in claim.catalogs]
        if claim.asked == "one":
            return each[0]
        possible: set[Outcome] = set()
        if any("yes" in one for one in each):
            possible.add("yes")
        # One that was never pulled leaves it open, unless another one's yes is enough. What does not exist says no.
        enough = claim.asked == "any" and any(one == {"yes"} for one in each)
        if not enough and any("never pulled" in one for one in each):
            possible.add("never pulled")
        if all(one & {"no", "unknown catalog"} for one in each):
            possible.add("no")
        return possible

    def _of_one(self, generation: int, uuid: str, keys: tuple[str, ...]) -> set[Outcome]:
        register, fresh = self.catalogs[uuid], self.named[uuid].fresh
        possible: set[Outcome] = set()
        for number in register.possible(generation):
            value = register.steps[number].value
            if value is None:
                possible.add("unknown catalog")
                continue
            if fresh and generation < self._pulled.get(uuid, generation + 1):
                possible.add("never pulled")
            content = self.contents[value.org]
            # The pulls of an old filter and a new one may pass in any order.
            versions = (
                [n for n, step in enumerate(content.steps) if step.after < generation]
                if fresh
                else content.possible(generation)
            )
            possible |= {"yes" if any(has(value.org, n, key) for key in keys) else "no" for n in versions}
        return possible

    def _violate(self, kind: Kind, what: str, generation: int, asked: str, *about: Register | None) -> None:
        history = "\n".join(register.around(generation) for register in about if register is not None)
        self.violations.append(Violation(kind, what, generation, asked, history))
