"""The rate limiter, without a kernel or a connection; ``now`` is whatever the test says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.ws.rate_limits import LIMITED_TYPES, Episode, RateLimiter, RateLimits

LIMITS = RateLimits(iopub_msg_rate_limit=10, iopub_data_rate_limit=1000, rate_limit_window=3)
NO_LIMITS = RateLimits(iopub_msg_rate_limit=0, iopub_data_rate_limit=0, rate_limit_window=3)

# What a client must never miss, and some types that nobody has thought of yet.
OTHER_TYPES = (
    *("status", "execute_input", "execute_result", "error", "clear_output", "execute_reply"),
    *("comm_open", "comm_msg", "comm_close", "input_request", "debug_event", "shutdown_reply"),
    *("iopub_welcome", "stream_result", "display", "Stream", ""),
)
types = st.sampled_from([*sorted(LIMITED_TYPES), *OTHER_TYPES]) | st.text(max_size=8)
messages = st.tuples(types, st.integers(0, 10_000), st.floats(0, 2))


def admitted(limiter: RateLimiter, msg_type: str, count: int, *, size: int = 1, now: float) -> int:
    """How many of so many messages at one moment may go."""
    return sum(limiter.admit(msg_type, size, now) for _ in range(count))


def test_these_three_types_and_no_others_are_limited() -> None:
    assert {"stream", "display_data", "update_display_data"} == LIMITED_TYPES


@pytest.mark.parametrize("msg_type", sorted(LIMITED_TYPES))
def test_a_burst_is_cut_at_the_rate_times_the_window(msg_type: str) -> None:
    limiter = RateLimiter(LIMITS)
    assert admitted(limiter, msg_type, 100, now=0) == 30
    assert limiter.exceeded == "message"
    assert limiter.end_episode() == Episode(70, 70)


def test_just_the_rate_may_go_on_for_ever() -> None:
    limiter = RateLimiter(LIMITS)
    assert all(limiter.admit("stream", 1, n / 10) for n in range(1000))
    assert limiter.exceeded is None
    assert limiter.end_episode() is None


def test_a_limit_holds_until_the_rate_is_below_four_fifths_of_it() -> None:
    limiter = RateLimiter(LIMITS)
    # One message every tenth of a second, thirty in all: the window is full at 2.9.
    for n in range(30):
        assert limiter.admit("stream", 1, n / 10)
    assert not limiter.admit("stream", 1, 2.9)
    # At 3.5 six have left the window: 24 + 1 is more than four fifths of 30.
    assert not limiter.admit("stream", 1, 3.5)
    assert limiter.admit("stream", 1, 3.6)
    assert limiter.exceeded is None
    assert limiter.end_episode() == Episode(2, 2)


def test_what_is_held_back_does_not_count_towards_the_rate() -> None:
    limiter = RateLimiter(LIMITS)
    admitted(limiter, "stream", 30, now=0)
    # A hundred a second, all held back, do not keep the limit in force beyond its window.
    assert admitted(limiter, "stream", 100, now=1) == admitted(limiter, "stream", 100, now=2) == 0
    assert limiter.admit("stream", 1, 3.0)
    assert limiter.end_episode() == Episode(200, 200)


def test_bytes_of_streams_are_limited() -> None:
    limiter = RateLimiter(LIMITS)
    assert admitted(limiter, "stream", 10, size=500, now=0) == 6
    assert limiter.exceeded == "data"
    assert limiter.end_episode() == Episode(4, 2000)


@pytest.mark.parametrize("msg_type", ["display_data", "update_display_data"])
def test_bytes_of_displays_are_not(msg_type: str) -> None:
    limiter = RateLimiter(LIMITS)
    assert admitted(limiter, msg_type, 20, size=10**6, now=0) == 20
    assert limiter.exceeded is None


def test_while_the_data_limit_is_in_force_displays_are_held_back_too() -> None:
    limiter = RateLimiter(LIMITS)
    assert admitted(limiter, "stream", 2, size=1500, now=0) == 2
    assert not limiter.admit("stream", 1, 0)
    assert not limiter.admit("display_data", 1, 0)
    assert limiter.exceeded == "data"
    assert limiter.end_episode() == Episode(2, 2)


def test_one_message_that_is_larger_than_the_whole_window_is_held_back() -> None:
    limiter = RateLimiter(LIMITS)
    assert not limiter.admit("stream", 3001, 0)
    assert limiter.admit("stream", 3000, 0) is False  # above four fifths
    assert limiter.admit("stream", 2400, 0)


@pytest.mark.parametrize("off", [0, -1])
def test_each_half_can_be_switched_off(off: float) -> None:
    no_messages = RateLimiter(LIMITS._replace(iopub_msg_rate_limit=off))
    assert admitted(no_messages, "display_data", 5000, now=0) == 5000
    assert admitted(no_messages, "stream", 5000, now=0) == 3000
    no_data = RateLimiter(LIMITS._replace(iopub_data_rate_limit=off))
    assert admitted(no_data, "stream", 31, size=10**6, now=0) == 30
    assert no_data.exceeded == "message"


def test_idle_begins_anew() -> None:
    limiter = RateLimiter(LIMITS)
    admitted(limiter, "stream", 50, now=0)
    assert limiter.reset() == Episode(20, 20)
    assert limiter.exceeded is None
    assert admitted(limiter, "stream", 50, now=0) == 30
    assert limiter.reset() == Episode(20, 20)
    assert limiter.reset() is None


@pytest.mark.parametrize(
    ("exceeded", "name", "unit"),
    [
        ("message", "iopub_msg_rate_limit=10.0 (msgs/sec)", "--iopub-msg-rate-limit"),
        ("data", "iopub_data_rate_limit=1000.0 (bytes/sec)", "--iopub-data-rate-limit"),
    ],
)
def test_the_notice_begins_as_jupyters_and_tells_the_option_and_the_values(
    exceeded: str, name: str, unit: str
) -> None:
    lines = RateLimiter(RateLimits(10.0, 1000.0, 3.0)).notice(exceeded).split("\n")
    assert lines[0] == f"IOPub {exceeded} rate exceeded."
    assert name in lines
    assert "rate_limit_window=3.0 (secs)" in lines
    assert unit in " ".join(lines)
    assert lines[-2:] == ["", ""]


@given(st.lists(messages, max_size=200))
def test_nothing_but_the_three_types_is_ever_held_back(
    script: list[tuple[str, int, float]],
) -> None:
    limiter = RateLimiter(RateLimits(1, 10, 1))
    now = 0.0
    for msg_type, size, pause in script:
        now += pause
        if msg_type not in LIMITED_TYPES:
            before = limiter.exceeded
            assert limiter.admit(msg_type, size, now)
            assert limiter.exceeded == before
        else:
            limiter.admit(msg_type, size, now)


@given(st.lists(messages, max_size=200), st.sets(st.integers(0, 200)))
def test_every_message_that_is_held_back_is_counted_once(
    script: list[tuple[str, int, float]], idles: set[int]
) -> None:
    limiter = RateLimiter(RateLimits(2, 100, 1))
    held, told, now = [], [], 0.0
    for number, (msg_type, size, pause) in enumerate(script):
        now += pause
        if not limiter.admit(msg_type, size, now):
            held.append(size)
        elif limiter.exceeded is None:
            told.append(limiter.end_episode())
        if number in idles:
            told.append(limiter.reset())
    told.append(limiter.reset())
    episodes = [episode for episode in told if episode is not None]
    assert sum(episode.messages for episode in episodes) == len(held)
    assert sum(episode.bytes for episode in episodes) == sum(held)


@given(st.lists(messages, max_size=200))
def test_what_goes_is_never_more_than_the_limits_within_any_window(
    script: list[tuple[str, int, float]],
) -> None:
    limits = RateLimits(2, 500, 1.5)
    limiter = RateLimiter(limits)
    gone: list[tuple[float, int]] = []
    now = 0.0
    for msg_type, size, pause in script:
        now += pause
        if limiter.admit(msg_type, size, now) and msg_type in LIMITED_TYPES:
            gone.append((now, size if msg_type == "stream" else 0))
        within = [entry for entry in gone if entry[0] + limits.rate_limit_window > now]
        assert len(within) <= 2 * 1.5
        assert sum(size for _, size in within) <= 500 * 1.5


@given(st.lists(messages, max_size=200))
def test_without_limits_everything_goes(script: list[tuple[str, int, float]]) -> None:
    limiter = RateLimiter(NO_LIMITS)
    assert all(limiter.admit(msg_type, size, pause) for msg_type, size, pause in script)
    assert limiter.reset() is None
