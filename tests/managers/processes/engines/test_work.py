"""What is known of the job of one kernel."""

from __future__ import annotations

import asyncio

import pytest

from app.managers.processes.engines.docker_options import PROVISIONER, DockerOptions
from app.managers.processes.engines.engine import Job, JobState
from app.managers.processes.engines.kinds import Chosen
from app.managers.processes.engines.work import Work
from app.managers.processes.hosts.errors import HostUnusable

CHOSEN = Chosen(PROVISIONER, DockerOptions(image="lab"))


def work(said: list[str] | None = None) -> Work:
    return Work("k", "ada", CHOSEN, {}, ([] if said is None else said).append)


async def test_the_next_server_knows_the_same_job() -> None:
    first = work()
    first.on_job(Job("c", first.keeper_id, 3, JobState.RUNNING))
    second = Work("k", "ada", CHOSEN, first.noted, print)
    assert (second.keeper_id, second.generation, second.is_out) == (first.keeper_id, 3, True)
    assert work().keeper_id != first.keeper_id


async def test_the_same_words_are_told_once() -> None:
    said: list[str] = []
    one = work(said)
    for words in ("", "waits", "waits", ""):
        one.on_job(Job("c", one.keeper_id, 1, JobState.WAITING, words))
    assert said == ["waits", ""]


async def test_a_submission_can_be_given_up() -> None:
    one = work()
    one.give_up()
    submitting = asyncio.create_task(one.submit(asyncio.Event().wait()))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    one.give_up()
    with pytest.raises(HostUnusable, match="given up"):
        await submitting
    assert one.submission is None


async def test_a_submission_ends_with_whoever_submits() -> None:
    one = work()
    begun, ended = asyncio.Event(), asyncio.Event()

    async def submit() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    submitting = asyncio.create_task(one.submit(submit()))
    await begun.wait()
    submitting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await submitting
    assert ended.is_set()


async def test_what_the_engine_raises_is_raised() -> None:
    async def submit() -> None:
        raise HostUnusable("it does not want to")

    with pytest.raises(HostUnusable, match="does not want"):
        await work().submit(submit())
