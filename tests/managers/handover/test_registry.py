"""The registry's file: what is in it comes back; one of no use is told of and kept aside."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sqlite3
import stat
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from app.kernels_cli import kernels_command
from app.managers.handover import registry as registry_module
from app.managers.handover.lock import Lock
from app.managers.handover.registry import Registry, check_registry
from app.managers.handover.store import (
    _MIGRATIONS,
    ExecutionRecord,
    KernelRecord,
    OtherSchema,
    SQLiteRegistry,
    StoreAway,
    UnusableRegistry,
    decode_json,
    encode_json,
    open_registry,
)
from app.managers.log.places import Places
from app.managers.replicas.terms import Terms
from app.managers.state import Restarts
from tests.support.processes import eventually


def record(kernel_id: str, **changes: object) -> KernelRecord:
    fields: dict[str, object] = {
        "id": kernel_id,
        "name": "python3",
        "spec": {"argv": ["python"], "metadata": {}},
        "connection": {"transport": "ipc", "key": "secret"},
        "connection_file": "/state/runtime/kernel.json",
        "provisioner": {"pid": 7, "start_time": "boot/1"},
        "argv": ["python"],
        "cwd": "/work",
        "env": {"PATH": "/bin"},
        "pid": 7,
        "start_time": "boot/1",
        "created": 1.5,
        "last_activity": 2.5,
        "generation": 1,
        "execution_state": "idle",
        "reason": "",
        "exclusive": True,
        "external": False,
        **changes,
    }
    return KernelRecord(**fields)  # type: ignore[arg-type]


def test_what_is_stored_comes_back(tmp_path: Path) -> None:
    store, aside = open_registry(tmp_path)
    restarts = Restarts(3, "2026-11-22T14:49:48.797413Z", "exited with code 3")
    given = {"memory": "4GiB", "cpus": 1.5, "pids": 64, "read_only": True}
    later, first = record("b", created=9.0, pid=None, restarts=restarts, given=given), record("a")
    store.save(later)
    store.save(first)
    store.touch([("a", 7.5, "busy", b""), ("gone", 1.0, "idle", b"")])
    store.save_executions([ExecutionRecord("a", e, n, b"x") for n, e in enumerate("pqr")], [])
    store.save_executions([ExecutionRecord("a", "p", 9, b"y")], [("a", "q")])
    store.close()
    again, _ = open_registry(tmp_path)
    assert not aside
    assert again.load() == [record("a", last_activity=7.5, execution_state="busy"), later]
    assert again.load_executions("a") == [
        ExecutionRecord("a", "r", 2, b"x"),
        ExecutionRecord("a", "p", 9, b"y"),
    ]
    again.delete("a")
    assert [kept.id for kept in again.load()] == ["b"]
    assert not again.load_executions("a")
    assert stat.S_IMODE((tmp_path / "registry.sqlite").stat().st_mode) == 0o600
    again.close()


def test_what_is_no_utf8_comes_back(tmp_path: Path) -> None:
    path = os.fsdecode(b"/work/\xff")
    odd = record("a", cwd=path, env={"PATH": path}, connection_file=f"{path}/a.json", name="naïve")
    store, _ = open_registry(tmp_path)
    store.save(odd)
    store.save(record("b", env={"A": "\\ud800 is written so"}))
    assert store.load() == [odd, record("b", env={"A": "\\ud800 is written so"})]
    store.close()
    assert decode_json(encode_json(odd), KernelRecord) == odd


@pytest.mark.parametrize("text", ["", "[", '{"id": "\\ud800"', '{"id": 5}', '{"id": "\\ud800"}'])
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode_json(text, KernelRecord)


async def test_what_a_kernel_did_before_it_was_saved_is_not_written_over_that(
    tmp_path: Path,
) -> None:
    registry = Registry(tmp_path)
    await registry.save(record("a"))
    registry.note("a", "p", lambda: ExecutionRecord("a", "p", 1, b"x"))
    for _ in range(2):  # what is written behind is under way, or about to be
        registry.touch("a", 3.0, "busy")
        writing = asyncio.ensure_future(registry.flush())
        await asyncio.sleep(0)
    registry.touch("a", 3.0, "busy")
    await registry.save(record("a", execution_state="dead"))
    await writing
    await registry.flush()
    assert [known.execution_state for known in await registry.load()] == ["dead"]
    await registry.close()


def test_a_file_of_the_first_version_is_brought_to_this_one(tmp_path: Path) -> None:
    kept = record("a")
    with sqlite3.connect(tmp_path / "registry.sqlite") as connection:
        for statement in _MIGRATIONS[0]:
            connection.execute(statement)
        row = {"owner": "", "limits": "{}", "exclusive": 1}
        added = {"reason", "external", "exclusive", "restarts", "owner", "owner_groups", "shares"}
        for name in set(KernelRecord.__struct_fields__) - added - {"replaced", "given"}:
            value = getattr(kept, name)
            row[name] = json.dumps(value) if isinstance(value, dict | list) else value
        marks = ", ".join("?" * len(row))
        query = f"INSERT INTO kernel ({', '.join(row)}) VALUES ({marks})"
        connection.execute(query, [*row.values()])
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    with pytest.raises(OtherSchema):  # by who only looks at it
        SQLiteRegistry(tmp_path / "registry.sqlite", migrate=False)
    store, aside = open_registry(tmp_path)
    assert not aside
    assert store.load() == [kept]
    store.close()


@pytest.mark.parametrize("fault", ["garbage", "half", "newer", "row"])
def test_a_file_of_no_use_is_kept_aside(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "registry.sqlite"
    store = SQLiteRegistry(path)
    store.save(record("a", env={"X": "y" * 20000}))
    store.close()
    if fault == "garbage":
        path.write_bytes(b"no database at all " * 100)
    elif fault == "half":
        path.write_bytes(path.read_bytes()[:8192])
    else:
        with sqlite3.connect(path) as connection:
            wrong = {"newer": "PRAGMA user_version = 99", "row": "UPDATE kernel SET env = '{'"}
            connection.execute(wrong[fault])
        connection.close()
    before = path.read_bytes()
    again, aside = open_registry(tmp_path)
    assert not again.load()
    assert "kept as" in aside
    assert "newer" in aside if fault == "newer" else "damaged" in aside
    assert len(aside.splitlines()) == 1
    kept = tmp_path / aside.partition("kept as ")[2].partition(". ")[0]
    assert fault == "row" or kept.read_bytes() == before
    again.close()


@pytest.mark.parametrize("version", [1, 99])
def test_the_command_leaves_a_file_of_another_version_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], version: int
) -> None:
    path = tmp_path / "registry.sqlite"
    SQLiteRegistry(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(SystemExit) as exited:
        kernels_command(["list", "--state-dir", str(tmp_path)])
    assert exited.value.code == 1
    assert "written by another version" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_disk_that_is_full_is_told_and_nothing_is_put_aside(tmp_path: Path) -> None:
    store = SQLiteRegistry(tmp_path / "registry.sqlite")
    store.save(record("a"))
    connection = store._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        store.save(record("b", env={"X": "y" * 100_000}))
    assert [kept.id for kept in store.load()] == ["a"]
    store.close()
    path = tmp_path / "registry.sqlite"
    path.unlink()
    path.mkdir()  # nothing can be opened there
    with pytest.raises(UnusableRegistry, match="cannot be used"):
        open_registry(tmp_path)
    assert path.is_dir()


async def test_one_server_at_a_time_has_it(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    with pytest.raises(UnusableRegistry, match="in use by another server"):
        check_registry(tmp_path)
    registry.note("k", "e", lambda: ExecutionRecord("k", "e", 1, b"x"))
    registry.touch("k", 1.0, "busy")
    await registry.close()
    check_registry(tmp_path)
    again = Registry(tmp_path)
    assert await again.executions("k") == [ExecutionRecord("k", "e", 1, b"x")]
    await again.close()


async def test_an_execution_that_cannot_be_stored_keeps_no_other_from_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def odd() -> ExecutionRecord:
        raise OverflowError("a number is too large")

    registry = Registry(tmp_path)
    await registry.save(record("a"))
    registry.note("a", "odd", odd)
    registry.note("a", "p", lambda: ExecutionRecord("a", "p", 1, b"x"))
    await registry.flush()
    assert await registry.executions("a") == [ExecutionRecord("a", "p", 1, b"x")]
    assert "execution odd cannot be stored for the next server" in caplog.text
    await registry.close()


async def test_what_could_not_be_written_is_written_later_and_nothing_older_than_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(tmp_path)
    await registry.save(record("a"))
    registry.note("a", "p", lambda: ExecutionRecord("a", "p", 1, b"x"))
    await registry.flush()

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk is full")

    with monkeypatch.context() as patch:
        for name in ("save", "delete", "touch", "save_executions"):
            patch.setattr(registry._store, name, fail)
        registry.forget("a", "p")
        registry.touch("a", 9.0, "busy")
        await registry.flush()
        failing = asyncio.ensure_future(registry.save(record("b", reason="old")))
        await asyncio.sleep(0)  # it is on its way to the thread
    await asyncio.gather(failing, registry.save(record("b", reason="new")))
    await registry._make_up()
    await registry.flush()
    found = {known.id: known for known in await registry.load()}
    assert found["a"].execution_state == "busy"
    assert found["b"].reason == "new"
    assert await registry.executions("a") == []
    await registry.close()


async def test_a_record_is_stored_although_nobody_waits_for_that_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(tmp_path)
    go_on = threading.Event()

    async def give_up(saved: KernelRecord) -> None:
        """Save a record, and be cancelled while that waits for a slow disk."""
        registry._thread.submit(go_on.wait)
        saving = asyncio.create_task(registry.save(saved))
        await asyncio.sleep(0)
        saving.cancel()
        await asyncio.wait({saving})
        go_on.set()

    await give_up(record("a"))
    assert [known.id for known in await registry.load()] == ["a"]

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(registry._store, "save", fail)
        await give_up(record("b"))
        await registry.load()
    await registry._make_up()
    assert [known.id for known in await registry.load()] == ["a", "b"]
    assert registry._missed == {}
    await registry.close()


async def test_a_record_that_is_written_again_is_missed_until_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(tmp_path)

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(registry._store, "save", fail)
        await registry.save(record("a", reason="old"))
    for reason in ("new", "newest"):
        saving = asyncio.ensure_future(registry.save(record("a", reason=reason)))
        await asyncio.sleep(0)  # it is on its way to the thread
        missed = registry._missed["a"]
        assert missed is not None
        assert missed.reason == reason
        if reason == "new":
            registry._thread.submit(lambda: None).result()  # it has written
            continue
        await saving
    assert registry._missed == {}
    assert [known.reason for known in await registry.load()] == ["newest"]
    await registry.close()


async def test_what_is_forgotten_while_the_disk_is_full_is_deleted_without_another_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(tmp_path)
    registry.note("a", "p", lambda: ExecutionRecord("a", "p", 1, b"x"))
    await registry.flush()

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(registry._store, "save_executions", fail)
        registry.forget("a", "p")
        await registry.flush()
    while registry._writer is not None:  # it has found nothing, or failed
        await registry._writer
    await registry._make_up()
    assert registry._writer is not None
    await registry._writer
    assert await registry.executions("a") == []
    await registry.close()


async def test_a_record_that_cannot_be_stored_is_not_tried_for_ever(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Registry(tmp_path)
    odd, other = record("odd"), record("other")
    odd.provisioner = {"said": object()}
    registry._missed = {"odd": odd, "other": other}
    await registry._make_up()
    assert registry._missed == {}
    assert "kernel odd: the next server will not know it" in caplog.text
    assert [known.id for known in await registry.load()] == ["other"]
    await registry.close()


@pytest.mark.parametrize("comes_back", [True, False])
async def test_nothing_waits_of_a_kernel_that_became_another_replica_s_while_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comes_back: bool
) -> None:
    registry = Registry(tmp_path)
    terms = Terms()
    monkeypatch.setattr(registry, "term_of", terms.of)

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk is full")

    for kernel_id in ("kept", "lost"):
        terms.take(kernel_id, 1)
        registry.note(kernel_id, "p", lambda: ExecutionRecord("k", "p", 1, b"x"))
        registry.forget(kernel_id, "q")
        registry.touch(kernel_id, 3.0, "busy")
        registry.note_places(kernel_id, lambda: Places.of("k", "e", []))
    with monkeypatch.context() as patch:
        patch.setattr(registry_module, "_write_all", fail)
        await asyncio.sleep(0)  # all is on its way to the thread
        assert registry._writer is not None
        assert not registry._changed
        terms.drop("lost")
        if comes_back:
            terms.take("lost", 3)
        await registry._writer
    assert registry._changed.keys() == {("kept", "p")}
    assert registry._forgotten == {("kept", "q")}
    assert registry._activity.keys() == registry._places.keys() == {"kept"}
    for waiting in (registry._changed, registry._forgotten, registry._activity, registry._places):
        waiting.clear()
    await registry.close()


@pytest.mark.parametrize("is_forgotten", [True, False])
async def test_a_write_that_fails_puts_back_nothing_that_another_flush_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_forgotten: bool
) -> None:
    registry, go = Registry(tmp_path), threading.Event()
    write, tries = registry_module._write_all, []

    def fail_first(*what: Any) -> None:
        tries.append(what)
        if len(tries) == 1:
            go.wait(30)
            raise sqlite3.OperationalError("disk is full")
        write(*what)

    monkeypatch.setattr(registry_module, "_write_all", fail_first)
    registry.note("a", "p", lambda: ExecutionRecord("a", "p", 1, b"old"))
    first = asyncio.ensure_future(registry.flush())
    await asyncio.sleep(0)
    if is_forgotten:
        registry.forget("a", "p")
    else:
        registry.note("a", "p", lambda: ExecutionRecord("a", "p", 1, b"new"))
    second = asyncio.ensure_future(registry.flush())
    await asyncio.sleep(0)
    go.set()
    await asyncio.gather(first, second)
    assert not registry._has_changes
    assert registry._unwritten == {}
    stored = [] if is_forgotten else [ExecutionRecord("a", "p", 1, b"new")]
    assert await registry.executions("a") == stored
    await registry.close()


async def test_a_disk_that_hangs_holds_up_the_end_for_a_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(registry_module, "CLOSE_SECONDS", 0.05)
    registry, go = Registry(tmp_path), threading.Event()
    monkeypatch.setattr(registry._store, "touch", lambda _: go.wait(30))
    registry.touch("a", 1.0, "idle")
    async with asyncio.timeout(30):
        await registry.close()
    assert "the registry does not answer" in caplog.text
    # What hangs may still be written, so the state directory is no other server's yet.
    with pytest.raises(UnusableRegistry, match="is in use by another server"):
        Lock(tmp_path)
    go.set()
    registry._lock.close()


async def test_what_becomes_of_a_flush_that_was_given_up_is_no_error_of_a_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has waited for it was told; the writes are tried again."""
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    goes_on = asyncio.Event()

    async def fail() -> None:
        await goes_on.wait()
        raise StoreAway("the database does not answer")

    registry = Registry(tmp_path)
    monkeypatch.setattr(registry, "_flush_all", fail)
    assert not await registry.stored(0.01)
    goes_on.set()
    await eventually(lambda: not registry._flushes)
    gc.collect()
    assert told == []
    await registry.close()
