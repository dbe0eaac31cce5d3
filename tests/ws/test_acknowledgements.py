"""What pongs tell of how far a client has come."""

from __future__ import annotations

from app.managers.log.entries import Position
from app.ws.acknowledgements import Acknowledgements


def at(cursor: int) -> Position:
    return Position(cursor, cursor * 100)


def asked(acknowledgements: Acknowledgements, place: Position) -> bytes:
    """The ping that follows what brings the client to this place."""
    acknowledgements.sent(place)
    payload = acknowledgements.ping()
    assert payload is not None
    return payload


def test_nothing_is_asked_before_something_was_sent() -> None:
    assert Acknowledgements().ping() is None


def test_each_answer_confirms_what_was_sent_before_its_ping() -> None:
    acknowledgements = Acknowledgements()
    pings = [asked(acknowledgements, at(place)) for place in (10, 20, 30)]
    for ping, place in zip(pings, (10, 20, 30), strict=True):
        assert acknowledgements.pong(ping)
        assert acknowledgements.acknowledged == at(place)
    assert acknowledgements.ping() is None


def test_the_same_place_is_asked_about_once() -> None:
    acknowledgements = Acknowledgements()
    asked(acknowledgements, at(10))
    assert acknowledgements.ping() is None
    acknowledgements.sent(at(11))
    assert acknowledgements.ping_is_due


def test_an_answer_to_the_last_of_several_confirms_them_all() -> None:
    acknowledgements = Acknowledgements()
    first, last = asked(acknowledgements, at(10)), asked(acknowledgements, at(20))
    assert acknowledgements.pong(last)
    assert acknowledgements.acknowledged == at(20)
    assert not acknowledgements.pong(first)
    assert acknowledgements.acknowledged == at(20)


def test_a_pong_that_nobody_asked_for_confirms_nothing() -> None:
    acknowledgements = Acknowledgements()
    ping = asked(acknowledgements, at(10))
    for payload in (b"", b"kk", ping + b"0", b"keepalive"):
        assert not acknowledgements.pong(payload)
    assert acknowledgements.acknowledged is None


def test_what_is_known_by_other_means_needs_no_answer() -> None:
    acknowledgements = Acknowledgements()
    ping = asked(acknowledgements, at(10))
    acknowledgements.sent(at(12))
    acknowledgements.all_arrived()
    assert acknowledgements.acknowledged == at(12)
    assert not acknowledgements.pong(ping)
    assert acknowledgements.ping() is None
