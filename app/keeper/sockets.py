"""Sockets to kernels, by what their connection files say."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import zmq

__all__ = ["connect", "read_frames", "shutdown_request"]

Info = Mapping[str, Any]

DELIMITER: Final = b"<IDS|MSG>"

COPY_BYTES: Final = 4096
"""Frames up to this size are copied out of libzmq: cheaper than keeping its memory alive."""

_NOBLOCK: Final = int(zmq.NOBLOCK)  # with the enum each call costs a conversion


def connect(socket: zmq.Socket[bytes], info: Info, channel: str) -> None:
    """Connect a socket to a channel. Raises `zmq.ZMQError`, `KeyError` and the like."""
    if info.get("curve_publickey"):
        # The connection file holds one key pair, for both ends.
        socket.curve_serverkey = socket.curve_publickey = info["curve_publickey"].encode()
        socket.curve_secretkey = info["curve_secretkey"].encode()
    separator = "-" if info["transport"] == "ipc" else ":"
    socket.connect(f"{info['transport']}://{info['ip']}{separator}{info[f'{channel}_port']}")


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


def shutdown_request(info: Info) -> list[bytes]:
    """The frames of a signed ``shutdown_request``; there is no session to go on with.

    Raises `ValueError` for a signature scheme that is not known.
    """
    # They load OpenSSL, which takes 4 MB; the keeper needs them once, if ever.
    import hashlib
    import hmac

    header = {
        "msg_id": os.urandom(16).hex(),
        "session": os.urandom(16).hex(),
        "username": "kernelkeep",
        "date": datetime.now(UTC).isoformat(),
        "msg_type": "shutdown_request",
        "version": "5.3",
    }
    parts = [json.dumps(part).encode() for part in (header, {}, {}, {"restart": False})]
    key = (info.get("key") or "").encode()
    algorithm = (info.get("signature_scheme") or "hmac-sha256").removeprefix("hmac-")
    if algorithm not in hashlib.algorithms_available:
        raise ValueError(f"no signature scheme hmac-{algorithm}")
    signature = hmac.new(key, b"".join(parts), algorithm).hexdigest().encode() if key else b""
    return [DELIMITER, signature, *parts]
