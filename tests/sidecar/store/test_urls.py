"""Which store a url means; opening one connects nothing."""

import contextlib
import os
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
    ],
)
def test_any_other_url_is_refused_and_no_password_is_shown(url: str) -> None:
    with pytest.raises(StoreError) as caught:
        open_store(url, writable=True)
    assert "store.url" in str(caught.value)
    assert "secret" not in str(caught.value)
