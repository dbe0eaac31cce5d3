"""Outputs in the form of notebooks, made of messages."""

from __future__ import annotations

from typing import Any

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.managers.executions.outputs import INLINE_BYTES, MAX_OUTPUTS, Cut, OutputAssembler
from app.managers.executions.shortening import LEAST_ERROR, size_of
from app.protocol.messages import Message
from tests.support.messages import display, said, said_raw, stream

PLENTY = 2**24
Output = dict[str, Any]


def url(number: int, mime: str) -> str:
    return f"/outputs/{number}?mime={mime}"


def assembled(messages: list[Message], max_bytes: int = PLENTY) -> OutputAssembler:
    assembler = OutputAssembler(url, max_bytes)
    for message in messages:
        assembler.add(message)
    return assembler


def outputs(*messages: Message) -> list[Output]:
    """What is made of the messages, checked to be valid in a notebook."""
    assembler = assembled(list(messages))
    assert assembler.cut is None
    _validate(assembler.outputs)
    return assembler.outputs


def _validate(made: list[Output]) -> None:
    cell = nbformat.v4.new_code_cell(outputs=[nbformat.from_dict(output) for output in made])
    nbformat.validate(nbformat.v4.new_notebook(cells=[cell]))


def text(value: str, name: str = "stdout") -> Output:
    return {"output_type": "stream", "name": name, "text": value}


def shown(value: str) -> Output:
    return {"output_type": "display_data", "data": {"text/plain": value}, "metadata": {}}


def show(value: str, display_id: str | None = None) -> Message:
    return display({"text/plain": value}, display_id)


def update(value: str, display_id: str) -> Message:
    return display({"text/plain": value}, display_id, "update_display_data")


def clear(*, wait: bool) -> Message:
    return said("clear_output", {"wait": wait})


def test_streams_of_one_name_that_follow_each_other_are_merged() -> None:
    messages = [stream("a"), stream("b"), stream("c", "stderr"), stream("d"), stream("e")]
    assert outputs(*messages) == [text("ab"), text("c", "stderr"), text("de")]


def test_a_result_and_an_error() -> None:
    result = said("execute_result", {"data": {"text/plain": "42"}, "execution_count": 7})
    error = said("error", {"ename": "E", "evalue": "no", "traceback": ["one", "two"]})
    assert outputs(result, error) == [
        {
            "output_type": "execute_result",
            "data": {"text/plain": "42"},
            "metadata": {},
            "execution_count": 7,
        },
        {"output_type": "error", "ename": "E", "evalue": "no", "traceback": ["one", "two"]},
    ]


def test_what_is_no_output_makes_none_and_does_not_part_a_stream() -> None:
    status = said("status", {"execution_state": "busy"})
    comm = said("comm_open", {"comm_id": "x", "target_name": "y", "data": {}})
    code = said("execute_input", {"code": "1", "execution_count": 1})
    assert outputs(status, code, stream("a"), comm, stream("b")) == [text("ab")]


def test_an_update_changes_every_output_with_its_display_id() -> None:
    messages = [show("1", "x"), show("2", "y"), show("3", "x"), update("new", "x")]
    assert outputs(*messages) == [shown("new"), shown("2"), shown("new")]


def test_an_update_of_a_display_that_is_not_there_changes_nothing() -> None:
    assert outputs(show("1"), update("new", "x")) == [shown("1")]


def test_output_is_cleared_at_once() -> None:
    assert outputs(stream("a"), show("1"), clear(wait=False)) == []
    assert outputs(stream("a"), clear(wait=False), stream("b")) == [text("b")]


def test_output_is_cleared_when_the_next_one_comes() -> None:
    assert outputs(stream("a"), clear(wait=True)) == [text("a")]
    assert outputs(stream("a"), clear(wait=True), stream("b")) == [text("b")]
    status = said("status", {"execution_state": "idle"})
    assert outputs(stream("a"), clear(wait=True), status) == [text("a")]
    assert outputs(stream("a"), clear(wait=True), clear(wait=False)) == []


def test_an_update_is_no_output_that_clears() -> None:
    messages = [show("1", "x"), clear(wait=True), update("2", "x")]
    assert outputs(*messages) == [shown("2")]


def test_what_was_cleared_is_not_updated() -> None:
    messages = [show("1", "x"), clear(wait=False), show("2", "y"), update("3", "x")]
    assert outputs(*messages) == [shown("2")]


def test_a_counter_that_clears_itself_stays_one_output() -> None:
    messages = []
    for number in range(100):
        messages += [clear(wait=True), stream(str(number))]
    assert outputs(*messages) == [text("99")]


def test_large_data_is_replaced_by_its_address_and_its_size_told() -> None:
    large, small = "x" * (INLINE_BYTES + 1), "x" * INLINE_BYTES
    messages = [stream("a"), display({"image/png": large, "text/html": small, "text/plain": "p"})]
    assert outputs(*messages)[1] == {
        "output_type": "display_data",
        "data": {
            "image/png": "/outputs/1?mime=image/png",
            "text/html": small,
            "text/plain": "p",
        },
        "metadata": {"kernelkeep": {"references": {"image/png": INLINE_BYTES + 1}}},
    }


def test_an_update_may_be_large_too() -> None:
    messages = [show("1", "x"), update("y" * (INLINE_BYTES + 1), "x")]
    assert outputs(*messages)[0]["data"] == {"text/plain": "/outputs/0?mime=text/plain"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"name": "stdout", "text": ["a", "b"]}', "ab"),
        (b'{"name": "stdout", "text": "\\ud800x"}', "�x"),
        (b'{"name": "stdout", "text": NaN}', ""),
        (b'{"name": "stdout"}', ""),
        (b"[]", ""),
        (b"not JSON", ""),
    ],
)
def test_a_stream_whose_content_is_odd(content: bytes, expected: str) -> None:
    assert outputs(said_raw("stream", content)) == [text(expected)]


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        b'{"data": null, "metadata": null, "transient": null}',
        b'{"data": [], "metadata": 1, "transient": {"display_id": 7}}',
    ],
)
def test_a_display_whose_content_is_odd_shows_nothing(content: bytes) -> None:
    empty = {"output_type": "display_data", "data": {}, "metadata": {}}
    assert outputs(said_raw("display_data", content)) == [empty]


def test_numbers_that_are_not_json_are_null() -> None:
    message = said_raw("display_data", b'{"data": {"application/json": [NaN, -Infinity, 1e999]}}')
    assert outputs(message)[0]["data"] == {"application/json": [None, None, None]}


# What does not fit


def test_of_a_long_stream_the_head_and_the_tail_are_kept() -> None:
    assembler = assembled([stream(f"{number:04}\n") for number in range(1000)], max_bytes=100)
    head, notice, tail = assembler.outputs
    assert head == text("".join(f"{number:04}\n" for number in range(10)))
    assert tail == text("".join(f"{number:04}\n" for number in range(990, 1000)))
    assert (notice["name"], "4900 bytes" in notice["text"]) == ("stderr", True)
    assert assembler.cut == Cut(0, 4900)
    _validate(assembler.outputs)


def test_one_text_that_is_too_long_is_cut_between_characters() -> None:
    assembler = assembled([stream("€" * 1000)], max_bytes=100)  # three bytes each
    head, _, tail = assembler.outputs
    assert (head, tail) == (text("€" * 16), text("€" * 17))
    assert assembler.cut == Cut(0, 3000 - 33 * 3)


def test_a_stream_that_just_fits_is_not_cut() -> None:
    assembler = assembled([stream("x" * 60), stream("y" * 40)], max_bytes=100)
    assert assembler.outputs == [text("x" * 60 + "y" * 40)]
    assert assembler.cut is None


def test_whole_outputs_are_left_out_between_the_head_and_the_tail() -> None:
    assembler = assembled([show(str(number)) for number in range(100)], max_bytes=2000)
    made = assembler.outputs
    values = [output["data"]["text/plain"] for output in made if "data" in output]
    cut = assembler.cut
    assert cut is not None
    assert cut.outputs == 100 - len(values)
    assert values[0] == "0"
    assert values[-1] == "99"
    assert sum("data" not in output for output in made) == 1
    assert sum(size_of(output) for output in made if "data" in output) <= 2000
    assert len(values) > 20


def test_an_output_that_was_left_out_is_not_updated() -> None:
    messages = [show("first", "a"), *(show("x" * 50, "b") for _ in range(50)), show("last", "c")]
    assembler = assembled([*messages, update("new", "b")], max_bytes=1000)
    values = [output["data"]["text/plain"] for output in assembler.outputs if "data" in output]
    assert values[0] == "first"
    assert values[-1] == "last"
    assert set(values[1:-1]) == {"new"}


def test_updates_cannot_make_it_grow_without_end() -> None:
    messages = [show("x", str(number)) for number in range(10)]
    grown = [update("y" * 1000, str(number)) for number in range(10)]
    assembler = assembled([*messages, *grown], max_bytes=4000)
    assert sum(len(str(output)) for output in assembler.outputs) < 6000
    assert assembler.cut is not None


def test_nothing_is_kept_when_nothing_is_asked_for() -> None:
    assembler = assembled([stream("abc"), show("1")], max_bytes=0)
    assert [output["output_type"] for output in assembler.outputs] == ["stream"]
    cut = assembler.cut
    assert cut is not None
    assert cut.outputs == 2


def test_what_was_cut_is_forgotten_when_all_is_cleared() -> None:
    assembler = assembled([stream("x" * 1000), clear(wait=False), stream("y")], max_bytes=100)
    assert assembler.outputs == [text("y")]
    assert assembler.cut is None


def test_the_number_of_outputs_is_bounded_however_small_they_are() -> None:
    names = ("stdout", "stderr")
    messages = [stream("x", names[number % 2]) for number in range(MAX_OUTPUTS + 100)]
    assembler = assembled(messages)
    assert len(assembler.outputs) == MAX_OUTPUTS + 1
    assert assembler.cut == Cut(100, 100)


def failure(ename: str, evalue: str, *lines: str) -> Message:
    return said("error", {"ename": ename, "evalue": evalue, "traceback": list(lines)})


def result_of(value: str, **more: str) -> Message:
    return said("execute_result", {"data": {"text/plain": value, **more}, "execution_count": 1})


@pytest.mark.parametrize(
    "message",
    [failure("E", "why", "line " * 100), result_of("r" * 300), show("d" * 300), stream("s" * 300)],
)
def test_nothing_is_cut_where_all_fits(message: Message) -> None:
    """Not even of one that is larger than what is kept of the head."""
    (whole,) = outputs(message)
    size = len(whole["text"]) if "text" in whole else size_of(whole)
    assembler = assembled([message], max_bytes=size)
    assert (assembler.outputs, assembler.cut) == ([whole], None)
    assembler = assembled([stream("first"), message], max_bytes=size + 5)
    assert assembler.cut is None
    assembler = assembled([message], max_bytes=size - 1)
    assert assembler.cut is not None


@pytest.mark.parametrize("max_bytes", [0, 100, 1000, 3000])
def test_of_an_error_the_name_and_the_end_of_its_traceback_stay(max_bytes: int) -> None:
    error = failure("KeyError", "the cause" * 200, *(f"line {n}" for n in range(400)), "the end")
    log = [stream(f"{number:04}\n") for number in range(1000)]
    for messages in ([error], [*log, error], [error, *log], [*log, error, *log]):
        assembler = assembled(messages, max_bytes=max_bytes)
        (told,) = (output for output in assembler.outputs if output["output_type"] == "error")
        assert told["ename"] == "KeyError"
        assert told["evalue"].startswith("the cause")
        assert told["traceback"][-1] == "the end"
        kept = [output for output in assembler.outputs if "kernelkeep: " not in str(output)]
        sizes = [len(o["text"]) if "text" in o else size_of(o) for o in kept]
        assert sum(sizes) <= max_bytes + LEAST_ERROR
        whole = size_of(outputs(error)[0]) + 5 * 1000 * (messages.count(log[0]))
        cut = assembler.cut
        assert cut is not None
        assert cut == Cut(0, whole - sum(sizes)) or max_bytes < LEAST_ERROR
        _validate(assembler.outputs)


def test_a_short_error_stays_whole_in_however_little_room() -> None:
    error = failure("KeyError", "small", "one line")
    assembler = assembled([error], max_bytes=0)
    assert assembler.outputs == outputs(error)
    assert assembler.cut is None


def test_of_several_errors_the_newest_stays() -> None:
    errors = [failure("E", str(number), "x" * 500) for number in range(20)]
    assembler = assembled([*errors, stream("x" * 5000)], max_bytes=1000)
    told = [output["evalue"] for output in assembler.outputs if "evalue" in output]
    assert told == ["19"]
    assembler = assembled([*errors, stream("x" * 5000), *errors], max_bytes=1000)
    told = [output["evalue"] for output in assembler.outputs if "evalue" in output]
    assert told[-1] == "19"


def test_a_result_that_does_not_fit_is_shortened_and_can_be_fetched() -> None:
    log = [stream("x" * 2000)]
    result = result_of("begin" + "r" * 5000 + "end", **{"image/png": "A" * 4000})
    head, notice, short = assembled([*log, result], max_bytes=1000).outputs
    assert head == text("x" * 500)
    assert "left out" in notice["text"]
    assert short["data"]["image/png"] == "/outputs/1?mime=image/png"
    assert short["data"]["text/plain"].startswith("begin")
    assert short["data"]["text/plain"].endswith("end")
    assert short["metadata"]["kernelkeep"] == {
        "references": {"image/png": 4000},
        "shortened": {"text/plain": 5008},
    }
    assert size_of(short) <= 500


def test_an_image_alone_goes_by_reference() -> None:
    assembler = assembled([display({"image/png": "A" * 4000, "text/plain": "Axes"})], 1000)
    _, shown_ = assembler.outputs
    assert shown_["data"] == {"image/png": "/outputs/0?mime=image/png", "text/plain": "Axes"}
    cut = assembler.cut
    assert cut is not None
    assert cut.outputs == 0


def test_an_update_of_what_was_shortened_is_shown_whole_if_it_fits() -> None:
    messages = [show("x" * 5000, "a"), update("new", "a")]
    assert assembled(messages, max_bytes=1000).outputs[-1] == shown("new")


@given(
    st.lists(
        st.tuples(st.sampled_from(["stdout", "stderr", "show"]), st.text(max_size=40)), max_size=60
    ),
    st.integers(0, 600),
)
def test_what_is_kept_and_what_was_cut_is_all_there_was(
    said_: list[tuple[str, str]], max_bytes: int
) -> None:
    messages = [show(text) if name == "show" else stream(text, name) for name, text in said_]
    assembler, whole = assembled(messages, max_bytes), assembled(messages)
    made, cut = assembler.outputs, assembler.cut
    if cut is None:
        assert made == whole.outputs
        return
    notice = next(o for o in made if "kernelkeep: " in o.get("text", ""))
    kept = [output for output in made if output is not notice]
    size = sum(len(str(o.get("text", "")).encode()) for o in kept)
    assert size <= max_bytes + 8
    texts = sum(len(o["text"].encode()) for o in whole.outputs if "text" in o)
    displays = sum("data" in o for o in whole.outputs) - sum("data" in o for o in kept)
    assert cut.bytes >= texts - size
    assert displays <= cut.outputs
