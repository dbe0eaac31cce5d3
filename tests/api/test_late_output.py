"""Output that comes behind the end of its execution, and what later executions change of it."""

from __future__ import annotations

import asyncio

import pytest

from tests.api.test_execution_outputs import content_of, fetch
from tests.support.descriptors import CODE, PREPARE
from tests.support.drill import Servers
from tests.support.executions import Executions, Json
from tests.support.home import Home
from tests.support.kernelspecs import FAKE_SPECS, write_kernelspecs
from tests.support.processes import eventually, kill_all
from tests.support.rest import RestClient

RUNS = 15


async def late(executions: Executions, execution_id: str, count: int) -> Json:
    """The execution, once it shows so many outputs that are late."""

    async def found() -> Json:
        one = await executions.get(execution_id)
        assert one["late_outputs"] == count
        return one

    return await eventually(found)


async def test_an_execution_ends_behind_output_that_its_reply_has_overtaken_by_seconds(
    shared: Executions,
) -> None:
    # Longer than a kernel is waited for that sends no idle status.
    ended = await shared.run("lag 4.5\nprint late")
    assert (ended["state"], [output["text"] for output in ended["outputs"]]) == ("ok", ["late\n"])


async def test_what_a_thread_prints_later_is_output_of_its_execution(shared: Executions) -> None:
    ended = await shared.run("print early\nbackground 1 0.3")
    await shared.run("print other")
    shown = await late(shared, ended["id"], 1)
    texts = [output["text"] for output in shown["outputs"]]
    assert texts == ["early\n", "background 1\n"]
    assert (shown["state"], shown["last_seq"]) == ("ok", ended["last_seq"])
    response = await fetch(shared, ended["id"], 1)
    assert content_of(response, "text/plain; charset=utf-8") == b"background 1\n"
    # Its events end where it has ended.
    events = await shared.all_events(ended["id"])
    assert [event["text"] for event in events if event["type"] == "stream"] == ["early\n"]


@pytest.mark.parametrize("kind", CODE)
async def test_what_was_written_to_a_descriptor_is_in_the_result(
    python: Executions, kind: str
) -> None:
    await python.run(PREPARE)
    for number in range(RUNS):
        ended = await python.run(CODE[kind].format(number=number))

        async def is_there(number: int = number, execution_id: str = ended["id"]) -> bool:
            found = await python.get(execution_id)
            return f"tag {number} ." in "".join(output["text"] for output in found["outputs"])

        await eventually(is_there)


async def test_a_later_execution_updates_what_an_earlier_one_shows(python: Executions) -> None:
    shown = await python.run(
        "from IPython.display import display\nh = display('one', display_id=True)"
    )
    again = await python.run("h.display('again')\nprint(1)")
    untouched = await python.run("other = display('one', display_id=True)")
    updating = await python.run("h.update('two')\nh.update('three')")
    assert updating["outputs"] == []
    for execution in (shown, again):
        found = await python.get(execution["id"])
        assert found["outputs"][0]["data"] == {"text/plain": "'three'"}
        assert found["late_outputs"] == 0
        assert (await fetch(python, execution["id"], 0)).text == "'three'"
    assert (await python.get(untouched["id"]))["outputs"] == untouched["outputs"]
    updates = [
        event
        for event in await python.all_events(updating["id"])
        if event["type"] == "update_display"
    ]
    assert [event["data"]["text/plain"] for event in updates] == ["'two'", "'three'"]
    for event in updates:
        assert event["executions"] == [shown["id"], again["id"]]


async def test_the_next_server_knows_what_came_late() -> None:
    home = Home()
    write_kernelspecs(home.jupyter_path, FAKE_SPECS)
    servers = Servers(home)
    try:
        server = await asyncio.to_thread(servers.start)
        async with RestClient(server.url, server.token) as rest:
            kernel_id = (await rest.start_kernel("python3"))["id"]
            executions = Executions(rest, kernel_id)
            code = "from IPython.display import display\nh = display('one', display_id=True)"
            shown = await executions.run(code)
            code = "import threading\nthreading.Timer(0.1, print, ['late']).start()"
            printing = await executions.run(code)
            printed = await late(executions, printing["id"], 1)
            await executions.run("h.update('two')")
            before = [await executions.get(shown["id"]), printed]
            assert before[0]["outputs"][0]["data"] == {"text/plain": "'two'"}
        await asyncio.to_thread(servers.terminate)
        server = await asyncio.to_thread(servers.start)
        async with RestClient(server.url, server.token) as rest:
            executions = Executions(rest, kernel_id)
            assert [await executions.get(one["id"]) for one in before] == before
            await executions.run("h.update('three')")
            found = await executions.get(shown["id"])
            assert found["outputs"][0]["data"] == {"text/plain": "'three'"}
            await rest.delete(kernel_id)
        await asyncio.to_thread(servers.terminate)
    finally:
        kill_all(home.processes())
        home.remove()
