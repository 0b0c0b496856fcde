"""Catalogs in a JSON file, for `catalogs add` and `import`. Pure: bytes in, bodies in the API's fields out.

It holds one catalog in the fields of enterprise-catalog's API, a list of them, or an object whose `catalogs` is such a
list. Or it is what `manage.py dumpdata` writes of the tables of catalogs and queries, of enterprise-catalog or of the
LMS: rows of {model, pk, fields}. A dump tells everything; the API does not.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from indexer.offer import DEFAULTS, Offer, name_of, time_ms
from sidecar.errors import CatalogError

ABSENT: Final = "the file does not say: the default"
NO_QUERY: Final = "it has no catalog query"
NO_NAME: Final = "unknown: the customer's uuid stands for it, also in links, until a catalog is given another"


class NotCatalogs(CatalogError):
    """Raised when a file cannot be read as catalogs; says where and why."""

    status = 400


@dataclass(frozen=True, slots=True)
class _Tables:
    """How a service calls its tables and columns."""

    catalogs: str
    queries: str
    customers: str | None
    customer: str
    customer_name: str | None
    query: str


_DUMPS: Final = (
    _Tables(
        "catalog.enterprisecatalog", "catalog.catalogquery", None, "enterprise_uuid", "enterprise_name", "catalog_query"
    ),
    _Tables(
        "enterprise.enterprisecustomercatalog",
        "enterprise.enterprisecatalogquery",
        "enterprise.enterprisecustomer",
        "enterprise_customer",
        None,
        "enterprise_catalog_query",
    ),
)


def read_bodies(text: bytes, where: str) -> list[object]:
    """The bodies in a file, with defaults for what they may leave out. Raises NotCatalogs."""
    return [dict(DEFAULTS) | body if isinstance(body, dict) else body for body in _bodies(_read(text, where))]


def read_offers(text: bytes, where: str) -> list[Offer]:
    """The catalogs in a file or a dump, in their order of creation. Raises NotCatalogs."""
    given = _read(text, where)
    if isinstance(given, list) and given and all(map(_is_row, given)):
        return _of_dump(given, where)
    offers = []
    for number, body in enumerate(_bodies(given), start=1):
        guessed = {name: ABSENT for name in DEFAULTS if isinstance(body, dict) and name not in body}
        whole = dict(DEFAULTS) | body if isinstance(body, dict) else body
        offers.append(Offer(name_of(body, number), whole, guessed=guessed))
    return offers


def _bodies(given: object) -> list[object]:
    if isinstance(given, dict) and isinstance(given.get("catalogs"), list):
        given = given["catalogs"]
    entries = given if isinstance(given, list) else [given]
    return [entry["body"] if isinstance(entry, dict) and "body" in entry else entry for entry in entries]


def _is_row(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("model"), str) and isinstance(value.get("fields"), dict)


def _of_dump(rows: list[dict[str, Any]], where: str) -> list[Offer]:
    models = {row["model"].lower() for row in rows}
    tables = next((tables for tables in _DUMPS if tables.catalogs in models), None)
    if tables is None:
        wanted = " or ".join(f"{tables.catalogs} with {tables.queries}" for tables in _DUMPS)
        raise NotCatalogs(f"{where}: a dump of {', '.join(sorted(models))}; it must have {wanted}")
    queries = _table(rows, tables.queries)
    names = {pk: fields.get("name") for pk, fields in _table(rows, tables.customers or "").items()}
    those = _table(rows, tables.catalogs)
    in_order = sorted(those, key=lambda pk: time_ms(those[pk].get("created")) or 0)
    return [_of_row(pk, those[pk], tables, queries, names) for pk in in_order]


def _table(rows: list[dict[str, Any]], model: str) -> dict[str, dict[str, Any]]:
    return {str(row.get("pk")): row["fields"] for row in rows if row["model"].lower() == model}


def _of_row(
    uuid: str, fields: dict[str, Any], tables: _Tables, queries: Mapping[str, Any], names: Mapping[str, object]
) -> Offer:
    customer, query = str(fields.get(tables.customer)), queries.get(str(fields.get(tables.query)))
    if query is None and not fields.get("content_filter"):
        named = fields.get(tables.query)
        return Offer(uuid, None, lacks=NO_QUERY if named is None else f"the dump does not have its query, {named}")
    name = names.get(customer) if tables.customer_name is None else fields.get(tables.customer_name)
    guessed = {} if name else {"enterprise_customer_name": NO_NAME}
    shown = fields if query is None else query
    body = {
        "uuid": uuid,
        "title": fields.get("title"),
        "enterprise_customer": customer,
        "enterprise_customer_name": name or customer,
        "enabled_course_modes": _json(fields.get("enabled_course_modes")),
        "publish_audit_enrollment_urls": fields.get("publish_audit_enrollment_urls"),
        "content_filter": _json(shown.get("content_filter")),
        "catalog_query_uuid": None if query is None else query.get("uuid"),
        "query_title": None if query is None else query.get("title"),
    }
    return Offer(uuid, body, time_ms(fields.get("modified")), guessed)


def _json(value: object) -> object:
    """The value of a column of JSON, which a dump has as a value, as its text, or as the text of its text."""
    for _ in range(2):
        if not isinstance(value, str):
            break
        try:
            value = json.loads(value, parse_constant=_no_number, parse_float=_finite)
        except (ValueError, RecursionError):
            break
    return value


def _read(text: bytes, where: str) -> object:
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise NotCatalogs(f"{where}: not JSON: {error}") from error


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"it has {name}, which is no number of JSON's")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"it has {text:.80}, which is beyond what a number holds")
    return number
