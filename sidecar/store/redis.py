"""A store in Redis: for a fleet. One server, a master that Sentinels watch over, or a Cluster. Redis 5 or newer.

The bytes, for whoever reads them with another tool:

    catalog:o:<digest>       string   an object, as it was sealed. <digest>: 64 hexadecimal digits, lower case
    catalog:{root}:pointer   string   <epoch>:<generation>:<digest>, 20 + 1 + 20 + 1 + 64 bytes: decimal, zero-padded
    catalog:{root}:moved     channel  the pointer's new value, published when it moves: a hint, which may get lost

Digests are in hexadecimal, as every message names them: 32 bytes more for each object, or 10 MB for 300,000 of them,
which hold a hundred times that. Objects have no hash tag and spread over a Cluster; the pointer's names share one.

An object that no generation needs has the time since when as its expiry time: (2**52 + 1024 * since_ms) ms, in some
hundred thousand years. It never expires; what counts is that writing an object again takes its expiry time away, in the
same step. A list of such objects beside them would not do: in a Cluster no script can change both, so that

    sweeper    takes object 7 off the list, because it has been there for an hour
    publisher  writes object 7 again, and takes it off the list: it is not there any more
    sweeper    deletes object 7, which the next root needs

and a failover can lose one of two writes. Here the sweeper's script decides and deletes in one step, on the one key.

redis-py's exceptions stop in this file. Every command may be sent twice. Each script is sent along with what uses it:
no server can have forgotten it.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import islice
from typing import Any, Final

import structlog
from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError

from sidecar.contract.objects import Sealed
from sidecar.errors import PointerDamaged, StoreError
from sidecar.store import Pointer, check_epoch, check_move
from sidecar.store.address import Address
from sidecar.store.servers import DEADLINES, Deadlines, connect

OBJECT: Final = b"catalog:o:"
POINTER: Final = b"catalog:{root}:pointer"
MOVED: Final = b"catalog:{root}:moved"

POLL_S: Final = 1.0
RESUBSCRIBE_S: Final = 1.0
RECANCEL_S: Final = 0.05
REPLICAS_MS: Final = 1000
MAX_NUMBER: Final = 2**63 - 1
BATCH: Final = 256
BATCH_BYTES: Final = 4 * 1024 * 1024

# Zero-padded numbers compare as text, at any size; as Lua's own numbers they would be exact below 2**53 alone.
_MOVE: Final = """
local present = redis.call('GET', KEYS[1])
local is_pointer = present and #present == 106 and string.match(present, '^%d+:%d+:[0-9a-f]+$')
    and string.sub(present, 1, 20) <= ARGV[3] and string.sub(present, 22, 41) <= ARGV[3]
if is_pointer and string.sub(present, 1, 41) >= string.sub(ARGV[1], 1, 41) then
    return present
end
redis.call('SET', KEYS[1], ARGV[1])
redis.pcall('PUBLISH', ARGV[2], ARGV[1])
return false
"""
# Redis 6 reads the clock anew for each command, so that the two readings differ by some ms: 1024 is one of ours.
_SWEEP: Final = """
local time = redis.call('TIME')
local clock_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local now_ms, grace_ms, swept = tonumber(ARGV[1]), tonumber(ARGV[2]), 0
for n, key in ipairs(KEYS) do
    if string.sub(ARGV[3], n, n) == 'L' then
        redis.call('PERSIST', key)
    else
        local since_ms, left_ms = now_ms, redis.call('PTTL', key)
        if left_ms >= 0 then
            since_ms = math.floor((left_ms + clock_ms - 2^52) / 1024 + 0.5)
        end
        if now_ms - since_ms >= grace_ms then
            swept = swept + redis.call('UNLINK', key)
        elseif left_ms < 0 or since_ms > now_ms then
            redis.call('PEXPIREAT', key, string.format('%.0f', 2^52 + 1024 * now_ms))
        end
    end
end
return swept
"""
_SWEEP_NAME: Final = hashlib.sha1(_SWEEP.encode()).hexdigest()

_POINTER: Final = re.compile(rb"([0-9]{20}):([0-9]{20}):([0-9a-f]{64})")
_QUOTED: Final = re.compile(r"^.* of pipeline caused error: \((['\"])(.*)\1,?\)$", re.DOTALL)
_FOREIGN: Final = (RedisError, OSError)
_log = structlog.get_logger(__name__)

Command = tuple[object, ...]


class RedisStore:
    """Implements Store. Connects when it is first used, and again after every failure."""

    def __init__(self, address: Address, *, writable: bool, deadlines: Deadlines = DEADLINES) -> None:
        self._address = address
        self._writable = writable
        self._servers = connect(address, deadlines)
        # A server may send a byte now and then, and none of them in vain, for ever.
        self._within_s = deadlines.connect_s + deadlines.answer_s
        self._moved = asyncio.Event()
        self._listener: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()
        # What a writer was last told of evictions; None before it has asked.
        self._evicting: frozenset[str] | None = None

    async def get(self, digests: Collection[bytes]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        async with self._reached():
            for batch in _batches(digests):
                wanted = {_key(digest): digest for digest in batch}
                for keys, data in await self._each(wanted, lambda keys: ("MGET", *keys)):
                    found.update((wanted[k], value) for k, value in zip(keys, data, strict=True) if value is not None)
        return found

    async def put(self, objects: Iterable[Sealed]) -> None:
        async with self._reached(writing=True):
            for batch in _batches_of_objects(objects):
                data = {_key(sealed.digest): sealed.data for sealed in batch}
                await self._each(data, partial(_mset, data))

    async def pointer(self) -> Pointer | None:
        async with self._reached():
            if self._writable and self._evicting is None:
                await self._look_for_evictions()
            return await self._pointer()

    async def move(self, pointer: Pointer) -> None:
        wanted = f"{pointer.epoch:020d}:{pointer.generation:020d}:{pointer.digest.hex()}"
        if _POINTER.fullmatch(wanted.encode()) is None:
            raise StoreError(f"redis store {self._address}: {wanted} does not fit into a pointer")
        async with self._reached(writing=True):
            async with asyncio.timeout(self._within_s):
                [(client, _)] = await self._servers.divide([POINTER])
                role, _, replicas, *_ = await client.role()
                pipeline = client.pipeline(transaction=False)
                # What makes the generation visible: everything that it needs was written before.
                pipeline.execute_command("EVAL", _MOVE, 1, POINTER, wanted, MOVED, f"{MAX_NUMBER:020d}")
                if role == b"master" and replicas:
                    pipeline.execute_command("WAIT", 1, REPLICAS_MS)
                present, *acknowledged = await pipeline.execute()
        if present is not None:
            check_move(_pointer(present), pointer)
        elif acknowledged == [0]:
            # No error: it has moved, and readers have it. If a failover takes it back, it is published again.
            _log.warning(
                "no replica has acknowledged the pointer; a failover now would lose it", store=str(self._address)
            )

    async def changed(self, known: Pointer | None, timeout_s: float) -> Pointer | None:
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout_s
        if not self._closed.is_set() and (self._listener is None or self._listener.done()):
            self._listener = asyncio.create_task(self._listen())
        while True:
            # The hint is taken before the look: a move that the look misses ends the wait.
            moved = self._moved
            pointer = await self.pointer()
            left_s = deadline - clock()
            if pointer != known or left_s <= 0:
                return pointer
            with suppress(TimeoutError):
                async with asyncio.timeout(min(POLL_S, left_s)):
                    await moved.wait()

    async def sweep(self, live: Set[bytes], *, epoch: int, now_ms: int, grace_ms: int) -> int:
        alive = {_key(digest) for digest in live}

        def command(keys: Sequence[bytes]) -> Command:
            marks = "".join("L" if key in alive else "-" for key in keys)
            return ("EVALSHA", _SWEEP_NAME, len(keys), *keys, now_ms, grace_ms, marks)

        swept = 0
        async with self._reached(writing=True):
            check_epoch(await self._pointer(), epoch)
            await self._look_for_evictions()
            for client in await self._servers.all():
                async for page in _pages(client.scan_iter(match=OBJECT + b"*", count=BATCH)):
                    check_epoch(await self._pointer(), epoch)
                    swept += sum(count for _, count in await self._each(page, command, script=_SWEEP))
        return swept

    async def close(self) -> None:
        self._closed.set()
        self._wake()
        while self._listener is not None and not self._listener.done():
            # Again and again: see _reached.
            self._listener.cancel()
            await asyncio.wait([self._listener], timeout=RECANCEL_S)
        await self._disconnect()

    async def _pointer(self) -> Pointer | None:
        async with asyncio.timeout(self._within_s):
            [(client, _)] = await self._servers.divide([POINTER])
            return _pointer(await client.get(POINTER))

    async def _look_for_evictions(self) -> None:
        """Warns if a server would delete objects that generations need, once until that changes; silent if the server
        does not let itself be asked.
        """
        found = set()
        for client in await self._servers.all():
            with suppress(ResponseError):
                memory = await client.info("memory")
                # Those that evict what has an expiry time alone take nothing that a generation needs.
                if memory.get("maxmemory") and str(memory.get("maxmemory_policy")).startswith("allkeys"):
                    found.add(str(memory["maxmemory_policy"]))
        if found - (self._evicting or set()):
            _log.warning(
                "a full Redis would delete objects that readers need; set maxmemory-policy noeviction",
                store=str(self._address),
                policy=sorted(found),
            )
        self._evicting = frozenset(found)

    async def _each(
        self, keys: Collection[bytes], command: Callable[[Sequence[bytes]], Command], script: str | None = None
    ) -> list[tuple[Sequence[bytes], Any]]:
        """Sends a command for each group of keys, and a script ahead of them; each group, with the reply to it."""
        replies: list[tuple[Sequence[bytes], Any]] = []
        async with asyncio.timeout(self._within_s):
            divided = await self._servers.divide(keys)
        for client, groups in divided:
            pipeline = client.pipeline(transaction=False)
            if script is not None:
                pipeline.execute_command("SCRIPT LOAD", script)
            for group in groups:
                pipeline.execute_command(*command(group))
            async with asyncio.timeout(self._within_s):
                # Raises the first error among the replies.
                answers = await pipeline.execute()
            replies += zip(groups, answers[-len(groups) :], strict=True)
        return replies

    async def _listen(self) -> None:
        """Wakes whoever waits for the pointer, whenever it has moved or may have: until cancelled."""
        while True:
            with suppress(*_FOREIGN):
                [(client, _)] = await self._servers.divide([POINTER])
                async with client.pubsub() as subscription:
                    await subscription.subscribe(MOVED)
                    # The first message says that it is subscribed, or is so again: what moved before went unheard.
                    async for _ in subscription.listen():
                        self._wake()
            await asyncio.sleep(RESUBSCRIBE_S)

    def _wake(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    @asynccontextmanager
    async def _reached(self, *, writing: bool = False) -> AsyncIterator[None]:
        if self._closed.is_set():
            raise StoreError(f"redis store {self._address}: it is closed")
        if writing and not self._writable:
            raise StoreError(f"redis store {self._address}: it was opened for reading only")
        task = asyncio.current_task()
        cancelled = task.cancelling() if task else 0
        try:
            yield
            if task and task.cancelling() > cancelled:
                # In Python 3.11, asyncio.wait_for, which redis-py sends with, swallows a cancellation now and then.
                raise asyncio.CancelledError
        except _FOREIGN as error:
            self._servers.doubt()
            raise StoreError(f"redis store {self._address}: {_reason(error)}") from error
        finally:
            if self._closed.is_set():
                # It was closed meanwhile, and this call has perhaps connected it again.
                await self._disconnect()

    async def _disconnect(self) -> None:
        with suppress(*_FOREIGN):
            await self._servers.close()


def _reason(error: Exception) -> str:
    """What went wrong, without the command that redis-py quotes: it holds the object's bytes."""
    if isinstance(error, MasterNotFoundError):
        return "no Sentinel that can be reached knows a master of this service that is up"
    # Ahead of it, a pipeline says which command it was; in quotes, because it shows all arguments of the error.
    text = _QUOTED.sub(r"\2", str(error))
    if isinstance(error, OutOfMemoryError) or "OOM command not allowed" in text:
        return f"it is full: {text}"
    return text or type(error).__name__


def _key(digest: bytes) -> bytes:
    return OBJECT + digest.hex().encode()


def _mset(data: Mapping[bytes, bytes], keys: Iterable[bytes]) -> Command:
    return ("MSET", *(word for key in keys for word in (key, data[key])))


def _pointer(value: object) -> Pointer | None:
    if value is None:
        return None
    match = _POINTER.fullmatch(value) if isinstance(value, bytes) else None
    # More than any registry can count to is a bit that has flipped, too.
    if match is None or max(int(match[1]), int(match[2])) > MAX_NUMBER:
        raise PointerDamaged(f"redis store: {POINTER.decode()} holds something else than a pointer")
    return Pointer(int(match[1]), int(match[2]), bytes.fromhex(match[3].decode()))


def _batches(digests: Collection[bytes]) -> Iterator[list[bytes]]:
    remaining = iter(digests)
    while batch := list(islice(remaining, BATCH)):
        yield batch


def _batches_of_objects(objects: Iterable[Sealed]) -> Iterator[list[Sealed]]:
    batch: list[Sealed] = []
    size = 0
    for sealed in objects:
        batch.append(sealed)
        size += len(sealed.data)
        if len(batch) == BATCH or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


async def _pages(keys: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    page: list[bytes] = []
    async for key in keys:
        page.append(key)
        if len(page) == BATCH:
            yield page
            page = []
    if page:
        yield page
