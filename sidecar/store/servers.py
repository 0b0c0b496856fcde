"""Which Redis server has a key: the only one, the master that the Sentinels name, or one of a Cluster's masters.

redis-py's exceptions pass through here, to sidecar.store.redis. A connection that turns out to be dead is replaced, and
what was sent is sent once more, so that everything may be sent twice; what gets no answer in time is not sent again.

redis-py's own client of Clusters is not used: it closes connections under those who share it.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, NamedTuple, Protocol

from redis.asyncio import Redis, Sentinel
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from sidecar.store.address import Address


class Deadlines(NamedTuple):
    """Seconds, for a connection to a server, and for all that it is asked at once: some objects, or a pointer.

    An object of 64 MiB has to pass in the latter: at 54 Mbit/s or more.
    """

    connect_s: float = 3.0
    answer_s: float = 10.0


DEADLINES: Final = Deadlines()

Groups = list[tuple[Redis, list[list[bytes]]]]
"""Servers, with keys of each, in groups that one command may name together."""


class Servers(Protocol):
    """The servers that take writes."""

    async def all(self) -> Collection[Redis]: ...

    async def divide(self, keys: Collection[bytes]) -> Groups:
        """The keys, each at the server that has it."""
        ...

    def doubt(self) -> None:
        """Something failed: whatever is known of the servers is to be looked up again."""
        ...

    async def close(self) -> None: ...


class OneServer:
    """One server; if Sentinels name it, every new connection asks them first."""

    def __init__(self, client: Redis, sentinels: Sentinel | None = None) -> None:
        self._client = client
        self._sentinels = sentinels

    async def all(self) -> Collection[Redis]:
        return [self._client]

    async def divide(self, keys: Collection[bytes]) -> Groups:
        return [(self._client, [list(keys)])]

    def doubt(self) -> None:
        pass

    async def close(self) -> None:
        await self._client.aclose()
        if self._sentinels is not None:
            await self._sentinels.aclose()


class Cluster:
    """The masters of a Cluster. When slots have moved to others, what comes next fails, and what comes then goes there.

    While a slot is on its way, what is in it may be out of reach.
    """

    def __init__(self, hosts: Sequence[tuple[str, int]], connect: Callable[[str, int], Redis]) -> None:
        self._hosts = hosts
        self._connect = connect
        self._clients: dict[tuple[str, int], Redis] = {}
        self._masters: list[tuple[int, int, Redis]] = []

    async def all(self) -> Collection[Redis]:
        await self._know()
        return list(dict.fromkeys(client for _, _, client in self._masters))

    async def divide(self, keys: Collection[bytes]) -> Groups:
        await self._know()
        slots: dict[int, list[bytes]] = {}
        for key in keys:
            slots.setdefault(key_slot(key), []).append(key)
        groups: dict[Redis, list[list[bytes]]] = {}
        for slot, group in slots.items():
            groups.setdefault(self._master(slot), []).append(group)
        return list(groups.items())

    def doubt(self) -> None:
        self._masters = []

    async def close(self) -> None:
        for client in self._clients.values():
            await client.aclose()

    def _master(self, slot: int) -> Redis:
        for first, last, client in self._masters:
            if first <= slot <= last:
                return client
        self.doubt()
        raise RedisConnectionError(f"no server of the Cluster has slot {slot}")

    async def _know(self) -> None:
        """Asks the servers that are known, then those of the url, who has which slots; the first answer counts."""
        if self._masters:
            return
        failure: RedisError | OSError = RedisConnectionError("no server of the Cluster knows of any slots")
        for address in list(dict.fromkeys([*self._clients, *self._hosts])):
            try:
                # Two words: redis-py takes CLUSTER SLOTS as one for a name, and makes something else of the answer.
                ranges = await self._client(*address).execute_command("CLUSTER", "SLOTS")  # type: ignore[no-untyped-call]
            except (RedisError, OSError) as error:
                failure = error
                continue
            # A server that does not know its own name leaves it out.
            masters = [
                (first, last, (host or b"").decode() or address[0], port)
                for first, last, (host, port, *_), *_ in ranges
            ]
            if masters:
                self._masters = [(first, last, self._client(host, port)) for first, last, host, port in masters]
                return
        raise failure

    def _client(self, host: str, port: int) -> Redis:
        if (host, port) not in self._clients:
            self._clients[host, port] = self._connect(host, port)
        return self._clients[host, port]


def connect(address: Address, deadlines: Deadlines = DEADLINES) -> Servers:
    """The servers of an address; nothing is connected yet."""
    common: dict[str, Any] = {
        "socket_connect_timeout": deadlines.connect_s,
        # Of one read or write: whoever asks has one for all of them.
        "socket_timeout": deadlines.answer_s,
        "retry": Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        "protocol": 2,
    }
    if address.tls:
        common |= {"ssl": True, "ssl_ca_certs": address.ca_file}
    login: dict[str, Any] = {"username": address.username, "password": address.password}
    if address.scheme == "redis+cluster":
        return Cluster(address.hosts, lambda host, port: Redis(host=host, port=port, **login, **common))
    if address.scheme == "redis+sentinel":
        asked: dict[str, Any] = {"username": address.sentinel_username, "password": address.sentinel_password, **common}
        sentinels = Sentinel(address.hosts, sentinel_kwargs=asked, **login, **common)  # type: ignore[no-untyped-call]
        return OneServer(sentinels.master_for(address.service, db=address.database), sentinels)
    [(host, port)] = address.hosts
    return OneServer(Redis(host=host, port=port, db=address.database, **login, **common))
