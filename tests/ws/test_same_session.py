"""Two connections of one session: the newer wins, the older is told, and nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.conftest import MakeServer, servers
from tests.support.channels import JupyterChannels
from tests.support.framing import FRAMINGS, FramingName
from tests.support.processes import eventually
from tests.support.running import KernelStarter, kernels_of
from tests.support.server import ServerProcess

REPLACED = 1000


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with servers(request.config) as make_server:
        yield make_server("--no-limit-rate")


def numbers(*clients: JupyterChannels) -> list[int]:
    """The numbers of a flood, as these clients got them one after the other."""
    texts = [m.content["text"] for c in clients for m in c.log if m.msg_type == "stream"]
    return [int(text.split()[0]) for text in texts]


async def test_the_older_is_closed_with_a_reason_and_the_newer_goes_on(
    start: KernelStarter, framing: FramingName
) -> None:
    kernel = await start()
    await kernel.channels.close()
    await kernel.has_connections(0)
    older = await kernel.connect(session_id="mine", framing=framing)
    await older.execute("print older")
    newer = await kernel.connect(session_id="mine", framing=framing)
    close = await older.closed()
    assert close.code == REPLACED
    assert "newer" in close.reason
    assert (await newer.execute("print newer")).text == "newer\n"
    await kernel.has_connections(1)
    assert {m.content.get("text") for m in older.log} & {"newer\n"} == set()


async def test_the_newer_gets_the_replies_and_questions_that_the_older_waits_for(
    server: ServerProcess, start: KernelStarter
) -> None:
    kernel = await start()
    older = await kernel.connect(session_id="mine")
    request = await older.send_execute("until go\ninput name?\nresult r", allow_stdin=True)
    await older.seen(lambda m: m.msg_type == "execute_input")
    newer = await kernel.connect(session_id="mine", framing="v1")
    (server.home.root_dir / "go").touch()
    exchange = await newer.exchange(request, answers=["Ada"])
    assert exchange.text == "Ada\n"
    assert exchange.result == "r"
    assert exchange.reply["status"] == "ok"
    assert (await older.closed()).code == REPLACED


async def test_nothing_is_lost_in_a_flood_however_often_it_changes_hands(
    start: KernelStarter,
) -> None:
    kernel = await start()
    clients = [await kernel.connect(session_id="mine")]
    flood = await kernel.channels.send_execute("flood 1000000 200 1000")
    for framing in (*FRAMINGS, *FRAMINGS, *FRAMINGS):
        await clients[-1].collect_until(lambda m: m.msg_type == "stream")
        clients.append(await kernel.connect(session_id="mine", framing=framing))
    await clients[-1].collect_until(lambda m: m.msg_type == "stream")
    await kernel.rest.interrupt(kernel.id)
    await clients[-1].exchange(flood, replies=False)
    await kernel.channels.exchange(flood)
    for older in clients[:-1]:
        assert (await older.closed()).code == REPLACED
    shares = [numbers(client) for client in clients]
    reached = 0
    for share in shares:
        # Each goes on at the latest where the one before it ended, and has no gap of its own.
        assert share == list(range(share[0], share[-1] + 1))
        assert share[0] <= reached + 1
        reached = max(reached, share[-1])
    assert numbers(kernel.channels) == list(range(1, reached + 1))


async def test_of_many_at_once_one_is_left(start: KernelStarter) -> None:
    kernel = await start()
    clients = await asyncio.gather(*(kernel.connect(session_id="mine") for _ in range(10)))
    closes = [asyncio.create_task(client.closed(60)) for client in clients]
    await eventually(lambda: sum(close.done() for close in closes) == 9, 30)
    (alive,) = [c for c, close in zip(clients, closes, strict=True) if not close.done()]
    assert {close.result().code for close in closes if close.done()} == {REPLACED}
    (pending,) = [close for close in closes if not close.done()]
    pending.cancel()
    await asyncio.wait({pending}, timeout=10)
    exchange = await kernel.channels.execute("print here")
    assert (await alive.exchange(exchange.msg_id, replies=False)).text == "here\n"
    await kernel.has_connections(2)  # with the starter's own


async def test_other_sessions_and_other_kernels_are_not_concerned(start: KernelStarter) -> None:
    first, second = await start(), await start()
    elsewhere = await second.connect(session_id="mine")
    other = await first.connect(session_id="another")
    older = await first.connect(session_id="mine")
    newer = await first.connect(session_id="mine")
    assert (await older.closed()).code == REPLACED
    for channels in (elsewhere, other, newer, first.channels):
        assert (await channels.execute("print here")).text == "here\n"
    await first.has_connections(3)
    await second.has_connections(2)


async def test_the_end_of_the_older_does_not_take_the_place_of_the_newer(
    start: KernelStarter,
) -> None:
    """Its connection ends after the newer has begun; that must not count as the session's end."""
    kernel = await start()
    older = await kernel.connect(session_id="mine")
    newer = await kernel.connect(session_id="mine")
    assert (await older.closed()).code == REPLACED
    await older.close()
    exchange = await kernel.channels.execute("print once")
    await newer.exchange(exchange.msg_id, replies=False)
    assert [m.content["text"] for m in newer.log if m.msg_type == "stream"] == ["once\n"]
    await kernel.has_connections(2)


async def test_it_works_where_nothing_is_kept_for_those_who_leave(make_server: MakeServer) -> None:
    server = make_server("--no-buffer-offline-messages")
    async with kernels_of(server) as start:
        kernel = await start()
        older = await kernel.connect(session_id="mine")
        request = await older.send_execute("until go\nprint here")
        await older.seen(lambda m: m.msg_type == "execute_input")
        newer = await kernel.connect(session_id="mine")
        (server.home.root_dir / "go").touch()
        exchange = await newer.exchange(request)
        assert exchange.text == "here\n"
        assert exchange.reply["status"] == "ok"
