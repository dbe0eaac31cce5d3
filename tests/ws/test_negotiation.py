"""Which framing is spoken, and what the handshake says."""

from __future__ import annotations

import pytest
from websockets.asyncio.client import connect

from tests.support.framing import V1_SUBPROTOCOL
from tests.support.running import RunningKernel
from tests.support.server import ServerProcess


@pytest.mark.parametrize(
    ("offers", "chosen"),
    [
        ([], None),
        ([V1_SUBPROTOCOL], V1_SUBPROTOCOL),
        (["other.example", V1_SUBPROTOCOL], V1_SUBPROTOCOL),
        ([V1_SUBPROTOCOL, "other.example"], V1_SUBPROTOCOL),
        (["other.example"], None),
        (["other.example", "v2.kernel.websocket.jupyter.org"], None),
        ([f"{V1_SUBPROTOCOL}.example"], None),
        ([V1_SUBPROTOCOL.upper()], None),
    ],
)
async def test_a_framing_is_chosen_from_what_the_client_offers(
    kernel: RunningKernel, offers: list[str], chosen: str | None
) -> None:
    # What was negotiated decides how the client reads and writes from here on.
    channels = await kernel.connect(offers=offers)
    assert channels.websocket.subprotocol == chosen
    assert (await channels.execute("buffers 1 4")).of_type("display_data")[0].buffers == [b"\0" * 4]


async def test_nothing_is_compressed(server: ServerProcess, kernel: RunningKernel) -> None:
    async with connect(
        f"{server.ws_url}/api/kernels/{kernel.id}/channels",
        additional_headers={"Authorization": f"token {server.token}"},
        compression="deflate",
        proxy=None,
    ) as websocket:
        assert websocket.request is not None
        assert "permessage-deflate" in websocket.request.headers["Sec-WebSocket-Extensions"]
        assert websocket.response is not None
        assert "Sec-WebSocket-Extensions" not in websocket.response.headers
        assert isinstance(await websocket.recv(), str)
