"""The contents manager beside the event loop: a file system that hangs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from app.managers.files import service as module
from app.managers.files.errors import ContentsUnavailable
from app.managers.files.service import THREADS, ContentsService


async def test_a_file_system_that_hangs_is_given_up_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WORK_SECONDS", 0.2)
    service = ContentsService(tmp_path, tmp_path / "state")
    answers = threading.Event()
    try:
        for _ in range(THREADS + 1):  # the last one finds no thread that is free
            with pytest.raises(ContentsUnavailable, match=r"within 0\.2 s"):
                await service.run(answers.wait)
    finally:
        answers.set()
    assert await service.run(lambda: "again") == "again"
    await service.close()


async def test_what_is_raised_is_passed_on(tmp_path: Path) -> None:
    service = ContentsService(tmp_path, tmp_path / "state")
    with pytest.raises(ZeroDivisionError):
        await service.run(lambda: 1 / 0)
    await service.close()


async def test_the_end_waits_for_work_that_has_begun_and_drops_what_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = ContentsService(tmp_path, tmp_path / "state")
    answers, begun, done = threading.Event(), threading.Semaphore(0), list[str]()

    def copy() -> None:
        begun.release()
        answers.wait()
        done.append("copied")

    under_way = [asyncio.create_task(service.run(copy)) for _ in range(THREADS)]
    for _ in under_way:
        await asyncio.to_thread(begun.acquire)
    waiting = asyncio.create_task(service.run(done.append, "has waited"))
    await asyncio.sleep(0)  # it is in the queue
    monkeypatch.setattr(service.contents, "close", lambda: done.append("uploads dropped"))
    closing = asyncio.create_task(service.close())
    await asyncio.wait({waiting})
    assert waiting.cancelled()
    assert not closing.done()
    answers.set()
    await closing
    assert done == ["copied"] * THREADS + ["uploads dropped"]
    await asyncio.gather(*under_way)


async def test_the_uploads_are_dropped_while_all_threads_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WORK_SECONDS", 0.1)
    monkeypatch.setattr(module, "LAST_SECONDS", 0.1)
    service = ContentsService(tmp_path, tmp_path / "state")
    answers, dropped = threading.Event(), threading.Event()
    monkeypatch.setattr(service.contents, "close", dropped.set)
    try:
        for _ in range(THREADS):
            with pytest.raises(ContentsUnavailable):
                await service.run(answers.wait)
        await service.close()
        assert dropped.is_set()
    finally:
        answers.set()


def test_a_file_system_that_hangs_does_not_keep_the_process(tmp_path: Path) -> None:
    code = f"""
import asyncio, threading
from pathlib import Path
from app.managers.files import service
from app.managers.files.errors import ContentsUnavailable

async def main():
    service.WORK_SECONDS, service.LAST_SECONDS, service.CLOSE_SECONDS = 0.1, 0.1, 0.1
    contents = service.ContentsService(Path({str(tmp_path)!r}), Path({str(tmp_path)!r}))
    for _ in range(service.THREADS):
        try:
            await contents.run(threading.Event().wait)
        except ContentsUnavailable:
            pass
    await contents.close()

asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
