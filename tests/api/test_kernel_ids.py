"""Ids that clients give to the kernels they start."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from tests.api.errors import error_of
from tests.support.processes import children
from tests.support.rest import RestClient
from tests.support.running import KernelStarter
from tests.support.server import ServerProcess


async def test_a_given_id_is_used(rest: RestClient, start: KernelStarter) -> None:
    kernel_id = str(uuid4())
    kernel = await start("fake", kernel_id=kernel_id)
    assert kernel.id == kernel_id
    assert (await rest.kernel(kernel_id))["id"] == kernel_id
    assert (await kernel.channels.execute("print mine")).text == "mine\n"


async def test_the_id_of_a_running_kernel_is_that_kernel(
    rest: RestClient, start: KernelStarter
) -> None:
    kernel_id = str(uuid4())
    kernel = await start("fake", kernel_id=kernel_id)
    pid = await kernel.pid()
    again = await rest.start_kernel("fake-slow", kernel_id=kernel_id, path="elsewhere")
    assert again == await kernel.model()
    assert again["name"] == "fake"
    assert await rest.kernels() == [again]
    assert await kernel.pid() == pid


async def test_many_at_once_get_the_same_one_kernel(
    server: ServerProcess, rest: RestClient
) -> None:
    kernel_id = str(uuid4())
    before = len(children(server.pid))
    posts = [rest.start_kernel("fake", kernel_id=kernel_id) for _ in range(8)]
    models = await asyncio.gather(*posts)
    assert {(model["id"], model["name"]) for model in models} == {(kernel_id, "fake")}
    assert [model["id"] for model in await rest.kernels()] == [kernel_id]
    assert len(children(server.pid)) == before + 1
    await rest.delete(kernel_id)


async def test_many_at_once_of_a_kernel_that_cannot_be_launched_all_fail(
    rest: RestClient,
) -> None:
    body = {"name": "fake-missing", "kernel_id": str(uuid4())}
    posts = [rest.http.post("/api/kernels", json=body) for _ in range(4)]
    for response in await asyncio.gather(*posts):
        error_of(response, 500, "kernel_start_failed")
    assert await rest.kernels() == []


async def test_an_id_can_be_used_again_when_its_kernel_is_gone(rest: RestClient) -> None:
    kernel_id = str(uuid4())
    for _ in range(2):
        assert (await rest.start_kernel("fake", kernel_id=kernel_id))["id"] == kernel_id
        await rest.delete(kernel_id)
    assert await rest.kernels() == []


async def test_upper_case_is_the_same_id(rest: RestClient) -> None:
    kernel_id = str(uuid4())
    kernel = await rest.start_kernel("fake", kernel_id=kernel_id.upper())
    assert kernel["id"] == kernel_id
    assert (await rest.start_kernel("fake", kernel_id=kernel_id))["id"] == kernel_id
    await rest.delete(kernel_id)
    assert await rest.kernels() == []


@pytest.mark.parametrize(
    "kernel_id",
    [
        "",
        "my-id",
        "111-111-111-111-111",
        "../../../../etc/passwd",
        "0123456789abcdef0123456789abcdef",
        "{01234567-89ab-cdef-0123-456789abcdef}",
        "urn:uuid:01234567-89ab-cdef-0123-456789abcdef",
        "01234567-89ab-cdef-0123-456789abcdef\n",
        " 01234567-89ab-cdef-0123-456789abcdef",
        "01234567-89ab-cdef-0123-456789abcde\u0660",
        "0" * 2**19,
    ],
)
async def test_an_id_that_is_no_uuid_is_refused(rest: RestClient, kernel_id: str) -> None:
    response = await rest.http.post("/api/kernels", json={"kernel_id": kernel_id})
    assert error_of(response, 400, "invalid_kernel_id").startswith("kernel_id: ")
    assert len(response.content) < 1000
    assert await rest.kernels() == []
