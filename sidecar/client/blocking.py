"""The client for code that blocks: gunicorn's workers, Celery's, commands. Needs the standard library alone.

Names, arguments and results are those of edx-enterprise's EnterpriseCatalogApiClient, so that one takes the other's
place. What is different:

* An error is raised. Today's client logs and returns {} where creating, reading, changing or deleting a catalog fails,
  where a query's hash does with `should_raise_exception=False`, and for the document of a key. `{}` reads as "there is
  no such catalog", and that is what a service that is down must not say. With `should_raise_exception=False` a method
  here returns {} for what is not found, and still raises CannotTell.
* Every call has a deadline: 2 s for a question, 30 s for a write and for what walks pages.
* A call may be made from any thread, greenlet and process: see `connections`.
"""

import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from sidecar.client.connections import Pool
from sidecar.client.errors import ClientError
from sidecar.client.exchange import (
    LONG_S,
    QUESTION_S,
    UNKNOWN,
    Address,
    Answer,
    Basis,
    Call,
    Reading,
    Token,
    Version,
    Writing,
    headers_of,
    remember,
    remembered,
)
from sidecar.client.operations import PAGE_SIZE, Diff, Id, Ids, Json, Operations, Refreshed, Steps, contained_of

T = TypeVar("T")


class CatalogClient:
    """Asks one sidecar, or whatever speaks its API. Made once for a process, and kept."""

    def __init__(
        self,
        url: str,
        token: Token = None,
        *,
        version: Version = "v1",
        timeout_s: float = QUESTION_S,
        long_timeout_s: float = LONG_S,
    ) -> None:
        """`url`: http://HOST:PORT[/PATH] or unix:///PATH. `token`: a JWT, or what gives one when asked, which is before
        every request. `version` v2 shows the restricted runs that a catalog's own query allows.
        """
        self._pool = Pool(Address.parse(url))
        self._token = token
        # Those of a question that says nothing of how it is asked; None if the token has to be asked for every time.
        self._usual_headers = None if callable(token) else headers_of(Call("GET", ""), {}, token)
        self._operations = Operations(version)
        self._question_s = timeout_s
        self._long_s = long_timeout_s

    @property
    def last(self) -> Basis:
        """What the last answer that this thread or greenlet had from this client rests on."""
        return remembered(self)

    def close(self) -> None:
        """Closes idle connections; a later call makes new ones."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def contains_content_items(self, catalog_uuid: Id, content_ids: Ids, **how: Unpack[Reading]) -> bool:
        """Whether a catalog contains any of these keys: of courses, runs or programs."""
        # What is asked most is asked without a generator, whose driving takes longer than all that is done here.
        call = self._operations.catalog_contains_one(catalog_uuid, content_ids)
        if call is None:
            return self._run(self._operations.catalog_contains(catalog_uuid, content_ids), how, self._question_s)
        return contained_of(call, self._ask(call, how, self._question_s))

    def enterprise_contains_content_items(self, enterprise_uuid: Id, content_ids: Ids, **how: Unpack[Reading]) -> Json:
        """Whether a catalog of the customer contains any of these keys, and in `catalog_list` which catalogs do."""
        return self._run(self._operations.customer_contains(enterprise_uuid, content_ids), how, self._question_s)

    def get_content_metadata(
        self,
        enterprise_customer: Any,
        enterprise_catalogs: Iterable[Id] | None = None,
        content_keys_filter: Iterable[str] | None = None,
        **how: Unpack[Reading],
    ) -> list[Json]:
        """The documents of these catalogs, each once; without catalogs, those of all that the customer has.

        The customer is a model, which knows its catalogs, or a uuid: then the service is asked for them, which takes an
        admin's role.
        """
        return self._run(
            self._operations.content_metadata(enterprise_customer, enterprise_catalogs, content_keys_filter),
            how,
            self._long_s,
        )

    def get_catalog_content_count(self, catalog_uuid: Id, **how: Unpack[Reading]) -> int:
        """How many documents a catalog lists."""
        return self._run(self._operations.content_count(catalog_uuid), how, self._question_s)

    def get_catalog_diff(
        self,
        enterprise_customer_catalog: Id,
        content_keys: Iterable[str],
        should_raise_exception: bool = True,
        **how: Unpack[Reading],
    ) -> Diff:
        """How these keys differ from what a catalog has: (items to create, items to delete, items found)."""
        return self._run(
            self._operations.diff(enterprise_customer_catalog, content_keys, raises=should_raise_exception),
            how,
            self._long_s,
        )

    def get_customer_content_metadata_content_identifier(
        self, enterprise_uuid: Id, content_id: str, **how: Unpack[Reading]
    ) -> Json:
        """The document of a key or uuid, as the first of the customer's catalogs shows it that has it."""
        return self._run(self._operations.customer_document(enterprise_uuid, content_id), how, self._question_s)

    def get_content_metadata_content_identifier(
        self, content_id: str, coerce_to_parent_course: bool = False, **how: Unpack[Reading]
    ) -> Json:
        """The document of a key or uuid, as no catalog shows it; `coerce_to_parent_course`: of a run, its course."""
        return self._run(self._operations.document(content_id, coerced=coerce_to_parent_course), how, self._question_s)

    def create_enterprise_catalog(
        self,
        catalog_uuid: Id | None,
        enterprise_id: Id,
        enterprise_name: str,
        title: str,
        content_filter: object,
        enabled_course_modes: object,
        publish_audit_enrollment_urls: bool,
        catalog_query_uuid: Id | None,
        query_title: str | None = None,
        include_exec_ed_2u_courses: bool = False,
        **how: Unpack[Writing],
    ) -> Json:
        """Makes a catalog. With a uuid this may be repeated: made again with the same body, it changes nothing more."""
        fields = {
            "uuid": catalog_uuid,
            "title": title,
            "enterprise_customer": enterprise_id,
            "enterprise_customer_name": enterprise_name,
            "content_filter": content_filter,
            "enabled_course_modes": enabled_course_modes,
            "publish_audit_enrollment_urls": publish_audit_enrollment_urls,
            "catalog_query_uuid": catalog_query_uuid,
            "query_title": query_title,
            "include_exec_ed_2u_courses": include_exec_ed_2u_courses,
        }
        return self._run(self._operations.create(fields), how, self._long_s)

    def get_enterprise_catalog(
        self, catalog_uuid: Id, should_raise_exception: bool = True, **how: Unpack[Reading]
    ) -> Json:
        """The record of a catalog."""
        return self._run(self._operations.retrieve(catalog_uuid, raises=should_raise_exception), how, self._question_s)

    def update_enterprise_catalog(self, catalog_uuid: Id, *, timeout_s: float | None = None, **fields: Any) -> Json:
        """Replaces the fields of a catalog: all that are required."""
        how: Writing = {} if timeout_s is None else {"timeout_s": timeout_s}
        return self._run(self._operations.update(catalog_uuid, fields), how, self._long_s)

    def delete_enterprise_catalog(self, catalog_uuid: Id, **how: Unpack[Writing]) -> bool:
        """Removes a catalog; True."""
        return self._run(self._operations.delete(catalog_uuid), how, self._long_s)

    def get_enterprise_catalog_by_hash(
        self, catalog_query_hash: str, should_raise_exception: bool = True, **how: Unpack[Reading]
    ) -> Json:
        """The query that has this hash."""
        return self._run(
            self._operations.by_hash(catalog_query_hash, raises=should_raise_exception), how, self._question_s
        )

    def get_catalog_query_hash(self, catalog_query: object, **how: Unpack[Reading]) -> str:
        """The hash of a content filter."""
        return self._run(self._operations.query_hash(catalog_query), how, self._question_s)

    def refresh_catalogs(self, enterprise_catalogs: Iterable[Id], **how: Unpack[Writing]) -> Refreshed:
        """Has catalogs pulled again: the id of the pull by uuid, and the uuids of those for which none was started."""
        return self._run(self._operations.refresh(enterprise_catalogs), how, self._long_s)

    def health(self, **how: Unpack[Reading]) -> Json:
        """The report of the sidecar on itself, also if it is not well."""
        return self._run(self._operations.health(), how, self._question_s)

    def iterate_content_metadata(
        self,
        catalog_uuid: Id,
        content_keys_filter: Iterable[str] | None = None,
        *,
        page_size: int = PAGE_SIZE,
        **how: Unpack[Reading],
    ) -> Iterator[Json]:
        """The documents of one catalog, page by page as they are wanted; the deadline is that of each page."""
        keys = None if content_keys_filter is None else list(content_keys_filter)
        for query in self._operations.page_queries(keys, page_size):
            following: str | None = query
            while following is not None:
                results, following = self._run(self._operations.page(catalog_uuid, following), how, self._long_s)
                yield from results

    def _ask(self, call: Call, how: Reading, default_s: float) -> Answer:
        basis = UNKNOWN
        until_s = time.monotonic() + how.get("timeout_s", default_s)
        try:
            usual = None if how else self._usual_headers
            headers = headers_of(call, how, self._token) if usual is None else usual
            answer = self._pool.exchange(call, headers, until_s)
            basis = answer.basis
            return answer
        finally:
            remember(self, basis)

    def _run(self, steps: Steps[T], how: Reading | Writing, default_s: float) -> T:
        until_s = time.monotonic() + how.get("timeout_s", default_s)
        basis = UNKNOWN
        try:
            call = next(steps)
            while True:
                try:
                    answer = self._pool.exchange(call, headers_of(call, how, self._token), until_s)
                except ClientError as error:
                    call = steps.throw(error)
                else:
                    basis = basis.joined(answer.basis)
                    call = steps.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            remember(self, basis)
