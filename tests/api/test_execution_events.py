"""Following an execution: its events, over Server-Sent Events and as lines of JSON.

These are the tests of `app.managers.executions.events`.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import psutil
import pytest
from pydantic import TypeAdapter

from app.api.executions import ExecutionEventModel
from tests.api.errors import error_of
from tests.conftest import MakeServer
from tests.support.executions import NDJSON, SSE, Executions, Json
from tests.support.processes import eventually
from tests.support.rest import RestClient
from tests.support.running import KernelStarter, RunningKernel, kernels_of
from tests.support.server import ServerProcess

MODEL: TypeAdapter[Any] = TypeAdapter(ExecutionEventModel)


def types(events: list[Json]) -> list[str]:
    return [event["type"] for event in events]


def checked(events: list[Json]) -> list[Json]:
    """The events, as the OpenAPI document says that they are: no field is missing, none unknown."""
    for event in events:
        plain = {name: value for name, value in event.items() if name != "id"}
        assert MODEL.validate_python(plain).model_dump() == plain
    return events


@pytest.mark.parametrize("accept", [SSE, NDJSON])
async def test_all_that_happens_is_told_in_order(shared: Executions, accept: str) -> None:
    execution_id = await shared.begin("print a\nstderr b\ndisplay 1 20\nresult 42\nerror E why")
    events = checked(await shared.all_events(execution_id, accept))
    assert types(events) == [
        *("queued", "started", "code", "stream", "stream", "display", "result", "error", "ended")
    ]
    assert events[2]["code"].startswith("print a")
    assert (events[3]["name"], events[3]["text"]) == ("stdout", "a\n")
    assert (events[4]["name"], events[4]["text"]) == ("stderr", "b\n")
    assert events[5]["data"]["text/plain"].startswith("1 xxx")
    assert events[6]["data"] == {"text/plain": "42"}
    assert (events[7]["ename"], events[7]["evalue"]) == ("E", "why")
    assert (events[8]["state"], events[8]["reason"]) == ("error", None)
    numbers = [event["seq"] for event in events[1:]]
    assert numbers == sorted(set(numbers))


async def test_events_come_as_they_happen(shared: Executions) -> None:
    execution_id = await shared.begin("print a\nsleep 60")
    async with aclosing(shared.events(execution_id)) as events:  # type: ignore[type-var]
        seen = [(await anext(events))["type"] for _ in range(4)]
        assert seen == ["queued", "started", "code", "stream"]
        await shared.cancel(execution_id)
        rest = [event async for event in events]
    assert types(rest) == ["step", "step", "error", "ended"]
    assert [event["step"] for event in rest[:2]] == ["cancel", "interrupt"]
    assert rest[-1]["state"] == "cancelled"


async def test_one_that_waits_can_be_followed(shared: Executions) -> None:
    running = await shared.begin("flood 100 10\nsleep 0.5")
    waiting = await shared.begin("print mine")
    events = checked(await shared.all_events(waiting))
    assert types(events) == ["queued", "started", "code", "stream", "ended"]
    assert (await shared.get(running))["state"] == "ok"


async def test_one_that_is_cancelled_before_it_ran(shared: Executions) -> None:
    running, waiting = await shared.begin("sleep 60"), await shared.begin("print a")
    await shared.cancel(waiting)
    events = checked(await shared.all_events(waiting))
    assert types(events) == ["queued", "step", "ended"]
    assert [event["id"] for event in events][-1] is None
    await shared.cancel(running)


async def test_updates_and_clearing_are_told(start: KernelStarter) -> None:
    kernel = await start("python3")
    executions = Executions(kernel.rest, kernel.id)
    code = (
        "from IPython.display import clear_output, display\n"
        "handle = display('one', display_id='x')\n"
        "handle.update('two')\n"
        "clear_output(wait=True)\n"
        "print('three')"
    )
    execution_id = await executions.begin(code)
    events = checked(await executions.all_events(execution_id))
    assert types(events)[3:] == ["display", "update_display", "clear_output", "stream", "ended"]
    assert [event["display_id"] for event in events[3:5]] == ["x", "x"]
    assert events[5]["wait"] is True
    assert (await executions.get(execution_id))["outputs"] == [
        {"output_type": "stream", "name": "stdout", "text": "three\n"}
    ]


async def test_a_websocket_clients_execution_can_be_followed(
    kernel: RunningKernel, executions: Executions
) -> None:
    running = await kernel.busy("print a\nsleep 0.3\nprint b")
    events = checked(await executions.all_events(running))
    assert [event["text"] for event in events if event["type"] == "stream"] == ["a\n", "b\n"]


# Coming back


async def test_a_client_that_comes_back_gets_the_rest(shared: Executions) -> None:
    ended = await shared.run("flood 50 10")
    everything = await shared.all_events(ended["id"])
    for position in (1, 10, 30, len(everything) - 1):
        last = everything[position]["id"]
        places: tuple[Json, ...] = (
            {"params": {"after": last}},
            {"headers": {"Last-Event-ID": last}},
            {"headers": {"Last-Event-ID": last}, "params": {"after": "1"}},
        )
        for more in places:
            if position == len(everything) - 1 and "headers" in more:
                continue
            rest = await shared.all_events(ended["id"], **more)
            assert rest == (everything[position + 1 :] or everything[-1:])


async def test_the_ids_of_events_are_their_numbers(shared: Executions) -> None:
    ended = await shared.run("print a")
    events = await shared.all_events(ended["id"])
    assert [event["id"] for event in events] == [
        None if event["seq"] is None else str(event["seq"]) for event in events
    ]
    assert events[-1]["seq"] == ended["last_seq"]


async def test_a_browser_that_has_all_of_it_is_told_to_stay_away(shared: Executions) -> None:
    ended = await shared.run("print a")
    headers = {"Last-Event-ID": str(ended["last_seq"]), "Accept": SSE}
    path = f"{shared.path}/{ended['id']}/events"
    response = await shared.rest.request("GET", path, 204, headers=headers)
    assert response.content == b""


async def test_a_stream_that_is_cut_again_and_again_misses_and_repeats_nothing(
    shared: Executions,
) -> None:
    execution_id = await shared.begin("flood 300 30 300")
    numbers: list[int] = []
    last: str | None = None
    done = False
    while not done:
        headers = {} if last is None else {"Last-Event-ID": last}
        cut = len(numbers) + 40
        async with aclosing(shared.events(execution_id, headers=headers)) as events:  # type: ignore[type-var]
            async for event in events:
                last = event["id"] or last
                if event["type"] == "stream":
                    numbers.append(int(event["text"].split()[0]))
                done = event["type"] == "ended"
                if len(numbers) == cut:
                    break
    assert numbers == list(range(1, 301))


async def test_steps_are_told_to_those_who_come_later(shared: Executions) -> None:
    ended = await shared.run("print a\nsleep 60", timeout=1.5)
    events = checked(await shared.all_events(ended["id"]))
    wanted = ("stream", "step", "error", "ended")
    told = [event["type"] for event in events if event["type"] in wanted]
    assert (told[:3], told[-2:]) == (["stream", "step", "step"], ["error", "ended"])
    assert events[-1]["reason"] == ended["reason"]


async def test_what_has_left_the_log_is_told(make_server: MakeServer) -> None:
    server = make_server("--log-bytes", "65536")
    async with kernels_of(server) as start:
        kernel = await start()
        executions = Executions(kernel.rest, kernel.id)
        ended = await executions.run("flood 1000 1000")
        events = checked(await executions.all_events(ended["id"]))
        assert types(events)[:2] == ["queued", "gap"]
        texts = [event["text"] for event in events if event["type"] == "stream"]
        gap = events[1]
        # Beside the output: the status and the code, and what the server itself has asked.
        assert 0 <= gap["messages"] - (1000 - len(texts) + 2) <= 8
        assert gap["seq"] == ended["first_seq"] + gap["messages"] - 1
        assert int(texts[-1].split()[0]) == 1000


# The connection


async def test_no_proxy_holds_a_stream_back_or_cuts_it_off(make_server: MakeServer) -> None:
    server = make_server("--stream-keepalive", "0.2")
    async with kernels_of(server) as start:
        kernel = await start()
        executions = Executions(kernel.rest, kernel.id)
        execution_id = await executions.begin("sleep 60")
        for accept, blank in ((SSE, b":\n\n"), (NDJSON, b"\n")):
            path = f"{executions.path}/{execution_id}/events"
            async with kernel.rest.http.stream("GET", path, headers={"Accept": accept}) as response:
                assert response.headers["X-Accel-Buffering"] == "no"
                assert response.headers["Cache-Control"] == "no-store, no-transform"
                received = b""
                async for chunk in response.aiter_raw():
                    received += chunk
                    if received.endswith(blank * 3):
                        break
        await executions.cancel(execution_id)


async def test_a_client_that_goes_away_leaves_nothing_behind(
    server: ServerProcess, shared: Executions
) -> None:
    execution_id = await shared.begin("sleep 60")
    await shared.until(execution_id, "started")

    def established() -> set[int]:
        """The ports of clients that are connected: the kernels' sockets are not tcp."""
        sockets = psutil.Process(server.pid).net_connections("tcp")
        return {found.raddr.port for found in sockets if found.status == psutil.CONN_ESTABLISHED}

    async def follow() -> None:
        async with RestClient(server.url, server.token) as rest:
            await Executions(rest, shared.kernel_id).all_events(execution_id)

    others = established()  # a browser of another test may keep some
    followers = [asyncio.create_task(follow()) for _ in range(20)]
    await eventually(lambda: len(established() - others) >= 20)
    for follower in followers:
        follower.cancel()
    await asyncio.wait(followers)
    await eventually(lambda: len(established() - others) <= 2)
    await shared.cancel(execution_id)


@pytest.mark.parametrize(
    ("query", "headers", "code"),
    [
        ({"after": "-1"}, {}, "invalid_request"),
        ({"after": "one"}, {}, "invalid_request"),
        ({"after": "1.5"}, {}, "invalid_request"),
        ({"after": "999999"}, {}, "after_beyond_end"),
        ({"after": "9" * 40}, {}, "after_beyond_end"),
        ({}, {"Last-Event-ID": "one"}, "invalid_request"),
        ({}, {"Last-Event-ID": "-1"}, "invalid_request"),
        ({}, {"Last-Event-ID": "999999"}, "after_beyond_end"),
        ({"after": "1"}, {"Last-Event-ID": "999999"}, "after_beyond_end"),
    ],
)
async def test_a_place_that_makes_no_sense(
    shared: Executions, query: dict[str, Any], headers: dict[str, str], code: str
) -> None:
    ended = await shared.run("print a")
    path = f"{shared.path}/{ended['id']}/events"
    response = await shared.rest.http.get(path, params=query, headers=headers)
    error_of(response, 400, code)
