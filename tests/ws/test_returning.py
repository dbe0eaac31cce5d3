"""A client that comes back with its session id gets what it missed, in order, once.

These are the tests of `app.managers.messages.attachments`.
"""

from __future__ import annotations

from tests.support.framing import FramingName
from tests.support.running import KernelStarter
from tests.support.server import ServerProcess


async def test_the_whole_of_its_own_execution(
    server: ServerProcess, start: KernelStarter, framing: FramingName
) -> None:
    kernel = await start("fake")
    channels = await kernel.connect(framing=framing, session_id="mine")
    go = f"go-{framing}"
    running = await channels.send_execute(f"print begun\nuntil {go}\nflood 100 100\nresult r")
    await channels.seen(lambda m: m.content.get("text") == "begun\n")
    await channels.close()
    await kernel.has_connections(1)
    (server.home.root_dir / go).touch()
    await kernel.channels.seen(lambda m: m.parent_id == running and m.state == "idle")
    back = await kernel.connect(framing=framing, session_id="mine")
    assert (await back.recv()).parent_header == {}  # the greeting comes first
    exchange = await back.exchange(running)
    assert [int(text.split()[0]) for text in exchange.text.splitlines()] == list(range(1, 101))
    assert exchange.result == "r"
    assert exchange.reply["status"] == "ok"
    assert exchange.states == ["idle"]
    seen = [m.msg_id for m in (*channels.log, *back.log) if m.parent_id and m.channel == "iopub"]
    everything = [m.msg_id for m in kernel.channels.log if m.parent_id]
    assert seen == everything


async def test_with_another_framing(start: KernelStarter) -> None:
    kernel = await start("fake")
    channels = await kernel.connect(framing="legacy", session_id="mine")
    await channels.close()
    await kernel.has_connections(1)
    missed = await kernel.channels.execute("print missed\nbuffers 2 10")
    back = await kernel.connect(framing="v1", session_id="mine")
    exchange = await back.exchange(missed.msg_id, replies=False)
    assert exchange.text == "missed\n"
    assert exchange.of_type("display_data")[0].buffers == [b"\0" * 10, b"\1" * 10]
    assert exchange.replies == []


async def test_a_question_that_came_while_it_was_away(
    server: ServerProcess, start: KernelStarter, framing: FramingName
) -> None:
    kernel = await start("fake")
    channels = await kernel.connect(framing=framing, session_id="mine")
    go = f"go-ask-{framing}"
    running = await channels.send_execute(f"until {go}\ninput still there?", allow_stdin=True)
    await channels.seen(lambda m: m.parent_id == running and m.state == "busy")
    await channels.close()
    await kernel.has_connections(1)
    (server.home.root_dir / go).touch()
    back = await kernel.connect(framing=framing, session_id="mine")
    question = await back.seen(lambda m: m.msg_type == "input_request")
    await back.answer(question, "yes")
    assert (await back.exchange(running)).text == "yes\n"
    assert "stdin" not in {message.channel for message in kernel.channels.log}


async def test_others_who_come_and_go_take_nothing_from_it(
    start: KernelStarter, framing: FramingName
) -> None:
    kernel = await start("fake")
    away = [f"away-{number}" for number in range(3)]
    for session in away:
        async with await kernel.connect(framing=framing, session_id=session):
            pass
    await kernel.has_connections(1)
    first = await kernel.channels.execute("print first")
    async with await kernel.connect(framing=framing) as visitor:
        second = await visitor.execute("print second")
    for session in away:
        back = await kernel.connect(framing=framing, session_id=session)
        await back.seen(lambda m: m.parent_id == second.msg_id and m.state == "idle")
        missed = [m for m in list(back.log)[1:] if m.channel == "iopub"]
        parents = [m.parent_id for m in missed]
        assert parents == [first.msg_id] * 4 + [second.msg_id] * 4
        assert {m.channel for m in back.log} == {"iopub"}
        await back.close()


async def test_a_new_session_starts_from_now(start: KernelStarter, framing: FramingName) -> None:
    kernel = await start("fake")
    await kernel.channels.execute("print old")
    channels = await kernel.connect(framing=framing, session_id="new")
    exchange = await channels.execute("print new")
    assert {m.parent_id for m in channels.log} == {None, exchange.msg_id}


async def test_what_was_delivered_is_not_delivered_again(
    start: KernelStarter, framing: FramingName
) -> None:
    kernel = await start("fake")
    for number in range(5):
        channels = await kernel.connect(framing=framing, session_id="mine")
        exchange = await channels.execute(f"print {number}")
        assert {m.parent_id for m in channels.log} == {None, exchange.msg_id}
        await channels.close()
        await kernel.has_connections(1)
