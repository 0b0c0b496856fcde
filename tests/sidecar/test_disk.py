"""The disk copy fails without taking anything with it, and mends itself."""

import asyncio
import fcntl
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from sidecar.contract.objects import Sealed, digest_of
from sidecar.disk import LOCK_SUFFIX, MAGIC, Disk, lock
from sidecar.errors import StoreError
from sidecar.metrics import Metrics
from sidecar.store import Pointer
from tests.sidecar.fakes import FlakyStore, disk_over

OBJECT = Sealed(digest_of(b"something"), b"something")
OTHER = Sealed(digest_of(b"other"), b"other")


def errors(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("catalog_sidecar_disk_errors_total")


def state(disk: Disk) -> str:
    return disk.status.state


async def test_what_is_put_can_be_read_and_the_sweep_leaves_what_is_live(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "new" / "disk.db", Metrics())
    assert await disk.pointer() is None
    assert await disk.put([OBJECT, OTHER])
    assert await disk.publish(Pointer(1, 1, OBJECT.digest), {OBJECT.digest}, now_ms=1)
    assert await disk.get([OBJECT.digest, OTHER.digest]) == {OBJECT.digest: OBJECT.data}
    assert await disk.pointer() == Pointer(1, 1, OBJECT.digest)
    assert state(disk) == "ok"
    await disk.close()


async def test_a_broken_database_is_set_aside_and_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "disk.db"
    path.write_bytes(MAGIC + b"and what follows is broken" * 100)
    metrics = Metrics()
    disk = Disk(path, metrics)
    assert await disk.get([OBJECT.digest]) == {}
    assert (tmp_path / "disk.db.corrupt").exists()
    assert state(disk) == "failing"
    assert await disk.put([OBJECT])
    assert state(disk) == "ok"
    assert await disk.get([OBJECT.digest]) == {OBJECT.digest: OBJECT.data}
    assert (errors(metrics), disk.resets) == (1, 1)
    await disk.close()


async def test_a_file_that_is_no_database_is_left_alone_and_told(tmp_path: Path) -> None:
    path, text = tmp_path / "config.toml", b"[sidecar]\ndisk = 'config.toml'\n" * 100
    path.write_bytes(text)
    metrics = Metrics()
    disk = Disk(path, metrics)
    assert await disk.get([OBJECT.digest]) == {}
    assert not await disk.put([OBJECT])
    assert not await disk.publish(Pointer(1, 1, OBJECT.digest), set(), now_ms=1)
    assert await disk.pointer() is None
    assert path.read_bytes() == text
    assert not (tmp_path / "config.toml.corrupt").exists()
    assert disk.status.error == f"{path} is no disk copy of ours; choose another sidecar.disk"
    assert (state(disk), disk.resets) == ("failing", 0)
    path.unlink()
    assert await disk.put([OBJECT])
    assert state(disk) == "ok"
    await disk.close()


async def test_one_copy_is_used_by_one_sidecar_and_free_again_once_that_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "disk.db"
    first, second = Disk(path, Metrics()), Disk(path, Metrics())
    pointer = Pointer(9, 9, OBJECT.digest)
    assert await first.put([OBJECT])
    assert await first.publish(pointer, {OBJECT.digest}, now_ms=1)
    # Without the lock, the lower generation would have the first one's copy set aside.
    assert not await second.publish(Pointer(1, 1, OTHER.digest), {OTHER.digest}, now_ms=1)
    assert not await second.put([OTHER])
    assert await second.pointer() is None
    assert await second.get([OBJECT.digest]) == {}
    assert (state(second), second.resets) == ("failing", 0)
    assert second.status.error == f"{path} is in use by another sidecar; give each its own sidecar.disk"
    assert await first.pointer() == pointer
    await first.close()
    assert await second.get([OBJECT.digest, OTHER.digest]) == {OBJECT.digest: OBJECT.data}
    assert await second.pointer() == pointer
    assert state(second) == "ok"
    await second.close()


def worker(path: Path, sidecar: str = "one sidecar") -> Disk:
    """The copy as a worker of this sidecar has it."""
    return Disk(path, Metrics(), lock=partial(lock, sidecar=sidecar))


async def test_siblings_read_what_one_of_them_writes_and_nobody_complains(tmp_path: Path) -> None:
    writer, reader = worker(tmp_path / "disk.db"), worker(tmp_path / "disk.db")
    pointer = Pointer(1, 1, OBJECT.digest)
    assert await writer.put([OBJECT])
    assert await writer.publish(pointer, {OBJECT.digest}, now_ms=1)
    assert await reader.pointer() == pointer
    assert await reader.get([OBJECT.digest]) == {OBJECT.digest: OBJECT.data}
    assert not await reader.put([OTHER])
    assert not await reader.publish(Pointer(2, 2, OTHER.digest), {OTHER.digest}, now_ms=1)
    assert (writer.is_siblings, reader.is_siblings) == (False, True)
    assert (state(reader), await writer.pointer()) == ("ok", pointer)
    await reader.close()
    await writer.close()


async def test_a_sibling_takes_over_when_the_writer_has_gone(tmp_path: Path) -> None:
    writer, reader = worker(tmp_path / "disk.db"), worker(tmp_path / "disk.db")
    pointer = Pointer(1, 1, OBJECT.digest)
    assert await writer.publish(pointer, set(), now_ms=1)
    assert await reader.pointer() == pointer
    await writer.close()
    assert not await reader.put([OTHER])
    assert await reader.pointer() == pointer
    assert not reader.is_siblings
    assert await reader.put([OTHER])
    assert await reader.get([OTHER.digest]) == {OTHER.digest: OTHER.data}
    third = worker(tmp_path / "disk.db")
    assert await third.get([OTHER.digest]) == {OTHER.digest: OTHER.data}
    assert third.is_siblings
    await third.close()
    await reader.close()


async def test_workers_of_two_sidecars_are_no_siblings(tmp_path: Path) -> None:
    path = tmp_path / "disk.db"
    ours, theirs, alone = worker(path), worker(path, "another sidecar"), Disk(path, Metrics())
    assert await ours.put([OBJECT])
    for other in (theirs, alone):
        assert await other.get([OBJECT.digest]) == {}
        assert other.status.error == f"{path} is in use by another sidecar; give each its own sidecar.disk"
    await ours.close()
    assert await theirs.get([OBJECT.digest]) == {OBJECT.digest: OBJECT.data}
    assert (theirs.is_siblings, state(theirs)) == (False, "ok")
    await theirs.close()
    await alone.close()


async def test_a_copy_that_another_sidecar_took_over_is_not_read_any_more(tmp_path: Path) -> None:
    path = tmp_path / "disk.db"
    writer, reader, other = worker(path), worker(path), Disk(path, Metrics())
    assert await writer.put([OBJECT])
    assert await reader.get([OBJECT.digest]) == {OBJECT.digest: OBJECT.data}
    await writer.close()
    assert await other.put([OTHER])
    assert await reader.pointer() is None
    assert await reader.get([OBJECT.digest]) == {}
    assert (reader.is_siblings, state(reader)) == (False, "failing")
    await other.close()
    await reader.close()


async def test_a_copy_that_a_sibling_has_not_made_yet_is_no_trouble(tmp_path: Path) -> None:
    path = tmp_path / "disk.db"
    writer, reader = lock(path, sidecar="one sidecar"), worker(path)
    assert writer is not None
    assert await reader.pointer() is None
    sqlite3.connect(path).close()
    path.touch()
    assert await reader.get([OBJECT.digest]) == {}
    assert (reader.is_siblings, state(reader)) == (True, "ok")
    await reader.close()


async def test_a_siblings_copy_is_never_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "disk.db"
    assert lock(path, sidecar="one sidecar") is not None
    broken = MAGIC + b"and what follows is broken" * 100
    path.write_bytes(broken)
    reader = worker(path)
    for _ in range(2):
        assert await reader.pointer() is None
        assert (state(reader), reader.resets) == ("failing", 0)
    assert path.read_bytes() == broken
    await reader.close()


def test_the_token_of_a_sidecar_that_has_gone_means_nothing(tmp_path: Path) -> None:
    path = tmp_path / "disk.db"
    (tmp_path / f"disk.db{LOCK_SUFFIX}").write_text("one sidecar, long ago")
    assert lock(path, sidecar="one") is not None
    assert lock(path, sidecar="one") is None
    for other in ("on", "one sidecar", ""):
        with pytest.raises(StoreError, match="another sidecar"):
            lock(path, sidecar=other)


async def test_a_sibling_that_has_the_lock_and_is_about_to_leave_its_token_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "disk.db"
    file = path.with_name(path.name + LOCK_SUFFIX)
    file.write_text("another sidecar, long ago")
    with file.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        reader = worker(path)
        reads = asyncio.create_task(reader.pointer())
        await asyncio.to_thread(file.write_text, "one sidecar")
        assert await reads is None
        assert (reader.is_siblings, state(reader)) == (True, "ok")
        await reader.close()


async def test_a_sidecar_does_not_shut_itself_out(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "disk.db", Metrics())
    assert all(await asyncio.gather(disk.put([OBJECT]), disk.put([OTHER]), disk.put([OBJECT])))
    path = tmp_path / "disk.db"
    path.unlink()
    assert await disk.pointer() is None
    assert all(await asyncio.gather(disk.put([OBJECT]), disk.put([OTHER])))
    await disk.close()


async def test_a_file_that_cannot_be_opened_is_told_and_nothing_is_raised(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    metrics = Metrics()
    disk = Disk(tmp_path / "file" / "disk.db", metrics)
    assert await disk.pointer() is None
    assert await disk.get([OBJECT.digest]) == {}
    assert not await disk.put([OBJECT])
    assert not await disk.publish(Pointer(1, 1, OBJECT.digest), set(), now_ms=1)
    assert state(disk) == "failing"
    assert disk.status.error
    assert errors(metrics) == 4
    await disk.close()


async def test_a_file_that_somebody_removed_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "disk.db"
    disk = Disk(path, Metrics())
    await disk.publish(Pointer(1, 1, OBJECT.digest), set(), now_ms=1)
    path.unlink()
    assert await disk.pointer() is None
    assert disk.resets == 1
    assert await disk.put([OBJECT])
    assert path.exists()
    await disk.close()


async def test_the_pointer_goes_where_it_is_told_to_and_what_else_is_there_stays(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "disk.db", Metrics())
    higher, lower = Pointer(9, 9, OTHER.digest), Pointer(1, 1, OBJECT.digest)
    assert await disk.put([OBJECT])
    assert await disk.publish(higher, None, now_ms=1)
    assert await disk.earlier() is None
    assert await disk.publish(lower, {OBJECT.digest}, now_ms=1)
    assert (await disk.pointer(), await disk.earlier(), disk.resets) == (lower, higher, 0)
    assert await disk.get([OBJECT.digest]) == {OBJECT.digest: OBJECT.data}
    await disk.close()


DAMAGE = {
    "text instead of bytes": "UPDATE {} SET digest = CAST(digest AS TEXT)",
    "a digest that is cut": "UPDATE {} SET digest = substr(digest, 1, 31)",
    "no number": "UPDATE {} SET epoch = x'ff'",
    "a fraction": "UPDATE {} SET generation = 0.5",
    "a number below none": "UPDATE {} SET generation = -1",
}


@pytest.mark.parametrize("how", [name for name in DAMAGE if name != "text instead of bytes"])
async def test_a_damaged_pointer_is_none_is_told_and_is_put_right(tmp_path: Path, how: str) -> None:
    path, pointer, metrics = tmp_path / "disk.db", Pointer(1, 2, OBJECT.digest), Metrics()
    disk = Disk(path, metrics)
    assert await disk.put([OBJECT])
    assert await disk.publish(Pointer(1, 1, OTHER.digest), None, now_ms=1)
    assert await disk.publish(pointer, None, now_ms=1)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(DAMAGE[how].format("pointer"))
    with capture_logs() as logs:
        assert await disk.pointer() is None
    assert [line["event"] for line in logs] == ["the pointer of the disk copy is not used"]
    assert metrics.registry.get_sample_value("catalog_sidecar_corrupt_objects_total", {"tier": "disk"}) == 1
    assert await disk.earlier() == Pointer(1, 1, OTHER.digest)
    assert await disk.publish(pointer, None, now_ms=1)
    # What was damaged is no place to go back to.
    assert (await disk.pointer(), await disk.earlier()) == (pointer, Pointer(1, 1, OTHER.digest))
    assert await disk.get([OBJECT.digest]) == {OBJECT.digest: OBJECT.data}
    assert (disk.resets, state(disk)) == (0, "ok")
    await disk.close()


@pytest.mark.parametrize("how", DAMAGE)
async def test_a_damaged_place_to_go_back_to_is_none(tmp_path: Path, how: str) -> None:
    path = tmp_path / "disk.db"
    disk = Disk(path, Metrics())
    for generation in (1, 2):
        assert await disk.publish(Pointer(1, generation, OBJECT.digest), None, now_ms=1)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(DAMAGE[how].format("earlier"))
    # Text of the same bytes says the same.
    whole = how == "text instead of bytes"
    assert await disk.earlier() == (Pointer(1, 1, OBJECT.digest) if whole else None)
    assert (await disk.pointer(), state(disk)) == (Pointer(1, 2, OBJECT.digest), "ok")
    await disk.close()


@pytest.mark.parametrize("data", ["CAST(x'fffe' AS TEXT)", "'text'", "12", "0.5", "x''"])
async def test_an_object_of_another_type_is_bytes_that_no_digest_fits(tmp_path: Path, data: str) -> None:
    path = tmp_path / "disk.db"
    disk = Disk(path, Metrics())
    assert await disk.put([OBJECT, OTHER])
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(f"UPDATE objects SET data = {data} WHERE digest = ?", (OBJECT.digest,))
    found = await disk.get([OBJECT.digest, OTHER.digest])
    assert found[OTHER.digest] == OTHER.data
    assert type(found[OBJECT.digest]) is bytes
    assert digest_of(found[OBJECT.digest]) != OBJECT.digest
    assert state(disk) == "ok"
    assert await disk.put([OBJECT])
    assert await disk.get([OBJECT.digest]) == {OBJECT.digest: OBJECT.data}
    await disk.close()


async def test_a_disk_that_can_be_read_and_takes_nothing_fails_until_it_takes_something() -> None:
    store = FlakyStore()
    store.full = True
    disk = disk_over(store, Metrics())
    with capture_logs() as logs:
        for _ in range(3):
            assert not await disk.put([OBJECT])
            assert await disk.get([OBJECT.digest]) == {}
            assert await disk.pointer() is None
            assert (state(disk), disk.status.error, disk.is_readable) == ("failing", "database or disk is full", True)
        store.down = True
        assert await disk.get([OBJECT.digest]) == {}
        assert (disk.status.error, disk.is_readable) == ("connection refused", False)
        store.down = False
        assert await disk.get([OBJECT.digest]) == {}
        assert (disk.status.error, disk.is_readable) == ("database or disk is full", True)
        store.full = False
        assert await disk.put([OBJECT])
    assert (state(disk), disk.status.error) == ("ok", None)
    assert [line["event"] for line in logs] == [
        "the disk copy fails; answers go on without it",
        "the disk copy works again",
    ]


async def test_trouble_ends_when_an_operation_passes() -> None:
    store = FlakyStore()
    disk = disk_over(store, Metrics())
    store.down = True
    assert await disk.get([OBJECT.digest]) == {}
    assert (state(disk), disk.status.error) == ("failing", "connection refused")
    store.down = False
    assert await disk.get([OBJECT.digest]) == {}
    assert state(disk) == "ok"


async def test_no_path_means_no_tier() -> None:
    disk = Disk(None, Metrics())
    assert await disk.pointer() is None
    assert await disk.get([OBJECT.digest]) == {}
    assert not await disk.put([OBJECT])
    assert state(disk) == "off"
