"""A keeper on another host, but for the host: it is this machine, and the way there a relay.

These are the tests of `app.managers.processes.keeper.remote`, of
`app.managers.processes.keeper.remote_keepers`, and of `app.keeper.servers` for servers that follow
logs.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from app.keeper import servers
from app.keeper.hearings import Heard
from app.keeper.usage import load
from app.managers.errors import KeeperUnavailable, KernelUnreachable
from app.managers.log.entries import Position
from app.managers.messages.traffic import Traffic
from app.managers.processes.hosts import bootstrap
from app.managers.processes.hosts.bundle import MODULE, bundle
from app.managers.processes.keeper import connection, far_link, mirrors
from app.managers.processes.keeper.far_link import FarLink
from app.managers.processes.keeper.keepers import Keepers
from app.managers.processes.keeper.link import KeeperLink, KeeperRefuses, LinkOwner
from app.managers.processes.keeper.remote import Host, RemoteKeeper
from app.managers.state import KernelState
from app.managers.telemetry.counters import Counters
from app.settings import Settings
from tests.keeper.conftest import WAIT, Client
from tests.support.home import Home
from tests.support.kernelspecs import FAKE_KERNEL
from tests.support.processes import eventually


class Relay:
    """The way to a socket. What is on its way while ``passes`` is not set arrives when it is."""

    def __init__(self) -> None:
        self.passes = asyncio.Event()
        self.passes.set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def connect(self, target: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A stream to this socket, held up by the event that is there now."""
        # This first, as it may be refused: a keeper that was just killed may have seemed to listen.
        there, here = await asyncio.open_unix_connection(target)
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_unix_connection(sock=theirs)
        for source, sink in ((reader, here), (there, writer)):
            task = asyncio.create_task(self._copy(source, sink, self.passes))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await asyncio.open_unix_connection(sock=ours)

    async def _copy(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, passes: asyncio.Event
    ) -> None:
        try:
            while data := await source.read(2**16):
                await passes.wait()
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            pass
        finally:
            sink.close()
            with suppress(ConnectionError):
                await sink.wait_closed()

    async def close(self) -> None:
        """Let nothing pass any more."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


class NearPlace:
    """The place of a keeper that the bootstrap starts on this machine."""

    name = "lab"
    patience = 30.0
    is_kernels_own = False
    ends_forgotten = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.host: Host | None = None
        self.relay = Relay()
        self.is_away = False

    def _bring(self) -> dict[str, Any]:
        brought = bundle()
        order = {
            **{"path": str(self.path), "name": "s", "module": MODULE},
            **{"digest": brought.digest, "size": len(brought.data)},
        }
        answers: list[dict[str, Any]] = []
        read = io.BytesIO(json.dumps(order).encode() + b"\n" + brought.data)
        bootstrap.main(read, lambda **answer: answers.append(answer))
        ready: dict[str, Any] = answers[-1]["ready"]
        return ready

    async def find(self, owner: LinkOwner, _on_drained: object) -> KeeperLink:
        if self.is_away:
            raise KeeperUnavailable("lab is away")
        link = None
        while link is None:  # the keeper that was there is about to end
            ready = await asyncio.to_thread(self._bring)
            self.host = Host(ready["home"], ready["python"], ready["env"])
            link = await FarLink.over(*await self.relay.connect(ready["socket"]), owner)
        return link

    async def close(self, *, is_empty: bool) -> None:
        await self.relay.close()

    def let_go(self) -> None: ...

    async def retire(self) -> None: ...


@pytest.fixture
def place(home: Home, monkeypatch: pytest.MonkeyPatch) -> NearPlace:
    monkeypatch.setattr(connection, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(connection, "SOON_SECONDS", 0.1)
    monkeypatch.setattr(far_link, "BEAT_SECONDS", 0.1)
    return NearPlace(home.path / "far")


Begin = Callable[[str], Awaitable[Client]]


@pytest.fixture
async def keeper(place: NearPlace) -> AsyncIterator[RemoteKeeper]:
    options: dict[str, Any] = {"log_bytes": 10**8, "log_total_bytes": 10**9, "log_age": 3600.0}
    keeper = RemoteKeeper(place, orphan_timeout=None, output_bytes=10_000, **options)
    yield keeper
    place.relay.passes.set()
    await keeper.close()  # which ends its kernels


@pytest.fixture
def begin(keeper: RemoteKeeper, home: Home) -> Begin:
    """``await begin(kernel_id)``: a client of a fake kernel of that keeper, which is ready."""

    async def begin(kernel_id: str) -> Client:
        asked = {"transport": "ipc", "key": "secret", "signature_scheme": "hmac-sha256"}
        file, info = await keeper.prepare(kernel_id, asked)
        await keeper.launch(
            kernel_id,
            [sys.executable, str(FAKE_KERNEL), "-f", file],
            env=home.environment(),
            cwd=str(home.root_dir),
            output=home.path / f"kernel-{kernel_id}.log",
        )
        settings = Settings(_cli_parse_args=False)
        directory = home.path / "mirrors" / kernel_id
        directory.parent.mkdir(exist_ok=True)
        spoken = Traffic(kernel_id, KernelState(), directory, keeper, settings, Counters())
        await spoken.connect(info)

        async def is_reachable() -> bool:
            spoken.own.probe()
            return spoken.own.answered and spoken.own.heard_iopub

        await eventually(is_reachable, WAIT)
        spoken.ready()
        client = Client(spoken)
        await client.ran("print up")
        client.entries.clear()
        return client

    return begin


def cut_off(keeper: RemoteKeeper) -> None:
    link = keeper._connection.link
    assert link is not None
    link._transport.abort()


def is_lost(client: Client) -> bool:
    return "lab cannot be reached" in client.traffic._state.unreachable


async def test_what_is_stuck_in_an_old_connection_is_not_done_a_second_time(
    begin: Begin, keeper: RemoteKeeper, place: NearPlace, home: Home
) -> None:
    client = await begin("k")
    stuck, place.relay.passes = place.relay.passes, asyncio.Event()
    place.relay.passes.set()  # for the next connection
    stuck.clear()
    link, asked = keeper._connection.link, client.run("append done once")
    await eventually(lambda: keeper._connection.link not in (link, None), WAIT)
    await eventually(lambda: client.has_reply(asked), WAIT)
    stuck.set()
    await client.ran("append done twice")
    assert (home.root_dir / "done").read_text() == "once\ntwice\n"
    assert client.gaps == []


async def test_requests_pass_while_another_kernel_floods_what_nobody_reads(
    begin: Begin, place: NearPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    floods, other = await begin("k"), await begin("l")
    flood = floods.run("flood 200 50000")
    await eventually(lambda: floods.text("10 ") > 0, WAIT)
    await asyncio.wait_for(other.ran("print through"), WAIT)
    assert other.text("through") == 1
    await eventually(lambda: floods.has_ended(flood), WAIT)
    assert floods.gaps == []


async def test_the_keeper_there_is_replaced_when_it_is_killed(
    begin: Begin, keeper: RemoteKeeper, place: NearPlace
) -> None:
    client = await begin("k")
    pid = keeper.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: keeper.pid not in (None, pid), WAIT)
    await client.ran("print next")
    assert not keeper.exited("k").done()
    assert client.text("next") == 1


async def test_a_process_is_only_signalled_and_seen_to_end_where_it_is(
    begin: Begin, keeper: RemoteKeeper, place: NearPlace
) -> None:
    client = await begin("k")
    process = keeper._processes.get("k")
    assert process is not None
    there = psutil.Process(process.pid)
    place.is_away = True
    link = keeper._connection.link
    assert link is not None
    link._transport.abort()
    await eventually(lambda: is_lost(client) and "lab is away" in unreachable(client), WAIT)
    with pytest.raises(KeeperUnavailable, match="lab cannot be reached"):
        await keeper.signal("k", signal.SIGKILL)
    assert there.is_running()
    there.kill()
    there.wait(10)
    with suppress(TimeoutError):
        async with asyncio.timeout(0.3):
            await asyncio.shield(keeper.exited("k"))
    assert not keeper.exited("k").done()
    assert await asyncio.wait_for(_tail(keeper), 5) == ""
    place.is_away = False
    async with asyncio.timeout(WAIT):
        assert await asyncio.shield(keeper.exited("k")) == -signal.SIGKILL
    await eventually(lambda: unreachable(client) == "", WAIT)


async def test_how_much_a_host_has_to_do_its_keeper_tells(
    begin: Begin, keeper: RemoteKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keeper.connect()
    assert keeper.has_nothing
    assert abs(await keeper.load() - load()) < 10  # of the same machine, within seconds
    await begin("k")
    assert not keeper.has_nothing

    async def refuse(*_: object) -> tuple[Any, bytes]:
        raise KeeperRefuses("the keeper does not know what is asked")

    monkeypatch.setattr(keeper._connection, "ask", refuse)  # as one of an earlier version does
    assert await keeper.load() == 1.0

    async def nonsense(*_: object) -> tuple[Any, bytes]:
        return -1, b""

    monkeypatch.setattr(keeper._connection, "ask", nonsense)
    with pytest.raises(KeeperUnavailable, match="lab makes no sense"):
        await keeper.load()
    monkeypatch.undo()


@pytest.mark.parametrize("own", [False, True])
async def test_a_kernel_that_nobody_has_is_ended_when_its_keeper_is_met(
    begin: Begin, keeper: RemoteKeeper, place: NearPlace, own: bool
) -> None:
    client, _ = await begin("k"), await begin("l")
    process = keeper._processes.get("l")
    assert process is not None
    stray = psutil.Process(process.pid)
    place.is_kernels_own = own
    keeper.is_stray = lambda kernel_id: kernel_id == "l"
    link = keeper._connection.link
    cut_off(keeper)
    await eventually(lambda: keeper._connection.link not in (link, None), WAIT)
    await client.ran("print still here")
    if own:  # it is its engine's to end the job
        assert stray.is_running()
        return
    await eventually(lambda: not stray.is_running(), WAIT)
    await eventually(lambda: not [*place.path.rglob("logs/l")], WAIT)
    assert [*place.path.rglob("logs/k")]
    assert "l" not in await keeper.kept()


async def _tail(keeper: RemoteKeeper) -> str:
    return await keeper.tail("k")


def unreachable(client: Client) -> str:
    return client.traffic._state.unreachable


async def test_a_log_that_is_dropped_is_gone_here_and_there(
    begin: Begin, keeper: RemoteKeeper, place: NearPlace, home: Home
) -> None:
    await begin("k")
    await keeper.disconnect("k")
    await keeper.settle("k")
    mirror, there = home.path / "mirrors" / "k", place.path / "services" / "s"
    assert [*mirror.glob("*.log")]
    assert [*(there / "logs" / "k").glob("*.log")]
    await keeper.end("k")
    keeper.drop("k")
    await eventually(lambda: not keeper._errands, WAIT)
    assert not mirror.exists()
    assert [path for path in there.rglob("*k*") if "keeper" not in path.parts] == []
    keeper.renew("k")


async def test_the_log_of_a_dead_kernel_can_be_read_while_its_host_is_away(
    begin: Begin, keeper: RemoteKeeper, place: NearPlace, home: Home
) -> None:
    client = await begin("k")
    await client.ran("print before")
    await keeper.signal("k", signal.SIGKILL)
    async with asyncio.timeout(WAIT):
        await asyncio.shield(keeper.exited("k"))
    await client.traffic.settle()
    await client.traffic.close("it died")
    place.is_away = True
    cut_off(keeper)
    await eventually(lambda: is_lost(client), WAIT)
    # As the next server does, which has not reached the host yet.
    settings = Settings(_cli_parse_args=False)
    directory = home.path / "mirrors" / "k"
    spoken = Traffic("k", KernelState(), directory, keeper, settings, Counters())
    await spoken.resume(await spoken.meet(None, Position(1, 0)))
    following = Client(spoken)
    following.reader = spoken.clients.attach("another", Position(1, 0))
    assert following.text("before") == 1
    # The host may have more of the log: nothing gets a number here.
    end = spoken.log.end
    spoken.voice.announce("dead")
    await asyncio.sleep(0)
    assert spoken.log.end == end
    with pytest.raises(KeeperUnavailable, match="lab is away"):
        await keeper.prepare("k", {})
    place.is_away = False
    again = await begin("k")
    again.reader = again.traffic.clients.attach("another", Position(1, 0))
    assert (again.text("before"), again.text("up")) == (1, 2)
    assert again.gaps == []


async def test_the_log_of_a_dead_kernel_that_has_become_too_old_is_known_to_be_empty(
    begin: Begin, keeper: RemoteKeeper, place: NearPlace, home: Home
) -> None:
    client = await begin("k")
    await keeper.signal("k", signal.SIGKILL)
    async with asyncio.timeout(WAIT):
        await asyncio.shield(keeper.exited("k"))
    await client.traffic.settle()
    await client.traffic.close("it died")
    end = client.traffic.log.end
    place.is_away = True
    cut_off(keeper)
    await eventually(lambda: is_lost(client), WAIT)
    keeper._mirrors.room.age = -1.0
    keeper._mirrors.room.expire()
    settings = Settings(_cli_parse_args=False)
    directory = home.path / "mirrors" / "k"
    spoken = Traffic("k", KernelState(), directory, keeper, settings, Counters())
    await spoken.resume(await spoken.meet(None, Position(1, 0)))
    following = Client(spoken)
    following.reader = spoken.clients.attach("another", Position(1, 0))
    assert following.look() == []
    assert [gap.messages for gap in following.gaps] == [end.cursor - 1]
    assert spoken.log.end == end


async def test_a_copy_that_may_be_half_is_not_taken_for_the_log_when_its_keeper_has_refused(
    begin: Begin,
    keeper: RemoteKeeper,
    place: NearPlace,
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = await begin("k")
    await keeper.signal("k", signal.SIGKILL)
    async with asyncio.timeout(WAIT):
        await asyncio.shield(keeper.exited("k"))
    await client.traffic.settle()
    await client.traffic.close("it died")
    place.is_away = True
    cut_off(keeper)
    await eventually(lambda: is_lost(client), WAIT)
    settings = Settings(_cli_parse_args=False)
    directory = home.path / "mirrors" / "k"
    spoken = Traffic("k", KernelState(), directory, keeper, settings, Counters())
    await spoken.meet(None, Position(1, 0))
    keeper._lines.pop("k")
    place.is_away = False
    await keeper.connect()

    async def refuse(**fields: Any) -> Any:
        assert fields["ask"] == "hear"
        raise KeeperRefuses("of a test")

    monkeypatch.setattr(keeper._connection, "ask", refuse)
    for _ in range(2):
        with pytest.raises(KernelUnreachable, match="of a test"):
            await keeper.rest("k")
    monkeypatch.undo()
    await keeper.rest("k")


async def test_half_a_copy_of_a_log_is_not_taken_for_the_log_while_the_host_is_there(
    begin: Begin, keeper: RemoteKeeper, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await begin("k")
    await keeper.signal("k", signal.SIGKILL)
    async with asyncio.timeout(WAIT):
        await asyncio.shield(keeper.exited("k"))
    await client.traffic.settle()
    await client.traffic.close("it died")
    # The keeper tells of more than it sends.
    whole = keeper._mirrors.begin

    def ahead(directory: Path, heard: Heard) -> Heard:
        return msgspec.structs.replace(whole(directory, heard), ahead=heard.end[0] + 1)

    monkeypatch.setattr(keeper._mirrors, "begin", ahead)
    monkeypatch.setattr(mirrors, "SILENT_SECONDS", 0.1)
    settings = Settings(_cli_parse_args=False)
    directory = home.path / "mirrors" / "k"
    spoken = Traffic("k", KernelState(), directory, keeper, settings, Counters())
    with pytest.raises(KeeperUnavailable, match="does not come over the link"):
        await spoken.meet(None, Position(1, 0))
    # It can be asked again, and then has all of it.
    monkeypatch.undo()
    await spoken.resume(await spoken.meet(None, Position(1, 0)))
    following = Client(spoken)
    following.reader = spoken.clients.attach("another", Position(1, 0))
    assert following.text("up") == 1


async def test_a_keeper_that_somebody_looks_at_is_not_left_with_its_last_kernel(
    place: NearPlace, home: Home
) -> None:
    options: dict[str, Any] = {"log_bytes": 10**8, "log_total_bytes": 10**9, "log_age": 3600.0}
    keepers = Keepers(home.state_dir, orphan_timeout=None, output_bytes=10_000, **options)
    looked = {"lab"}
    keepers.remote.is_looked_at = looked.__contains__
    try:
        for leave in (keepers.drop, keepers.let_go):
            looked.add("lab")
            keepers.remote.assign("k", "lab", lambda: place)
            await keepers.remote.connect("k")
            keeper = keepers.remote._keepers["lab"]
            leave("k")
            await eventually(lambda: keeper.has_nothing, WAIT)  # noqa: B023
            await keepers._settled()
            assert await keepers.remote.look_at("lab", lambda: place, with_load=True) >= 0
            assert keepers.remote._keepers["lab"] is keeper
            looked.clear()
            keepers.remote.leave_unused("lab")
            await keepers._settled()
            assert keepers.remote.all == []
            place.relay = Relay()  # the one before is closed
    finally:
        await keepers.close()


def test_the_bounds_leave_room_for_answers() -> None:
    assert servers.FEED_BYTES < servers.TOLD_BYTES
