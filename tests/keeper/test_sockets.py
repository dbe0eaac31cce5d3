"""Addresses of sockets, and messages as they are read from one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from app.keeper import sockets
from app.keeper.sockets import COPY_BYTES, MAX_SOCKETS, endpoint, new_context, read_frames

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


def test_a_context_has_room_for_the_sockets_of_many_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with new_context() as context:
        assert context.max_sockets == MAX_SOCKETS
    really = zmq.Context.set

    def knows_less(self: zmq.Context[Any], option: int, value: int) -> None:
        if option == sockets._ZERO_COPY_RECV:
            raise zmq.ZMQError(zmq.EINVAL)
        really(self, option, value)

    monkeypatch.setattr(zmq.Context, "set", knows_less)
    with new_context() as context:
        assert context.max_sockets == MAX_SOCKETS
