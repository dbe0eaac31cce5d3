"""What a caller finds of kernels that are another replica's by now.

Requests go to the replica that has the kernel, which may let it go before it answers.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.managers.errors import InvalidKernelId, KernelNotFound
from app.managers.handover.elsewhere import KernelElsewhere
from app.managers.kernels.finding import Finding
from app.managers.kernels.multikernel import MultiKernelManager
from app.managers.owners.ownership import Ownership
from app.managers.replicas.errors import ReplicaUnreachable
from tests.support.identities import principal

KERNEL = "6b1c6b6e-0000-4000-8000-000000000001"
ANNAS = KernelElsewhere(KERNEL, "other", 1, 0.0, b"{}", True, Ownership("anna"))


class Manager(dict[str, Any]):
    """A manager that has let its one kernel go."""

    elsewhere = SimpleNamespace(kernels={KERNEL: ANNAS})


def kernels_of(name: str, *scopes: str) -> Finding:
    return Finding(cast(MultiKernelManager, Manager()), principal(name, scopes))


@pytest.mark.parametrize("caller", [("anna", "kernels:write"), ("root", "*")])
def test_a_kernel_that_was_let_go_is_not_said_to_be_gone(caller: tuple[str, str]) -> None:
    kernels = kernels_of(*caller)
    with pytest.raises(ReplicaUnreachable):
        kernels.get(KERNEL)
    with pytest.raises(ReplicaUnreachable):
        kernels.require("write", KERNEL)
    assert kernels.known_id(KERNEL) == KERNEL
    with pytest.raises(KernelNotFound):
        kernels.get("another")
    assert kernels.known_id("another") is None


def test_nobody_else_is_told_of_it() -> None:
    kernels = kernels_of("ben", "kernels:write")
    with pytest.raises(KernelNotFound):
        kernels.get(KERNEL)
    assert kernels.known_id(KERNEL) is None


def test_an_owner_finds_by_the_id_that_it_has_chosen_what_it_has_started_with_that() -> None:
    chosen = "6B1C6B6E-0000-4000-8000-000000000002"
    annas, bens = (kernels_of(name, "kernels:write") for name in ("anna", "ben"))
    hers = annas.chosen(chosen)
    assert hers == annas.chosen(chosen.lower()) != chosen.lower()
    assert len({hers, bens.chosen(chosen), chosen.lower()}) == 3
    # The id of a kernel that is there means that one; those who do not find it are not told so.
    assert annas.chosen(KERNEL.upper()) == KERNEL != bens.chosen(KERNEL)
    assert kernels_of("root", "*").chosen(chosen) == chosen.lower()
    with pytest.raises(InvalidKernelId):
        annas.chosen("no UUID")
