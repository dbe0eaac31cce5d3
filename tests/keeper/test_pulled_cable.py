"""A keeper in a network of its own, and the cable to it: pulled in mid-output, and plugged in.

Nobody is told of that by a packet: what was sent is lost or arrives late, as with any network.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.keeper.conftest import WAIT, Client
from tests.support.home import Home
from tests.support.joined import JoinedService, speak, start_keeper
from tests.support.networks import Network
from tests.support.processes import eventually

AWAY_SECONDS = 8.0

MESSAGES = 3000


@pytest.fixture
def network() -> Iterator[Network]:
    network = Network("kj")
    try:
        network.make()
        yield network
    finally:
        network.remove()


async def test_nothing_is_missing_and_nothing_comes_twice(network: Network, home: Home) -> None:
    done = home.root_dir / "done"
    async with JoinedService(home.path / "service", address=network.here) as service:
        invitation = await service.joining.invite("k")
        enter = ("nsenter", f"--net={network.path}")
        process = start_keeper(
            invitation.document,
            env=home.environment(),
            stderr=subprocess.PIPE,
            command=(*enter, sys.executable, "-m", "app.keeper"),
        )
        try:
            keeper = service.keeper("k")
            traffic = await speak(keeper, home, "k")
            client = Client(traffic)
            flood = client.run(f"flood {MESSAGES} 2000 300")  # some ten seconds of it
            await eventually(lambda: client.text("") > 100, WAIT)
            link = keeper._connection.link
            network.pull_cable()
            await eventually(lambda: not keeper.is_connected, WAIT)
            await eventually(lambda: "lab k cannot be" in traffic._state.unreachable, WAIT)
            asked = client.run("append done once")  # while nobody can be reached
            await asyncio.sleep(AWAY_SECONDS)
            assert not client.has_reply(asked)
            network.plug_cable()
            await eventually(lambda: client.has_ended(flood), 2 * WAIT)
            await eventually(lambda: client.has_reply(asked), WAIT)
            assert keeper._connection.link is not link
            said = [
                json.loads(bytes(entry.message.part(3)))["text"].split()[0]
                for entry in client.look()
                if entry.message.msg_type == "stream"
            ]
            assert said == [str(number) for number in range(1, MESSAGES + 1)]
            assert client.gaps == []
            assert done.read_text() == "once\n"
            await keeper.end("k")
        finally:
            process.terminate()
            _, log = await asyncio.to_thread(process.communicate, timeout=WAIT)
        assert b"Traceback" not in log
