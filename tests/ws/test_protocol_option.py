"""``--kernel-ws-protocol``: which framings a server speaks."""

from __future__ import annotations

import pytest

from tests.conftest import MakeServer
from tests.support.framing import V1_SUBPROTOCOL
from tests.support.running import kernels_of

OTHER = "other.example"


@pytest.mark.parametrize(
    ("option", "negotiated"),
    [
        # By what the client offers: nothing, v1, another, both.
        (None, [None, V1_SUBPROTOCOL, None, V1_SUBPROTOCOL]),
        (V1_SUBPROTOCOL, [None, V1_SUBPROTOCOL, None, V1_SUBPROTOCOL]),
        ("", [None, None, None, None]),
    ],
    ids=["unset", "v1", "legacy only"],
)
async def test_what_is_negotiated_is_spoken(
    make_server: MakeServer, option: str | None, negotiated: list[str | None]
) -> None:
    server = make_server(*([] if option is None else [f"--kernel-ws-protocol={option}"]))
    async with kernels_of(server) as start:
        kernel = await start()
        offers: list[list[str]] = [[], [V1_SUBPROTOCOL], [OTHER], [OTHER, V1_SUBPROTOCOL]]
        for offered, chosen in zip(offers, negotiated, strict=True):
            channels = await kernel.connect(offers=offered)
            assert channels.websocket.subprotocol == chosen
            # The client reads and writes what was negotiated, and nothing else.
            exchange = await channels.execute("print here\nbuffers 1 3")
            assert exchange.text == "here\n"
            assert exchange.of_type("display_data")[0].buffers == [b"\0\0\0"]


async def test_the_environment_can_ask_for_the_legacy_framing_too(make_server: MakeServer) -> None:
    server = make_server(env={"KERNELKEEP_KERNEL_WS_PROTOCOL": ""})
    async with kernels_of(server) as start:
        kernel = await start()
        assert (await kernel.connect(offers=[V1_SUBPROTOCOL])).websocket.subprotocol is None
