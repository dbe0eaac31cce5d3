"""Sockets to kernels, by what their connection files say."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import zmq

__all__ = ["ConnectionInfo", "endpoint", "new_context", "read_frames"]

ConnectionInfo = Mapping[str, Any]
"""What a connection file holds [Jupyter client documentation, "Connection files"]."""

COPY_BYTES: Final = 4096
"""Frames up to this size are copied out of libzmq: cheaper than keeping its memory alive."""

MAX_SOCKETS: Final = 65535
"""How many sockets a context may have [zmq_ctx_set(3), ZMQ_MAX_SOCKETS]. The default of 1023 is
enough for a few hundred kernels."""

_ZERO_COPY_RECV: Final = 10
"""The option's number: pyzmq has no name for it, as libzmq calls it a draft [zmq_draft.h]."""

_NOBLOCK: Final = int(zmq.NOBLOCK)  # with the enum each call costs a conversion


def new_context() -> zmq.Context[Any]:
    """A ZMQ context for the sockets to all kernels.

    By default libzmq does not copy frames out of the 8 kB that it has read from a connection, and
    has room for the counters of 240 frames behind them: a small frame in front of a large one holds
    18 kB for as long as the message waits. Copied, a message takes half of that memory, and less
    time.
    """
    context: zmq.Context[Any] = zmq.Context()
    context.max_sockets = MAX_SOCKETS
    with contextlib.suppress(zmq.ZMQError):  # a libzmq that does not know it works as well
        context.set(_ZERO_COPY_RECV, 0)
    return context


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
    # All frames of a message arrive together [zmq_msg_recv(3)], so none of these reads waits.
    while frame.more:
        frame = receive(copy=False)
        frames.append(frame.bytes if len(frame) <= COPY_BYTES else frame.buffer)
    return frames
