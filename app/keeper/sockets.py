"""Sockets to kernels, by what their connection files say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import zmq

__all__ = ["ConnectionInfo", "endpoint", "read_frames"]

ConnectionInfo = Mapping[str, Any]
"""What a connection file holds [Jupyter client documentation, "Connection files"]."""

COPY_BYTES: Final = 4096
"""Frames up to this size are copied out of libzmq: cheaper than keeping its memory alive."""

_NOBLOCK: Final = int(zmq.NOBLOCK)  # with the enum each call costs a conversion


def endpoint(info: ConnectionInfo, channel: str) -> str:
    """The ZMQ address of a channel: ``tcp://ip:port``, or ``ipc://path-port``."""
    separator = "-" if info["transport"] == "ipc" else ":"
    return f"{info['transport']}://{info['ip']}{separator}{info[f'{channel}_port']}"


def read_frames(socket: zmq.Socket[bytes], leading: Sequence[int]) -> list[bytes | memoryview]:
    """The frames of the next message, large ones where libzmq has them; empty if there is none.

    To ask of every frame whether another follows costs three times as much as reading it. So this
    is asked only from the content on, behind the frames that every message has: one that has fewer
    is read together with those behind it, to be told apart by `app.protocol.wire.split`.
    ``leading`` are the flags to read those frames with.
    """
    receive = socket.recv
    frames: list[bytes | memoryview] = []
    try:
        # `map` calls without a step of Python between; what it has read stays when it ends early.
        frames.extend(map(receive, leading))
        frame = receive(_NOBLOCK, False)
    except zmq.Again:  # messages arrive whole, so this is the end of one
        return frames
    frames.append(frame.bytes if len(frame) <= COPY_BYTES else frame.buffer)
    while frame.more:
        frame = receive(copy=False)
        frames.append(frame.bytes if len(frame) <= COPY_BYTES else frame.buffer)
    return frames
