"""Content that nobody can read takes neither a kernel's sockets nor a client's connection down."""

from __future__ import annotations

import json
import logging

import pytest

from app.managers.log.message_log import Reader
from app.protocol import wire
from app.protocol.messages import ClientMessage, Header, Message
from app.protocol.signing import Signer
from tests.managers.scripted import ScriptedKernel

DEEP = b"[" * 20_000 + b"]" * 20_000
# Larger than what is checked on arrival.
FILLER = b'"' + b"x" * wire.FULL_CHECK_BYTES + b'"'

STRANGE = [
    b'{"execution_state": "idle", "x": ' + DEEP + b"}",
    b'{"execution_state": ' + DEEP + b"}",
    b'{"execution_state": "idle", "x": ' + FILLER + b" and no JSON}",
    b'{"execution_state": "idle", "x": NaN}',
    b'{"execution_state": 7}',
    b'{"execution_state": null}',
    rb'{"execution_state": "\ud83d"}',
]


@pytest.fixture
async def kernel() -> ScriptedKernel:
    return ScriptedKernel()


def said(channel: str, msg_type: str, content: bytes, parent: bytes = b"{}") -> Message:
    header = json.dumps({"msg_id": "1", "msg_type": msg_type, "session": "kernel"}).encode()
    frames = [b"<IDS|MSG>", b"", header, parent, b"{}", content]
    return wire.unpack(channel, frames, Signer(b""))


def asked(msg_type: str, content: bytes) -> ClientMessage:
    """A request as it comes from a server before this one, or from a client's library."""
    known = Header("1", msg_type, "s")
    header = json.dumps({"msg_id": "1", "msg_type": msg_type, "session": "s"}).encode()
    return ClientMessage("control", known, [header, b"{}", b"{}", content])


@pytest.mark.parametrize("content", STRANGE)
async def test_a_status_that_nobody_can_read_is_noted_and_passed_on(
    kernel: ScriptedKernel, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    reader = Reader(kernel.log, "s")

    with caplog.at_level(logging.WARNING):
        kernel.hears(said("iopub", "status", content))
        kernel.hears(said("iopub", "stream", b'{"text": "next"}'))

    contents = []
    while reader.behind:
        contents += [bytes(entry.message.part(3)) for entry in reader.take().entries]
    assert contents == [content, b'{"text": "next"}']
    assert "malformed" in caplog.text


@pytest.mark.parametrize("channel", ["shell", "control"])
@pytest.mark.parametrize("msg_type", ["kernel_info_reply", "execute_reply", "inspect_reply"])
async def test_a_reply_that_nobody_can_read_is_passed_on(
    kernel: ScriptedKernel, channel: str, msg_type: str
) -> None:
    reader = Reader(kernel.log, "s")
    content = b'{"status": ' + DEEP + b"}"

    kernel.hears(said(channel, msg_type, content, b'{"msg_id": "?", "session": "s"}'))

    assert [bytes(entry.message.part(3)) for entry in reader.take().entries] == [content]


async def test_a_question_that_nobody_can_read_is_passed_on(kernel: ScriptedKernel) -> None:
    reader = Reader(kernel.log, "s")
    content = b'{"prompt": ' + DEEP + b"}"

    kernel.hears(said("stdin", "input_request", content, b'{"msg_id": "?", "session": "s"}'))

    assert [bytes(entry.message.part(3)) for entry in reader.take().entries] == [content]


@pytest.mark.parametrize(
    "content",
    [b'{"restart": false, "x": ' + DEEP + b"}", b'{"restart": "\xff"}', b"", b"{", b"7", DEEP],
)
async def test_a_shutdown_request_that_nobody_can_read_ends_nothing(
    kernel: ScriptedKernel, content: bytes
) -> None:
    ends: list[bool] = []
    kernel.traffic.submissions.on_end_asked = ends.append

    kernel.traffic.submit(asked("shutdown_request", content), "s")

    assert not ends


@pytest.mark.parametrize("msg_type", ["execute_request", "kernel_info_request", "comm_msg"])
@pytest.mark.parametrize("content", [b"", b"\xff", b"null", DEEP])
async def test_a_request_that_nobody_can_read_is_the_kernels_to_refuse(
    kernel: ScriptedKernel, msg_type: str, content: bytes
) -> None:
    reader = Reader(kernel.log, "s")

    kernel.traffic.submit(asked(msg_type, content), "s")
    await kernel.die("the kernel died")

    # It ends like any other when the process does.
    states = [entry for entry in reader.take().entries if entry.message.msg_type == "status"]
    assert len(states) == 1
