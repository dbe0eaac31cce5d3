"""What a keeper tells that lies, or has gone mad: nothing of it is believed.

These are the tests of `app.managers.processes.keeper.claims`.
"""

from __future__ import annotations

from typing import Any

import pytest

from app.keeper.protocol import Garbled
from app.managers.processes.keeper.claims import (
    MAX_NUMBER,
    check_bell,
    check_exit,
    heard_of,
    kept_of,
)
from app.protocol.link import Bell

HEARD: dict[str, Any] = {
    **{"kernel_id": "k", "handle": 7, "session": "ours", "epoch": "0123456789abcdef"},
    **{"first": (1, 0), "end": (3, 20), "tip": (1, 64), "taken": 0},
    **{"connected": True, "opened": False},
}

KEPT: dict[str, Any] = {
    **{"kernel_id": "k", "pid": 7, "start_time": "x", "exit_code": None, "output": "o"}
}


def test_what_can_be_is_believed() -> None:
    heard = heard_of(HEARD, "k")
    assert (heard.handle, heard.end) == (7, (3, 20))
    assert kept_of(KEPT, "k").pid == 7
    check_bell(heard.bell, "k", (3, 20))
    check_exit({"event": "exited", "kernel_id": "k", "pid": 7, "code": -9, "oom": False})
    check_exit({"kernel_id": "k", "pid": 7, "code": 0xC0000005})


@pytest.mark.parametrize(
    "change",
    [
        {"kernel_id": "another"},
        {"kernel_id": 7},
        {"handle": -1},
        {"handle": 2**32},
        {"handle": "7"},
        {"session": "x" * 257},
        {"epoch": "x" * 257},
        {"first": (-1, 0)},
        {"first": (4, 0)},
        {"first": (1, 2, 3)},
        {"end": (0, 0)},
        {"end": (MAX_NUMBER, 20)},
        {"end": (3, MAX_NUMBER)},
        {"end": (2**70, 0)},
        {"tip": (1, -1)},
        {"taken": -1},
        {"taken": MAX_NUMBER},
        {"connected": "yes"},
    ],
)
def test_a_log_that_cannot_be_is_not(change: dict[str, Any]) -> None:
    with pytest.raises(Garbled):
        heard_of({**HEARD, **change}, "k")


@pytest.mark.parametrize("answer", [None, 7, "k", [], {}])
def test_what_is_no_answer_is_told(answer: Any) -> None:
    with pytest.raises(Garbled):
        heard_of(answer, "k")
    with pytest.raises(Garbled):
        kept_of(answer, "k")


@pytest.mark.parametrize("change", [{"kernel_id": "l"}, {"pid": "7"}, {"exit_code": "0"}])
def test_a_process_that_cannot_be_is_not(change: dict[str, Any]) -> None:
    with pytest.raises(Garbled):
        kept_of({**KEPT, **change}, "k")


def test_a_log_that_is_less_than_was_known_is_refused() -> None:
    assert heard_of(HEARD, "k", (3, 20)).end == (3, 20)
    with pytest.raises(Garbled, match="which went to number 4, is said to go from 1 to 3"):
        heard_of(HEARD, "k", (4, 30))


def test_a_bell_that_goes_back_is_refused() -> None:
    with pytest.raises(Garbled, match="which went to number 9, is said to go from 1 to 8"):
        check_bell(Bell(7, (1, 0), (8, 70), (1, 64), 0), "k", (9, 80))


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"kernel_id": "k", "pid": 7},
        {"kernel_id": "k", "pid": 7, "code": "0"},
        {"kernel_id": "k", "pid": 7, "code": 2**40},
        {"kernel_id": "k", "pid": None, "code": 0},
        {"kernel_id": ["k"], "pid": 7, "code": 0},
    ],
)
def test_an_end_that_cannot_be_is_none(event: dict[str, Any]) -> None:
    with pytest.raises(Garbled):
        check_exit(event)
