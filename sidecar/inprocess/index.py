"""What a worker asks of its sidecar's disk copy, in its own process. The hot path is `contains`.

1. `contains` probes two dictionaries: the catalog's bitmap, if it was asked about before, and the key's ordinal.
   Whatever is not there goes the long way, which is the sidecar's own: `sidecar.lookup` over an index.
2. Every `look_s` the call that comes next looks at the pointer. A generation is taken only if its (epoch, generation)
   is higher, only as a whole, and only once all but its bitmaps is verified; they are as they are fetched. Until then,
   and whatever goes wrong, the last good one answers, and `trouble` says why.
3. The copy keeps two generations. A bitmap that was swept under a reader sends it to the newest one, with the question.

There is no thread. A question sees one generation. Exchanging it is one assignment.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar
from uuid import UUID

from sidecar.contract.records import Record, Reference, open_record
from sidecar.contract.words import age_s, canonical_uuid
from sidecar.errors import ContractError, NotReady, ObjectMissing, StoreError
from sidecar.inprocess.copy import Copy, Moment
from sidecar.inprocess.lazy import LazyIndex, Probes
from sidecar.lookup import catalog_contains, catalogs_containing, customer_contains
from sidecar.store import Pointer

LOOK_S: Final = 0.25
# A generation that was refused is read again after so long: its objects may be whole by then.
REFUSED_S: Final = 5.0

Id = str | UUID
Keys = str | Iterable[str]
T = TypeVar("T")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class CatalogIndex:
    """The generations in the disk copy at a path, read-only. Made once for a process, and kept; any thread, greenlet or
    forked child may ask.

    Every question may raise, and never says no instead: UnknownCatalog; NotPulledYet, of a catalog that has no content
    yet; NotReady, before there is a generation; StoreError, for what is missing or damaged in the copy.
    `restricted`: with the restricted runs that a catalog's own query allows, as /api/v2 has them.
    """

    __slots__ = ("_copy", "_due_s", "_look_s", "_monotonic", "_now_ms", "_refused", "_served", "trouble")

    def __init__(
        self,
        path: str | Path,
        *,
        look_s: float = LOOK_S,
        monotonic: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = _now_ms,
    ) -> None:
        """`path`: what the sidecar's settings have as `sidecar.disk`. Nothing is read before the first question."""
        # Why the newest generation is not, or may not be, the one that answers; None while all is well.
        self.trouble: str | None = None
        self._copy = Copy(Path(path))
        self._look_s = look_s
        self._monotonic = monotonic
        self._now_ms = now_ms
        self._due_s = float("-inf")
        # The generation that was refused, and when it may be tried again.
        self._refused: tuple[Pointer, float] | None = None
        # All of one generation, in one place: what `contains` needs of it, for both versions, and the index.
        self._served: tuple[Probes, Probes, Mapping[str, int], LazyIndex | None] = ({}, {}, {}, None)

    def contains(self, catalog_uuid: Id, content_key: str, restricted: bool = False) -> bool:
        """Whether a catalog contains a course, run or program."""
        plain, with_restricted, ordinals, index = self._served
        if self._monotonic() < self._due_s:
            try:
                return (with_restricted if restricted else plain)[catalog_uuid](ordinals[content_key])
            except KeyError:
                probe = (with_restricted if restricted else plain).get(catalog_uuid)
                if probe is not None and index is not None and isinstance(content_key, str):
                    return any(map(probe, index.dictionary.find(content_key)))
        return self.contains_any(catalog_uuid, [content_key], restricted)

    def contains_any(self, catalog_uuid: Id, content_keys: Keys, restricted: bool = False) -> bool:
        """Whether a catalog contains any of these keys."""
        uuid, keys = _canonical(catalog_uuid), _listed(content_keys)

        def question(index: LazyIndex) -> bool:
            answer = catalog_contains(index, uuid, keys, restricted)
            index.keep(catalog_uuid if isinstance(catalog_uuid, UUID) else uuid, restricted=restricted)
            return answer.value

        return self._ask(question)

    def customer_contains(self, customer_uuid: Id, content_keys: Keys, restricted: bool = False) -> bool:
        """Whether any catalog of a customer contains any of these keys."""
        customer, keys = _customer(customer_uuid), _listed(content_keys)
        return self._ask(lambda index: customer_contains(index, customer, keys, restricted)).value

    def catalogs_containing(self, customer_uuid: Id, content_keys: Keys, restricted: bool = False) -> list[str]:
        """The uuids of the customer's catalogs that contain any of these keys, in order of creation."""
        customer, keys = _customer(customer_uuid), _listed(content_keys)
        return self._ask(lambda index: catalogs_containing(index, customer, keys, restricted)).value

    def age_s(self, catalog_uuid: Id) -> int | None:
        """Seconds since what a catalog contains was pulled; None of one that can never be pulled."""
        uuid = _canonical(catalog_uuid)
        pulled_at_ms = self._ask(lambda index: catalog_contains(index, uuid, (), False)).oldest_ms
        return None if pulled_at_ms is None else age_s(pulled_at_ms, self._now_ms())

    @property
    def generation(self) -> int:
        """The number of the generation that answers."""
        return self._current().pointer.generation

    def load(self) -> None:
        """Takes the newest generation now, so that no question has to wait for it: where workers are forked, before."""
        self._look()
        self._current()

    def close(self) -> None:
        """Closes the file; what is loaded stays, and a later call opens it again."""
        self._copy.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _ask(self, question: Callable[[LazyIndex], T]) -> T:
        """What a question comes to; of the newest generation, where the present one has lost a bitmap."""
        index = self._current()
        while True:
            try:
                return question(index)
            except (ContractError, StoreError) as error:
                self._look()
                newest = self._current()
                if newest is index:
                    if isinstance(error, StoreError):
                        raise
                    # Damaged is as good as missing: it may be whole again soon, and nothing is told until then.
                    raise ObjectMissing(str(error)) from error
            index = newest

    def _current(self) -> LazyIndex:
        # Whoever comes while another one looks is answered from what there is.
        if self._served[3] is None or (self._monotonic() >= self._due_s and not self._copy.busy):
            self._look()
        index = self._served[3]
        if index is None:
            raise NotReady(f"no generation is loaded: {self.trouble}")
        return index

    def _look(self) -> None:
        """Takes the generation of the pointer, if it is a newer one, whole and sound."""
        try:
            with self._copy.moment() as moment:
                self.trouble = self._follow(moment)
        except StoreError as error:
            self.trouble = str(error)
        self._due_s = self._monotonic() + self._look_s

    def _follow(self, moment: Moment) -> str | None:
        served, pointer = self._served[3], moment.pointer()
        if pointer is None:
            return "the disk copy holds no generation yet"
        if served is not None and pointer[:2] <= served.pointer[:2]:
            return (
                None if pointer == served.pointer else f"the disk copy holds {_named(pointer)}, which is no newer one"
            )
        if self._refused is not None and self._refused[0] == pointer and self._monotonic() < self._refused[1]:
            return self.trouble
        try:
            index = LazyIndex.load(pointer, partial(_opened, moment), served, partial(_opened, self._copy))
        except (ContractError, ObjectMissing) as error:
            self._refused = pointer, self._monotonic() + REFUSED_S
            return f"{_named(pointer)} is refused: {error}"
        # What makes the generation visible; all but its bitmaps is verified.
        self._served = (*index.probes, index.dictionary.ordinals, index)
        self._refused = None
        return None


def _opened(copy: Copy | Moment, reference: Reference) -> Record:
    kind, digest = reference
    return open_record(digest, copy.get(digest), kind)


def _named(pointer: Pointer) -> str:
    return f"epoch {pointer.epoch}, generation {pointer.generation}"


def _canonical(uuid: Id) -> str:
    """A catalog's uuid in its one form. What is no uuid is left as it is: no catalog has it."""
    return str(uuid) if isinstance(uuid, UUID) else canonical_uuid(uuid) or uuid


def _customer(uuid: Id) -> str:
    """A customer's uuid in its one form. That what is no uuid has nothing would be a no that means nothing."""
    text = str(uuid) if isinstance(uuid, UUID) else canonical_uuid(uuid)
    if text is None:
        raise ValueError(f"{uuid!r} is no uuid")
    return text


def _listed(keys: Keys) -> list[str]:
    listed = [keys] if isinstance(keys, str) else list(keys)
    for key in listed:
        if not isinstance(key, str):
            # A number is in no catalog, nor is a key of another type: a no that means nothing.
            raise TypeError(f"{key!r} is no content key: a text is")
    return listed
