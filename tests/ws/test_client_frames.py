"""Frames that clients should not send: a clear end for them, nothing for anybody else."""

from __future__ import annotations

import json
import struct
from itertools import cycle, islice

import pytest

from tests.conftest import MakeServer
from tests.support.channels import JupyterChannels
from tests.support.framing import FramingName, Message, encode_legacy, encode_v1
from tests.support.processes import eventually, resident_memory, usage
from tests.support.running import RunningKernel, kernels_of
from tests.support.server import ServerProcess

HEADER = {"msg_id": "m", "msg_type": "kernel_info_request", "session": "s"}
WHOLE = Message("shell", HEADER)


def _v1(*parts: bytes) -> bytes:
    """A v1 frame of any parts, its table of offsets as it should be."""
    offsets = [8 * (len(parts) + 2)]
    for part in parts:
        offsets.append(offsets[-1] + len(part))
    return struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets) + b"".join(parts)


def _table(integer: str, *numbers: int, rest: bytes = b"{}" * 50) -> bytes:
    return struct.pack(f"{integer[0]}{len(numbers)}{integer[1]}", *numbers) + rest


GOOD = json.dumps(HEADER).encode()
V1 = encode_v1(WHOLE)
LEGACY = encode_legacy({"header": HEADER, "channel": "shell"}, [b"buffer"])
assert isinstance(LEGACY, bytes)

WRONG_V1: dict[str, bytes] = {
    "empty": b"",
    "two bytes": b"\0\0",
    "zeros": b"\0" * 8,
    "many zeros": b"\0" * 80,
    "ones": b"\xff" * 8,
    "many ones": b"\xff" * 800,
    "text": b"not a frame at all, but long enough to be one" * 3,
    "legacy": json.dumps({"header": HEADER}).encode(),
    "huge count": _table("<Q", 2**63),
    "count of a gigabyte": _table("<Q", 2**27),
    "count too small": _table("<Q", 5, 48, 53, 55, 57, 59),
    "offset beyond the end": _table("<Q", 6, 56, 61, 63, 65, 67, 2**40),
    "offsets run backwards": _table("<Q", 6, 56, 61, 60, 65, 67, 156),
    "first offset in the table": _table("<Q", 6, 8, 61, 63, 65, 67, 156),
    "last offset before the end": _table("<Q", 6, 56, 61, 63, 65, 67, 150),
    **{f"cut to {length}": V1[:length] for length in (7, 9, 56, 60, len(V1) - 1)},
    "one byte more": V1 + b"x",
    "channel not UTF-8": _v1(b"\xff\xfe", GOOD, b"{}", b"{}", b"{}"),
    "header not UTF-8": _v1(b"shell", b'{"msg_type": "\xff"}', b"{}", b"{}", b"{}"),
    "header not JSON": _v1(b"shell", b"{", b"{}", b"{}", b"{}"),
    "header a list": _v1(b"shell", b"[]", b"{}", b"{}", b"{}"),
    "header null": _v1(b"shell", b"null", b"{}", b"{}", b"{}"),
    "header empty": _v1(b"shell", b"", b"{}", b"{}", b"{}"),
    "msg_id with a NUL": _v1(b"shell", GOOD.replace(b'"m"', b'"\\u0000"'), b"{}", b"{}", b"{}"),
    "no msg_type": _v1(b"shell", b'{"msg_id": "m"}', b"{}", b"{}", b"{}"),
    "msg_type a number": _v1(b"shell", b'{"msg_type": 7}', b"{}", b"{}", b"{}"),
    "nested deeply": _v1(b"shell", b'{"a":' * 100_000, b"{}", b"{}", b"{}"),
    "parent a list": _v1(b"shell", GOOD, b"[]", b"{}", b"{}"),
    "metadata empty": _v1(b"shell", GOOD, b"{}", b"", b"{}"),
    "content not JSON": _v1(b"shell", GOOD, b"{}", b"{}", b"{"),
    "content not UTF-8": _v1(b"shell", GOOD, b"{}", b"{}", b'{"code": "\xff"}'),
}

WRONG_LEGACY: dict[str, str | bytes] = {
    "empty text": "",
    "no JSON": "not JSON",
    "a list": "[]",
    "a number": "7",
    "null": "null",
    "a string": '"text"',
    "no header": '{"channel": "shell"}',
    "header a list": '{"header": []}',
    "header null": '{"header": null}',
    "empty header": '{"header": {}}',
    "msg_type a number": '{"header": {"msg_type": 7}}',
    "msg_id with a NUL": '{"header": {"msg_type": "a", "msg_id": "\\u0000"}}',
    "session a list": '{"header": {"msg_type": "a", "session": []}}',
    "content a list": json.dumps({"header": HEADER, "content": []}),
    "content a string": json.dumps({"header": HEADER, "content": "text"}),
    "metadata a number": json.dumps({"header": HEADER, "metadata": 7}),
    "channel a number": json.dumps({"header": HEADER, "channel": 7}),
    "buffers in text": json.dumps({"header": HEADER, "buffers": ["text"]}),
    "buffers a number": json.dumps({"header": HEADER, "buffers": 7}),
    "nested deeply": '{"header":' * 100_000,
    "empty binary": b"",
    "two bytes": b"\0\0",
    "zeros": b"\0" * 40,
    "ones": b"\xff" * 400,
    "text as binary": json.dumps({"header": HEADER}).encode(),
    "v1": V1,
    "huge count": _table(">I", 2**32 - 1),
    "count of a gigabyte": _table(">I", 2**28),
    "offset beyond the end": _table(">I", 2, 12, 2**31),
    "offsets run backwards": _table(">I", 2, 20, 12),
    "first offset in the table": _table(">I", 2, 4, 20),
    **{f"cut to {length}": LEGACY[:length] for length in (3, 5, 12, 20)},
    "not UTF-8": struct.pack(">II", 1, 8) + b'{"header": {"msg_type": "\xff"}}',
}


async def _ended(channels: JupyterChannels, code: int) -> None:
    close = await channels.closed()
    assert close.code == code, close
    assert 0 < len(close.reason.encode()) <= 123


async def _unharmed(kernel: RunningKernel) -> None:
    assert (await kernel.channels.execute("print still here")).text == "still here\n"
    await kernel.has_connections(1)


@pytest.mark.parametrize("name", WRONG_V1)
async def test_a_wrong_v1_frame(kernel: RunningKernel, name: str) -> None:
    channels = await kernel.connect(framing="v1")
    await channels.send_frame(WRONG_V1[name])
    await _ended(channels, 1007)
    await _unharmed(kernel)


@pytest.mark.parametrize("text", ["", "text", json.dumps({"header": HEADER})])
async def test_text_where_v1_is_spoken(kernel: RunningKernel, text: str) -> None:
    channels = await kernel.connect(framing="v1")
    await channels.send_frame(text)
    await _ended(channels, 1003)
    await _unharmed(kernel)


@pytest.mark.parametrize("name", WRONG_LEGACY)
async def test_a_wrong_legacy_frame(kernel: RunningKernel, name: str) -> None:
    channels = await kernel.connect(framing="legacy")
    await channels.send_frame(WRONG_LEGACY[name])
    await _ended(channels, 1007)
    await _unharmed(kernel)


@pytest.mark.parametrize("channel", ["iopub", "hb", "none-such", "", "SHELL", "x" * 5000])
async def test_a_channel_that_clients_cannot_write_to_is_ignored(
    kernel: RunningKernel, framing: FramingName, channel: str
) -> None:
    channels = await kernel.connect(framing=framing)
    ignored = await channels.send("execute_request", {"code": "print ignored"}, channel)
    assert (await channels.execute("print heard")).text == "heard\n"
    assert ignored not in {message.parent_id for message in channels.log}


async def test_a_message_in_fragments_is_one_message(kernel: RunningKernel) -> None:
    channels = await kernel.connect(framing="v1")
    frame = channels.encode(Message("shell", channels.header("kernel_info_request")))
    assert isinstance(frame, bytes)
    await channels.websocket.send([frame[:3], b"", frame[3:60], frame[60:]])
    reply = await channels.seen(lambda m: m.msg_type == "kernel_info_reply")
    assert reply.content["implementation"] == "fake"


async def test_a_frame_larger_than_the_limit(make_server: MakeServer, framing: FramingName) -> None:
    server = make_server("--websocket-max-message-size", "65536")
    async with kernels_of(server) as start:
        kernel = await start("fake")
        channels = await kernel.connect(framing=framing)
        text = "x" * 60_000
        assert (await channels.execute(f"print {text}")).text == f"{text}\n"
        await channels.send_execute("print " + "x" * 70_000)
        assert (await channels.closed()).code == 1009
        fragmented = await kernel.connect(framing=framing)
        await fragmented.websocket.send(["x" * 40_000, "x" * 40_000])
        assert (await fragmented.closed()).code == 1009
        await _unharmed(kernel)


async def test_two_hundred_wrong_connections_in_a_row(
    server: ServerProcess, kernel: RunningKernel
) -> None:
    await _unharmed(kernel)
    before, memory = usage(server.pid), resident_memory(server.pid)
    frames: list[tuple[FramingName, str | bytes]] = [
        *(("v1", frame) for frame in WRONG_V1.values()),
        *(("legacy", frame) for frame in WRONG_LEGACY.values()),
        ("v1", "text"),
    ]
    for framing, frame in islice(cycle(frames), 200):
        async with await kernel.connect(framing=framing) as channels:
            await channels.send_frame(frame)
            assert (await channels.closed()).code in (1003, 1007)
    await _unharmed(kernel)
    await eventually(lambda: usage(server.pid).descriptors <= before.descriptors)
    assert usage(server.pid).threads <= before.threads + 1
    assert resident_memory(server.pid) < memory + 50 * 2**20
    assert "Traceback" not in server.output()
