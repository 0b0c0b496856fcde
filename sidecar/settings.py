"""Every setting of both processes, in one typed table.

The rule: a setting is one field below, and its default, help, environment name, validation, documentation and the lines
of config.example.toml all derive from that field. `load` is the only reader of the file and of the environment. It
refuses whatever is wrong or unknown, all at once, before anything starts; the rest of the code trusts what it is given.
A secret is never shown, and neither is the value of an unknown name, which may be a secret with a typing error.
"""

import difflib
import ipaddress
import json
import math
import os
import re
import textwrap
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import SplitResult, urlsplit

from sidecar.errors import StoreError
from sidecar.store.address import parse as parse_redis

T = TypeVar("T")
Scalar = str | int | float | bool

ENV_PREFIX = "CATALOG_"
# What `catalog-indexer import` and `compare` read themselves: a token for one run, which is no setting.
IMPORT_TOKEN_ENV = "CATALOG_IMPORT_TOKEN"
HIDDEN = "***"
SHOWN_LENGTH = 80
# sun_path holds 104 bytes on macOS and 108 on Linux, the closing NUL included.
SOCKET_PATH_BYTES = 103
# Whole numbers below this are exact as floats.
LARGEST_EXACT = 2**53
UNREADABLE_FILE = "the settings file"
BOOLS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}

# A password can stand before the @ of a URL, or in its query; greedy, because a wrong URL may hold it anywhere.
CREDENTIALS = re.compile(r"^([A-Za-z0-9+.-]*:/*)?.*@", re.DOTALL)
CREDENTIALS_IN_QUERY = re.compile(r"([?&][^=&]*(?:pass|pwd|secret|token|key)[^=&]*=)[^&]*", re.IGNORECASE)

# Kubernetes puts the address of a Service that is called catalog-sidecar into the environment of the pods beside it,
# as CATALOG_SIDECAR_PORT=tcp://10.0.0.1:18160 and CATALOG_SIDECAR_SERVICE_HOST: names that look like ours.
SERVICE_LINK_NAME = re.compile(r"_SERVICE_(HOST|PORT)|_PORT(_[0-9]+_(TCP|UDP|SCTP).*)?$")
SERVICE_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://")
SERVICE_LINK_REMEDY = "if Kubernetes set it for a Service of this name, set enableServiceLinks: false in the pod"


@dataclass(frozen=True, slots=True)
class Check(Generic[T]):
    """A test of one value, and the words for what passes it, for refusals and for the documentation."""

    accepts: str
    passes: Callable[[T], bool]


def setting(default: T, help: str, check: Check[T] | None = None, *, secret: bool = False) -> T:
    """Declare one row of the table. A type checker sees the default, so that access stays typed."""
    return field(default=default, metadata={"help": help, "check": check, "secret": secret})


def at_least(least: int) -> Check[int]:
    return Check(f"a whole number, {least} or more", lambda value: value >= least)


def _split(url: str) -> SplitResult | None:
    """The parts of a URL, or None for what is no URL. Several hosts (Sentinel, Cluster) are one netloc.

    A path may have spaces in it: a checkout lies where it lies.
    """
    if url != url.strip() or any(character.isspace() for character in url.replace(" ", "")):
        return None
    try:
        return urlsplit(url)
    except ValueError:
        return None


def _is_http_url(url: str) -> bool:
    parts = _split(url)
    if parts is None or " " in url or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
        return False
    try:
        return bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        return False


def _is_sqlite_file(parts: SplitResult) -> bool:
    """True for sqlite:///relative/path and sqlite:////absolute/path: no host, and a file rather than memory."""
    return not parts.netloc and parts.path not in ("", "/") and ":memory:" not in parts.path


def _is_store_url(url: str) -> bool:
    parts = _split(url)
    if parts is None:
        return False
    if parts.scheme == "sqlite":
        return _is_sqlite_file(parts)
    if " " in url:
        return False
    hosts = parts.netloc.rpartition("@")[2]
    return parts.scheme in ("redis", "rediss", "redis+sentinel", "redis+cluster") and bool(hosts)


def _is_registry_url(url: str) -> bool:
    parts = _split(url)
    if parts is None:
        return False
    if parts.scheme == "sqlite+aiosqlite":
        return _is_sqlite_file(parts)
    if " " in url:
        return False
    # The host may be absent: both drivers also take a unix socket, in the query.
    return parts.scheme in ("postgresql+asyncpg", "mysql+asyncmy") and parts.path not in ("", "/")


def _is_host(host: str) -> bool:
    if ":" not in host:
        return re.fullmatch(r"[A-Za-z0-9._-]+", host) is not None
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """True if only this machine can reach the host. Names other than localhost are not looked up, and so are not."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address in ipaddress.ip_network("127.0.0.0/8") or address == ipaddress.ip_address("::1")


def _is_origin(origin: str) -> bool:
    """True for what a browser sends as the origin of a page: in lower case, and without a path or a usual port."""
    parts = _split(origin)
    if parts is None or not _is_http_url(origin) or origin != origin.lower() or parts.path:
        return False
    return parts.port != {"http": 80, "https": 443}[parts.scheme]


def origins(text: str) -> tuple[str, ...]:
    """The origins that a setting lists."""
    return tuple(origin for origin in (part.strip() for part in text.split(",")) if origin)


NOT_EMPTY: Check[str] = Check("a text that is not empty", lambda value: value.strip() != "")
PORT: Check[int] = Check("a port from 0 to 65535, where 0 takes any free one", lambda value: 0 <= value <= 65535)
HOST: Check[str] = Check("a host name or an IP address, without brackets and port", _is_host)
HTTP_URL: Check[str] = Check("http://HOST[:PORT][/PATH] or https://…, without a user", _is_http_url)
HTTP_URL_OR_NONE: Check[str] = Check(
    f"{HTTP_URL.accepts}; empty for none", lambda value: value == "" or _is_http_url(value)
)
STORE_URL: Check[str] = Check(
    "sqlite:///PATH, redis://HOST…, rediss://HOST…, redis+sentinel://HOST,HOST… or redis+cluster://HOST,HOST…",
    _is_store_url,
)
REGISTRY_URL: Check[str] = Check(
    "sqlite+aiosqlite:///PATH, postgresql+asyncpg://HOST/DATABASE or mysql+asyncmy://HOST/DATABASE", _is_registry_url
)
SOCKET_PATH: Check[str] = Check(
    f"a path of at most {SOCKET_PATH_BYTES} bytes; empty for none",
    lambda value: len(value.encode(errors="surrogateescape")) <= SOCKET_PATH_BYTES,
)
ORIGINS: Check[str] = Check(
    "origins as browsers send them, such as https://portal.example.org, with commas between; empty for none",
    lambda value: all(map(_is_origin, origins(value))),
)
MORE_THAN_ZERO: Check[float] = Check("a number of seconds above 0", lambda value: value > 0)
SHARE: Check[float] = Check("a number from 0 to 1", lambda value: 0 <= value <= 1)
ZERO_OR_MORE: Check[float] = Check("a number, 0 or more", lambda value: value >= 0)


class Section:
    """What the sections share: a representation that may be logged, without secrets and passwords."""

    __slots__ = ()

    def __repr__(self) -> str:
        rows = _section_rows("", type(self))
        return f"{type(self).__name__}({', '.join(f'{row.name}={row.shown(getattr(self, row.name))}' for row in rows)})"


@dataclass(frozen=True, slots=True, repr=False)
class StoreSettings(Section):
    """Where the published generations are: the indexer writes them, the sidecars read them."""

    url: str = setting(
        "sqlite:///var/store.db", "The store. A SQLite file serves the processes of one host.", STORE_URL
    )
    keep_generations: int = setting(24, "How many published generations the sweeper keeps.", at_least(2))


@dataclass(frozen=True, slots=True, repr=False)
class RegistrySettings(Section):
    """The SQL database of the indexer: catalogs, queries, pulls and ordinals. Its truth is what gets published."""

    url: str = setting("sqlite+aiosqlite:///var/registry.db", "The database, with its asyncio driver.", REGISTRY_URL)


@dataclass(frozen=True, slots=True, repr=False)
class SourceSettings(Section):
    """Where the indexer pulls content from."""

    kind: Literal["file", "discovery"] = setting("file", "A corpus file on disk, or course-discovery over HTTP.")
    path: str = setting("corpus.json", 'The corpus, for kind "file".', NOT_EMPTY)
    url: str = setting("", 'Base URL of course-discovery, for kind "discovery".', HTTP_URL_OR_NONE)
    oauth_url: str = setting(
        "", "What issues access tokens, such as https://LMS/oauth2/access_token.", HTTP_URL_OR_NONE
    )
    oauth_client_id: str = setting("", "Client id that access tokens are asked for with.")
    oauth_client_secret: str = setting("", "Secret of that client.", secret=True)
    restricted_runs: bool = setting(True, "Also pull restricted runs, for the queries that allow them.")
    timeout_s: float = setting(15.0, "How long one request to discovery or the LMS may take.", MORE_THAN_ZERO)
    retries: int = setting(4, "How often a request that failed is sent again, with growing pauses.", at_least(0))
    concurrency: int = setting(4, "How many requests may be under way at once.", at_least(1))
    requests_per_hour: int = setting(
        0, "Budget of requests in any hour; 0: none. Users of discovery who are not staff are given 200.", at_least(0)
    )


@dataclass(frozen=True, slots=True, repr=False)
class LmsSettings(Section):
    """The LMS that the indexer asks for customer details."""

    url: str = setting("", "Base URL of the LMS; empty: customer details are not fetched.", HTTP_URL_OR_NONE)


@dataclass(frozen=True, slots=True, repr=False)
class LinksSettings(Section):
    """Base URLs that enrolment links in content metadata start with, as learners see them."""

    lms: str = setting("", "The LMS.", HTTP_URL_OR_NONE)
    learner_portal: str = setting("", "The learner portal.", HTTP_URL_OR_NONE)
    ecommerce: str = setting("", "The ecommerce service.", HTTP_URL_OR_NONE)


@dataclass(frozen=True, slots=True, repr=False)
class AuthSettings(Section):
    """Who may ask."""

    mode: Literal["none", "jwt"] = setting(
        "none", 'Without tokens ("none"), only loopback and unix sockets are served.'
    )
    jwks_file: str = setting("", "JWK set with the public keys that sign tokens; read again when it changes.")
    jwks_url: str = setting("", "Where that set is fetched from, if there is no file.", HTTP_URL_OR_NONE)
    issuer: str = setting("", "Issuer that a token must name.")
    audience: str = setting("", "Audience that a token must name.")
    hs256_secret: str = setting(
        "", "Shared secret of tokens signed with HS256; such tokens are refused without it.", secret=True
    )


@dataclass(frozen=True, slots=True, repr=False)
class IndexerSettings(Section):
    """The process that pulls, compiles and publishes."""

    host: str = setting("127.0.0.1", "Address that its API listens on.", HOST)
    port: int = setting(18170, "Port that its API listens on.", PORT)
    refresh_s: int = setting(72_000, "A query is pulled again once its content is this old.", at_least(1))
    freshness_s: int = setting(86_400, "The freshness promise: older content is called stale.", at_least(1))
    lease_s: float = setting(15.0, "Leadership passes on after this long without a sign of life.", MORE_THAN_ZERO)
    pulls: int = setting(2, "How many pulls run at once.", at_least(1))


@dataclass(frozen=True, slots=True, repr=False)
class QuarantineSettings(Section):
    """How far the result of a pull may differ from the one before; what differs more is held back for a person."""

    lost: float = setting(0.2, "Share of a query's members that may be gone; 1: all of them.", SHARE)
    gained: float = setting(
        2.0, "How many may have come, as a multiple of those that were there; ten at least count.", ZERO_OR_MORE
    )
    floor: int = setting(2, "Fewer than this many may always be gone, but not the last.", at_least(1))


@dataclass(frozen=True, slots=True, repr=False)
class SidecarSettings(Section):
    """The process that answers."""

    host: str = setting("127.0.0.1", 'Address to listen on; any but a loopback one needs auth.mode = "jwt".', HOST)
    port: int = setting(18160, "Port to listen on.", PORT)
    socket: str = setting("", "Unix socket to listen on as well.", SOCKET_PATH)
    disk: str = setting("var/sidecar.db", "The local disk copy; empty: none, and a restart needs the store.")
    workers: int = setting(
        1, "How many processes answer: about one for each core that is to be used. Each has an index.", at_least(1)
    )
    memory_mb: int = setting(64, "Bound of the objects that are kept in memory, by each worker.", at_least(1))
    indexer_url: str = setting("http://127.0.0.1:18170", "The indexer's API, which writes are forwarded to.", HTTP_URL)
    cors_origins: str = setting("", "Web pages that may ask from a browser, with credentials.", ORIGINS)
    poll_ms: int = setting(
        1_000,
        "How often the root pointer is read: for the announcements that were missed, and for stores that make none.",
        at_least(10),
    )


@dataclass(frozen=True, slots=True, repr=False)
class UpstreamSettings(Section):
    """The service whose place the sidecar takes, for the routes that the sidecar does not have."""

    url: str = setting("", "Its base URL; empty: such routes are not found.", HTTP_URL_OR_NONE)
    timeout_s: float = setting(30.0, "How long it may be silent, before and within an answer.", MORE_THAN_ZERO)


@dataclass(frozen=True, slots=True, repr=False)
class CompareSettings(Section):
    """Another service with the same API, whose answers the indexer that leads compares with ours, all the time."""

    url: str = setting("", "Base URL of the other service; empty: nothing is compared.", HTTP_URL_OR_NONE)
    base: str = setting("http://127.0.0.1:18160", "Base URL of the sidecar that is asked for our answers.", HTTP_URL)
    per_second: float = setting(
        2.0, "How many questions a second both are asked.", Check("a number above 0", lambda value: value > 0)
    )
    every_s: int = setting(3_600, "A new sample of catalogs is asked about this often.", at_least(1))
    token_file: str = setting(
        "", "A file with the token that both are asked with, read again each time; empty: that of source.oauth_url."
    )


@dataclass(frozen=True, slots=True, repr=False)
class LogSettings(Section):
    """What both processes say on standard error."""

    level: Literal["debug", "info", "warning", "error"] = setting("info", "The least severe lines to write.")
    format: Literal["json", "text"] = setting("text", "Lines for a log collector, or for people.")


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole table, read once at start. Built without arguments it holds the defaults."""

    store: StoreSettings = field(default_factory=StoreSettings)
    registry: RegistrySettings = field(default_factory=RegistrySettings)
    source: SourceSettings = field(default_factory=SourceSettings)
    lms: LmsSettings = field(default_factory=LmsSettings)
    links: LinksSettings = field(default_factory=LinksSettings)
    auth: AuthSettings = field(default_factory=AuthSettings)
    indexer: IndexerSettings = field(default_factory=IndexerSettings)
    quarantine: QuarantineSettings = field(default_factory=QuarantineSettings)
    sidecar: SidecarSettings = field(default_factory=SidecarSettings)
    upstream: UpstreamSettings = field(default_factory=UpstreamSettings)
    compare: CompareSettings = field(default_factory=CompareSettings)
    log: LogSettings = field(default_factory=LogSettings)


@dataclass(frozen=True, slots=True)
class Problem:
    """One refusal: the name, where it came from, what was given (as far as it may be shown), and the remedy."""

    name: str
    origin: str
    given: str | None
    remedy: str

    def __str__(self) -> str:
        given = "" if self.given is None else f" = {self.given}"
        return f"{self.name}{given} ({self.origin}): {self.remedy}"


class SettingsError(Exception):
    """Raised when the settings cannot be used; carries every problem, so that one start shows them all."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n  ".join(["the settings cannot be used:", *map(str, self.problems)]))


class Unusable(Exception):
    """Raised when settings that passed turn out not to work once what they name is opened; its text says which."""


@dataclass(frozen=True, slots=True)
class Row:
    """One setting as data: for reading it, for the example file and for the documentation."""

    section: str
    name: str
    type: Literal["str", "int", "float", "bool"]
    choices: tuple[str, ...]
    default: Scalar
    help: str
    check: Check[Any] | None
    secret: bool

    @property
    def full_name(self) -> str:
        return f"{self.section}.{self.name}"

    @property
    def env(self) -> str:
        return f"{ENV_PREFIX}{self.section}_{self.name}".upper()

    @property
    def accepts(self) -> str:
        """What passes, in words."""
        if self.choices:
            return " or ".join(json.dumps(choice) for choice in self.choices)
        if self.check is not None:
            return self.check.accepts
        return {"str": "a text", "int": "a whole number", "float": "a number", "bool": "true or false"}[self.type]

    def shown(self, value: object) -> str:
        """The value as messages and logs may show it."""
        return HIDDEN if self.secret and value != "" else _shown(value)

    def accept(self, value: object) -> Scalar | None:
        """The value in the setting's type, or None if it is refused. In Python a bool is an int; here it is not."""
        if self.type == "float" and type(value) is int and abs(value) < LARGEST_EXACT:
            value = float(value)
        if not isinstance(value, (str, int, float, bool)) or type(value).__name__ != self.type:
            return None
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if self.choices and value not in self.choices:
            return None
        return value if self.check is None or self.check.passes(value) else None

    def accept_text(self, text: str) -> Scalar | None:
        """The same for a value that came as text, from the environment."""
        if self.type == "bool":
            return BOOLS.get(text.lower())
        if self.type == "int":
            return self.accept(int(text)) if re.fullmatch(r"-?[0-9]{1,18}", text) else None
        if self.type == "float":
            return self.accept(float(text)) if re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", text) else None
        return self.accept(text)


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "an array"
    if isinstance(value, int) and abs(value) > LARGEST_EXACT:
        return "a very large number"
    if not isinstance(value, str):
        return str(value).lower() if isinstance(value, bool) else str(value)[:SHOWN_LENGTH]
    text = CREDENTIALS.sub(rf"\1{HIDDEN}@", value)
    text = CREDENTIALS_IN_QUERY.sub(rf"\1{HIDDEN}", text)
    return json.dumps(text if len(text) <= SHOWN_LENGTH else f"{text[:SHOWN_LENGTH]}…", ensure_ascii=False)


def _section_rows(section: str, table: type[Section]) -> Iterator[Row]:
    types, defaults = get_type_hints(table), table()
    for declared in fields(table):  # type: ignore[arg-type]  # Section itself has no fields; each of its kinds has
        is_choice = get_origin(types[declared.name]) is Literal
        yield Row(
            section=section,
            name=declared.name,
            type="str" if is_choice else types[declared.name].__name__,
            choices=get_args(types[declared.name]) if is_choice else (),
            default=getattr(defaults, declared.name),
            **declared.metadata,
        )


SECTIONS: dict[str, type[Section]] = get_type_hints(Settings)
ROWS = {row.full_name: row for section, table in SECTIONS.items() for row in _section_rows(section, table)}


def rows() -> tuple[Row, ...]:
    """The table, in the order of the example file."""
    return tuple(ROWS.values())


@dataclass(frozen=True, slots=True)
class Given:
    """A value that was accepted, and where it came from."""

    row: Row
    value: Scalar
    origin: str


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """Read the file, if there is one, then the environment over it. Raises SettingsError with all that is wrong."""
    found = [*_read_file(path), *_read_environment(environ)]
    problems = [one for one in found if isinstance(one, Problem)]
    given = {one.row.full_name: one for one in found if isinstance(one, Given)}
    values: dict[str, dict[str, Scalar]] = {section: {} for section in SECTIONS}
    for one in given.values():
        values[one.row.section][one.row.name] = one.value
    sections: dict[str, Any] = {section: table(**values[section]) for section, table in SECTIONS.items()}
    settings = Settings(**sections)

    refused = {problem.name for problem in problems}
    if UNREADABLE_FILE not in refused:
        problems += [
            _clash_problem(clash, settings, given)
            for clash in (*_clashes(settings), *_disk_clashes(settings, path))
            if refused.isdisjoint((clash.name, *clash.because_of))
        ]
    if problems:
        raise SettingsError(problems)
    return settings


def _read_file(path: Path | None) -> Iterator[Given | Problem]:
    if path is None:
        return
    origin = str(path)
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        yield Problem(UNREADABLE_FILE, origin, None, f"{reason}; name a file that exists and may be read")
        return
    except ValueError as error:  # TOMLDecodeError, bytes that are not UTF-8, and a number too long to read
        yield Problem(UNREADABLE_FILE, origin, None, f"not valid TOML: {error}")
        return
    for section, content in document.items():
        if section not in SECTIONS:
            yield Problem(section, origin, None, f"unknown section; {_nearest(section, SECTIONS)}")
        elif not isinstance(content, dict):
            yield Problem(section, origin, None, f"must be a table: write [{section}] above its settings")
        else:
            for name, value in content.items():
                yield _judge_entry(section, name, value, origin)


def _judge_entry(section: str, name: str, value: object, origin: str) -> Given | Problem:
    full_name = f"{section}.{name}"
    row = ROWS.get(full_name)
    if row is None:
        namesakes = [other.full_name for other in rows() if other.name == name]
        remedy = f"did you mean {' or '.join(namesakes)}?" if namesakes else _nearest(full_name, ROWS)
        return Problem(full_name, origin, None, f"unknown setting; {remedy}")
    accepted = row.accept(value)
    if accepted is None:
        return Problem(full_name, origin, row.shown(value), f"must be {row.accepts}")
    return Given(row, accepted, origin)


def _read_environment(environ: Mapping[str, str]) -> Iterator[Given | Problem]:
    by_env = {row.env: row for row in rows()}
    for env, text in sorted(environ.items()):
        if not env.startswith(ENV_PREFIX) or env == IMPORT_TOKEN_ENV:
            continue
        row = by_env.get(env)
        if row is None:
            remedy = SERVICE_LINK_REMEDY if SERVICE_LINK_NAME.search(env) else _nearest(env, by_env)
            yield Problem(env, "environment", None, f"unknown setting; {remedy}")
            continue
        accepted = row.accept_text(text)
        if accepted is None:
            remedy = f"must be {row.accepts}"
            if SERVICE_LINK_VALUE.match(text):
                remedy = f"{remedy}; {SERVICE_LINK_REMEDY}"
            yield Problem(row.full_name, f"environment, {env}", row.shown(text), remedy)
        else:
            yield Given(row, accepted, f"environment, {env}")


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(names)}"


@dataclass(frozen=True, slots=True)
class Clash:
    """Values that are right one by one and wrong together: the setting to mend, and those it clashes with."""

    name: str
    because_of: tuple[str, ...]
    remedy: str


def _clashes(settings: Settings) -> Iterator[Clash]:
    auth, source, indexer = settings.auth, settings.source, settings.indexer
    if auth.mode == "none":
        for name, host in (("indexer.host", indexer.host), ("sidecar.host", settings.sidecar.host)):
            if not is_loopback(host):
                yield Clash(name, ("auth.mode",), 'without tokens, use a loopback address, or set auth.mode to "jwt"')
    else:
        if not auth.jwks_file and not auth.jwks_url and not auth.hs256_secret:
            yield Clash(
                "auth.jwks_file", ("auth.mode", "auth.hs256_secret"), "set it, or auth.jwks_url, or auth.hs256_secret"
            )
        for name, value in (("auth.issuer", auth.issuer), ("auth.audience", auth.audience)):
            if not value:
                yield Clash(name, ("auth.mode",), "must be set")
    if source.kind == "discovery":
        for name, value in (
            ("source.url", source.url),
            ("source.oauth_url", source.oauth_url),
            ("source.oauth_client_id", source.oauth_client_id),
            ("source.oauth_client_secret", source.oauth_client_secret),
        ):
            if not value:
                yield Clash(name, ("source.kind",), "must be set")
    if settings.store.url.startswith("redis"):
        try:
            parse_redis(settings.store.url)
        except StoreError as error:
            yield Clash("store.url", (), str(error).partition("…: ")[2])
    if indexer.refresh_s >= indexer.freshness_s:
        yield Clash(
            "indexer.refresh_s",
            ("indexer.freshness_s",),
            "must be less, or content turns stale before it is pulled again",
        )


def _disk_clashes(settings: Settings, path: Path | None) -> Iterator[Clash]:
    """A disk copy in the place of another file: it would be swept, or set aside."""
    if not settings.sidecar.disk:
        return
    disk = _real_path(settings.sidecar.disk)
    if path is not None and disk == _real_path(str(path)):
        yield Clash("sidecar.disk", (), "that is the settings file itself; name a file that is the disk copy's alone")
    for name, url in (("store.url", settings.store.url), ("registry.url", settings.registry.url)):
        scheme, _, file = url.partition(":///")
        file = file.partition("?")[0] if name == "registry.url" else file
        if scheme.partition("+")[0] == "sqlite" and file and disk == _real_path(file):
            yield Clash("sidecar.disk", (name,), "name a file that is the disk copy's alone")
    if settings.source.kind == "file" and disk == _real_path(settings.source.path):
        yield Clash("sidecar.disk", ("source.path",), "name a file that is the disk copy's alone")


def _real_path(path: str) -> str:
    try:
        return os.path.realpath(path)
    except ValueError:  # no file can have this name
        return path


def _clash_problem(clash: Clash, settings: Settings, given: Mapping[str, Given]) -> Problem:
    def shown(name: str) -> str:
        row = ROWS[name]
        return row.shown(getattr(getattr(settings, row.section), row.name))

    is_default = clash.name not in given
    origin = f"default; {ROWS[clash.name].env} sets it too" if is_default else given[clash.name].origin
    reasons = " and ".join(f"{name} = {shown(name)}" for name in clash.because_of)
    remedy = f"{clash.remedy}, because {reasons}" if reasons else clash.remedy
    return Problem(clash.name, origin, shown(clash.name), remedy)


def example_toml() -> str:
    """The text of config.example.toml: every setting with its help, at its default, commented out."""
    first = ROWS["store.url"]
    lines = _comment(
        "Settings of catalog-sidecar and catalog-indexer; both read the same file. What is commented out is the "
        f"default. Relative paths start at the working directory. {ENV_PREFIX}<SECTION>_<NAME> in the environment "
        f"overrides a value of this file: {first.env} is {first.full_name}. Anything wrong or unknown is refused "
        "at start."
    )
    for section, table in SECTIONS.items():
        lines += ["", *_comment(table.__doc__ or ""), f"[{section}]"]
        for row in rows():
            if row.section == section:
                accepts = f" Accepts {row.accepts}." if row.choices or row.check else ""
                lines += ["", *_comment(f"{row.help}{accepts}"), f"#{row.name} = {json.dumps(row.default)}"]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, 110, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
