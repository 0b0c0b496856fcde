"""What a redis url says: which servers, in which arrangement, and with which credentials. No I/O, no redis-py.

    redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE]
    rediss://…                                                                               the same over TLS
    redis+sentinel://[[USER]:PASSWORD@]HOST[:PORT][,HOST[:PORT]…]/SERVICE[/DATABASE]         the hosts are Sentinels
    redis+cluster://[[USER]:PASSWORD@]HOST[:PORT][,HOST[:PORT]…]                             any nodes of it

User, password and service may be percent-encoded. What is unknown is refused by name, and no refusal shows a value
that may be a password.
"""

import re
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from sidecar.errors import StoreError

Scheme = Literal["redis", "rediss", "redis+sentinel", "redis+cluster"]

PORT: Final = 6379
SENTINEL_PORT: Final = 26379
OPTIONS: Final[dict[Scheme, frozenset[str]]] = {
    "redis": frozenset(),
    "rediss": frozenset({"ca_file"}),
    "redis+sentinel": frozenset({"tls", "ca_file", "sentinel_username", "sentinel_password"}),
    "redis+cluster": frozenset({"tls", "ca_file"}),
}
_HOST: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class Address:
    """One Redis: a server, a master that Sentinels watch over, or a Cluster. Its text and repr show no passwords."""

    scheme: Scheme
    hosts: tuple[tuple[str, int], ...]
    service: str = ""
    database: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca_file: str | None = None

    def __str__(self) -> str:
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        path = [self.service] if self.service else []
        return "/".join([f"{self.scheme}://{hosts}", *path, *([str(self.database)] if self.database else [])])


def parse(url: str) -> Address:
    """The address of a url with one of the four schemes. Raises StoreError for what it must not say."""
    scheme: Scheme
    given = url.partition(":")[0]
    for scheme in OPTIONS:
        if given == scheme:
            break
    else:
        raise _refusal(given, "no scheme of Redis")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _refusal(scheme, "no url: are characters of the password percent-encoded?") from None
    if parts.fragment:
        raise _refusal(scheme, "has a # in it: percent-encode it if it is part of the password")
    options = _options(scheme, parts.query)
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    if username and not password:
        raise _refusal(scheme, "names a user and no password: write USER:PASSWORD@, or :PASSWORD@ for the default user")
    service, database = _path(scheme, parts.path)
    return Address(
        scheme,
        _hosts(scheme, hosts),
        service,
        database,
        unquote(username) or None,
        unquote(password) or None,
        options.get("sentinel_username"),
        options.get("sentinel_password"),
        scheme == "rediss" or "tls" in options,
        options.get("ca_file"),
    )


def _refusal(scheme: str, reason: str) -> StoreError:
    return StoreError(f"store.url {scheme}:…: {reason}")


def _options(scheme: Scheme, query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in OPTIONS[scheme]:
            known = ", ".join(sorted(OPTIONS[scheme])) or "none"
            raise _refusal(scheme, f"unknown option {name!r}; known are: {known}")
        if name in options or not value:
            raise _refusal(scheme, f"option {name!r} must be there once, and have a value")
        options[name] = value
    if options.get("tls", "true") != "true":
        raise _refusal(scheme, "option 'tls' must be true, or not be there")
    if "ca_file" in options and scheme != "rediss" and "tls" not in options:
        raise _refusal(scheme, "option 'ca_file' needs tls=true")
    if "sentinel_username" in options and "sentinel_password" not in options:
        raise _refusal(scheme, "option 'sentinel_username' needs sentinel_password")
    return options


def _hosts(scheme: Scheme, text: str) -> tuple[tuple[str, int], ...]:
    several = scheme in ("redis+sentinel", "redis+cluster")
    default = SENTINEL_PORT if scheme == "redis+sentinel" else PORT
    hosts = []
    for host in text.split(",") if several else [text]:
        match = _HOST.fullmatch(host)
        port = int(match[3] or default) if match else 0
        if match is None or not 0 < port < 65536:
            raise _refusal(scheme, f"must have {'HOST:PORT,HOST:PORT…' if several else 'HOST:PORT'} after the //")
        hosts.append((match[1] or match[2], port))
    return tuple(hosts)


def _path(scheme: Scheme, path: str) -> tuple[str, int]:
    """The service, which Sentinel alone has, and the number of the database, which Cluster has not."""
    words = path.strip("/").split("/") if path.strip("/") else []
    service = ""
    if scheme == "redis+sentinel":
        if not words:
            raise _refusal(scheme, "must name the service that the Sentinels watch: …/SERVICE[/DATABASE]")
        service = unquote(words.pop(0))
    if not words:
        return service, 0
    if scheme == "redis+cluster":
        raise _refusal(scheme, "a Cluster has no databases: nothing follows the hosts")
    if len(words) > 1 or re.fullmatch(r"[0-9]{1,4}", words[0]) is None:
        raise _refusal(scheme, "the database must be a number")
    return service, int(words[0])
