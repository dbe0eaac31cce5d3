"""What goes over the link between a server and its keeper: whole, or refused."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.protocol.link import (
    BELLS,
    CREDIT,
    FOLLOW,
    RECORDS,
    REQUEST,
    SAID,
    Bell,
    Credit,
    Follow,
    Said,
    pack_bells,
    pack_credit,
    pack_follow,
    pack_records,
    pack_request,
    pack_said,
    unpack_bells,
    unpack_credit,
    unpack_follow,
    unpack_records,
    unpack_request,
    unpack_said,
)
from app.protocol.messages import CHANNELS, ClientMessage, MalformedMessage, decode_header
from tests.protocol.raw import HEADER, dump

handles = st.integers(0, 2**32 - 1)
channels = st.sampled_from(CHANNELS)
# Sessions are what clients call themselves; a lone surrogate is among what JSON can hold.
owners = st.text(max_size=50) | st.just("\ud83d")
numbers = st.integers(0, 2**64 - 1)
places = st.tuples(numbers, numbers)
bells = st.builds(Bell, handles, places, places, places, numbers)


@given(handles, channels, owners, st.lists(st.binary(max_size=100), min_size=3, max_size=20))
def test_a_request_arrives_as_it_was(
    handle: int, channel: str, owner: str, parts: list[bytes]
) -> None:
    header = dump(HEADER)
    message = ClientMessage(channel, decode_header(header), [header, *parts])

    frame = b"".join(pack_request(handle, message, owner))
    arrived_at, arrived, of = unpack_request(frame)

    assert frame[:1] == REQUEST
    assert (arrived_at, of, arrived.channel) == (handle, owner, channel)
    assert arrived.parts == message.parts
    assert arrived.header == message.header


@given(handles, channels, st.integers(0, 255), st.none() | owners, st.binary(max_size=200))
def test_what_is_said_arrives_as_it_was(
    handle: int, channel: str, flags: int, owner: str | None, frame: bytes
) -> None:
    said = Said(handle, channel, flags, owner, frame)

    packed = b"".join(pack_said(said))

    assert packed[:1] == SAID
    assert unpack_said(packed) == said


@given(st.lists(bells, max_size=20))
def test_bells_arrive_as_they_were(bells: list[Bell]) -> None:
    packed = pack_bells(bells)

    assert packed[:1] == BELLS
    assert unpack_bells(packed) == bells


@given(st.binary(max_size=200))
def test_garbage_is_refused_by_nothing_but_a_value_error(data: bytes) -> None:
    for unpack in (unpack_request, unpack_said, unpack_bells):
        with contextlib.suppress(ValueError):
            unpack(data)


@given(st.data())
def test_so_is_a_request_that_was_cut_short_or_changed(data: st.DataObject) -> None:
    header = dump(HEADER)
    message = ClientMessage("shell", decode_header(header), [header, b"{}", b"{}", b"{}"])
    whole = b"".join(pack_request(7, message, "owner"))

    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(MalformedMessage):
        unpack_request(cut)

    place = data.draw(st.integers(0, len(whole) - 1))
    changed = whole[:place] + data.draw(st.binary(min_size=1, max_size=9)) + whole[place + 1 :]
    with contextlib.suppress(ValueError):
        unpack_request(changed)


@pytest.mark.parametrize("count", [0, 3])
def test_a_request_of_too_few_parts_is_refused(count: int) -> None:
    header = dump(HEADER)
    message = ClientMessage("shell", decode_header(header), [header, b"{}", b"{}"][:count])
    with pytest.raises(ValueError, match="do not fit"):
        unpack_request(b"".join(pack_request(1, message, "owner")))


@pytest.mark.parametrize("size", [1, 59, 61])
def test_half_a_bell_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="no doorbell"):
        unpack_bells(BELLS + bytes(size))


@given(handles, numbers, numbers, st.booleans(), st.binary(max_size=100))
def test_what_a_server_elsewhere_follows_arrives_as_it_was(
    handle: int, number: int, size: int, anew: bool, data: bytes
) -> None:
    follow, credit = Follow(handle, number, size), Credit(handle, size)
    assert unpack_follow(b"".join(map(bytes, pack_follow(follow)))) == follow
    assert unpack_credit(b"".join(map(bytes, pack_credit(credit)))) == credit
    piece = unpack_records(pack_records(handle, anew, data))
    assert (piece.handle, piece.anew, bytes(piece.data)) == (handle, anew, data)


def test_frames_of_another_length_are_refused() -> None:
    with pytest.raises(MalformedMessage):
        unpack_follow(FOLLOW + b"short")
    with pytest.raises(MalformedMessage):
        unpack_credit(CREDIT + bytes(40))
    with pytest.raises(MalformedMessage):
        unpack_records(RECORDS)
