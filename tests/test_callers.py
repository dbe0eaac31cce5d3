"""The caller of a task, and of the tasks that it starts."""

from __future__ import annotations

import asyncio

from app.callers import Caller, begin_call, caller


async def test_every_task_has_a_caller_of_its_own() -> None:
    async def work(name: str) -> str:
        begin_call(Caller(name, ""))
        await asyncio.sleep(0)
        found = caller()
        assert found is not None
        return found.request_id

    assert [*await asyncio.gather(work("a"), work("b"))] == ["a", "b"]
    assert caller() is None


async def test_what_outlives_its_caller_has_none() -> None:
    begins = asyncio.Event()

    async def outlives() -> list[Caller | None]:
        during = caller()
        await begins.wait()
        return [during, caller()]

    made_for = Caller("a", "10.0.0.1")
    begin_call(made_for)
    task = asyncio.create_task(outlives())
    await asyncio.sleep(0)
    made_for.over = True
    begins.set()
    assert await task == [made_for, None]
