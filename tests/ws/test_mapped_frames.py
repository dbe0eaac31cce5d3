"""Large output that is sent from the mapped file: the file may be cut short while it is sent."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from tests.conftest import MakeServer
from tests.support.channels import JupyterChannels
from tests.support.processes import eventually
from tests.support.running import kernels_of

SIZE = 50 * 2**20  # bytes
TIMEOUT = 60.0


def _is_mapped(pid: int, path: Path) -> bool:
    return str(path) in Path(f"/proc/{pid}/maps").read_text()


async def _read_on(channels: JupyterChannels) -> None:
    while True:
        await channels.recv(TIMEOUT)


async def test_a_file_that_is_cut_short_meanwhile_costs_its_readers_that_message(
    make_server: MakeServer,
) -> None:
    """A process that read the mapped file there would be killed (SIGBUS)."""
    server = make_server("--no-limit-rate")
    async with kernels_of(server) as start:
        kernel = await start("fake")
        stalled = await kernel.connect(framing="v1", receive_buffer=4096, log_length=1)
        await stalled.recv()
        whole = await kernel.connect(framing="v1", log_length=1)
        await whole.send_execute(f"display 1 {SIZE}")
        while (message := await whole.recv(TIMEOUT)).msg_type != "display_data":
            pass
        text = message.content["data"]["text/plain"]
        assert (len(text), text[:2], text[-1], {*text[2:-1]}) == (SIZE, "1 ", "\n", {"x"})
        files = server.home.path.rglob(f"**/{kernel.id}/*.log")
        large = max(files, key=lambda path: path.stat().st_size)
        await eventually(partial(_is_mapped, server.pid, large))

        os.truncate(large, 2**20)

        with pytest.raises(ConnectionClosed):
            await _read_on(stalled)
        await eventually(lambda: not _is_mapped(server.pid, large))
        assert (await kernel.channels.execute("print on")).text == "on\n"
        again = await kernel.connect(framing="v1", session_id=stalled.session, log_length=1)
        texts = []
        while "on\n" not in texts:
            message = await again.recv(TIMEOUT)
            assert message.msg_type != "display_data"
            if message.msg_type == "stream":
                texts.append(message.content["text"])
        assert "no longer kept" in texts[0]
