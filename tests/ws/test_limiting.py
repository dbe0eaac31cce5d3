"""What the rate limit makes of a log's entries, without a connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.managers.log.message_log import Entry
from app.managers.telemetry.counters import Tally
from app.protocol import v1
from app.protocol.compose import make_message
from app.protocol.messages import Message
from app.ws.limiting import OutputLimit
from app.ws.rate_limits import LIMITED_TYPES, RateLimits

# Three messages a minute, so that nothing leaves the window during a test.
LIMITS = RateLimits(iopub_msg_rate_limit=0.05, iopub_data_rate_limit=0, rate_limit_window=60)

IDLE = ("iopub", "status", {"execution_state": "idle"})
BUSY = ("iopub", "status", {"execution_state": "busy"})
STREAM = ("iopub", "stream", {"name": "stdout", "text": "x"})
OTHERS = [
    IDLE,
    BUSY,
    ("iopub", "execute_result", {"data": {}}),
    ("iopub", "error", {"ename": "E"}),
    ("iopub", "comm_msg", {"data": {}}),
    ("iopub", "clear_output", {"wait": True}),
    ("shell", "execute_reply", {"status": "ok"}),
    ("stdin", "input_request", {"prompt": "?"}),
    # Not from iopub, so not output, whatever it calls itself.
    ("shell", "stream", {"name": "stdout", "text": "x"}),
]
LIMITED: list[tuple[str, str, dict[str, Any]]] = [
    ("iopub", name, {"data": {}}) for name in sorted(LIMITED_TYPES)
]
Kind = tuple[str, str, dict[str, Any]]


def entries(kinds: Sequence[Kind], parent: str = "p", first: int = 1) -> list[Entry]:
    made = []
    for number, (channel, msg_type, content) in enumerate(kinds, first):
        header = f'{{"msg_id": "{parent}"}}'.encode()
        message = make_message(channel, msg_type, content, session="kernel", parent=header)
        made.append(Entry(number, 0, message, None, size=len(message.frame)))
    return made


def limit(live_from: int = 0) -> OutputLimit:
    return OutputLimit(LIMITS, live_from, Tally())


def texts(messages: Sequence[Message]) -> list[str]:
    """The texts of the notices among them."""
    streams = [m.content() for m in messages if m.msg_type == "stream"]
    return [stream["text"] for stream in streams if stream.get("name") == "stderr"]


def test_what_is_held_back_is_announced_once_and_counted_before_idle() -> None:
    messages = limit().select(entries([BUSY, *[STREAM] * 10, IDLE]))
    assert [m.msg_type for m in messages] == ["status", *["stream"] * 5, "status"]
    notice, count = texts(messages)
    assert notice.startswith("IOPub message rate exceeded.\n")
    assert count.startswith("kernelkeep: 7 messages (")
    assert [m.msg_type for m in messages[-2:]] == ["stream", "status"]


def test_it_goes_on_from_batch_to_batch() -> None:
    output = limit()
    batches = [output.select(entries([STREAM] * 2)) for _ in range(4)]
    assert [len(batch) for batch in batches] == [2, 2, 0, 0]  # the fourth is the notice
    assert "5 messages" in texts(output.select(entries([IDLE])))[0]


def test_the_notices_belong_to_the_request_whose_output_is_held_back() -> None:
    """An idle of somebody else's request ends the episode; the person looks at the first cell."""
    output = limit()
    messages = output.select(
        [*entries([STREAM] * 10, "the flood"), *entries([IDLE], "somebody else's", first=20)]
    )
    notices = [m for m in messages if m.msg_type == "stream"][3:]
    assert [m.parent.msg_id for m in notices] == ["the flood", "the flood"]
    assert messages[-1].parent.msg_id == "somebody else's"


def test_the_notices_carry_the_kernels_session() -> None:
    messages = limit().select(entries([*[STREAM] * 10, IDLE]))
    assert {m.header.session for m in messages} == {"kernel"}


def test_a_replay_is_not_limited_and_does_not_count() -> None:
    output = limit(live_from=101)
    assert len(output.select(entries([STREAM] * 100))) == 100
    live = output.select(entries([STREAM] * 10, first=101))
    assert len(live) == 4
    assert live[-1].content()["name"] == "stderr"


def test_an_idle_in_a_replay_begins_nothing_anew() -> None:
    output = limit(live_from=50)
    assert len(output.select(entries([STREAM] * 10, first=50))) == 4
    assert output.select(entries([IDLE], first=1))[0].msg_type == "status"
    assert texts(output.select(entries([IDLE], first=60))) != []


def test_what_is_held_back_is_counted_for_the_metrics() -> None:
    tally = Tally()
    streams = entries([STREAM] * 10)
    OutputLimit(LIMITS, 0, tally).select(streams)
    assert tally.messages == 7
    assert tally.bytes == sum(len(entry.message.frame) for entry in streams[3:])


@pytest.mark.parametrize("kind", OTHERS, ids=str)
def test_nothing_else_is_held_back_in_the_middle_of_it(kind: Kind) -> None:
    output = limit()
    output.select(entries([STREAM] * 10))
    others = entries([kind] * 10)
    messages = output.select(others)
    assert [m for m in messages if m.header.session == "kernel" and m in _of(others)] == _of(others)


def _of(made: Sequence[Entry]) -> list[Message]:
    return [entry.message for entry in made]


@given(st.lists(st.lists(st.sampled_from(OTHERS + LIMITED), max_size=20), max_size=10))
def test_order_is_kept_and_only_the_three_types_are_left_out(script: list[list[Kind]]) -> None:
    output = limit()
    batches = [entries(kinds) for kinds in script]
    sent = [message for batch in batches for message in output.select(batch)]
    said = [entry.message for batch in batches for entry in batch]
    known = set(map(id, said))
    passed_on = [message for message in sent if id(message) in known]
    gone = set(map(id, passed_on))
    assert passed_on == [message for message in said if id(message) in gone]
    held = [message for message in said if id(message) not in gone]
    assert {(m.channel, m.msg_type) for m in held} <= {("iopub", name) for name in LIMITED_TYPES}
    told = sum(int(text.split()[1]) for text in texts(sent) if text.startswith("kernelkeep: "))
    after = output.select(entries([IDLE]))
    told += sum(int(text.split()[1]) for text in texts(after))
    assert told == len(held)


def test_large_output_counts_whole_although_it_is_mapped_and_is_let_go_of() -> None:
    content = memoryview(b'{"text":"%s"}' % (b"x" * 10_000))
    header = b'{"msg_type":"stream","session":"kernel"}'
    frame, bounds = v1.encode("iopub", [header, b'{"msg_id":"p"}', b"{}", content])
    message = Message("iopub", frame[: bounds[4]])
    message.rest = (content,)
    large = Entry(1, 0, message, None, size=len(frame))
    tally = Tally()
    output = OutputLimit(RateLimits(0, iopub_data_rate_limit=100, rate_limit_window=60), 0, tally)

    messages = output.select([large])

    assert (tally.messages, tally.bytes) == (1, len(frame))
    assert texts(messages)[0].startswith("IOPub data rate exceeded.\n")
    assert messages[0].parent.msg_id == "p"
    assert output._last_held is not None
    assert output._last_held.rest == ()
    count = output.select(entries([IDLE], first=2))[0]
    assert f"1 messages ({len(frame)} bytes)" in count.content()["text"]
    assert (count.parent.msg_id, count.header.session) == ("p", "kernel")
