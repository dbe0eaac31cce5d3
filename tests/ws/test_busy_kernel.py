"""What clients get of a kernel that runs something: its info, control, and its questions."""

from __future__ import annotations

from tests.support.framing import FramingName
from tests.support.running import KernelStarter
from tests.support.server import ServerProcess

FOREVER = "sleep 60"


async def test_kernel_info_is_answered_for_it(start: KernelStarter, framing: FramingName) -> None:
    kernel = await start("fake")
    true_info = (await kernel.channels.request("kernel_info_request")).reply
    running = await kernel.busy(FOREVER)
    channels = await kernel.connect(framing=framing)
    await channels.recv()  # the greeting
    asked = await channels.send("kernel_info_request")
    messages = [await channels.recv() for _ in range(4)]
    assert [(m.channel, m.state or m.msg_type, m.parent_id) for m in messages] == [
        ("iopub", "busy", asked),
        ("shell", "kernel_info_reply", asked),
        ("iopub", "idle", asked),
        # After that idle the client must know that the kernel is busy.
        ("iopub", "busy", None),
    ]
    assert messages[1].content == true_info
    # Nobody else asked, and nobody else is told.
    await kernel.rest.interrupt(kernel.id)
    await kernel.channels.exchange(running)
    assert asked not in {message.parent_id for message in kernel.channels.log}
    assert (await channels.request("kernel_info_request")).states == ["busy", "idle"]


async def test_many_questions_are_all_answered(start: KernelStarter, framing: FramingName) -> None:
    kernel = await start("fake")
    await kernel.busy(FOREVER)
    channels = await kernel.connect(framing=framing)
    asked = [await channels.send("kernel_info_request") for _ in range(20)]
    for msg_id in asked:
        exchange = await channels.exchange(msg_id)
        assert exchange.states == ["busy", "idle"]
        assert len(exchange.replies) == 1


async def test_control_is_answered_on_control(start: KernelStarter, framing: FramingName) -> None:
    kernel = await start("fake")
    running = await kernel.busy(FOREVER)
    channels = await kernel.connect(framing=framing)
    for msg_type in ("kernel_info_request", "comm_info_request", "history_request"):
        exchange = await channels.request(msg_type, channel="control")
        assert [reply.channel for reply in exchange.replies] == ["control"]
        assert exchange.reply["status"] == "ok"
    # The shell is as busy as before, and so say both REST and the next greeting.
    assert (await kernel.model())["execution_state"] == "busy"
    another = await kernel.connect(framing=framing)
    assert (await another.recv()).state == "busy"
    interrupt = await channels.request("interrupt_request", channel="control")
    assert interrupt.reply["status"] == "ok"
    exchange = await kernel.channels.exchange(running)
    assert exchange.error["ename"] == "KeyboardInterrupt"


async def test_shell_requests_wait_for_their_turn(
    server: ServerProcess, start: KernelStarter, framing: FramingName
) -> None:
    kernel = await start("fake")
    go = f"go-{framing}"
    running = await kernel.busy(f"until {go}")
    channels = await kernel.connect(framing=framing)
    sent = [await channels.send_execute(f"print {number}") for number in range(5)]
    (server.home.root_dir / go).touch()
    texts = [(await channels.exchange(msg_id)).text for msg_id in sent]
    assert texts == [f"{number}\n" for number in range(5)]
    ends = [m.parent_id for m in channels.log if m.state == "idle" and m.parent_id]
    assert ends == [running, *sent]


async def test_a_question_goes_to_the_one_who_asked_for_it(
    start: KernelStarter, framing: FramingName
) -> None:
    kernel = await start("fake")
    asker = await kernel.connect(framing=framing)
    other = await kernel.connect(framing=framing)
    running = await asker.send_execute("input your name?", allow_stdin=True)
    question = await asker.seen(lambda m: m.msg_type == "input_request")
    assert (question.channel, question.parent_id) == ("stdin", running)
    assert question.content == {"prompt": "your name?", "password": False}
    # Busy meanwhile, for everybody.
    assert (await kernel.model())["execution_state"] == "busy"
    await asker.answer(question, "Ada")
    assert (await asker.exchange(running)).text == "Ada\n"
    await other.seen(lambda m: m.parent_id == running and m.state == "idle")
    assert {message.channel for message in other.log} == {"iopub"}
    assert "Ada\n" in [message.content.get("text") for message in other.log]


async def test_two_questions_at_a_time_keep_to_their_askers(
    start: KernelStarter, framing: FramingName
) -> None:
    kernel = await start("fake")
    one = await kernel.connect(framing=framing)
    two = await kernel.connect(framing=framing)
    first = await one.send_execute("input first?", allow_stdin=True)
    await one.seen(lambda m: m.msg_type == "input_request")
    second = await two.send_execute("input second?", allow_stdin=True)
    await one.answer(await one.seen(lambda m: m.msg_type == "input_request"), "1")
    await two.answer(await two.seen(lambda m: m.msg_type == "input_request"), "2")
    assert (await one.exchange(first)).text == "1\n"
    assert (await two.exchange(second)).text == "2\n"
    for client, prompt in ((one, "first?"), (two, "second?")):
        asked = [m.content["prompt"] for m in client.log if m.channel == "stdin"]
        assert asked == [prompt]
