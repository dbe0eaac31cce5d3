"""The log of a kernel over HTTP: pages of messages, and streams of them."""

from __future__ import annotations

import asyncio
import base64
from contextlib import aclosing
from typing import Any

import pytest
from pydantic import TypeAdapter

from app.api.log_pages import LogEventModel, MessagesModel
from app.api.schemas import schema_of
from tests.api.errors import error_of
from tests.conftest import MakeServer
from tests.support.executions import NDJSON, SSE, Executions, Json, stream
from tests.support.rest import RestClient
from tests.support.running import RunningKernel, kernels_of

MODEL: TypeAdapter[Any] = TypeAdapter(LogEventModel)


def path_of(kernel: RunningKernel) -> str:
    return f"/api/kernels/{kernel.id}/messages"


async def page(kernel: RunningKernel, **query: Any) -> Json:
    response = await kernel.rest.request("GET", path_of(kernel), params=query)
    found: Json = response.json()
    assert schema_of(MessagesModel).model_validate(found).model_dump() == found
    return found


async def everything(kernel: RunningKernel, limit: int) -> list[Json]:
    """All messages, a page at a time."""
    messages: list[Json] = []
    after = 0
    while True:
        found = await page(kernel, after=after, limit=limit)
        assert len(found["messages"]) <= limit
        messages += found["messages"]
        after = found["next"]
        if after == found["last"]:
            return messages


def texts(messages: list[Json]) -> list[str]:
    return [
        message["content"]["text"]
        for message in messages
        if message["type"] == "message" and message["header"]["msg_type"] == "stream"
    ]


def numbers(messages: list[Json]) -> list[int]:
    return [int(text.split()[0]) for text in texts(messages)]


async def test_a_message_is_told_with_all_its_parts(kernel: RunningKernel) -> None:
    exchange = await kernel.channels.execute("print a")
    messages = [
        message
        for message in await everything(kernel, 100)
        if message["parent_header"].get("msg_id") == exchange.msg_id
    ]
    told = [(message["channel"], message["header"]["msg_type"]) for message in messages]
    assert sorted(told) == [
        ("iopub", "execute_input"),
        ("iopub", "status"),
        ("iopub", "status"),
        ("iopub", "stream"),
        ("shell", "execute_reply"),
    ]
    owners = {message["channel"]: message["session"] for message in messages}
    assert owners == {"iopub": None, "shell": kernel.channels.session}
    assert {str(message["metadata"]) for message in messages} == {"{}"}
    assert {str(message["buffers"]) for message in messages} == {"[]"}


async def test_pages_join_without_gap_or_repetition(kernel: RunningKernel) -> None:
    await kernel.channels.execute("flood 100 20")
    whole = await everything(kernel, 1000)
    assert [message["seq"] for message in whole] == list(range(1, len(whole) + 1))
    assert numbers(whole) == list(range(1, 101))
    for limit in (1, 7, 100):
        assert await everything(kernel, limit) == whole


async def test_a_page_behind_the_newest_is_empty(kernel: RunningKernel) -> None:
    await kernel.channels.execute("print 1")  # behind all that it says while it comes up
    last = (await page(kernel))["last"]
    found = await page(kernel, after=last)
    assert (found["messages"], found["next"], found["gap"]) == ([], last, None)


async def test_buffers_are_told_in_base64(kernel: RunningKernel) -> None:
    await kernel.channels.execute("buffers 2 5")
    (message,) = [
        message
        for message in await everything(kernel, 100)
        if message["header"]["msg_type"] == "display_data"
    ]
    assert [base64.b64decode(buffer) for buffer in message["buffers"]] == [b"\0" * 5, b"\1" * 5]


async def test_what_is_not_json_is_made_json(kernel: RunningKernel) -> None:
    await kernel.channels.send_execute("nan\nprint end")
    await kernel.channels.seen(lambda m: m.msg_type == "stream")
    (message,) = [
        message
        for message in await everything(kernel, 100)
        if message["header"]["msg_type"] == "display_data"
    ]
    assert message["content"]["data"]["application/json"] == {"nan": None, "infinity": None}


async def test_what_has_left_the_log_is_told(make_server: MakeServer) -> None:
    server = make_server("--log-bytes", "65536")
    async with kernels_of(server) as start:
        kernel = await start()
        await Executions(kernel.rest, kernel.id).run("flood 1000 1000")
        found = await page(kernel)
        assert found["gap"]["messages"] == found["first"] - 1
        assert found["gap"]["bytes"] > 900_000
        assert found["messages"][0]["seq"] == found["first"] > 1
        streamed = stream(kernel.rest, path_of(kernel), NDJSON)
        async with aclosing(streamed) as events:  # type: ignore[type-var]
            first = await anext(events)
            assert (first["type"], first["seq"]) == ("gap", found["first"] - 1)
            assert (await anext(events))["seq"] == found["first"]


@pytest.mark.parametrize("accept", [SSE, NDJSON])
async def test_a_stream_goes_on_with_what_the_kernel_says(
    kernel: RunningKernel, accept: str
) -> None:
    await kernel.channels.execute("print before")
    async with aclosing(stream(kernel.rest, path_of(kernel), accept)) as events:  # type: ignore[type-var]
        seen: list[Json] = []
        asked = False
        async for event in events:
            plain = {name: value for name, value in event.items() if name != "id"}
            assert MODEL.validate_python(plain).model_dump() == plain
            seen.append(event)
            if "before\n" in texts(seen) and not asked:
                asked = True
                await kernel.channels.send_execute("print after")
            if "after\n" in texts(seen):
                break
    assert texts(seen) == ["before\n", "after\n"]
    assert [event["seq"] for event in seen] == list(range(1, len(seen) + 1))
    if accept == SSE:
        assert [event["id"] for event in seen] == [str(event["seq"]) for event in seen]


async def test_a_stream_can_be_resumed(kernel: RunningKernel) -> None:
    await kernel.channels.execute("flood 50 10")
    whole = await everything(kernel, 1000)
    places: tuple[Json, ...] = (
        {"params": {"after": "20"}},
        {"headers": {"Last-Event-ID": "20"}},
    )
    for more in places:
        async with aclosing(stream(kernel.rest, path_of(kernel), **more)) as events:  # type: ignore[type-var]
            assert (await anext(events))["seq"] == whole[20]["seq"] == 21


async def test_a_stream_ends_with_the_kernel(kernel: RunningKernel) -> None:
    async def follow() -> list[Json]:
        return [event async for event in stream(kernel.rest, path_of(kernel))]

    following = asyncio.create_task(follow())
    await kernel.channels.execute("print a")
    await kernel.rest.delete(kernel.id)
    events = await following
    assert events[-1]["type"] == "closing"
    assert events[-1]["reason"] == "The kernel was shut down"
    assert texts(events) == ["a\n"]


@pytest.mark.parametrize("accept", ["application/json", SSE, NDJSON])
@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("after=-1", 400, "invalid_request"),
        ("after=one", 400, "invalid_request"),
        ("after=999999", 400, "after_beyond_end"),
        ("limit=0", 400, "invalid_request"),
        ("limit=1001", 400, "invalid_request"),
        ("limit=many", 400, "invalid_request"),
        ("after=0&epoch=stale", 409, "stale_epoch"),
    ],
)
async def test_a_query_that_makes_no_sense(
    rest: RestClient, shared_kernel: str, accept: str, query: str, status: int, code: str
) -> None:
    path = f"/api/kernels/{shared_kernel}/messages?{query}"
    response = await rest.http.get(path, headers={"Accept": accept})
    error_of(response, status, code)


async def test_the_epoch_of_the_log_is_accepted(kernel: RunningKernel) -> None:
    epoch = (await page(kernel))["epoch"]
    assert (await page(kernel, epoch=epoch))["epoch"] == epoch


async def test_a_kernel_that_does_not_exist(rest: RestClient) -> None:
    response = await rest.http.get("/api/kernels/01234567-89ab-cdef-0123-456789abcdef/messages")
    error_of(response, 404, "kernel_not_found")
