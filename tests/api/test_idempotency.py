"""Requests with an `Idempotency-Key`: sent twice, done once."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from app.api import idempotency
from app.managers.errors import ExecutionNotFound
from app.managers.replicas import claims
from tests.api.errors import error_of
from tests.support.executions import Executions
from tests.support.rest import RestClient
from tests.support.running import KernelStarter


def test_replicas_remember_a_key_as_long_as_one_server_does() -> None:
    assert claims.KEY_SECONDS == idempotency.KEY_SECONDS


def key(value: str) -> dict[str, str]:
    return {"Idempotency-Key": value}


async def start_with(rest: RestClient, value: str, **body: str) -> httpx.Response:
    return await rest.http.post("/api/kernels", json=body, headers=key(value))


async def test_a_kernel_is_started_once(rest: RestClient) -> None:
    answers = await asyncio.gather(*(start_with(rest, "one", name="fake") for _ in range(5)))
    assert {answer.status_code for answer in answers} == {201}
    (kernel_id,) = {answer.json()["id"] for answer in answers}
    assert {answer.headers["Location"] for answer in answers} == {f"/api/kernels/{kernel_id}"}
    assert [kernel["id"] for kernel in await rest.kernels()] == [kernel_id]
    error_of(await start_with(rest, "one", name="python3"), 409, "idempotency_conflict")
    await rest.delete(kernel_id)
    # What the key has made is gone: nothing is made in its place.
    error_of(await start_with(rest, "one", name="fake"), 404, "kernel_not_found")
    assert await rest.kernels() == []


async def test_a_start_that_fails_can_be_tried_again(rest: RestClient) -> None:
    for _ in range(2):
        answer = await start_with(rest, "failing", name="fake-missing")
        error_of(answer, 500, "kernel_start_failed")
    kernel_id = (await start_with(rest, "failing", name="fake")).json()["id"]
    await rest.delete(kernel_id)


async def test_code_is_executed_once(start: KernelStarter) -> None:
    kernel = await start("fake")
    executions = Executions(kernel.rest, kernel.id)
    asked = [executions.post("sleep 0.3\nprint a", headers=key("one")) for _ in range(5)]
    answers = await asyncio.gather(*asked)
    (execution_id,) = {answer.json()["id"] for answer in answers}
    await executions.ended(execution_id)
    late = await executions.post("sleep 0.3\nprint a", headers=key("one"))
    assert late.json()["id"] == execution_id
    assert late.json()["outputs"][0]["text"] == "a\n"
    assert len(await executions.listed()) == 1
    error_of(await executions.post("other", headers=key("one")), 409, "idempotency_conflict")
    assert len(await executions.listed()) == 1


async def test_a_key_is_of_one_kernel_and_one_purpose(start: KernelStarter) -> None:
    kernels = [await start("fake") for _ in range(2)]
    ids = {
        (await Executions(kernel.rest, kernel.id).post("print a", headers=key("shared"))).json()[
            "id"
        ]
        for kernel in kernels
    }
    assert len(ids) == 2


@pytest.mark.parametrize("value", ["", "x" * 256, "é".encode().decode("latin-1"), "a\tb"])
async def test_a_key_that_makes_no_sense(shared: Executions, value: str) -> None:
    before = await shared.listed()
    headers = httpx.Headers([(b"Idempotency-Key", value.encode("latin-1"))])
    response = await shared.rest.http.post(shared.path, json={"code": "print a"}, headers=headers)
    error_of(response, 400, "invalid_idempotency_key")
    assert await shared.listed() == before


@pytest.mark.parametrize("key", [None, "once"])
async def test_what_is_made_is_confirmed_before_it_is_told_of(key: str | None) -> None:
    keys = idempotency.IdempotencyKeys().of("anna")
    order: list[str] = []
    is_stored = asyncio.Event()

    async def make(new_id: str) -> str:
        assert new_id == ""  # nobody looks for it by that
        order.append("made")
        return "it"

    async def confirm(made: str) -> None:
        assert made == "it"
        await is_stored.wait()
        order.append("stored")

    async def ask() -> None:
        assert await keys.once("executions", key, b"", how) == "it"
        order.append("told")

    how = idempotency.Making(make, confirm=confirm)
    asking = [asyncio.create_task(ask()) for _ in range(2 if key else 1)]
    await asyncio.sleep(0)
    is_stored.set()
    await asyncio.gather(*asking)
    assert order == ["made", "stored", *("told" for _ in asking)]


async def test_what_was_made_with_a_key_is_not_made_again_because_it_was_not_confirmed() -> None:
    keys = idempotency.IdempotencyKeys().of("anna")
    made: list[str] = []

    async def make(_: str) -> str:
        made.append("it")
        return "it"

    async def confirm(_: str) -> None:
        raise ExecutionNotFound("it")

    how = idempotency.Making(make, confirm=confirm)
    with pytest.raises(ExecutionNotFound):
        await keys.once("executions", "key", b"", how)
    assert await keys.once("executions", "key", b"", how) == "it"
    assert made == ["it"]
