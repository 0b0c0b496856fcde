"""What is done with workers: slots are always covered, the dead are replaced, and an exchange leaves what works."""

from sidecar.workers.plan import (
    DRAIN_END_S,
    END_S,
    FIRST_PAUSE_S,
    MAX_PAUSE_S,
    PATIENCE_S,
    READY_S,
    STABLE_S,
    UNUSABLE,
    Accept,
    Action,
    Finish,
    Kill,
    Note,
    Plan,
    Start,
)
from tests.fakes import FakeClock

OLD, NEW, NEWER = "old settings", "new settings", "newer settings"


class Rig:
    """A plan for two workers over a clock that is set by hand."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.plan = Plan(2, OLD, self.clock.monotonic)

    def serving(self) -> None:
        """Both serve, and have for long."""
        self.up()
        self.plan.ready(1)
        self.plan.ready(2)
        self.clock.advance(STABLE_S)

    def up(self) -> None:
        """Both have come up."""
        self.plan.begin()
        self.plan.up(1)
        self.plan.up(2)

    def due(self) -> list[Action[str]]:
        """Lets time pass until something is due, and does it."""
        assert self.plan.due_s is not None
        self.clock.advance(self.plan.due_s - self.clock.monotonic())
        return self.plan.tick()


def does(actions: list[Action[str]]) -> list[Action[str]]:
    """The actions without what is merely told."""
    return [action for action in actions if not isinstance(action, Note)]


def told(actions: list[Action[str]]) -> list[str]:
    return [action.event for action in actions if isinstance(action, Note)]


def test_a_worker_is_started_for_every_slot_and_whoever_is_first_takes_all_connections() -> None:
    plan = Rig().plan
    assert plan.begin() == [Start(1, 0, OLD), Start(2, 1, OLD)]
    assert plan.serving == []
    assert plan.ready(2) == [Accept(2, (0, 1))]
    assert plan.ready(1) == [Accept(1, (0,)), Accept(2, (1,))]
    assert (plan.serving, plan.due_s) == ([1, 2], None)


def test_a_later_generation_changes_nothing() -> None:
    rig = Rig()
    rig.serving()
    assert rig.plan.ready(1) == []


def test_workers_that_all_have_nothing_are_given_their_slots_after_a_while_to_say_so() -> None:
    rig = Rig()
    rig.plan.begin()
    rig.clock.advance(100 * PATIENCE_S)
    # That they take long to come up has another reason.
    assert (rig.plan.tick(), rig.plan.due_s) == ([], None)
    began = rig.clock.monotonic()
    rig.plan.up(1)
    rig.plan.up(2)
    assert rig.plan.due_s == began + PATIENCE_S
    assert rig.due() == [Accept(1, (0, 1)), Accept(1, (0,)), Accept(2, (1,))]
    assert rig.plan.due_s is None


def test_a_worker_without_anything_waits_while_another_can_answer() -> None:
    rig = Rig()
    rig.up()
    rig.plan.ready(1)
    rig.clock.advance(100 * PATIENCE_S)
    assert rig.plan.tick() == []
    assert rig.plan.serving == [1]


def test_the_slot_of_a_dead_worker_is_covered_until_another_one_is_ready() -> None:
    rig = Rig()
    rig.serving()
    ended = rig.plan.ended(1, -9)
    assert does(ended) == [Accept(2, (0, 1))]
    assert told(ended) == ["a worker ended"]
    assert rig.plan.tick() == [Start(3, 0, OLD)]
    assert rig.plan.ready(3) == [Accept(3, (0,)), Accept(2, (1,))]
    assert rig.plan.deaths == 1


def test_one_that_dies_at_once_is_started_again_after_pauses_that_double_up_to_a_bound() -> None:
    rig = Rig()
    rig.plan.begin()
    rig.plan.ready(2)
    pauses, worker = [], 1
    for _ in range(9):
        rig.plan.ended(worker, 1)
        before = rig.clock.monotonic()
        (start,) = rig.due()
        assert isinstance(start, Start)
        worker = start.worker
        pauses.append(rig.clock.monotonic() - before)
    assert pauses == [min(MAX_PAUSE_S, FIRST_PAUSE_S * 2**n) for n in range(9)]
    # How long it takes to come up is no sign that it works.
    rig.clock.advance(STABLE_S)
    rig.plan.up(worker)
    rig.clock.advance(STABLE_S)
    rig.plan.ended(worker, 1)
    assert does(rig.plan.tick()) == [Start(worker + 1, 0, OLD)]


def test_settings_that_no_worker_can_work_with_end_everything() -> None:
    rig = Rig()
    rig.plan.begin()
    assert does(rig.plan.ended(2, UNUSABLE)) == [Finish(1, drain=False)]
    assert (rig.plan.unusable, rig.plan.over) == (True, False)
    rig.plan.ended(1, 0)
    assert rig.plan.over


def test_what_has_worked_once_is_tried_again() -> None:
    rig = Rig()
    rig.serving()
    rig.plan.ended(1, UNUSABLE)
    assert not rig.plan.unusable
    assert rig.plan.tick() == [Start(3, 0, OLD)]


def test_an_exchange_goes_slot_by_slot_and_the_old_worker_ends_once_the_new_one_is_ready() -> None:
    rig = Rig()
    rig.serving()
    assert does(rig.plan.roll(NEW)) == [Start(3, 0, NEW)]
    assert rig.plan.ready(3) == [Accept(3, (0,)), Finish(1, drain=True)]
    assert rig.plan.ended(1, 0) == [Start(4, 1, NEW)]
    assert rig.plan.ready(4) == [Accept(4, (1,)), Finish(2, drain=True)]
    assert told(rig.plan.ended(2, 0)) == ["workers were exchanged"]
    assert (rig.plan.serving, rig.plan.due_s, rig.plan.deaths) == ([3, 4], None, 0)
    rig.plan.ended(4, -9)
    assert does(rig.due()) == [Start(5, 1, NEW)]


def test_an_exchange_is_given_up_when_the_new_worker_ends() -> None:
    rig = Rig()
    rig.serving()
    rig.plan.roll(NEW)
    ended = rig.plan.ended(3, UNUSABLE)
    assert does(ended) == []
    assert told(ended) == ["a worker ended", "the exchange of workers is given up"]
    assert (rig.plan.serving, rig.plan.due_s, rig.plan.unusable) == ([1, 2], None, False)
    rig.plan.ended(1, -9)
    assert does(rig.plan.tick()) == [Start(4, 0, OLD)]


def test_an_exchange_is_given_up_when_the_new_worker_is_not_ready_in_time() -> None:
    rig = Rig()
    rig.serving()
    rig.plan.roll(NEW)
    began = rig.clock.monotonic()
    given_up = rig.due()
    assert rig.clock.monotonic() == began + READY_S
    assert does(given_up) == [Finish(3, drain=False)]
    assert told(given_up) == ["the exchange of workers is given up"]
    # It may have become ready at that moment: too late.
    assert rig.plan.ready(3) == []
    assert does(rig.plan.ended(3, 0)) == []
    assert (rig.plan.serving, rig.plan.deaths) == ([1, 2], 0)


def test_slots_that_were_exchanged_before_it_was_given_up_stay_exchanged() -> None:
    rig = Rig()
    rig.serving()
    rig.plan.roll(NEW)
    rig.plan.ready(3)
    rig.plan.ended(1, 0)
    rig.plan.ended(4, 1)
    assert rig.plan.serving == [3, 2]


def test_an_old_worker_that_dies_while_it_is_exchanged_is_replaced_by_the_new_one_alone() -> None:
    rig = Rig()
    rig.serving()
    rig.plan.roll(NEW)
    assert does(rig.plan.ended(1, -9)) == [Accept(2, (0, 1))]
    assert rig.plan.tick() == []
    assert rig.plan.ready(3) == [Accept(3, (0,)), Accept(2, (1,)), Start(4, 1, NEW)]


def test_a_worker_that_is_just_coming_is_exchanged_too() -> None:
    rig = Rig()
    rig.plan.begin()
    assert does(rig.plan.roll(NEW)) == [Finish(1, drain=False), Start(3, 0, NEW)]
    rig.plan.ready(3)
    assert does(rig.plan.ended(1, 0)) == [Finish(2, drain=False), Start(4, 1, NEW)]


def test_a_slot_that_waits_to_be_started_again_is_started_by_an_exchange() -> None:
    rig = Rig()
    rig.plan.begin()
    rig.plan.ready(2)
    rig.plan.ended(1, 1)
    assert does(rig.plan.roll(NEW)) == [Start(3, 0, NEW)]
    rig.clock.advance(FIRST_PAUSE_S)
    assert rig.plan.tick() == []


def test_whoever_asks_during_an_exchange_gets_another_one_after_it() -> None:
    rig = Rig()
    rig.serving()
    rig.plan.roll(NEW)
    assert rig.plan.roll("never seen") == []
    assert rig.plan.roll(NEWER) == []
    rig.plan.ready(3)
    rig.plan.ended(1, 0)
    rig.plan.ready(4)
    assert does(rig.plan.ended(2, 0)) == [Start(5, 0, NEWER)]


def test_a_worker_that_does_not_end_is_killed_once() -> None:
    rig = Rig()
    rig.serving()
    rig.plan.roll(NEW)
    rig.plan.ready(3)
    began = rig.clock.monotonic()
    assert does(rig.due()) == [Kill(1)]
    assert (rig.clock.monotonic(), rig.plan.due_s) == (began + DRAIN_END_S, None)
    assert does(rig.plan.ended(1, -9)) == [Start(4, 1, NEW)]


def test_stopping_ends_all_and_starts_none() -> None:
    rig = Rig()
    rig.serving()
    rig.plan.roll(NEW)
    rig.plan.ready(3)
    # The one that was left time is in a hurry now.
    assert does(rig.plan.stop()) == [Finish(1, drain=False), Finish(2, drain=False), Finish(3, drain=False)]
    assert rig.plan.roll(NEWER) == []
    for worker in (1, 2):
        assert does(rig.plan.ended(worker, 0)) == []
    assert not rig.plan.over
    began = rig.clock.monotonic()
    assert does(rig.due()) == [Kill(3)]
    assert rig.clock.monotonic() == began + END_S
    rig.plan.ended(3, -9)
    assert (rig.plan.over, rig.plan.due_s) == (True, None)


def test_a_worker_that_waits_to_be_started_is_not_started_after_the_stop() -> None:
    rig = Rig()
    rig.plan.begin()
    rig.plan.ended(1, 1)
    rig.plan.stop()
    rig.clock.advance(MAX_PAUSE_S)
    assert does(rig.plan.tick()) == [Kill(2)]
