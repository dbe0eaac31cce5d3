"""The phases of a kernel: every event in every phase, and what follows the end of a process."""

from __future__ import annotations

import itertools

import pytest

from app.managers.kernels.phases import (
    TRANSITIONS,
    Course,
    EndAsked,
    Event,
    Next,
    Phase,
    WrongTurn,
    after_end,
)

ASKS = {Event.SHUTDOWN_ASKED, Event.RESTART_ASKED}

# The phase that follows each event. An event that is not named here, and is no request of a
# client's, cannot come in that phase.
FOLLOWS = {
    "NEW": "BEGUN>STARTING FOUND>LEFT STOP>STOPPING BURIED>DEAD RETIRED>GONE HANDED_OVER>GONE",
    "STARTING": "LAUNCHING>STARTING LAUNCHED>STARTING CAME_UP>RUNNING WAS_UP>STARTING "
    "RESTARTS>RESTARTING RESTART>REPLACING STOP>STOPPING STRANDED>STRANDED BURIED>DEAD "
    "RETIRED>GONE HANDED_OVER>GONE",
    "RUNNING": "RESTARTS>RESTARTING RESTART>REPLACING STOP>STOPPING STRANDED>STRANDED BURIED>DEAD "
    "RETIRED>GONE HANDED_OVER>GONE",
    "RESTARTING": "RESTARTS>RESTARTING LAUNCHING>STARTING RESTART>REPLACING STOP>STOPPING "
    "STRANDED>STRANDED BURIED>DEAD RETIRED>GONE HANDED_OVER>GONE",
    "REPLACING": "LAUNCHING>STARTING STOP_FAILED>* RESTART>REPLACING STOP>STOPPING "
    "HANDED_OVER>GONE",
    "STOPPING": "RETIRED>GONE STOP_FAILED>*",
    "STRANDED": "RESTART>REPLACING STOP>STOPPING STRANDED>STRANDED BURIED>DEAD RETIRED>GONE "
    "HANDED_OVER>GONE",
    "LEFT": "REACHED>STARTING HANDED_OVER>GONE",
    "DEAD": "RESTART>REPLACING BURIED>DEAD RETIRED>GONE HANDED_OVER>GONE",
    "GONE": " ".join(f"{event.name}>GONE" for event in Event),
}
BACK = "*"
"""To the phase before the stop."""


def course_in(phase: Phase, asked: EndAsked = EndAsked.NOTHING) -> Course:
    course = Course()
    course.phase, course.asked = phase, asked
    return course


def after(*events: Event) -> Course:
    course = Course()
    for event in events:
        course.on(event)
    return course


STARTED = (Event.BEGUN, Event.LAUNCHING, Event.LAUNCHED)
UP = (*STARTED, Event.CAME_UP)


@pytest.mark.parametrize(("phase", "event"), [*itertools.product(Phase, Event)])
def test_each_event_in_each_phase_leads_where_it_should_or_is_refused(
    phase: Phase, event: Event
) -> None:
    rows = dict(row.split(">") for row in FOLLOWS[phase.name].split())
    course = course_in(phase)
    if event.name not in rows and event not in ASKS:
        with pytest.raises(WrongTurn, match=f"{event.name} .* {phase.name}"):
            course.on(event)
        assert (course.phase, course.asked) == (phase, EndAsked.NOTHING)
        return
    course.on(event)
    expected = rows.get(event.name, phase.name)
    assert course.phase.name == (Phase.NEW.name if expected == BACK else expected)


def test_the_table_has_a_row_for_each_phase_and_none_for_what_clients_ask() -> None:
    assert {*TRANSITIONS} == {*Phase}
    assert not any(ASKS & {*rows} for phase, rows in TRANSITIONS.items() if phase != Phase.GONE)


@pytest.mark.parametrize("stop", [Event.STOP, Event.RESTART])
@pytest.mark.parametrize(
    "phase", [phase for phase in Phase if Event.RESTART in TRANSITIONS[phase]], ids=str
)
def test_a_stop_that_fails_leads_back(phase: Phase, stop: Event) -> None:
    if stop not in TRANSITIONS[phase]:
        assert phase is Phase.DEAD  # which has nothing to stop: it is removed at once
        return
    course = course_in(phase)
    course.on(stop)
    course.on(Event.STOP_FAILED)
    if phase is Phase.REPLACING:  # of a restart before: what was before that is not known here
        assert course.phase is Phase.NEW
    else:
        assert course.phase is phase


def test_a_restart_over_one_that_was_cut_short_leads_back_to_what_was_before_both() -> None:
    course = after(*UP, Event.RESTART, Event.RESTART, Event.STOP_FAILED)
    assert course.phase is Phase.RUNNING


@pytest.mark.parametrize("asked", EndAsked)
@pytest.mark.parametrize("event", Event)
def test_what_is_asked_of_a_process_is_remembered_until_there_is_another(
    asked: EndAsked, event: Event
) -> None:
    for phase in Phase:
        if event not in TRANSITIONS[phase] and event not in ASKS:
            continue
        course = course_in(phase, asked)
        course.on(event)
        expected = {
            Event.LAUNCHED: EndAsked.NOTHING,
            Event.SHUTDOWN_ASKED: EndAsked.SHUTDOWN,
            Event.RESTART_ASKED: EndAsked.RESTART,
            Event.STOP_FAILED: EndAsked.SHUTDOWN,
        }.get(event, asked)
        if event is Event.STOP_FAILED and phase is Phase.REPLACING:
            expected = EndAsked.RESTART if asked is EndAsked.NOTHING else asked
        assert course.asked is expected, phase


@pytest.mark.parametrize("asked", EndAsked)
@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("has_been_ready", [False, True])
@pytest.mark.parametrize("autorestart", [False, True])
@pytest.mark.parametrize("within_limit", [False, True])
def test_what_follows_the_end_of_a_process(
    asked: EndAsked, phase: Phase, has_been_ready: bool, autorestart: bool, within_limit: bool
) -> None:
    course = course_in(phase, asked)
    course.has_been_ready = has_been_ready
    found = after_end(course, autorestart=autorestart, within_limit=within_limit)
    match asked, phase:
        case EndAsked.SHUTDOWN, _:
            assert found is Next.RETIRE
        case _, Phase.STRANDED:
            assert found is Next.BURY
        case EndAsked.RESTART, _:
            assert found is Next.RESTART_AS_ASKED
        case _:
            restarts = has_been_ready and autorestart and within_limit
            assert found is (Next.RESTART if restarts else Next.BURY)


def ends(course: Course) -> Next:
    return after_end(course, autorestart=True, within_limit=True)


def test_a_kernel_that_never_was_ready_is_not_restarted_by_itself() -> None:
    course = after(*STARTED)
    assert ends(course) is Next.BURY
    course.on(Event.BURIED)
    for event in (Event.RESTART, Event.LAUNCHING, Event.LAUNCHED):
        course.on(event)
    assert ends(course) is Next.BURY


def test_a_kernel_that_was_ready_once_is_restarted_even_while_it_starts() -> None:
    course = after(*UP, Event.RESTARTS, Event.LAUNCHING, Event.LAUNCHED)
    assert course.phase is Phase.STARTING
    assert ends(course) is Next.RESTART


def test_a_kernel_that_was_ready_under_an_earlier_server_is_restarted() -> None:
    reached = (Event.FOUND, Event.REACHED)
    assert ends(after(*reached)) is Next.BURY
    assert ends(after(*reached, Event.WAS_UP)) is Next.RESTART
    assert ends(after(*reached, Event.CAME_UP)) is Next.RESTART


def test_a_client_asks_the_process_to_end_for_good_or_for_a_restart() -> None:
    assert ends(after(*UP, Event.SHUTDOWN_ASKED)) is Next.RETIRE
    assert ends(after(*UP, Event.RESTART_ASKED)) is Next.RESTART_AS_ASKED
    assert ends(after(*UP, Event.SHUTDOWN_ASKED, Event.RESTART_ASKED)) is Next.RESTART_AS_ASKED
    restarted = after(*UP, Event.RESTART_ASKED, Event.RESTARTS, Event.LAUNCHING, Event.LAUNCHED)
    assert ends(restarted) is Next.RESTART


def test_a_process_that_ends_after_its_stop_has_failed_takes_the_kernel_with_it() -> None:
    course = after(*UP, Event.STOP, Event.STOP_FAILED)
    assert course.phase is Phase.RUNNING
    assert ends(course) is Next.RETIRE
    again = after(*UP, Event.STOP, Event.STOP_FAILED, Event.RESTART, Event.STOP_FAILED)
    assert ends(again) is Next.RETIRE


def test_a_process_that_ends_after_its_restart_has_failed_is_restarted() -> None:
    assert ends(after(*UP, Event.RESTART, Event.STOP_FAILED)) is Next.RESTART_AS_ASKED


def test_a_stranded_process_that_ends_leaves_the_kernel_dead_or_gone() -> None:
    assert ends(after(*UP, Event.STRANDED)) is Next.BURY
    assert ends(after(*UP, Event.STRANDED, Event.STOP, Event.STOP_FAILED)) is Next.RETIRE
    assert ends(after(*UP, Event.STRANDED, Event.RESTART, Event.STOP_FAILED)) is Next.BURY


def test_nothing_brings_a_kernel_back_that_is_gone() -> None:
    course = after(*UP, Event.HANDED_OVER)
    for event in Event:
        course.on(event)
        assert course.phase is Phase.GONE
