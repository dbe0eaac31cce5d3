"""Executions as the registry keeps them: the next server knows all that this one knew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from app.managers.executions.execution import Execution, ExecutionState
from app.managers.executions.tracker import ExecutionTracker
from app.managers.handover.executions import RegisteredExecutions, restored
from app.managers.handover.registry import Registry
from app.managers.handover.store import ExecutionRecord
from app.managers.log.entries import Position

# What holds for this process only, or is told by the rest.
NOT_KEPT = {"on_end", "_began", "_took", "_why"}


class _Registry:
    """Takes what is to be stored."""

    def __init__(self) -> None:
        self.records: list[ExecutionRecord] = []
        self.forgotten: list[str] = []
        self.asked_for_in: list[int] = []
        self.term = 1

    def term_of(self, _kernel: str) -> int:
        return self.term

    def note(self, _kernel: str, _execution: str, make: Callable[[], ExecutionRecord]) -> None:
        self.records.append(make())

    def forget(self, _kernel: str, execution: str) -> None:
        self.forgotten.append(execution)

    async def execution_stored(self, _kernel: str, _execution: str, term: int) -> None:
        self.asked_for_in.append(term)


def kept(execution: Execution) -> Execution:
    registry = _Registry()
    RegisteredExecutions(cast(Registry, registry), "kernel").changed(execution)
    (record,) = registry.records
    return restored(record)


def fields(execution: Execution) -> dict[str, Any]:
    names = set(Execution.__slots__) - NOT_KEPT
    return {name: getattr(execution, name) for name in names}


def test_one_that_waits_is_known_as_it_was() -> None:
    execution = Execution(
        *("id", "session", Position(7, 700)),
        timeout=5.0,
        stop_on_error=True,
        if_generation=2,
        queue="a",
        caller="1.1.1.1",
    )
    execution.held = (b"header", b"{}", b"{}", b"content")
    found = kept(execution)
    assert fields(found) == fields(execution)
    assert found.in_queue_of(execution)


def test_one_that_runs_is_known_as_it_was() -> None:
    execution = Execution("id", "session", Position(7, 700))
    execution.on_sent(Position(8, 800))
    execution.generation, execution.first_after_restart = 3, True
    execution.on_busy(Position(9, 900))
    execution.take_step("interrupt", "It was interrupted", 9)
    found = kept(execution)
    assert found.state is ExecutionState.RUNNING
    assert fields(found) == fields(execution)


def test_an_id_that_is_used_again_gets_a_later_number() -> None:
    registry = _Registry()
    tracker = ExecutionTracker(cast(Any, None), 8)
    tracker.store = RegisteredExecutions(cast(Registry, registry), "kernel")
    for name in "aba":
        tracker.add(Execution(name, "session", Position(7, 700)))
    assert [one.id for one in tracker] == ["b", "a"]
    assert [(one.id, one.number) for one in registry.records] == [("a", 1), ("b", 2), ("a", 3)]
    assert registry.forgotten == ["a"]


async def test_nothing_is_stored_in_a_later_term() -> None:
    """The kernel was another replica's meanwhile, or is, and may be here anew."""
    registry = _Registry()
    store = RegisteredExecutions(cast(Registry, registry), "kernel")
    first, second = (Execution(name, "session", Position(7, 700)) for name in "ab")
    store.changed(first)
    store.changed(second)
    store.forgotten(first)
    registry.term = 2
    store.changed(second)
    store.forgotten(second)
    assert [one.id for one in registry.records] == ["a", "b"]
    assert registry.forgotten == ["a"]
    await store.execution_stored(second)
    assert registry.asked_for_in == [1]
