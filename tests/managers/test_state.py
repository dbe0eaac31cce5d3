"""What a kernel is doing, from what it reports and what the server knows of its process."""

from __future__ import annotations

import pytest

from app.managers.state import KernelState, Lifecycle
from app.protocol.messages import UNTRACKED_MESSAGE_TYPES, Header

EXECUTE = Header(msg_id="1", msg_type="execute_request", session="s")
NOBODY = Header()


def running() -> KernelState:
    state = KernelState()
    state.on_launch()
    state.on_ready()
    return state


def asked(msg_type: str) -> Header:
    return Header(msg_id="1", msg_type=msg_type, session="s")


def test_a_kernel_starts_and_is_idle_once_it_answers() -> None:
    state = KernelState()
    assert (state.word, state.greeting, state.busy) == ("starting", "starting", False)

    state.on_ready()

    assert (state.word, state.greeting, state.busy) == ("idle", "idle", False)
    assert state.lifecycle is Lifecycle.RUNNING


@pytest.mark.parametrize(
    "msg_type",
    ["execute_request", "complete_request", "inspect_request", "comm_open", "comm_msg", ""],
)
def test_work_on_the_main_shell_makes_it_busy_and_idle(msg_type: str) -> None:
    state = running()

    state.on_status("busy", asked(msg_type))
    assert (state.word, state.busy, state.at_work) == ("busy", True, True)

    state.on_status("idle", asked(msg_type))
    assert (state.word, state.busy, state.at_work) == ("idle", False, False)


@pytest.mark.parametrize(
    "msg_type",
    ["kernel_info_request", "debug_request", "interrupt_request", "shutdown_request"],
)
def test_control_traffic_says_nothing_of_the_shell(msg_type: str) -> None:
    state = running()
    state.on_status("busy", asked(msg_type))
    assert state.word == "idle"

    state.on_status("busy", EXECUTE)
    state.on_status("idle", asked(msg_type))
    assert state.word == "busy"


def test_a_subshell_is_at_work_and_leaves_the_main_shell_as_it_is() -> None:
    state = running()
    first, second = (
        Header(msg_id="1", msg_type="execute_request", session="s", subshell_id=name)
        for name in ("first", "second")
    )

    state.on_status("busy", first)
    state.on_status("busy", second)
    state.on_status("idle", first)
    assert (state.word, state.busy, state.at_work) == ("idle", False, True)

    state.on_status("busy", EXECUTE)
    state.on_status("idle", second)
    assert (state.word, state.busy, state.at_work) == ("busy", True, True)

    state.on_status("idle", EXECUTE)
    assert (state.word, state.busy, state.at_work) == ("idle", False, False)


def test_a_subshells_work_ends_with_its_process() -> None:
    state = running()
    state.on_status("busy", Header(msg_type="execute_request", subshell_id="sub"))

    state.on_launch()
    state.on_ready()

    assert not state.at_work


def test_a_kernel_that_is_ready_does_not_go_back_to_starting() -> None:
    state = running()
    state.on_status("starting", NOBODY)
    assert state.word == "idle"

    state.on_status("busy", EXECUTE)
    state.on_status("starting", NOBODY)
    assert state.word == "busy"


def test_a_status_that_says_nothing_changes_nothing() -> None:
    state = running()
    state.on_status("busy", EXECUTE)

    state.on_status("", EXECUTE)

    assert state.word == "busy"


def test_a_state_of_the_kernels_own_is_shown_as_it_is() -> None:
    state = running()

    state.on_status("compiling", EXECUTE)

    assert (state.word, state.greeting, state.busy) == ("compiling", "compiling", False)


def test_what_was_reported_before_it_was_ready_holds_then() -> None:
    state = KernelState()
    state.on_launch()
    state.on_status("busy", EXECUTE)
    assert state.word == "starting"
    assert not state.busy

    state.on_ready()

    assert state.word == "busy"


def test_a_new_process_forgets_what_the_old_one_reported() -> None:
    state = running()
    state.on_status("busy", EXECUTE)
    state.begin(Lifecycle.RESTARTING)

    state.on_launch()
    assert (state.word, state.busy) == ("restarting", False)
    state.on_ready()

    assert state.word == "idle"


@pytest.mark.parametrize(
    ("lifecycle", "word", "greeting"),
    [
        (Lifecycle.STARTING, "starting", "starting"),
        (Lifecycle.RUNNING, "busy", "busy"),
        (Lifecycle.RESTARTING, "restarting", "starting"),
        (Lifecycle.STOPPING, "terminating", "terminating"),
        (Lifecycle.DEAD, "dead", "dead"),
    ],
)
def test_the_process_outweighs_what_the_kernel_reported(
    lifecycle: Lifecycle, word: str, greeting: str
) -> None:
    state = running()
    state.on_status("busy", EXECUTE)

    state.begin(lifecycle)

    assert (state.word, state.greeting) == (word, greeting)
    assert state.busy is state.at_work is (lifecycle is Lifecycle.RUNNING)


def test_a_reason_stays_until_another_is_given() -> None:
    state = running()
    assert state.reason == ""

    state.begin(Lifecycle.RESTARTING, "it died")
    state.begin(Lifecycle.RUNNING)
    assert state.reason == "it died"

    state.begin(Lifecycle.RESTARTING, "")
    assert state.reason == ""


@pytest.mark.parametrize("msg_type", sorted(UNTRACKED_MESSAGE_TYPES))
def test_an_idle_kernels_answers_to_the_server_are_no_activity(msg_type: str) -> None:
    state = running()

    assert not state.is_activity(msg_type, asked("kernel_info_request"))


@pytest.mark.parametrize("msg_type", ["stream", "status", "display_data", "error"])
def test_what_somebody_asked_for_is_activity(msg_type: str) -> None:
    state = running()

    assert state.is_activity(msg_type, EXECUTE)
    assert state.is_activity(msg_type, asked("complete_request"))
    assert state.is_activity(msg_type, NOBODY)
    assert state.is_activity("comm_msg", asked("kernel_info_request"))


def test_everything_is_activity_while_the_kernel_is_busy() -> None:
    state = running()
    state.on_status("busy", EXECUTE)

    assert state.is_activity("status", asked("kernel_info_request"))


def test_the_types_that_do_not_count_can_be_chosen() -> None:
    state = KernelState(frozenset({"stream", "execute_request"}))
    state.on_ready()

    assert not state.is_activity("stream", EXECUTE)
    assert state.is_activity("status", EXECUTE)
    state.on_status("busy", EXECUTE)
    assert state.word == "idle"
    state.on_status("busy", asked("kernel_info_request"))
    assert state.word == "busy"


def test_a_reason_is_over_when_the_kernel_is_ready_again_and_then_counted_as_past() -> None:
    state = running()
    assert state.restarts is None

    for count, reason in enumerate(("exited with code 3", "was killed by signal 9"), 1):
        state.on_restart(reason)
        assert (state.word, state.reason) == ("restarting", reason)
        state.on_launch()
        assert state.reason == reason
        state.on_ready()
        assert state.reason == ""
        assert state.restarts is not None
        assert (state.restarts.count, state.restarts.reason) == (count, reason)

    state.begin(Lifecycle.RESTARTING, reason="")
    state.on_ready()
    assert state.restarts is not None
    assert state.restarts.count == 2


def test_what_an_engine_says_is_the_reason_unless_there_is_another() -> None:
    state = KernelState()
    state.on_words("the image is pulled")
    assert state.reason == "the image is pulled"
    state.on_words("half of it is there")
    assert state.reason == "half of it is there"
    state.begin(Lifecycle.RESTARTING, "it has died")
    state.on_words("it waits")
    assert state.reason == "it has died"
    state.begin(Lifecycle.STARTING, "")
    state.on_words("")
    changes = state.changes
    state.on_words("it waits again")
    assert (state.reason, state.changes) == ("it waits again", changes + 1)


def test_an_engine_is_heard_while_the_host_is_away() -> None:
    state = KernelState()
    state.on_ready()
    state.on_reach("the host is away")
    assert state.told_reason == "the host is away"
    state.on_words("the node is lost")
    assert state.told_reason == "the host is away. the node is lost"
    state.begin(Lifecycle.RESTARTING, "it has died")
    assert state.told_reason == "the host is away"
    state.on_reach("")
    assert state.told_reason == "it has died"


def test_it_knows_since_when_it_is_in_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("app.managers.state.time.time", lambda: now)
    state = KernelState()
    assert state.since == 100.0
    now = 101.0
    state.on_ready()
    assert state.since == 101.0
    now = 102.0
    state.on_status("idle", EXECUTE)  # it was idle before
    assert state.since == 101.0
    state.on_status("busy", EXECUTE)
    assert state.since == 102.0
    now = 103.0
    state.on_reach("the host does not answer")
    assert (state.word, state.since) == ("unknown", 103.0)
    now = 104.0
    state.begin(Lifecycle.DEAD, "it was killed")
    assert (state.word, state.since) == ("dead", 104.0)


@pytest.mark.parametrize("reported", ["", "starting", "a\0b", "two\nlines", "\u202e", "x" * 65])
def test_what_is_no_short_word_is_no_state(reported: str) -> None:
    state = running()
    state.on_status("busy", EXECUTE)

    state.on_status(reported, EXECUTE)

    assert state.word == "busy"


def test_any_short_word_is_a_state() -> None:
    state = running()
    state.on_status("x" * 64, EXECUTE)
    assert state.word == "x" * 64


def test_a_kernel_makes_up_only_so_many_subshells() -> None:
    state = running()
    for number in range(1000):
        made_up = Header(msg_id="1", msg_type="execute_request", subshell_id=f"made-up-{number}")
        state.on_status("busy", made_up)
    state.on_status("busy", Header(msg_type="execute_request", subshell_id="x" * 1000))

    for number in range(256):
        assert state.at_work
        made_up = Header(msg_id="1", msg_type="execute_request", subshell_id=f"made-up-{number}")
        state.on_status("idle", made_up)
    assert not state.at_work
