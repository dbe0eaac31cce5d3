"""Reading a kernel's sockets: nothing that is whole is lost, whatever lies beside it."""

from __future__ import annotations

import asyncio
import errno
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from app.keeper.channels import BYTES_PER_TURN, Channels
from app.keeper.turns import Turns
from app.protocol.messages import ClientMessage, Header, MalformedMessage, Message
from app.protocol.signing import Signer
from tests.support.processes import eventually

KEY = "a kernel's key"
IDENTITY = b"identity"
DELIMITER = b"<IDS|MSG>"


class Listener:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []  # ids, and how many buffers
        self.malformed = 0
        self.writable = 0

    def on_message(self, message: Message) -> None:
        self.heard.append((message.header.msg_id, message.buffer_count))

    def on_malformed(self, channel: str, error: MalformedMessage) -> None:
        self.malformed += 1

    def on_writable(self) -> None:
        self.writable += 1


def frames(msg_id: str, *buffers: bytes, content: bytes = b'{"a":1}') -> list[bytes]:
    parts = [b'{"msg_id":"%b","msg_type":"stream"}' % msg_id.encode(), b"{}", b"{}", content]
    return [DELIMITER, Signer(KEY.encode()).sign(parts), *parts, *buffers]


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    context: zmq.Context[Any] = zmq.Context()
    yield context
    context.destroy(linger=0)


async def test_whole_messages_come_through_whatever_is_read_together_with_them(
    context: zmq.Context[Any], tmp_path: Path
) -> None:
    info = connection_info(tmp_path)
    iopub, shell = context.socket(zmq.XPUB), context.socket(zmq.DEALER)
    iopub.bind(f"ipc://{tmp_path}/k-0")
    shell.bind(f"ipc://{tmp_path}/k-1")
    listener = Listener()
    channels = Channels(context, info, listener, Turns(), IDENTITY)
    try:
        await eventually(lambda: _is_subscribed(iopub))
        for number in range(3):
            # The second and third time what is cut short lies before what is whole.
            iopub.send_multipart([b"topic", *frames(f"iopub-{number}", b"buffer", b"")])
            iopub.send_multipart([b"topic", *frames(f"delimiter-{number}", DELIMITER)])
            for cut in ([b""], [b"topic"], [b"no", b"delimiter"]):
                iopub.send_multipart(cut)
            iopub.send_multipart(frames(f"without-topic-{number}"))
            iopub.send_multipart([b"topic", *frames("cut")[:5]])
            shell.send_multipart(frames("cut")[:4])
            shell.send_multipart(frames(f"shell-{number}"))
            shell.send_multipart([b"identity", *frames(f"identity-{number}")])
        async with asyncio.timeout(20):
            await eventually(lambda: len(listener.heard) >= 15)
    finally:
        channels.close()
        iopub.close()
        shell.close()

    kinds = (("iopub", 2), ("without-topic", 0), ("delimiter", 1), ("shell", 0), ("identity", 0))
    assert sorted(listener.heard) == sorted(
        (f"{kind}-{number}", buffers) for kind, buffers in kinds for number in range(3)
    )
    assert listener.malformed >= 6


async def test_what_comes_behind_large_messages_that_are_replaced_is_heard(
    context: zmq.Context[Any], tmp_path: Path
) -> None:
    iopub = context.socket(zmq.XPUB)
    iopub.bind(f"ipc://{tmp_path}/k-0")
    listener = Listener()
    channels = Channels(context, connection_info(tmp_path), listener, Turns(), IDENTITY)
    no_object = b"[%b]" % (b" " * 2 * BYTES_PER_TURN)
    try:
        await eventually(lambda: _is_subscribed(iopub))
        for number in range(20):
            iopub.send_multipart([b"topic", *frames("large", content=no_object)])
            iopub.send_multipart([b"topic", *frames(f"small-{number}")])
        async with asyncio.timeout(20):
            await eventually(lambda: ("small-19", 0) in listener.heard)
    finally:
        channels.close()
        iopub.close()

    assert len(listener.heard) == 40


def request(channel: str, msg_id: str) -> ClientMessage:
    raw = b'{"msg_id":"%b","msg_type":"execute_request","session":"s"}' % msg_id.encode()
    header = Header(msg_id, "execute_request", "s")
    return ClientMessage(channel, header, [raw, b"{}", b"{}", b"{}"])


async def arrives(socket: zmq.Socket[bytes]) -> list[bytes]:
    await eventually(lambda: bool(socket.poll(0)))
    return socket.recv_multipart()


async def test_a_request_waits_until_the_kernel_can_ask_for_input(
    context: zmq.Context[Any], tmp_path: Path
) -> None:
    shell, stdin = context.socket(zmq.ROUTER), context.socket(zmq.ROUTER)
    stdin.router_mandatory = True  # to send to a peer that is not there raises
    shell.bind(f"ipc://{tmp_path}/k-1")
    listener = Listener()
    channels = Channels(context, connection_info(tmp_path), listener, Turns(), IDENTITY)
    try:
        assert channels.stdin_connected, "nobody may ask for input yet"
        assert channels.send(request("shell", "ours"))
        assert DELIMITER in await arrives(shell)
        channels.expect_input()
        assert not channels.send(request("shell", "code"))
        stdin.bind(f"ipc://{tmp_path}/k-3")
        await eventually(lambda: listener.writable == 1)
        assert channels.stdin_connected
        assert channels.send(request("shell", "code"))
        await arrives(shell)
        stdin.send_multipart([IDENTITY, *frames("prompt")])
        await eventually(lambda: listener.heard == [("prompt", 0)])
        channels.expect_input()  # it is connected, so nothing waits
        assert channels.send(request("shell", "more"))
    finally:
        channels.close()
        shell.close()
        stdin.close()


async def test_a_kernel_without_stdin_gets_its_requests_a_little_later(
    context: zmq.Context[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.keeper.channels.STDIN_SECONDS", 0.05)
    shell = context.socket(zmq.ROUTER)
    shell.bind(f"ipc://{tmp_path}/k-1")
    listener = Listener()
    channels = Channels(context, connection_info(tmp_path), listener, Turns(), IDENTITY)
    try:
        channels.expect_input()
        assert not channels.send(request("shell", "code"))
        await eventually(lambda: listener.writable == 1)
        # An answer to a prompt that never was waits, and holds up nothing else.
        assert not channels.send(request("stdin", "answer"))
        assert channels.send(request("shell", "code"))
        assert DELIMITER in await arrives(shell)
    finally:
        channels.close()
        shell.close()


async def test_requests_wait_for_a_socket_that_cannot_be_opened_now(
    context: zmq.Context[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.keeper.channels.AGAIN_SECONDS", 0.05)
    control = context.socket(zmq.ROUTER)
    control.bind(f"ipc://{tmp_path}/k-2")
    listener = Listener()
    channels = Channels(context, connection_info(tmp_path), listener, Turns(), IDENTITY)
    connected = channels._connect

    def no_descriptors(socket: zmq.Socket[bytes], channel: str) -> None:
        raise zmq.ZMQError(errno.EMFILE)

    monkeypatch.setattr(channels, "_connect", no_descriptors)
    try:
        assert not channels.send(request("control", "stop"))
        assert not channels.send(request("control", "stop"))
        monkeypatch.setattr(channels, "_connect", connected)
        await eventually(lambda: listener.writable == 1)
        assert channels.send(request("control", "stop"))
        assert DELIMITER in await arrives(control)
    finally:
        channels.close()
        control.close()


async def test_a_prompt_that_has_arrived_is_heard_although_somebody_asks_whether_stdin_is_connected(
    context: zmq.Context[Any], tmp_path: Path
) -> None:
    stdin = context.socket(zmq.ROUTER)
    stdin.router_mandatory = True
    stdin.bind(f"ipc://{tmp_path}/k-3")
    listener = Listener()
    channels = Channels(context, connection_info(tmp_path), listener, Turns(), IDENTITY)
    try:
        channels.expect_input()
        await eventually(lambda: _takes(stdin, frames("first")))
        sent = [("first", 0)]
        await eventually(lambda: listener.heard == sent)
        for prompt in ("second", "third", "fourth"):
            stdin.send_multipart([IDENTITY, *frames(prompt)])
            sent.append((prompt, 0))
            # The descriptor alone is looked at: to ask ZMQ for events would read the edge.
            descriptor = int(channels._sockets["stdin"].getsockopt(zmq.FD))
            assert select.select([descriptor], [], [], 20)[0]
            assert channels.stdin_connected
            await eventually(lambda: listener.heard == sent)
    finally:
        channels.close()
        stdin.close()


async def test_a_process_that_never_stops_talking_is_not_drained_for_ever(
    context: zmq.Context[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.keeper.channels.DRAIN_SECONDS", 0.01)
    channels = Channels(context, connection_info(tmp_path), Listener(), Turns(), IDENTITY)
    read: list[str] = []

    def receive(channel: str, most: int) -> int:
        read.append(channel)
        assert len(read) < 10**7
        return most

    monkeypatch.setattr(channels, "_receive", receive)
    try:
        assert channels.drain()
    finally:
        channels.close()
    assert {*read} == {"iopub", "shell"}  # each of them was read once at the least


def connection_info(folder: Path) -> dict[str, str]:
    info = {"transport": "ipc", "ip": str(folder / "k"), "key": KEY}
    return info | {
        f"{name}_port": str(n) for n, name in enumerate(("iopub", "shell", "control", "stdin"))
    }


def _takes(router: zmq.Socket[bytes], message: list[bytes]) -> bool:
    """Whether a message was sent: the peer has connected."""
    try:
        router.send_multipart([IDENTITY, *message])
    except zmq.ZMQError:
        return False
    return True


async def _is_subscribed(publisher: zmq.Socket[bytes]) -> bool:
    return bool(publisher.poll(0)) and publisher.recv() == b"\x01"
