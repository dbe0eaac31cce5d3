"""Sessions whose kernels or whose disk go away while something is stored."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import closing
from typing import Any, cast

import msgspec
import pytest

from app.managers.kernels.callers import CallersKernels
from app.managers.owners.principal import ANONYMOUS
from app.managers.sessions import book as sessions
from app.managers.sessions.book import SessionBook
from app.managers.sessions.sessions import SessionManager
from app.managers.sessions.store import MEMORY, Session, SessionStore
from tests.support.identities import principal


class Kernels:
    """Kernels that are there or gone, and whose models are their ids."""

    principal = principal(ANONYMOUS)

    def __init__(self, *ids: str) -> None:
        self.ids = {*ids}

    def __contains__(self, kernel_id: object) -> bool:
        return kernel_id in self.ids

    def model_of(self, kernel_id: str) -> bytes:
        assert kernel_id in self.ids, "asked for the model of a kernel that is gone"
        return msgspec.json.encode(kernel_id)


def session(number: int) -> Session:
    return Session(f"s{number}", f"p{number}", None, "console", f"k{number}", ANONYMOUS)


async def test_a_kernel_that_goes_while_the_sessions_are_listed_spoils_no_list() -> None:
    kernels = Kernels("k1", "k2", "k3")

    class Store(SessionStore):
        def delete(self, session_ids: Any) -> None:
            kernels.ids.discard("k2")  # another request deletes it meanwhile
            super().delete(session_ids)

    with closing(Store(MEMORY)) as store:
        for number in (1, 2, 3):
            store.save(session(number))
        kernels.ids.discard("k1")
        book = SessionBook(kernels, store)
        manager = SessionManager(cast(CallersKernels, kernels), book)

        listed = msgspec.json.decode(await manager.models())
        await book.close()

    assert [one["kernel"] for one in listed] == ["k3"]


async def test_a_disk_that_hangs_holds_up_nobody_for_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sessions, "WRITE_SECONDS", 0.05)
    monkeypatch.setattr(sessions, "ABORT_SECONDS", 0.05)
    answers = threading.Event()

    class Store(SessionStore):
        def save(self, session: Session) -> None:
            answers.wait()
            super().save(session)

    with closing(Store(MEMORY)) as store:
        book = SessionBook(Kernels("k1"), store)
        try:
            async with asyncio.timeout(30):
                await book.keep(session(1))
            assert book.get("s1") == session(1)
            assert "its disk does not answer" in caplog.text
        finally:
            answers.set()
            await book.close()


async def test_a_fault_of_the_store_is_logged_and_the_change_holds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Store(SessionStore):
        def save(self, session: Session) -> None:
            raise RuntimeError("a fault")

    with closing(Store(MEMORY)) as store:
        book = SessionBook(Kernels("k1"), store)
        with caplog.at_level(logging.ERROR):
            await book.keep(session(1))
        assert book.get("s1") == session(1)
        assert "could not be stored: a fault" in caplog.text
        await book.close()


async def test_a_disk_that_hangs_holds_up_the_end_for_no_longer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sessions, "WRITE_SECONDS", 0.05)
    monkeypatch.setattr(sessions, "ABORT_SECONDS", 0.05)
    answers, closed = threading.Event(), threading.Event()

    class Store(SessionStore):
        def save(self, session: Session) -> None:
            answers.wait()
            super().save(session)

        def close(self) -> None:
            super().close()
            closed.set()

    before = {*threading.enumerate()}
    book = SessionBook(Kernels("k1"), Store(MEMORY))
    try:
        await book.keep(session(1))
        (writer,) = {*threading.enumerate()} - before
        caplog.clear()
        async with asyncio.timeout(30):
            await book.close()
        assert len(caplog.records) == 1
        assert "its disk does not answer" in caplog.text
        assert not closed.is_set()
        assert writer.daemon, "it would keep the process for as long"
    finally:
        answers.set()
    await asyncio.to_thread(writer.join, 30)
    assert closed.is_set()


async def test_what_is_changed_after_the_end_is_not_taken_for_a_change_under_way() -> None:
    store = SessionStore(MEMORY)
    book = SessionBook(Kernels("k1"), store)
    await book.close()
    with pytest.raises(RuntimeError, match="closed"):
        await book.keep(session(1))
    assert not book._writing
