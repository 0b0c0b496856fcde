"""Which store a url means; opening one connects nothing."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.contract.objects import ObjectType, seal
from sidecar.errors import StoreError
from sidecar.store.urls import open_store

OBJECT = seal(ObjectType.METADATA, b"payload")


async def test_an_absolute_path_has_four_slashes(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/deep/er/store.db", writable=True)
    assert os.listdir(tmp_path) == []
    await store.put([OBJECT])
    await store.close()
    assert (tmp_path / "deep" / "er" / "store.db").is_file()


async def test_a_relative_path_has_three_slashes_and_begins_where_the_store_is_opened(tmp_path: Path) -> None:
    with contextlib.chdir(tmp_path):
        store = open_store("sqlite:///var/store.db", writable=True)
    await store.put([OBJECT])
    await store.close()
    assert (tmp_path / "var" / "store.db").is_file()


async def test_a_store_that_is_not_writable_leaves_no_trace(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/var/store.db", writable=False)
    with pytest.raises(StoreError):
        await store.pointer()
    await store.close()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "url",
    [
        "redis://:secret@127.0.0.1:1",
        "rediss://:secret@127.0.0.1:1/2",
        "redis+sentinel://:secret@127.0.0.1:1/catalog?sentinel_password=secret",
        "redis+cluster://:secret@127.0.0.1:1",
    ],
)
async def test_a_store_in_redis_is_connected_when_it_is_first_used(url: str) -> None:
    store = open_store(url, writable=True)
    with pytest.raises(StoreError) as caught:
        await store.pointer()
    assert "127.0.0.1:1" in str(caught.value)
    assert "secret" not in str(caught.value)
    await store.close()


def test_without_the_package_a_store_in_redis_is_refused_with_the_remedy(tmp_path: Path) -> None:
    """In a process of its own, where the package cannot be found; the embedded store works there."""
    (tmp_path / "redis.py").write_text("raise ModuleNotFoundError(\"No module named 'redis'\", name='redis')")
    code = f"""
from sidecar.store.urls import open_store
open_store("sqlite:///{tmp_path}/store.db", writable=True)
open_store("redis://:secret@host", writable=True)
"""
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    child = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    last = child.stderr.splitlines()[-1]
    assert "StoreError" in last
    assert "pip install 'catalog-sidecar[redis]'" in last
    assert "secret" not in child.stderr.replace('open_store("redis://:secret@host", writable=True)', "")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/var/lib/store.db",
        "store.db",
        "sqlite",
        "sqlite:",
        "sqlite://",
        "sqlite:///",
        "sqlite://host/store.db",
        "SQLITE:///store.db",
        "file:///store.db",
        "postgresql://user:secret@host/name",
        "redis",
        "redis:secret",
        "redis:///secret",
        "REDIS://:secret@host",
        "unix://secret",
    ],
)
def test_any_other_url_is_refused_and_no_password_is_shown(url: str) -> None:
    with pytest.raises(StoreError) as caught:
        open_store(url, writable=True)
    assert "store.url" in str(caught.value)
    assert "secret" not in str(caught.value)
