"""What comes after the end of an execution, and where it is noted.

These are the tests of `app.managers.executions.history`.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.managers.executions import stragglers
from app.managers.executions.execution import ExecutionState
from app.managers.executions.history import ExecutionReader
from app.managers.executions.late_output import (
    MAX_STRETCHES,
    NEAR,
    LateOutput,
    display_id_in,
    may_straggle,
)
from app.managers.executions.results import output, result
from app.managers.log.entries import Position
from tests.managers.scripted import ScriptedKernel
from tests.support.messages import display, said_raw, stream
from tests.support.processes import eventually


def url(number: int, mime: str) -> str:
    return f"/outputs/{number}?mime={mime}"


# Where it is


@given(st.lists(st.integers(1, 5000), unique=True), st.lists(st.integers(1, 5000)))
def test_all_that_was_noted_is_read_and_in_order(own: list[int], updates: list[int]) -> None:
    late = LateOutput()
    for number in sorted(own):
        late.add(Position(number, 10 * number))
        late.add(Position(number, 10 * number))  # said again
    for number in updates:
        late.update(f"display {number % 7}", Position(number, 10 * number))
    stretches = list(late.stretches())
    read = [number for stretch in stretches for number in range(stretch.cursor, stretch.end)]
    assert read == sorted(set(read))
    newest = {number % 7: number for number in updates}
    assert {*own, *newest.values()} <= set(read)
    assert all(stretch.start == (stretch.cursor, 10 * stretch.cursor) for stretch in stretches)
    packed = msgspec.msgpack.encode(late)
    assert msgspec.msgpack.decode(packed, type=LateOutput) == late


def test_what_is_noted_is_bounded() -> None:
    late = LateOutput()
    for number in range(1, 200 * NEAR, 2 * NEAR):
        late.add(Position(number, number))
    assert len(late.own) == MAX_STRETCHES
    assert late.own[-1].end == number + 1


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import subprocess", True),
        ("os.system('echo x')", True),
        ("os.write(1, b'x')", True),
        ("from ctypes import CDLL", True),
        ("system('ls')", True),  # R
        ("print(1)\nfile.write('x')", False),
        ("solar_system = 'systematic'", False),
    ],
)
def test_code_that_seems_to_write_to_descriptors(code: str, expected: bool) -> None:
    assert may_straggle(code) is expected


def test_a_display_id_is_found() -> None:
    assert display_id_in(display({"text/plain": "x"}, "the id")) == "the id"
    assert display_id_in(display({"text/plain": "x"})) == ""
    assert display_id_in(display({"text/plain": '"display_id"'})) == ""
    assert display_id_in(stream('"display_id"')) == ""
    large = {"image/png": "A" * 100_000, "text/plain": '"transient" "display_id"'}
    assert display_id_in(display(large, "the id")) == "the id"
    assert display_id_in(display(large)) == ""
    first = b'{"transient": {"display_id": "x"}, "data": {"text/plain": "%s"}}' % (b"y" * 1000)
    assert display_id_in(said_raw("display_data", first)) == "x"
    for odd in (b'{"transient": {"display_id": 7}}', b'{"display_id"', b'["display_id"]'):
        assert display_id_in(said_raw("display_data", odd)) == ""


# Of a kernel


async def test_output_that_comes_after_the_end_is_part_of_the_result() -> None:
    kernel = ScriptedKernel()
    execution, other = kernel.run(), kernel.run()
    kernel.is_busy(execution)
    kernel.says(execution, "stream", name="stdout", text="early\n")
    kernel.replies(execution)
    kernel.is_idle(execution)
    ended = execution.last_seq
    kernel.finishes(other)
    kernel.says(execution, "stream", name="stdout", text="late\n")
    kernel.says(other, "stream", name="stdout", text="of the other\n")
    kernel.says(execution, "stream", name="stdout", text="later\n")
    found = await result(kernel.log, execution, url, 1000)
    assert [output["text"] for output in found.outputs] == ["early\n", "late\nlater\n"]
    assert (found.late_outputs, found.last_seq) == (1, ended)
    cut = await result(kernel.log, execution, url, 5)
    assert cut.late_outputs == 1


async def test_of_what_is_read_together_each_piece_counts() -> None:
    kernel = ScriptedKernel()
    execution, other = kernel.run(), kernel.run()
    tally = kernel.traffic.counters.from_kernels["iopub"]
    before = tally.messages
    with kernel.together():
        kernel.is_busy(execution)
        for number in range(3):
            kernel.says(execution, "stream", name="stdout", text=f"early {number}\n")
        kernel.is_idle(execution)
    kernel.replies(execution)
    assert tally.messages - before == 5
    before = tally.messages
    with kernel.together():
        kernel.is_busy(other)
        kernel.says(other, "stream", name="stdout", text="of the other\n")
        for number in range(3):
            kernel.says(execution, "stream", name="stdout", text=f"late {number}\n")
        kernel.says(other, "stream", name="stdout", text="of the other\n")

    assert tally.messages - before == 6
    kernel.is_idle(other)
    kernel.replies(other)
    found = await result(kernel.log, execution, url, 1000)
    early, late = ("".join(f"{word} {n}\n" for n in range(3)) for word in ("early", "late"))
    assert [output["text"] for output in found.outputs] == [early, late]
    found = await result(kernel.log, other, url, 1000)
    assert [output["text"] for output in found.outputs] == ["of the other\n" * 2]


async def test_of_what_prints_without_end_one_output_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = ScriptedKernel()
    execution, fetch = kernel.run(), ExecutionReader.fetch
    kernel.is_busy(execution)

    async def fetch_and_print(reader: ExecutionReader) -> Any:
        batch = await fetch(reader)
        kernel.says(execution, "stream", name="stdout", text="more")
        return batch

    kernel.says(execution, "stream", name="stdout", text="first")
    monkeypatch.setattr(ExecutionReader, "fetch", fetch_and_print)
    async with asyncio.timeout(5):
        found = await output(kernel.log, execution, 0)
    assert found.media_type == "text/plain; charset=utf-8"


async def test_late_output_may_clear_all_that_came_before() -> None:
    kernel = ScriptedKernel()
    execution = kernel.run()
    kernel.is_busy(execution)
    kernel.says(execution, "stream", name="stdout", text="early\n")
    kernel.replies(execution)
    kernel.is_idle(execution)
    kernel.says(execution, "clear_output", wait=True)
    kernel.says(execution, "stream", name="stdout", text="late\n")
    found = await result(kernel.log, execution, url, 1000)
    assert [output["text"] for output in found.outputs] == ["late\n"]
    assert found.late_outputs == 1


async def test_an_update_by_a_later_execution_changes_the_earlier_ones_output() -> None:
    kernel = ScriptedKernel()
    first, second, third = kernel.run(), kernel.run(), kernel.run()
    shown: dict[str, Any] = {"transient": {"display_id": "x"}, "metadata": {}}
    for execution, text in ((first, "one"), (second, "two")):
        kernel.is_busy(execution)
        kernel.says(execution, "display_data", data={"text/plain": text}, **shown)
        kernel.replies(execution)
        kernel.is_idle(execution)
    kernel.is_busy(third)
    for text in ("a", "b", "c"):
        kernel.says(third, "update_display_data", data={"text/plain": text}, **shown)
    kernel.replies(third)
    kernel.is_idle(third)
    for execution in (first, second):
        found = await result(kernel.log, execution, url, 1000)
        assert [output["data"] for output in found.outputs] == [{"text/plain": "c"}]
        assert found.late_outputs == 0
        assert execution.late is not None
        assert len(list(execution.late.stretches())) == 1
    assert kernel.executions.showing("x") == [first, second]
    assert kernel.executions.showing("y") == kernel.executions.showing(None) == []


async def test_what_is_forgotten_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.managers.messages.traffic.EXECUTIONS_REMEMBERED", 1)
    kernel = ScriptedKernel()
    for _ in range(3):
        execution = kernel.run()
        kernel.is_busy(execution)
        kernel.says(execution, "display_data", data={}, transient={"display_id": "x"})
        kernel.replies(execution)
        kernel.is_idle(execution)
    assert kernel.executions.showing("x") == [execution]


# What straggles


async def test_where_output_may_straggle_the_kernel_is_asked_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stragglers, "ANSWER_SECONDS", 60.0)
    kernel = ScriptedKernel()
    plain, child, behind = kernel.run("1"), kernel.run("os.system('echo x')"), kernel.run("2")
    kernel.finishes(plain)
    assert plain.state is ExecutionState.OK
    kernel.finishes(child)
    assert child.running
    assert not behind.sent
    took = child.seconds
    await kernel.executions.cancel(child)  # nothing of it runs any more
    for number in range(2):
        await eventually(lambda: len(kernel.probes) > number)  # noqa: B023
        kernel.says(child, "stream", name="stdout", text="x\n")
        kernel.answers_probe()
    assert child.state is ExecutionState.OK
    assert (child.seconds, child.steps, kernel.interrupts) == (took, [], 0)
    assert behind.sent
    found = await result(kernel.log, child, url, 1000)
    assert [output["text"] for output in found.outputs] == ["x\nx\n"]
    assert found.late_outputs == 0
    # What it has defined may be used by what follows: the kernel is asked, and nothing waited for.
    kernel.finishes(behind)
    for number in range(2):
        assert len(kernel.probes) == 3 + number
        assert behind.running
        kernel.answers_probe()
    assert behind.state is ExecutionState.OK


async def test_a_kernel_that_has_straggled_gets_time_to_do_so_from_then_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stragglers, "QUIET_SECONDS", 60.0)
    kernel = ScriptedKernel()
    first, second = kernel.run(), kernel.run()
    kernel.finishes(first)
    kernel.says(first, "stream", name="stdout", text="x\n")
    kernel.finishes(second)
    assert second.running
    assert kernel.probes == []


@pytest.mark.parametrize("code", ["1", "import subprocess"])
async def test_a_kernel_that_does_not_answer_holds_nobody_up(code: str) -> None:
    kernel = ScriptedKernel()
    kernel.traffic.tracker.straggling = 1
    execution = kernel.run(code)
    kernel.finishes(execution)
    await eventually(lambda: execution.ended)
    assert execution.state is ExecutionState.OK


async def test_who_leaves_the_kernel_tells_the_next_server_how_it_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stragglers, "QUIET_SECONDS", 0.05)
    kernel = ScriptedKernel()
    execution, held = kernel.run("import subprocess"), kernel.run()
    kernel.finishes(execution)
    kernel.traffic.leave()
    assert execution.state is ExecutionState.OK
    await asyncio.sleep(0.1)  # longer than it would have been waited for
    assert not held.sent
    assert kernel.probes == []


async def test_a_death_meanwhile_changes_nothing_of_how_it_ended() -> None:
    kernel = ScriptedKernel()
    execution = kernel.run("import subprocess")
    kernel.finishes(execution)
    await kernel.die()
    assert execution.state is ExecutionState.OK
