"""The lists of a caller's kernels: what is in them, in which order, and when they are made anew."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.managers.handover.elsewhere import KernelElsewhere
from app.managers.kernels.departures import Departures
from app.managers.kernels.finding import Finding
from app.managers.kernels.kernel import Kernel
from app.managers.kernels.listing import Listing
from app.managers.kernels.multikernel import MultiKernelManager
from app.managers.kernels.table import KernelTable
from app.managers.owners.ownership import Ownership, Share
from tests.support.identities import principal


@dataclass(eq=False)
class Known:
    """What a list needs of a kernel; ``made`` counts how often the model was asked for."""

    id: str
    ownership: Ownership
    created: float
    state: Any = field(default_factory=lambda: SimpleNamespace(changes=0))
    made: int = 0

    @property
    def model(self) -> bytes:
        self.made += 1
        return b'"%s"' % self.id.encode()


class Manager(KernelTable):
    """The kernels of one server, and what it knows of others."""

    def __init__(self) -> None:
        super().__init__()
        self.elsewhere = SimpleNamespace(kernels={}, changes=0)
        self.departures = Departures()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values())

    def add(self, kernel_id: str, owner: str, created: float, *shares: Share) -> Known:
        known = Known(kernel_id, Ownership(owner, (), shares), created)
        self[kernel_id] = cast(Kernel, known)
        return known

    def hear_of(self, kernel_id: str, owner: str, created: float, replica: str | None) -> None:
        model = b'"%s"' % kernel_id.encode()
        known = KernelElsewhere(kernel_id, replica, 1, created, model, True, Ownership(owner))
        self.elsewhere.kernels[kernel_id] = known
        self.elsewhere.changes += 1

    async def refresh(self) -> None:
        """There are no external kernels."""

    def check_running(self) -> None:
        """It runs."""


@pytest.fixture
def manager() -> Manager:
    found = Manager()
    found.add("a", "anna", 1.0)
    found.add("b", "ben", 2.0)
    found.add("s", "ben", 3.0, Share("name", "anna", "read"))
    return found


def listing_of(manager: Manager, name: str, *scopes: str) -> Listing:
    kernels = cast(MultiKernelManager, manager)
    return Listing(kernels, Finding(kernels, principal(name, scopes)))


def test_one_s_own_and_those_that_are_shared_are_listed_and_all_for_an_administrator(
    manager: Manager,
) -> None:
    anna = listing_of(manager, "anna", "kernels:read")
    assert anna.models == b'["a","s"]'
    assert ([one.id for one in anna], len(anna)) == (["a", "s"], 2)
    assert anna.models_of("ben") == b'["s"]'
    root = listing_of(manager, "root", "*")
    assert root.models == b'["a","b","s"]'
    assert root.models_of("ben") == b'["b","s"]'
    assert listing_of(manager, "carl", "kernels:read").models == b"[]"


def test_a_list_is_put_together_once_per_change(manager: Manager) -> None:
    anna, known = listing_of(manager, "anna", "kernels:read"), cast(Known, manager["a"])
    assert anna.models is anna.models
    assert known.made == 1
    known.state.changes += 1
    assert anna.models == b'["a","s"]'
    assert known.made == 2
    manager.add("c", "anna", 4.0)
    assert anna.models == b'["a","s","c"]'
    manager.hear_of("d", "anna", 5.0, "other")
    assert anna.models is anna.models == b'["a","s","c","d"]'
    assert known.made == 4


def test_kernels_of_other_replicas_are_in_their_places_unless_they_are_here_by_now(
    manager: Manager,
) -> None:
    for kernel_id, owner, created, replica in (
        ("x", "anna", 1.5, "other"),
        ("y", "ben", 0.5, "third"),
        ("a", "anna", 1.0, "other"),
        ("z", "anna", 9.0, None),
    ):
        manager.hear_of(kernel_id, owner, created, replica)
    anna, root = listing_of(manager, "anna", "kernels:read"), listing_of(manager, "root", "*")
    assert anna.models == b'["a","x","s","z"]'
    assert root.models == b'["y","a","x","b","s","z"]'
    assert [one.id for one in root.others("anna")] == ["x", "z"]
    assert [one.id for one in anna.others()] == ["x", "z"]
    assert (dict(anna.by_replica), dict(root.by_replica)) == (
        {"other": 2},
        {"other": 2, "third": 1},
    )


def test_the_ends_of_kernels_that_the_caller_could_not_read_are_not_listed(
    manager: Manager,
) -> None:
    at = time.time()
    for kernel_id in ("a", "b", "s"):
        manager.departures.note(kernel_id, b"{}", None, manager[kernel_id].ownership, at)
    anna = listing_of(manager, "anna", "kernels:read")
    assert [one.kernel_id for one in anna.departures(0)] == ["a", "s"]
    assert anna.departed == 3
    assert anna.departures(3) == []
