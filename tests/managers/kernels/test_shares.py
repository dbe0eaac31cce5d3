"""Places for kernels: exact whoever asks, and none is lost. Without a real kernel."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from app.managers.errors import TooManyKernels
from app.managers.kernels.kernel import Kernel
from app.managers.kernels.shares import KernelShares
from app.managers.kernels.table import KernelTable
from app.managers.limits.errors import (
    BeyondLimit,
    ExecutionsLimit,
    KernelsLimit,
    LimitReached,
)
from app.managers.limits.limits import LimitPolicy
from app.managers.limits.shares import Shares
from app.managers.owners.ownership import Ownership


@dataclass(eq=False)
class Known:
    """What counts of a kernel."""

    id: str
    ownership: Ownership
    counts: bool = True
    executions: Any = field(default_factory=lambda: SimpleNamespace(waiting=0))
    traffic: Any = field(
        default_factory=lambda: SimpleNamespace(
            log=SimpleNamespace(bytes=10), submissions=SimpleNamespace(executions_held=0)
        )
    )


class World:
    def __init__(self, max_kernels: int = 0, **limits: Any) -> None:
        self.table = KernelTable()
        self.shares = KernelShares(self.table, max_kernels, Shares(LimitPolicy(limits)))

    @contextmanager
    def place(self, kernel_id: str, ownership: Ownership) -> Iterator[None]:
        """A place of a server that is the only one: nothing of it waits."""
        place = self.shares.place(kernel_id, ownership)
        _at_once(place.__aenter__())
        try:
            yield
        finally:
            _at_once(place.__aexit__(None, None, None))

    def add(self, kernel_id: str, owner: str = "anna", **more: Any) -> Known:
        kernel = Known(kernel_id, Ownership(owner), **more)
        self.table[kernel_id] = cast(Kernel, kernel)
        return kernel


def _at_once(work: Coroutine[Any, Any, Any]) -> None:
    with pytest.raises(StopIteration):
        work.send(None)


def test_the_last_place_is_taken_once() -> None:
    world = World(kernels=2)
    world.add("1")
    with world.place("2", Ownership("anna")):
        assert world.shares.kernels_of("anna") == 2
        with pytest.raises(KernelsLimit), world.place("3", Ownership("anna")):
            pass
        with world.place("4", Ownership("ben")):
            assert world.shares.kernels_of("ben") == 1
        world.add("2")  # it is there now, and counts once
        assert world.shares.kernels_of("anna") == 2
    assert world.shares.kernels_of("anna") == 2
    assert world.shares.owners == {"anna"}


def test_dead_kernels_do_not_count_and_come_back_into_a_place() -> None:
    world = World(kernels=1)
    world.add("1", counts=False)
    with world.place("1", Ownership("anna")):
        with world.place("1", Ownership("anna")):  # a second restart meanwhile
            pass
        with pytest.raises(KernelsLimit), world.place("2", Ownership("anna")):
            pass
    world.add("2")
    with pytest.raises(KernelsLimit), world.place("1", Ownership("anna")):
        pass


def test_one_that_was_ready_has_an_id_of_its_own_and_counts_once() -> None:
    world = World(max_kernels=2, kernels=2)
    with world.place("asked", Ownership("anna")):
        world.add("warm")
        world.shares.taken("asked")
        assert world.shares.kernels_of("anna") == 1
        with world.place("other", Ownership("anna")):
            pass


def test_the_server_s_bound_comes_first_and_no_kernel_at_all_is_403() -> None:
    world = World(max_kernels=1, kernels=1)
    world.add("1")
    with pytest.raises(TooManyKernels), world.place("2", Ownership("anna")):
        pass
    with pytest.raises(BeyondLimit), World(kernels=0).place("1", Ownership("anna")):
        pass


def test_executions_that_wait_count_at_all_of_an_owner_s_kernels() -> None:
    world = World(queued_executions=3)
    world.add("1").executions.waiting = 1
    world.add("2").traffic.submissions.executions_held = 1
    world.add("3", "ben").executions.waiting = 5
    world.shares.check_queue(Ownership("anna"))
    third = world.add("4")
    third.executions.waiting = 1
    with pytest.raises(ExecutionsLimit) as error:
        world.shares.check_queue(Ownership("anna"))
    assert error.value.details == {"limit": "queued_executions", "value": 3, "usage": 3}
    World().shares.check_queue(Ownership("anna"))
    assert world.shares.log_bytes_of("anna") == 30


class Lives(RuleBasedStateMachine):
    """Kernels of two owners start, fail, die, are restarted, claimed and removed, in any order."""

    LIMIT = 3

    def __init__(self) -> None:
        super().__init__()
        self.world = World(kernels=self.LIMIT)
        self.starting: dict[str, tuple[str, ExitStack]] = {}
        self.numbers = 0

    def _reserve(self, kernel_id: str, owner: str) -> bool:
        stack = ExitStack()
        used = self.world.shares.kernels_of(owner)
        try:
            stack.enter_context(self.world.place(kernel_id, Ownership(owner)))
        except LimitReached:
            assert used == self.LIMIT
            return False
        assert used < self.LIMIT
        self.starting[kernel_id] = (owner, stack)
        return True

    @rule(owner=st.sampled_from(["anna", "ben"]))
    def ask(self, owner: str) -> None:
        self.numbers += 1
        self._reserve(f"{self.numbers}", owner)

    @rule(data=st.data(), outcome=st.sampled_from(["started", "claimed", "failed"]))
    def finish(self, data: st.DataObject, outcome: str) -> None:
        if not self.starting:
            return
        kernel_id = data.draw(st.sampled_from(sorted(self.starting)))
        owner, stack = self.starting.pop(kernel_id)
        known = self.world.table.get(kernel_id)
        if known is not None:
            cast(Known, known).counts = outcome != "failed"
        elif outcome == "started":
            self.world.add(kernel_id, owner)
        elif outcome == "claimed":
            self.world.add(f"warm-{kernel_id}", owner)
            self.world.shares.taken(kernel_id)
            assert self.world.shares.kernels_of(owner) <= self.LIMIT
        stack.close()

    @rule(data=st.data(), turn=st.sampled_from(["dies", "goes", "is restarted"]))
    def turn(self, data: st.DataObject, turn: str) -> None:
        if not self.world.table:
            return
        kernel_id = data.draw(st.sampled_from(sorted(self.world.table)))
        kernel = cast(Known, self.world.table[kernel_id])
        if turn == "dies":
            kernel.counts = False
        elif turn == "goes" and kernel_id not in self.starting:
            del self.world.table[kernel_id]
        elif turn == "is restarted" and not kernel.counts and kernel_id not in self.starting:
            self._reserve(kernel_id, kernel.ownership.owner)

    @invariant()
    def what_counts_is_what_there_is(self) -> None:
        for owner in ("anna", "ben"):
            living = {
                kernel.id
                for kernel in self.world.table.values()
                if kernel.ownership.owner == owner and kernel.counts
            }
            starting = {key for key, (whose, _) in self.starting.items() if whose == owner}
            assert self.world.shares.kernels_of(owner) == len(living | starting) <= self.LIMIT

    def teardown(self) -> None:
        for _, stack in self.starting.values():
            stack.close()
        assert not self.world.shares._reserved


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
