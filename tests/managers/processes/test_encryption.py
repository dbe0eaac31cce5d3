"""``--transport-encryption``: CurveZMQ between the server and its kernels."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest
import zmq

from tests.conftest import MakeServer
from tests.support.kernelspecs import Spec
from tests.support.rest import RestError
from tests.support.running import KernelStarter, RunningKernel, kernels_of
from tests.support.server import ServerProcess

Connection = dict[str, Any]


def connection(server: ServerProcess, kernel_id: str) -> Connection:
    (file,) = server.home.run_dir.glob(f"runtime/*{kernel_id}*")
    assert file.stat().st_mode & 0o777 == 0o600
    info: Connection = json.loads(file.read_text())
    return info


@contextmanager
def eavesdropper(info: Connection, *, with_keys: bool) -> Iterator[zmq.Socket[bytes]]:
    """Somebody else who listens to a kernel's iopub."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.SUB)
    if with_keys:
        socket.curve_serverkey = socket.curve_publickey = info["curve_publickey"].encode()
        socket.curve_secretkey = info["curve_secretkey"].encode()
    socket.subscribe(b"")
    separator = "-" if info["transport"] == "ipc" else ":"
    socket.connect(f"{info['transport']}://{info['ip']}{separator}{info['iopub_port']}")
    try:
        yield socket
    finally:
        context.destroy(linger=0)


async def hears(socket: zmq.Socket[bytes], kernel: RunningKernel, attempts: int) -> bool:
    """Whether it hears anything while the kernel says a lot."""
    for _ in range(attempts):
        await kernel.channels.execute("print('not for everybody')")
        if await asyncio.to_thread(socket.poll, 100):
            return True
    return False


async def works(kernel: RunningKernel) -> None:
    exchange = await kernel.channels.execute("print(input())\n6 * 7", answers=["here"])
    assert exchange.text == "here\n"
    assert exchange.result == "42"
    await kernel.channels.request("kernel_info_request", channel="control")


@pytest.mark.parametrize(
    ("policy", "transport"), [("auto", "ipc"), ("required", "tcp"), (None, "tcp")]
)
async def test_nobody_without_the_keys_hears_a_kernel_that_can_encrypt(
    make_server: MakeServer, policy: str | None, transport: Literal["tcp", "ipc"]
) -> None:
    said = () if policy is None else ("--transport-encryption", policy)
    server = make_server(*said, "--transport", transport)
    async with kernels_of(server) as start:
        kernel = await start("python3")
        info = connection(server, kernel.id)
        assert info["transport"] == transport
        await works(kernel)
        with (
            eavesdropper(info, with_keys=True) as initiate,
            eavesdropper(info, with_keys=False) as stranger,
        ):
            assert await hears(initiate, kernel, 100)
            assert not await hears(stranger, kernel, 5)
        await start.rest.restart(kernel.id)
        await kernel.told("idle")
        await works(kernel)


async def test_over_ipc_whoever_can_connect_hears_it_by_default(
    server: ServerProcess, start: KernelStarter
) -> None:
    """So that the tests above would notice if nothing were encrypted."""
    kernel = await start("python3")
    info = connection(server, kernel.id)
    assert not [name for name in info if name.startswith("curve")]
    with eavesdropper(info, with_keys=False) as stranger:
        assert await hears(stranger, kernel, 100)


async def test_a_kernel_that_cannot_encrypt_is_used_without_if_that_is_no_condition(
    make_server: MakeServer,
) -> None:
    server = make_server("--transport-encryption", "auto")
    async with kernels_of(server) as start:
        kernel = await start("fake")
        assert "curve_publickey" not in connection(server, kernel.id)
        assert (await kernel.channels.execute("print here")).text == "here\n"


async def test_where_it_is_required_a_kernel_that_cannot_is_refused_and_told_why(
    make_server: MakeServer,
) -> None:
    specs = {"fake": Spec(), "other": Spec(metadata={"supported_encryption": ["tls"]})}
    server = make_server("--transport-encryption", "required", specs=specs)
    async with kernels_of(server) as start:
        for name in specs:
            with pytest.raises(RestError) as raised:
                await start.rest.start_kernel(name)
            assert raised.value.status == 500
            assert raised.value.error["code"] == "kernel_start_failed"
            for word in ("transport_encryption", "required", "supported_encryption"):
                assert word in raised.value.error["message"]
            assert "\n" not in raised.value.error["message"]
        assert await start.rest.kernels() == []
        assert server.home.leftovers() == []


async def test_a_kernel_that_declares_what_it_cannot_do_does_not_become_ready(
    make_server: MakeServer,
) -> None:
    lying = Spec(metadata={"supported_encryption": "curve"})
    server = make_server(
        *("--transport-encryption", "required", "--kernel-info-timeout", "2"),
        *("--transport", "tcp"),
        specs={"lying": lying},
    )
    async with kernels_of(server) as start:
        model = await start.rest.start_kernel("lying")
        start.started.append(model["id"])
        model = await start.rest.wait_for_state(model["id"], "dead")
        assert "said nothing" in model["reason"]
