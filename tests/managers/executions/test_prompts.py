"""Prompts of `input()`: which answer is for which, when one is open, and across servers."""

from __future__ import annotations

import asyncio

import pytest

from tests.managers.scripted import ScriptedKernel
from tests.support.channels import JupyterChannels
from tests.support.drill import Servers
from tests.support.executions import Executions
from tests.support.home import Home
from tests.support.rest import RestClient


@pytest.fixture
async def kernel() -> ScriptedKernel:
    return ScriptedKernel()


@pytest.fixture
async def asking(kernel: ScriptedKernel) -> str:
    """The id of a client's execution that is running."""
    execution_id = kernel.send()
    kernel.is_busy(execution_id)
    return execution_id


async def test_an_answer_goes_to_the_prompt_that_its_parent_is(
    kernel: ScriptedKernel, asking: str
) -> None:
    first = kernel.asks(asking, "first?")
    assert not kernel.answer("other", {"msg_id": "of another kernel"})
    assert kernel.answer("one", first)
    assert not kernel.answer("again", first)
    second = kernel.asks(asking, "second?")
    assert not kernel.answer("late", first)
    assert kernel.answer("two", second, session="another client")
    assert kernel.answers == ["one", "two"]


async def test_one_without_a_parent_is_for_the_only_prompt(
    kernel: ScriptedKernel, asking: str
) -> None:
    assert not kernel.answer("early", {})
    kernel.asks(asking, "first?")
    assert kernel.answer("one", {})
    assert not kernel.answer("again", {})
    other = kernel.send(session="other")
    kernel.is_busy(other)
    kernel.asks(asking, "mine?")
    kernel.asks(other, "yours?")
    assert not kernel.answer("whose?", {}, session="a third")
    assert kernel.answer("yours", {}, session="other")
    assert kernel.answer("the other one's", {}, session="other")
    assert kernel.answers == ["one", "yours", "the other one's"]


async def test_the_parent_may_be_the_request_that_asks(kernel: ScriptedKernel, asking: str) -> None:
    assert not kernel.answer("early", {"msg_id": asking})
    kernel.asks(asking, "first?")
    assert kernel.answer("one", {"msg_id": asking})
    assert not kernel.answer("again", {"msg_id": asking})


@pytest.mark.parametrize("parent", [[], 7, "text", {"msg_id": 7}])
async def test_a_parent_that_is_none_is_refused(
    kernel: ScriptedKernel, asking: str, parent: dict[str, str]
) -> None:
    asked = kernel.asks(asking, "first?")
    assert not kernel.answer("nonsense", parent)
    assert kernel.answer("one", asked)


@pytest.mark.parametrize("end", ["reply", "idle", "next", "death", "restart"])
async def test_a_prompt_that_is_gone_takes_no_answer(
    kernel: ScriptedKernel, asking: str, end: str
) -> None:
    asked = kernel.asks(asking, "first?")
    if end == "reply":
        kernel.replies(asking, "error")
        kernel.is_idle(asking)
    elif end == "idle":
        kernel.is_idle(asking)
    elif end == "next":  # the code went on without an answer: it was interrupted
        kernel.asks(asking, "second?")
    elif end == "death":
        await kernel.die()
    else:
        kernel.begin_restart()
        await kernel.end_process()
        kernel.launch()
        kernel.be_ready()
    assert not kernel.answer("late", asked)
    assert kernel.answers == []


async def test_other_messages_on_stdin_are_passed_on(kernel: ScriptedKernel) -> None:
    assert kernel.answer("x", {"msg_id": "of an rpc_request"}, msg_type="rpc_reply")


async def test_what_waits_for_input_is_known_to_the_next_server_and_what_was_answered(
    servers: Servers, home: Home
) -> None:
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        kernels = [(await rest.start_kernel("fake"))["id"] for _ in range(2)]
        asked = []
        for kernel_id in kernels:
            connect = JupyterChannels.connect(server.ws_url, kernel_id, server.token)
            async with await connect as channels:
                code = "input name?\nuntil go"
                asked.append(await channels.send_execute(code, allow_stdin=True))
                question = await channels.seen(lambda m: m.msg_type == "input_request")
                if kernel_id == kernels[1]:
                    await channels.answer(question, "Ada")
                    await channels.seen(lambda m: m.content.get("text") == "Ada\n")
    servers.terminate()
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        waiting, answered = (Executions(rest, kernel_id) for kernel_id in kernels)
        assert (await answered.get(asked[1]))["input_request"] is None
        connect = JupyterChannels.connect(server.ws_url, kernels[1], server.token)
        async with await connect as channels:
            await channels.request("kernel_info_request", channel="control")
            assert "input_request" not in {message.msg_type for message in channels.log}
        prompt = (await waiting.get(asked[0]))["input_request"]
        connect = JupyterChannels.connect(server.ws_url, kernels[0], server.token)
        async with await connect as channels:
            question = await channels.seen(lambda m: m.msg_type == "input_request")
            assert (question.msg_id, question.content["prompt"]) == (prompt["id"], "name?")
            await channels.answer(question, "Eve")
            await channels.seen(lambda m: m.content.get("text") == "Eve\n")
        (home.root_dir / "go").touch()
        for kernel_id, execution_id in zip(kernels, asked, strict=True):
            assert (await Executions(rest, kernel_id).ended(execution_id))["state"] == "ok"
        await asyncio.gather(*map(rest.delete, kernels))
    await asyncio.to_thread(server.stop)
