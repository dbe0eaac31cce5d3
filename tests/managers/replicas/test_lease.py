"""The lease: good only while no other replica can have taken a kernel, in every order of events."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from app.keeper.terms import Terms as KeepersTerms
from app.managers.replicas.lease import Lease, Standing

SECONDS = 10.0


def test_a_lease_counts_from_before_its_renewal_was_sent() -> None:
    lease = Lease(SECONDS)
    assert lease.every == 2.0
    assert lease.standing(0.0) is Standing.NONE
    lease.renewed(sent=100.0, now=103.0)
    assert lease.standing(109.4) is Standing.GOOD
    assert lease.standing(109.5) is Standing.OVER
    lease.lost()
    assert lease.standing(104.0) is Standing.NONE


def test_an_answer_that_comes_late_takes_nothing_back() -> None:
    lease = Lease(SECONDS)
    lease.renewed(sent=104.0, now=104.1)
    lease.renewed(sent=100.0, now=104.2)
    assert lease.is_good(113.0)


def test_a_replica_declares_others_dead_only_when_it_has_been_steady() -> None:
    lease = Lease(SECONDS)
    assert not lease.may_bury(0.0)
    for second in range(100, 111):
        lease.renewed(sent=second, now=second)
    assert not lease.may_bury(109.9)
    assert lease.may_bury(110.0)
    assert not lease.may_bury(130.0)  # the registry was away
    lease.renewed(sent=130.0, now=130.0)
    assert not lease.may_bury(131.0)


def test_an_answer_that_is_too_late_to_be_of_use_leaves_the_lease_over() -> None:
    lease = Lease(SECONDS)
    lease.renewed(sent=100.0, now=120.0)
    assert lease.standing(120.0) is Standing.OVER
    assert not lease.may_bury(120.0)


class Message(NamedTuple):
    replica: int
    sent: float


class Replicas(RuleBasedStateMachine):
    """Three replicas, one registry, one keeper: any of them may be slow, and so may any message.

    The registry here does what the statements of `membership.py` do, one at a time, as their locks
    have them. A replica that is stopped is one that does nothing for a while; what it does next it
    does with what it knew before.
    """

    requests = Bundle("requests")
    answers = Bundle("answers")

    @initialize()
    def begin(self) -> None:
        self.now = 1000.0
        self.leases = [Lease(SECONDS) for _ in range(3)]
        self.expires: dict[int, float] = {}
        self.joined: dict[int, float] = {}
        self.kernels: dict[str, tuple[int | None, int]] = {"a": (None, 0), "b": (None, 0)}
        self.believed: list[dict[str, int]] = [{}, {}, {}]  # terms, as each replica knows them
        self.keeper = KeepersTerms()
        self.wrote: defaultdict[tuple[str, int], set[int]] = defaultdict(set)
        self.obeyed: defaultdict[tuple[str, int], set[int]] = defaultdict(set)
        self.highest: defaultdict[str, int] = defaultdict(int)

    @rule(seconds=st.floats(0.0, 25.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(target=requests, replica=st.integers(0, 2))
    def send_renewal(self, replica: int) -> Message:
        return Message(replica, self.now)

    @rule(target=answers, request=requests)
    def renewal_arrives(self, request: Message) -> tuple[Message, bool]:
        alive = request.replica in self.expires
        if alive:
            self.expires[request.replica] = self.now + SECONDS
        return request, alive

    @rule(answer=answers)
    def answer_arrives(self, answer: tuple[Message, bool]) -> None:
        request, alive = answer
        # A replica waits for the answer to one renewal before it sends the next, and no answer
        # outlives the connection on which the replica then joins again.
        if request.sent < self.joined.get(request.replica, 0.0):
            return
        if alive:
            self.leases[request.replica].renewed(request.sent, self.now)
        elif request.replica not in self.expires:
            self.leases[request.replica].lost()
            self.believed[request.replica].clear()

    @rule(replica=st.integers(0, 2))
    def join(self, replica: int) -> None:
        if self.leases[replica].standing(self.now) is not Standing.NONE:
            return
        self.believed[replica].clear()
        self.expires[replica] = self.now + SECONDS
        self.joined[replica] = self.now
        self.leases[replica].renewed(self.now, self.now)

    @rule(replica=st.integers(0, 2))
    def declare_dead(self, replica: int) -> None:
        # What a replica decides it may carry out late. So the decision is left out here: any may
        # declare any other dead at any time, if the registry lets it.
        for other, expires in [*self.expires.items()]:
            if other != replica and expires < self.now:
                del self.expires[other]
                for kernel_id, (owner, term) in self.kernels.items():
                    if owner == other:
                        self.kernels[kernel_id] = (None, term)

    @rule(replica=st.integers(0, 2), kernel_id=st.sampled_from("ab"), heard=st.booleans())
    def take(self, replica: int, kernel_id: str, heard: bool) -> None:
        owner, term = self.kernels[kernel_id]
        if owner is None and replica in self.expires:
            self.kernels[kernel_id] = owner, term = replica, term + 1
        if owner == replica and heard:  # `mine`: also what an answer that was lost had given it
            self.believed[replica][kernel_id] = term

    @rule(replica=st.integers(0, 2), kernel_id=st.sampled_from("ab"))
    def write(self, replica: int, kernel_id: str) -> None:
        term = self.believed[replica].get(kernel_id)
        if term is not None and self.kernels[kernel_id] == (replica, term):
            self.wrote[kernel_id, term].add(replica)

    @rule(replica=st.integers(0, 2), kernel_id=st.sampled_from("ab"))
    def ask_keeper(self, replica: int, kernel_id: str) -> None:
        term = self.believed[replica].get(kernel_id)
        if term is None:
            return
        try:
            self.keeper.come(kernel_id, term, str(replica))
        except ValueError:
            return
        assert term >= self.highest[kernel_id]
        self.highest[kernel_id] = term
        self.obeyed[kernel_id, term].add(replica)

    @invariant()
    def nobody_writes_in_the_term_of_another(self) -> None:
        for history in (self.wrote, self.obeyed):
            assert all(len(replicas) == 1 for replicas in history.values())

    @invariant()
    def a_good_lease_is_one_that_nobody_can_end(self) -> None:
        for replica, lease in enumerate(self.leases):
            if lease.standing(self.now) is Standing.GOOD:
                assert self.expires[replica] > self.now


def test_no_history_has_two_owners_in_one_term(request: pytest.FixtureRequest) -> None:
    examples = 2000 if request.config.getoption("--full") else 150
    run_state_machine_as_test(
        Replicas, settings=settings(max_examples=examples, stateful_step_count=60, deadline=None)
    )
