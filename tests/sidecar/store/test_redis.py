"""What a store in Redis does beyond what every store does: its bytes, and what happens when servers come and go."""

import asyncio
import datetime
import ipaddress
import os
import random
import signal
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from structlog.testing import capture_logs

from sidecar.contract.objects import ObjectType, Sealed, seal
from sidecar.errors import Fenced, StoreError
from sidecar.store import Pointer, Store
from sidecar.store.address import parse
from sidecar.store.redis import POLL_S, RedisStore
from sidecar.store.servers import Deadlines
from sidecar.store.urls import open_store
from tests.redis_server import HOST, Cluster, RedisServer, Watched, shared_cluster, shared_server, wait_until

Connect = Callable[..., Store]
Operation = Callable[[], Awaitable[object]]

DEADLINE_S = 30.0
"""How long a test waits for what has to happen; none ever waits so long."""

HOUR_MS = 3_600_000
POINTER = "catalog:{root}:pointer"


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Opens a client of a url, as often as it is called."""
    opened: list[Store] = []

    def open_one(url: str, *, writable: bool = True) -> Store:
        opened.append(open_store(url, writable=writable))
        return opened[-1]

    yield open_one
    for store in opened:
        await store.close()


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server of the test's own, which may be ended and changed."""
    server = RedisServer()
    server.start()
    yield server
    server.remove()


@pytest.fixture
def empty() -> RedisServer:
    """The server that tests share, empty: it is to be left as it was found."""
    shared_server().flush()
    return shared_server()


def an_object(n: int) -> Sealed:
    return seal(ObjectType.METADATA, n.to_bytes(8, "big"))


def objects(*numbers: int) -> list[Sealed]:
    return [an_object(n) for n in numbers]


def digests(*numbers: int) -> set[bytes]:
    return {an_object(n).digest for n in numbers}


def at(epoch: int, generation: int, digest: int = 0) -> Pointer:
    return Pointer(epoch, generation, bytes([digest]) * 32)


def writes(store: Store) -> list[Operation]:
    """The operations that write; not begun."""
    return [
        lambda: store.put(objects(2)),
        lambda: store.move(at(9, 9)),
        lambda: store.sweep(set(), epoch=9, now_ms=0, grace_ms=0),
    ]


def operations(store: Store) -> list[Operation]:
    return [lambda: store.get(digests(1)), store.pointer, lambda: store.changed(None, 0), *writes(store)]


async def all_fail(operations: list[Operation], match: str | None = None) -> None:
    for operation in operations:
        with pytest.raises(StoreError, match=match):
            await operation()


async def in_the_end(operation: Callable[[], Awaitable[object]]) -> None:
    """Repeats an operation while it fails with StoreError; with anything else it fails the test."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                await operation()
            except StoreError:
                await asyncio.sleep(0.05)
            else:
                return


# The bytes.


async def test_the_bytes_are_those_that_are_specified(empty: RedisServer, connect: Connect) -> None:
    store = connect(empty.url)
    await store.put(objects(1))
    await store.move(at(3, 14, 0xAB))
    name = f"catalog:o:{an_object(1).digest.hex()}"
    assert sorted(empty.admin.keys()) == [name.encode(), POINTER.encode()]
    assert empty.admin.get(name) == an_object(1).data
    assert empty.admin.get(POINTER) == b"00000000000000000003:00000000000000000014:" + b"ab" * 32


async def test_what_no_generation_needs_is_marked_by_a_time_that_never_comes(
    empty: RedisServer, connect: Connect
) -> None:
    store = connect(empty.url)
    await store.put(objects(1, 2))
    now_ms = 1_790_000_000_123
    await store.sweep(digests(1), epoch=1, now_ms=now_ms, grace_ms=HOUR_MS)
    seconds, micros = empty.admin.time()
    expires_ms = empty.admin.pttl(f"catalog:o:{an_object(2).digest.hex()}") + seconds * 1000 + micros // 1000
    assert round((expires_ms - 2**52) / 1024) == now_ms
    assert empty.admin.pttl(f"catalog:o:{an_object(1).digest.hex()}") == -1
    await store.put(objects(2))
    assert empty.admin.pttl(f"catalog:o:{an_object(2).digest.hex()}") == -1


async def test_what_others_keep_in_the_same_server_is_left_alone(empty: RedisServer, connect: Connect) -> None:
    empty.admin.set("session", "x")
    store = connect(empty.url)
    await store.put(objects(1))
    await store.move(at(1, 1))
    assert await store.sweep(set(), epoch=1, now_ms=0, grace_ms=0) == 1
    assert sorted(empty.admin.keys()) == [POINTER.encode(), b"session"]


async def test_databases_are_stores_of_their_own(empty: RedisServer, connect: Connect) -> None:
    await connect(f"{empty.url}/1").move(at(1, 1))
    assert await connect(f"{empty.url}/2").pointer() is None
    assert await connect(f"{empty.url}/1").pointer() == at(1, 1)


@pytest.mark.parametrize("pointer", [at(10**20, 1), at(1, 10**20), at(-1, 1), Pointer(1, 1, b"short")])
async def test_a_pointer_that_does_not_fit_is_refused(empty: RedisServer, connect: Connect, pointer: Pointer) -> None:
    with pytest.raises(StoreError, match="does not fit"):
        await connect(empty.url).move(pointer)
    assert empty.admin.keys() == []


@pytest.mark.parametrize("value", [b"", b"latest", b"1:2:" + b"ab" * 32, b"0" * 106])
async def test_something_else_in_the_place_of_the_pointer_is_an_error(
    empty: RedisServer, connect: Connect, value: bytes
) -> None:
    empty.admin.set(POINTER, value)
    store = connect(empty.url)
    with pytest.raises(StoreError, match="something else"):
        await store.pointer()
    await store.move(at(1, 1))
    assert await store.pointer() == at(1, 1)
    empty.admin.delete(POINTER)
    empty.admin.rpush(POINTER, value)
    await all_fail([store.pointer, lambda: store.move(at(1, 1))], match="WRONGTYPE")


async def test_a_large_object_is_kept(empty: RedisServer, connect: Connect) -> None:
    store = connect(empty.url)
    large = Sealed(bytes(32), os.urandom(1024) * 64 * 1024)
    await store.put([an_object(1), large, an_object(2)])
    assert await store.get([large.digest]) == {large.digest: large.data}


# Moving, by many at once.


async def test_of_many_who_move_at_once_the_highest_wins_and_nobody_ever_sees_it_go_back(
    empty: RedisServer, connect: Connect
) -> None:
    movers = [connect(empty.url) for _ in range(8)]
    moves = [at(1 + n // 50, 10**17 + n, n % 250) for n in range(200)]
    random.Random(3).shuffle(moves)
    seen: list[Pointer] = []

    async def watch() -> None:
        watcher = connect(empty.url)
        while True:
            pointer = await watcher.pointer()
            if pointer is not None:
                seen.append(pointer)

    async with asyncio.timeout(DEADLINE_S):
        watching = asyncio.create_task(watch())
        results = await asyncio.gather(
            *(movers[n % 8].move(move) for n, move in enumerate(moves)), return_exceptions=True
        )
        watching.cancel()
    assert {type(result) for result in results} == {type(None), Fenced}
    assert results[moves.index(max(moves))] is None
    assert await movers[0].pointer() == max(moves)
    assert seen == sorted(seen)


# Hints, and what happens without them.


async def test_however_many_wait_there_is_one_subscription(empty: RedisServer, connect: Connect) -> None:
    store = connect(empty.url)
    waiting = [asyncio.create_task(store.changed(None, DEADLINE_S)) for _ in range(5)]
    await subscribed(empty)
    for _ in range(3):
        await store.changed(at(9, 9), 0)
    assert len(empty.admin.client_list(_type="pubsub")) == 1
    await store.move(at(1, 1))
    assert await asyncio.gather(*waiting) == [at(1, 1)] * 5


async def subscribed(server: RedisServer, count: int = 1) -> None:
    """Waits until so many have subscribed."""
    async with asyncio.timeout(DEADLINE_S):
        while server.admin.pubsub_numsub("catalog:{root}:moved")[0][1] != count:  # noqa: ASYNC110 - another process's
            await asyncio.sleep(0.01)


async def test_a_hint_ends_a_wait_long_before_the_next_poll(empty: RedisServer, connect: Connect) -> None:
    writer, reader = connect(empty.url), connect(empty.url)
    clock = asyncio.get_running_loop().time
    await reader.changed(at(9, 9), 0)
    await subscribed(empty)
    took_s = []
    for generation in range(1, 6):
        waiting = asyncio.create_task(reader.changed(at(1, generation - 1) if generation > 1 else None, DEADLINE_S))
        await asyncio.sleep(0.01)
        started = clock()
        await writer.move(at(1, generation))
        assert await waiting == at(1, generation)
        took_s.append(clock() - started)
    assert sorted(took_s)[2] < POLL_S / 4


async def test_a_move_that_was_not_announced_costs_one_poll(empty: RedisServer, connect: Connect) -> None:
    store = connect(empty.url)
    waiting = asyncio.create_task(store.changed(None, 2 * DEADLINE_S))
    await subscribed(empty)
    empty.admin.set(POINTER, b"%020d:%020d:%s" % (1, 1, bytes(32).hex().encode()))
    async with asyncio.timeout(DEADLINE_S):
        assert await waiting == at(1, 1)


async def test_a_subscription_that_is_cut_comes_back(empty: RedisServer, connect: Connect) -> None:
    store = connect(empty.url)
    for generation in range(1, 4):
        known = at(1, generation - 1) if generation > 1 else None
        waiting = asyncio.create_task(store.changed(known, 2 * DEADLINE_S))
        await subscribed(empty)
        empty.admin.client_kill_filter(_type="pubsub")
        await store.move(at(1, generation))
        async with asyncio.timeout(DEADLINE_S):
            assert await waiting == at(1, generation)


async def test_who_may_not_subscribe_or_publish_polls(server: RedisServer, connect: Connect) -> None:
    server.admin.execute_command("ACL", "SETUSER", "default", "resetchannels")
    store = connect(server.url)
    async with asyncio.timeout(DEADLINE_S):
        waiting = asyncio.create_task(store.changed(None, 2 * DEADLINE_S))
        await asyncio.wait([waiting], timeout=0.1)
        await store.move(at(1, 1))
        assert await waiting == at(1, 1)


# Evictions.


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random"])
async def test_a_policy_that_deletes_what_readers_need_is_warned_of_once(
    server: RedisServer, connect: Connect, policy: str
) -> None:
    server.admin.config_set("maxmemory", "100mb")
    server.admin.config_set("maxmemory-policy", policy)
    store = connect(server.url)
    with capture_logs() as logs:
        for _ in range(2):
            await store.pointer()
            await store.sweep(set(), epoch=1, now_ms=HOUR_MS, grace_ms=HOUR_MS)
    assert [(line["log_level"], line["policy"]) for line in logs] == [("warning", [policy])]


async def test_a_policy_that_comes_later_is_noticed_by_a_sweep(server: RedisServer, connect: Connect) -> None:
    store = connect(server.url)
    with capture_logs() as logs:
        await store.pointer()
        server.admin.config_set("maxmemory", "100mb")
        server.admin.config_set("maxmemory-policy", "allkeys-lfu")
        await store.pointer()
        assert logs == []
        await store.sweep(set(), epoch=1, now_ms=HOUR_MS, grace_ms=HOUR_MS)
        assert len(logs) == 1


@pytest.mark.parametrize(
    "maxmemory, policy", [("0", "allkeys-lru"), ("100mb", "noeviction"), ("100mb", "volatile-lru")]
)
async def test_a_policy_that_deletes_nothing_that_readers_need_is_not_warned_of(
    server: RedisServer, connect: Connect, maxmemory: str, policy: str
) -> None:
    server.admin.config_set("maxmemory", maxmemory)
    server.admin.config_set("maxmemory-policy", policy)
    with capture_logs() as logs:
        await connect(server.url).pointer()
    assert logs == []


async def test_who_may_not_ask_for_the_policy_is_told_nothing(server: RedisServer, connect: Connect) -> None:
    server.admin.config_set("maxmemory", "100mb")
    server.admin.config_set("maxmemory-policy", "allkeys-lru")
    server.admin.execute_command("ACL", "SETUSER", "default", "-info")
    store = connect(server.url)
    with capture_logs() as logs:
        await store.move(at(1, 1))
        assert await store.pointer() == at(1, 1)
    assert logs == []


async def test_readers_do_not_ask_for_the_policy(server: RedisServer, connect: Connect) -> None:
    server.admin.config_set("maxmemory", "100mb")
    server.admin.config_set("maxmemory-policy", "allkeys-lru")
    with capture_logs() as logs:
        await connect(server.url, writable=False).pointer()
    assert logs == []


# Sweeping while others write.


@pytest.mark.parametrize("start", [shared_server, shared_cluster])
async def test_what_is_put_again_during_a_sweep_is_never_swept(
    start: Callable[[], RedisServer | Cluster], connect: Connect
) -> None:
    shared = start()
    shared.flush()
    sweeper, publisher = connect(shared.url), connect(shared.url)
    many = range(1500)
    for hour in range(1, 4):
        await publisher.put(objects(*many))
        await sweeper.sweep(set(), epoch=1, now_ms=2 * hour * HOUR_MS, grace_ms=HOUR_MS)
        sweeping = asyncio.create_task(sweeper.sweep(set(), epoch=1, now_ms=(2 * hour + 1) * HOUR_MS, grace_ms=HOUR_MS))
        again = random.Random(hour).sample(many, 400)
        for first in range(0, 400, 20):
            await publisher.put(objects(*again[first : first + 20]))
        swept = await sweeping
        found = await publisher.get(digests(*many))
        assert digests(*again) <= set(found)
        assert 1100 <= swept <= 1500


async def test_a_sweeper_is_fenced_in_the_middle_of_a_sweep(empty: RedisServer, connect: Connect) -> None:
    store = connect(empty.url)
    await store.move(at(1, 1))
    await store.put(an_object(n) for n in range(20_000))
    sweeping = asyncio.create_task(store.sweep(set(), epoch=1, now_ms=0, grace_ms=0))
    async with asyncio.timeout(DEADLINE_S):
        while empty.admin.dbsize() > 19_000:  # noqa: ASYNC110 - another process's
            await asyncio.sleep(0)
        empty.admin.set(POINTER, b"%020d:%020d:%s" % (2, 1, bytes(32).hex().encode()))
        with pytest.raises(Fenced):
            await sweeping
    assert empty.admin.dbsize() > 1


# Servers that come and go.


async def test_a_server_that_is_down_is_an_error_until_it_is_up_again(server: RedisServer, connect: Connect) -> None:
    store = connect(server.url)
    await store.put(objects(1))
    await store.changed(None, 0)
    server.kill()
    async with asyncio.timeout(DEADLINE_S):
        await all_fail(operations(store), match=str(server.port))
    server.start()
    assert await store.pointer() is None
    await store.put(objects(1))
    await store.move(at(1, 1))
    assert await store.changed(None, 0) == at(1, 1)


async def test_a_server_that_was_restarted_between_two_calls_is_not_noticed(
    server: RedisServer, connect: Connect
) -> None:
    store = connect(server.url)
    await store.move(at(1, 1))
    for operation in operations(store):
        server.restart()
        await operation()


async def test_a_server_that_starts_from_an_older_dump_shows_what_it_had(server: RedisServer, connect: Connect) -> None:
    store = connect(server.url)
    await store.put(objects(1))
    await store.move(at(1, 1, 1))
    server.save()
    await store.put(objects(2))
    await store.move(at(1, 2, 2))
    server.restart()
    assert await store.changed(at(1, 2, 2), DEADLINE_S) == at(1, 1, 1)
    assert set(await store.get(digests(1, 2))) == digests(1)
    await store.put(objects(2))
    await store.move(at(1, 3, 2))
    assert await store.pointer() == at(1, 3, 2)


async def test_a_wait_notices_that_the_server_was_emptied(empty: RedisServer, connect: Connect) -> None:
    store = connect(empty.url)
    await store.move(at(1, 1))
    waiting = asyncio.create_task(store.changed(at(1, 1), 2 * DEADLINE_S))
    await subscribed(empty)
    empty.flush()
    async with asyncio.timeout(DEADLINE_S):
        assert await waiting is None


async def test_a_wait_ends_when_the_server_does(server: RedisServer, connect: Connect) -> None:
    store = connect(server.url)
    waiting = asyncio.create_task(store.changed(None, 2 * DEADLINE_S))
    await subscribed(server)
    server.kill()
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(StoreError):
            await waiting


async def test_scripts_that_the_server_has_forgotten_are_sent_again(empty: RedisServer, connect: Connect) -> None:
    store = connect(empty.url)
    for generation in range(1, 4):
        await store.put(objects(generation))
        await store.move(at(1, generation))
        assert await store.sweep(set(), epoch=1, now_ms=0, grace_ms=0) == 1
        empty.admin.script_flush()


async def test_a_full_server_is_an_error_that_says_so(server: RedisServer, connect: Connect) -> None:
    store = connect(server.url)
    await store.put(objects(1, 2))
    await store.move(at(1, 1))
    server.admin.config_set("maxmemory-policy", "noeviction")
    server.admin.config_set("maxmemory", "1")
    await all_fail([lambda: store.put(objects(3)), lambda: store.move(at(1, 2))], match="full")
    assert await store.pointer() == at(1, 1)
    assert set(await store.get(digests(1, 2, 3))) == digests(1, 2)
    assert await store.sweep(digests(1), epoch=1, now_ms=0, grace_ms=0) == 1
    server.admin.config_set("maxmemory", "0")
    await store.move(at(1, 2))


async def test_a_wrong_password_is_refused_and_not_shown(connect: Connect) -> None:
    server = RedisServer("--requirepass", "right horse")
    server.start()
    try:
        for credentials in ("", ":hunter2@", "someone:hunter2@"):
            store = connect(f"redis://{credentials}{HOST}:{server.port}")
            with pytest.raises(StoreError, match=r"invalid|required|AUTH") as caught:
                await store.pointer()
            assert "hunter2" not in f"{caught.value!r} {caught.value.__cause__!r} {store!r}"
        assert await connect(f"redis://:right%20horse@{HOST}:{server.port}").pointer() is None
        assert await connect(f"redis://default:right%20horse@{HOST}:{server.port}").pointer() is None
    finally:
        server.remove()


async def test_a_replica_can_be_read_and_refuses_to_be_written(server: RedisServer, connect: Connect) -> None:
    replica = RedisServer("--replicaof", HOST, str(server.port))
    replica.start()
    try:
        master, reader = connect(server.url), connect(replica.url)
        wait_until(lambda: replica.admin.info("replication")["master_link_status"] == "up", "the replica follows")
        # The master counts it a little later, and waits for nobody whom it does not count.
        wait_until(lambda: len(server.admin.role()[2]) == 1, "the master knows it")
        await master.put(objects(1))
        await master.move(at(1, 1))
        # It was waited for.
        assert await reader.pointer() == at(1, 1)
        assert set(await reader.get(digests(1))) == digests(1)
        await all_fail(writes(reader), match=r"(?i)read.?only")
    finally:
        replica.remove()


async def test_a_reader_refuses_to_write(empty: RedisServer, connect: Connect) -> None:
    reader = connect(empty.url, writable=False)
    await all_fail(writes(reader), match="reading only")
    assert await reader.pointer() is None
    assert await reader.get(digests(1)) == {}


async def test_a_closed_store_stays_closed_and_leaves_no_connection(server: RedisServer, connect: Connect) -> None:
    store = connect(server.url)
    many = [asyncio.create_task(store.get(digests(n))) for n in range(10)]
    waiting = asyncio.create_task(store.changed(None, 2 * DEADLINE_S))
    await subscribed(server)
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await waiting
    await asyncio.gather(*many, return_exceptions=True)
    await all_fail(operations(store), match="closed")
    wait_until(lambda: len(server.admin.client_list()) == 1, "its connections have ended")


async def test_a_cancellation_is_never_lost(empty: RedisServer, connect: Connect) -> None:
    """redis-py loses some: whoever calls in a loop would then go on for ever."""
    store = connect(empty.url)

    async def call_for_ever() -> None:
        while True:
            await store.pointer()

    async with asyncio.timeout(DEADLINE_S):
        for turns in range(200):
            calling = asyncio.create_task(call_for_ever())
            for _ in range(turns % 40):
                await asyncio.sleep(0)
            calling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await calling


# Servers that answer something else.


@pytest.fixture
async def answering(connect: Connect) -> AsyncIterator[Callable[[bytes], Awaitable[Store]]]:
    """Opens a store on a server that answers everything with the same bytes; with none, it answers nothing."""
    started: list[asyncio.Server] = []
    writers: list[asyncio.StreamWriter] = []

    async def start(answer: bytes) -> Store:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            while data := await reader.read(65536):
                # A command begins with the number of its words.
                writer.write(answer * sum(line.startswith(b"*") for line in data.split(b"\r\n")))

        started.append(await asyncio.start_server(serve, HOST, 0))
        return connect(f"redis://{HOST}:{started[-1].sockets[0].getsockname()[1]}")

    yield start
    for writer in writers:
        writer.close()
    for one in started:
        one.close()
        await one.wait_closed()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"-%s\r\n" % error, id=error.decode().partition(" ")[0])
        for error in (
            b"LOADING Redis is loading the dataset in memory",
            b"MOVED 3999 127.0.0.1:1",
            b"ASK 3999 127.0.0.1:1",
            b"TRYAGAIN Multiple keys request during rehashing of slot",
            b"CLUSTERDOWN The cluster is down",
            b"CROSSSLOT Keys in request don't hash to the same slot",
            b"MASTERDOWN Link with MASTER is down",
            b"READONLY You can't write against a read only replica.",
            b"NOSCRIPT No matching script. Please use EVAL.",
            b"NOREPLICAS Not enough good replicas to write.",
            b"MISCONF Redis is configured to save RDB snapshots",
            b"BUSY Redis is busy running a script.",
            b"NOPERM this user has no permissions",
            b"ERR max number of clients reached",
            b"OOM command not allowed when used memory > 'maxmemory'.",
        )
    ]
    + [pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="not Redis")],
)
async def test_whatever_a_server_answers_is_a_store_error(
    answering: Callable[[bytes], Awaitable[Store]], answer: bytes
) -> None:
    store = await answering(answer)
    async with asyncio.timeout(DEADLINE_S):
        await all_fail(operations(store))


async def test_a_server_that_does_not_answer_is_an_error_in_time(
    answering: Callable[[bytes], Awaitable[Store]],
) -> None:
    store = await answering(b"")
    store = RedisStore(store._address, writable=True, deadlines=Deadlines(3.0, 0.1))  # type: ignore[attr-defined]
    async with asyncio.timeout(DEADLINE_S):
        await all_fail(operations(store), match="(?i)timeout")
    await store.close()


async def test_a_server_that_drips_an_answer_that_never_ends_is_an_error_in_time() -> None:
    """Each byte comes in time, and so the driver waits for the next one."""

    dripping: set[asyncio.Task[None] | None] = set()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dripping.add(asyncio.current_task())
        with suppress(ConnectionError):
            await reader.read(65536)
            writer.write(b"$10000\r\n")
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.01)
        writer.close()

    async with await asyncio.start_server(drip, HOST, 0) as server:
        url = f"redis://{HOST}:{server.sockets[0].getsockname()[1]}"
        store = RedisStore(parse(url), writable=True, deadlines=Deadlines(0.1, 0.1))
        async with asyncio.timeout(DEADLINE_S):
            await all_fail(operations(store))
        await store.close()
        await asyncio.wait([task for task in dripping if task is not None])


# TLS, which redis-server may have been built without: a proxy speaks it here.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a certificate for 127.0.0.1, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "store")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "certificate.pem"
    no_password = serialization.NoEncryption()
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    file.write_bytes(signed.public_bytes(pem) + key.private_bytes(pem, pkcs8, no_password))
    return file


@pytest.fixture
async def tls_port(empty: RedisServer, certificate: Path) -> AsyncIterator[int]:
    """The shared server, over TLS."""
    writers: list[asyncio.StreamWriter] = []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(HOST, empty.port)
        writers.extend((writer, back))
        await asyncio.gather(copy(reader, back), copy(there, writer))

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    proxy = await asyncio.start_server(serve, HOST, 0, ssl=context)
    yield proxy.sockets[0].getsockname()[1]
    proxy.close()
    for writer in writers:
        writer.close()
    await proxy.wait_closed()


async def test_over_tls_a_server_is_believed_only_with_a_certificate_that_is_trusted(
    tls_port: int, certificate: Path, connect: Connect
) -> None:
    store = connect(f"rediss://{HOST}:{tls_port}?ca_file={certificate}")
    await store.put(objects(1))
    await store.move(at(1, 1))
    assert await store.changed(None, 0) == at(1, 1)
    await all_fail(operations(connect(f"rediss://{HOST}:{tls_port}")), match="(?i)certificate")
    await all_fail(operations(connect(f"rediss://{HOST}:{tls_port}?ca_file=/nowhere.pem")))
    await all_fail(operations(connect(f"redis://{HOST}:{tls_port}")))


# Replicas and Sentinels.


@pytest.fixture
def watched() -> Iterator[Watched]:
    watched = Watched()
    yield watched
    watched.remove()


async def test_a_replica_that_does_not_acknowledge_is_told_of_and_holds_nothing_up(
    watched: Watched, connect: Connect
) -> None:
    store = connect(watched.url)
    await store.move(at(1, 1))
    [replica] = [server for server in watched.servers if server is not watched.master]
    os.kill(replica.pid, signal.SIGSTOP)
    try:
        with capture_logs() as logs:
            await store.move(at(1, 2))
    finally:
        os.kill(replica.pid, signal.SIGCONT)
    assert await store.pointer() == at(1, 2)
    assert [(log["log_level"], "acknowledged" in log["event"]) for log in logs] == [("warning", True)]


async def test_after_a_failover_the_new_master_is_read_written_and_listened_to(
    watched: Watched, connect: Connect
) -> None:
    writer, reader = connect(watched.url), connect(watched.url)
    await writer.put(objects(1))
    await writer.move(at(1, 1))
    assert await reader.changed(None, DEADLINE_S) == at(1, 1)
    watched.master.kill()
    await in_the_end(lambda: writer.move(at(1, 2)))
    assert await writer.pointer() == at(1, 2)
    assert set(await writer.get(digests(1))) == digests(1)
    await in_the_end(lambda: reader.changed(at(1, 1), DEADLINE_S))
    await subscribed(watched.master, 1)
    waiting = asyncio.create_task(in_the_end(lambda: reader.changed(at(1, 2), 2 * DEADLINE_S)))
    await in_the_end(lambda: writer.move(at(1, 3)))
    await waiting
    await in_the_end(reader.pointer)
    assert await reader.pointer() == at(1, 3)


async def test_sentinels_that_are_down_or_know_no_such_service_are_an_error(watched: Watched, connect: Connect) -> None:
    host = watched.url.removesuffix("/catalog")
    await all_fail(operations(connect(f"{host}/other")), match="no Sentinel")
    await all_fail(operations(connect(f"redis+sentinel://{HOST}:1/catalog")), match="no Sentinel")
    # One of several is enough.
    several = host.replace("//", f"//{HOST}:1,")
    assert await connect(f"{several}/catalog").pointer() is None


# A Cluster.


async def test_objects_spread_over_a_cluster_and_its_pointer_does_not(connect: Connect) -> None:
    cluster = shared_cluster()
    cluster.flush()
    # Any of its servers is enough to find the others.
    store = connect(f"redis+cluster://{HOST}:1,{HOST}:{cluster.servers[2].port}")
    await store.put(an_object(n) for n in range(300))
    await store.move(at(1, 1))
    sizes = [server.admin.dbsize() for server in cluster.servers]
    assert sum(sizes) == 301
    assert min(sizes) > 50


async def test_a_cluster_is_followed_when_slots_move_and_servers_end(connect: Connect) -> None:
    cluster = Cluster()
    try:
        store, reader = connect(cluster.url), connect(cluster.url)
        await store.put(an_object(n) for n in range(300))
        await store.move(at(1, 1))
        assert await reader.changed(None, 0) == at(1, 1)
        cluster.give_away(POINTER)
        await in_the_end(lambda: store.move(at(1, 2)))
        await in_the_end(reader.pointer)
        assert await reader.pointer() == at(1, 2)
        assert len(await store.get(digests(*range(300)))) == 300

        ended = next(server for server in cluster.servers if not server.admin.keys(POINTER))
        ended.kill()
        with pytest.raises(StoreError):
            await store.get(digests(*range(300)))
        ended.start()
        await in_the_end(lambda: store.put(an_object(n) for n in range(300)))
        assert len(await store.get(digests(*range(300)))) == 300
    finally:
        cluster.remove()


async def test_a_cluster_that_is_not_there_or_is_none_is_an_error(empty: RedisServer, connect: Connect) -> None:
    await all_fail(operations(connect(f"redis+cluster://{HOST}:1")), match="1")
    await all_fail(operations(connect(f"redis+cluster://{HOST}:{empty.port}")), match="cluster")


async def test_many_use_one_client_of_a_cluster_at_once(connect: Connect) -> None:
    cluster = shared_cluster()
    cluster.flush()
    store = connect(cluster.url)

    async def use(number: int) -> None:
        await store.put(objects(number))
        assert set(await store.get(digests(number))) == digests(number)
        with suppress(Fenced):
            await store.move(at(1, number + 1))

    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*map(use, range(50)), *(store.changed(None, 0.1) for _ in range(20)))
    assert await store.pointer() == at(1, 50)
