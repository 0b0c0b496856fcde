"""The OpenAPI document of all that a sidecar answers, made from its routes. Pure; made once, when a sidecar begins.

What is particular to a route stands beside it, in its `operations`. Here is what follows from the rest of it:

its methods      HEAD takes and answers what GET does, without a body; OPTIONS tells of a route that tells of itself.
its path         what is in braces; where it is asked for without its closing slash, 301 or the answer itself.
its formats      JSON and XML, of errors too; 406 for everything else.
its gate         401 and 403.
its questions    404 for what does not exist; 503 while it cannot be told, or done.
its bodies       408, 413, 415.

A method that says nothing of itself is Undescribed: no route is left out.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from sidecar import __version__
from sidecar.auth import HEADER_AND_PAYLOAD, SIGNATURE
from sidecar.handlers import Route
from sidecar.intake import MAX_BODY_BYTES, MAX_LINE_BYTES
from sidecar.old_api import PREFIX
from sidecar.parameters import FORM_TYPE, JSON_TYPE, MULTIPART_TYPE, XML_TYPE
from sidecar.roles import Access
from sidecar.schemas import (
    BOOLEAN,
    DETAIL,
    KEYS,
    TEXT,
    UUID,
    Body,
    Operation,
    Parameter,
    Schema,
    closed,
    one_of,
)

Json = dict[str, Any]
OPENAPI: Final = "3.1.0"
ABOUT: Final = f"""\
The API of today's enterprise-catalog, and the old one of the LMS, answered next to the caller from an index.

* **Paths** end in a slash. Without it, a path of `/api/` either leads to the one with it (301) or answers as well, and
  one of the old API is not found; each says which. One of a process may end in a slash.
* **Formats.** `format` in the query string and Accept choose between JSON and, where a route has it, XML. Paths whose
  routes say so may end in a format instead: `.json`, `.xml`. What there is no format for is 406, a format of an unknown
  name 404.
* **Methods** that a path does not have are 405; Allow names those that it has.
* **Generations.** An answer comes from one complete state, which `X-Catalog-Generation` numbers; `X-Catalog-Age` says
  how many seconds ago the oldest pull was that it rests on. What cannot be told yet is 503, never a no.
* **Writes** are passed on to the indexer, and answered once they can be read back, or with
  `X-Catalog-Published: pending`.
* **Bounds.** A line of a request may have {MAX_LINE_BYTES} bytes, a body {MAX_BODY_BYTES}. Compressed bodies are
  refused. Requests that are no HTTP are 400, and those with an Expect that nobody knows 417, as plain text. Whoever
  hangs up within their body is counted as 499.
* A 500 is a defect; its body has a `request_id`, by which the log tells more.
* Paths that are not told of here are not found, unless a service is named that they are passed on to."""
SECURITY: Final[Mapping[str, Json]] = {
    "token": {
        "type": "apiKey",
        "in": "header",
        "name": "Authorization",
        "description": "`JWT` and the token, with a space between; `Bearer` is no credentials.",
    },
    "cookieHeaderAndPayload": {"type": "apiKey", "in": "cookie", "name": HEADER_AND_PAYLOAD},
    "cookieSignature": {"type": "apiKey", "in": "cookie", "name": SIGNATURE},
    "useCookies": {
        "type": "apiKey",
        "in": "header",
        "name": "USE-JWT-COOKIE",
        "description": "`true`: the token is in the two cookies.",
    },
}
CREDENTIALS: Final[list[Json]] = [
    {"token": []},
    {"cookieHeaderAndPayload": [], "cookieSignature": [], "useCookies": []},
]
HEADERS: Final[Mapping[str, Json]] = {
    "Allow": {"description": "The methods of the path.", "schema": TEXT},
    "Cache-Control": {"description": "An answer is as good as its generation.", "schema": {"const": "no-store"}},
    "Location": {"description": "The path with its closing slash.", "schema": TEXT},
    "Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}},
    "WWW-Authenticate": {"description": "Which credentials are taken.", "schema": TEXT},
    "X-Catalog-Age": {
        "description": "Whole seconds since the oldest pull that the answer rests on; absent if it rests on none.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "X-Catalog-Generation": {
        "description": "The generation that was asked. Of a write: the one that shows it.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "X-Catalog-Published": {
        "description": "The write was made, and no generation that shows it is served here yet.",
        "schema": {"const": "pending"},
    },
}
PATH: Final[Mapping[str, tuple[str, Schema]]] = {
    "uuid": ("The uuid, with or without dashes.", UUID),
    "key": ("A content key, or the uuid of content.", {"type": "string", "minLength": 1}),
    "id": ("The number of a query.", {"type": "integer", "minimum": 1}),
}
# What waits until a state is served that the caller knows of.
STATE: Final = (
    Parameter(
        "X-Min-Generation",
        "Answers once this generation, or a later one, is served; past a deadline 503.",
        {"type": "integer", "minimum": 0},
        "header",
    ),
    Parameter(
        "X-After-Task",
        "Answers once what the pull of this id found is served; past a deadline 503.",
        UUID,
        "header",
    ),
)
TOLD: Final = closed(
    "Told",
    {
        "name": TEXT,
        "description": TEXT,
        "renders": KEYS,
        "parses": KEYS,
        "actions": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "additionalProperties": closed(
                    "Field",
                    {
                        "type": TEXT,
                        "required": BOOLEAN,
                        "read_only": BOOLEAN,
                        "label": TEXT,
                        "max_length": {"type": "integer"},
                    },
                    optional=("max_length",),
                ),
            },
        },
    },
    optional=("actions",),
)
REFUSALS: Final[Mapping[int, tuple[str, str]]] = {
    400: ("BadRequest", "It cannot be understood."),
    401: ("Unauthorized", "No token, or none that is good."),
    403: ("Forbidden", "The caller has no such role there."),
    404: ("NotFound", "There is no such thing, page or format."),
    405: ("MethodNotAllowed", "The path does not have this method."),
    406: ("NotAcceptable", "There is no format of those that are asked for."),
    408: ("Timeout", "The body did not arrive in time."),
    409: ("Conflict", "What has this uuid is another catalog."),
    413: ("TooLarge", "The body is too large."),
    415: ("UnsupportedBody", "A body of this type, or a compressed one, is not taken."),
    503: ("Unavailable", "It cannot be told, or done, yet."),
}
# What every refusal names, if it came as far as to know.
_ALWAYS: Final = ("Allow", "Cache-Control", "X-Catalog-Generation")
_ITS_OWN: Final = {401: ("WWW-Authenticate",), 503: ("Retry-After",)}


class Undescribed(Exception):
    """Raised when a route has a method, or a place in its path, that nothing is said of."""


class Served(NamedTuple):
    """A route where it is served, and what its path gives without its closing slash."""

    prefix: str
    route: Route
    slashless: str

    @property
    def path(self) -> str:
        return self.prefix + self.route.path


def document(
    routes: Iterable[Route], old: Iterable[Route], process: Mapping[str, Operation], *, secured: bool
) -> bytes:
    """The document, as JSON. `secured`: whether tokens are demanded. Raises Undescribed."""
    served = [
        Served(f"/api/{version}", route, "redirects" if route.redirects else "answers")
        for version in ("v1", "v2")
        for route in routes
        if version in route.versions
    ]
    served += [Served(PREFIX, route, "is not found") for route in old]
    paths = {one.path: dict(_of_route(one)) for one in served}
    paths |= {path: dict(_of_process(path, operation)) for path, operation in process.items()}
    shared = {
        f"{name}{'OrXml' if xml else ''}": _refusal(status, DETAIL, xml=xml)
        for status, (name, _) in REFUSALS.items()
        for xml in (False, True)
    }
    whole: Json = {
        "openapi": OPENAPI,
        "info": {"title": "catalog-sidecar", "version": __version__, "description": ABOUT},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"responses": shared, "headers": dict(HEADERS), "securitySchemes": dict(SECURITY)},
    }
    if secured:
        whole["security"] = CREDENTIALS
    schemas: Json = {}
    told = _named(whole, schemas, {})
    told["components"]["schemas"] = dict(sorted(schemas.items()))
    return orjson.dumps(told)


def _of_route(served: Served) -> Iterator[tuple[str, Json]]:
    route = served.route
    own = {*(() if route.reads is None else route.reads.methods), *route.writes}
    tag = "the old API" if served.prefix == PREFIX else served.prefix.rpartition("/")[2]
    for method in sorted(own):
        operation = route.operations.get("GET" if method == "HEAD" else method)
        if operation is None:
            raise Undescribed(f"{method} of {served.path} says nothing of itself")
        yield method.lower(), _operation(served, method, operation) | {"tags": [tag]}
    if route.tells:
        told = Operation("What the path is for.", {200: TOLD})
        yield "options", _operation(served, "OPTIONS", told) | {"tags": [tag]}
    # No keyword of OpenAPI's is for the methods that a path does not have.
    yield "x-other-methods", _shared(405, xml="xml" in route.formats)


def _operation(served: Served, method: str, operation: Operation) -> Json:
    route = served.route
    is_read = route.reads is not None and method in route.reads.methods
    parameters = [*_of_path(served.path), *operation.parameters, _format(route.formats)]
    if is_read and method in ("GET", "HEAD"):
        parameters += STATE
    whole: Json = {
        "operationId": _id(method, served.path),
        "summary": operation.summary,
        "description": _described(served),
        "parameters": [_parameter(parameter) for parameter in parameters],
        "responses": {str(status): answer for status, answer in sorted(_answers(served, method, operation, is_read))},
    }
    if operation.body is not None:
        whole["requestBody"] = _body(operation.body)
    return whole


def _answers(served: Served, method: str, operation: Operation, is_read: bool) -> Iterator[tuple[int, Json]]:
    route, xml, empty = served.route, "xml" in served.route.formats, method == "HEAD"
    answers = dict(operation.answers)
    if is_read and method in ("GET", "HEAD"):
        # Of a state that cannot be read.
        answers[400] = DETAIL if 400 not in answers else one_of(*_each(answers[400]), DETAIL)
    is_write = method in route.writes
    refusals = {401, 404, 406, 503}
    if route.gate.access is not Access.AUTHENTICATED:
        refusals.add(403)
    if operation.body is not None or is_write or method == "POST":
        refusals |= {408, 413, 415}
    for status in refusals - answers.keys():
        yield status, _bodiless(status) if empty else _shared(status, xml=xml and status != 406)
    if served.slashless == "redirects":
        yield (
            301,
            {
                "description": "Without the closing slash: leads to the path with it.",
                "headers": {"Location": _header("Location", required=True)},
            },
        )
    for status, schema in answers.items():
        if status in REFUSALS:
            assert schema is not None
            yield status, _bodiless(status) if empty else _refusal(status, schema, xml=xml)
        else:
            headers = {name: _header(name, required=True) for name in ("Allow", "Cache-Control")}
            if is_write:
                headers |= {name: _header(name) for name in ("X-Catalog-Generation", "X-Catalog-Published")}
            elif is_read:
                headers["X-Catalog-Generation"] = _header("X-Catalog-Generation", required=True)
                headers["X-Catalog-Age"] = _header("X-Catalog-Age")
            told = {"description": "The answer.", "headers": headers}
            yield status, told if empty or schema is None else told | {"content": _content(schema, xml=xml)}


def _of_process(path: str, operation: Operation) -> Iterator[tuple[str, Json]]:
    for method in ("get", "head"):
        responses = {}
        for status, schema in operation.answers.items():
            assert schema is not None
            names = ("Cache-Control", "Retry-After") if (path, status) == ("/ready", 503) else ("Cache-Control",)
            told: Json = {
                "description": "Well." if status == 200 else "Not well.",
                "headers": {name: _header(name, required=True) for name in names},
            }
            if method == "get":
                told["content"] = {operation.type: {"schema": schema}}
            responses[str(status)] = told
        yield (
            method,
            {
                "operationId": _id(method, path),
                "summary": operation.summary,
                "tags": ["the process"],
                "security": [],
                "responses": responses,
            },
        )
    yield "x-other-methods", _shared(405, xml=False)


def _described(served: Served) -> str:
    sentences = [served.route.description, f"Without its closing slash it {served.slashless}."]
    if served.route.suffixed:
        ends = " or ".join(f"`.{format}`" for format in served.route.formats if format != "api")
        sentences.append(f"The path may end in {ends}.")
    return "\n\n".join(sentences)


def _of_path(path: str) -> list[Parameter]:
    found = []
    for name in re.findall(r"{(\w+)}", path):
        if name not in PATH:
            raise Undescribed(f"{{{name}}} of {path} says nothing of itself")
        description, schema = PATH[name]
        found.append(Parameter(name, description, schema, "path", required=True))
    return found


def _format(formats: Sequence[str]) -> Parameter:
    known = [format for format in ("json", "xml") if format in formats]
    return Parameter("format", "The format of the answer, whatever Accept prefers.", {"enum": known})


def _parameter(parameter: Parameter) -> Json:
    told: Json = {
        "name": parameter.name,
        "in": parameter.place,
        "description": parameter.description,
        "schema": parameter.schema,
    }
    return told | {"required": True} if parameter.required else told


def _body(body: Body) -> Json:
    form = {"schema": body.form}
    content = {JSON_TYPE: {"schema": body.json}, FORM_TYPE: form, MULTIPART_TYPE: form}
    return {"description": body.description, "required": body.required, "content": content}


def _content(schema: Schema, *, xml: bool) -> Json:
    told: Json = {JSON_TYPE: {"schema": schema}}
    # What XML is made of the same members, JSON Schema cannot say.
    return told | {XML_TYPE: {}} if xml else told


def _refusal(status: int, schema: Schema, *, xml: bool) -> Json:
    return _bodiless(status) | {"content": _content(schema, xml=xml)}


def _bodiless(status: int) -> Json:
    its_own = _ITS_OWN.get(status, ())
    headers = {name: _header(name) for name in _ALWAYS} | {name: _header(name, required=True) for name in its_own}
    return {"description": REFUSALS[status][1], "headers": headers}


def _shared(status: int, *, xml: bool) -> Json:
    return {"$ref": f"#/components/responses/{REFUSALS[status][0]}{'OrXml' if xml else ''}"}


def _header(name: str, *, required: bool = False) -> Json:
    return {**HEADERS[name], "required": True} if required else {"$ref": f"#/components/headers/{name}"}


def _id(method: str, path: str) -> str:
    return "_".join([method.lower(), *re.findall(r"\w+", path)])


def _each(schema: Schema | None) -> Sequence[Schema]:
    assert schema is not None
    found: Sequence[Schema] = schema.get("anyOf", [schema])
    return found


def _named(value: Any, schemas: Json, done: dict[int, Any]) -> Any:
    """The value with references in the place of all schemas that have a title; those are put into `schemas`.

    `done`: what has been made of each object, by its identity; schemas stand in many places, and starts wait for this.
    """
    if value is None or isinstance(value, str | int | float):
        return value
    if id(value) in done:
        return done[id(value)]
    told: Any
    if isinstance(value, Mapping):
        told = {name: _named(inner, schemas, done) for name, inner in value.items()}
        title = value.get("title")
        if isinstance(title, str) and {"type", "anyOf"} & value.keys():
            if schemas.setdefault(title, told) != told:
                raise Undescribed(f"there are two schemas of the name {title}")
            told = {"$ref": f"#/components/schemas/{title}"}
    elif isinstance(value, list | tuple):
        told = [_named(inner, schemas, done) for inner in value]
    else:
        told = value
    done[id(value)] = told
    return told
