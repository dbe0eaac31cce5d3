"""The fixtures of the test kit, once around the real server."""

from __future__ import annotations

import pytest
from websockets.exceptions import InvalidStatus

from tests.conftest import MakeServer
from tests.support.channels import Connector
from tests.support.framing import FramingName
from tests.support.kernelspecs import Spec
from tests.support.processes import is_alive
from tests.support.rest import RestClient, RestError
from tests.support.server import ServerProcess

CODE = {"fake": "print hello", "python3": "print('hello')"}


@pytest.mark.parametrize("name", CODE)
async def test_a_kernel_runs_code(
    rest: RestClient, connect: Connector, framing: FramingName, name: str
) -> None:
    kernel = await rest.start_kernel(name)
    channels = await connect(kernel["id"], framing=framing)
    exchange = await channels.execute(CODE[name])
    assert exchange.reply["status"] == "ok"
    assert exchange.text == "hello\n"
    await rest.delete(kernel["id"])


async def test_a_server_of_one_s_own(make_server: MakeServer) -> None:
    server = make_server("--transport", "tcp", specs={"only": Spec(flags=("--no-welcome",))})
    async with RestClient(server.url, server.token) as rest:
        assert "only" in (await rest.kernelspecs())["kernelspecs"]
    server.stop()
    assert not is_alive(server.pid)


async def test_no_credentials(server: ServerProcess, connect: Connector) -> None:
    async with RestClient(server.url, None) as rest:
        with pytest.raises(RestError) as refused:
            await rest.kernels()
    assert refused.value.status == 403
    assert refused.value.error["code"]
    with pytest.raises(InvalidStatus):
        await connect("00000000-0000-0000-0000-000000000000", token=None)
