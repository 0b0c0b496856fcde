"""What the supervisor tells its workers of one another."""

from typing import Any

from sidecar.workers.channel import Channel
from sidecar.workers.supervisor import NOTHING, Child, oldest_answered


class EndedOrNot(Channel):
    """A channel of which only this matters."""

    def __init__(self, *, ended: bool) -> None:
        self.ended = ended


def child(generation: int, *, ready: bool = True, ended: bool = False) -> Child:
    process: Any = None
    return Child(0, process, EndedOrNot(ended=ended), serves=(1, generation), ready=ready)


def test_a_write_waits_for_a_worker_that_answers_on_after_it_gave_its_slot_away() -> None:
    """Not for one that has not come to serve yet, and no longer than until it has said its last."""
    serving = {1: child(8), 2: child(9)}
    assert oldest_answered(serving, [1, 2]) == (1, 8)
    assert oldest_answered({**serving, 3: child(7)}, [1, 2]) == (1, 7)
    assert oldest_answered({**serving, 3: child(7, ended=True)}, [1, 2]) == (1, 8)
    assert oldest_answered({**serving, 3: child(7, ready=False)}, [1, 2]) == (1, 8)
    assert oldest_answered({**serving, 3: child(7, ready=False)}, [1, 2, 3]) == (1, 7)
    assert oldest_answered({}, []) == NOTHING
