"""Addresses of sockets, and messages as they are read from one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import zmq

from app.keeper.sockets import COPY_BYTES, endpoint, read_frames

LEADING = (int(zmq.NOBLOCK),) * 2
"""For messages that have two frames before their content."""


@pytest.fixture
def pair() -> Iterator[tuple[zmq.Socket[bytes], zmq.Socket[bytes]]]:
    with zmq.Context() as context, context.socket(zmq.PAIR) as one, context.socket(zmq.PAIR) as two:
        one.bind("inproc://test")
        two.connect("inproc://test")
        yield one, two


def test_addresses() -> None:
    tcp = {"transport": "tcp", "ip": "127.0.0.1", "shell_port": 5}
    ipc = {"transport": "ipc", "ip": "/run/k", "shell_port": 5}
    assert endpoint(tcp, "shell") == "tcp://127.0.0.1:5"
    assert endpoint(ipc, "shell") == "ipc:///run/k-5"


@pytest.mark.parametrize("more", [[], [b"buffer"], [b"a", b"", b"x" * (COPY_BYTES + 1)]])
def test_a_message_has_the_frames_that_were_sent(
    pair: tuple[zmq.Socket[bytes], zmq.Socket[bytes]], more: list[bytes]
) -> None:
    sender, receiver = pair
    content = os.urandom(COPY_BYTES + 1)
    sent = [[b"1", b"2", b"small", *more], [b"1", b"2", content, *more]]
    for frames in sent:
        sender.send_multipart(frames)
    for frames in sent:
        assert [bytes(frame) for frame in read_frames(receiver, LEADING)] == frames
    assert read_frames(receiver, LEADING) == []


def test_only_large_frames_stay_where_they_are(
    pair: tuple[zmq.Socket[bytes], zmq.Socket[bytes]],
) -> None:
    sender, receiver = pair
    sender.send_multipart([b"1", b"2", b"x" * COPY_BYTES, b"x" * (COPY_BYTES + 1)])
    kinds = [type(frame) for frame in read_frames(receiver, LEADING)]
    assert kinds == [bytes, bytes, bytes, memoryview]
