"""The places of a kernel's clients, in the form in which they are stored."""

from __future__ import annotations

import msgspec
import pytest

from app.managers.log.entries import Position
from app.managers.log.places import MAX_PLACES, Places, SessionPlace, session_key


def test_what_is_stored_comes_back_in_order() -> None:
    places = [
        SessionPlace(session_key("b"), 7, 70, 12.5),
        SessionPlace(session_key("a"), 3, 2**40, 0.0),
    ]
    stored = Places.of("kernel", "epoch", places)
    assert stored.read() == places
    assert (stored.kernel_id, stored.epoch) == ("kernel", "epoch")
    assert stored.furthest == Position(7, 70)
    assert Places.of("kernel", "epoch", []).furthest == Position(1, 0)


def test_those_that_have_left_first_make_room() -> None:
    places = [
        SessionPlace(session_key(f"{number}"), number, 0, 0.0) for number in range(MAX_PLACES + 3)
    ]
    assert Places.of("kernel", "epoch", places).read() == places[3:]


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x91\x01", b"\x91\x94\xa1x\x01\x02\x03"])
def test_what_makes_no_sense_is_refused(data: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        Places("kernel", "epoch", data).read()


def test_a_session_has_one_short_key_whatever_it_is_called() -> None:
    names = ["", "a", "\0", "\udcff", "a" * 10_000]
    keys = {session_key(name) for name in names}
    assert len(keys) == len(names)
    assert {len(key) for key in keys} == {16}
    assert session_key("a") in keys
