"""What a caller does with kernels that another replica has, or that no replica reaches."""

from __future__ import annotations

from typing import Any, cast

import pytest

from app.managers.errors import KernelNotFound, NotAuthorized
from app.managers.handover.elsewhere import KernelElsewhere
from app.managers.handover.store import StoreAway
from app.managers.kernels.driving import Driving
from app.managers.kernels.finding import Finding
from app.managers.kernels.multikernel import MultiKernelManager
from app.managers.owners.ownership import Ownership, Share
from app.managers.replicas.errors import (
    KernelElsewhereError,
    RegistryUnavailable,
    ReplicaUnreachable,
)
from tests.support.identities import principal

KERNEL = "6b1c6b6e-0000-4000-8000-000000000001"
LOST = "6b1c6b6e-0000-4000-8000-000000000002"
SHARED = Ownership("anna", shares=[Share("name", "ben", "execute")])
CALLERS = [("anna", "kernels:write"), ("root", "*")]


class Known:
    """One kernel of another replica, and one that no replica reaches."""

    def __init__(self) -> None:
        self.kernels = {
            KERNEL: KernelElsewhere(KERNEL, "other", 1, 0.0, b"{}", True, SHARED),
            LOST: KernelElsewhere(LOST, None, 1, 0.0, b"{}", True, SHARED, is_reachable=False),
        }
        self.is_away = False

    async def give_up(self, kernel_id: str) -> bool:
        """Whether it was there."""
        if self.is_away:
            raise StoreAway("for a moment")
        return self.kernels.pop(kernel_id, None) is not None


class Manager(dict[str, Any]):
    """A manager that has no kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.elsewhere = Known()


@pytest.fixture
def manager() -> Manager:
    return Manager()


def driving_of(manager: Manager, name: str, *scopes: str) -> Driving:
    kernels = cast(MultiKernelManager, manager)
    return Driving(kernels, Finding(kernels, principal(name, scopes)))


@pytest.mark.parametrize("caller", CALLERS)
async def test_a_kernel_that_another_replica_has_is_not_started_by_its_id(
    manager: Manager, caller: tuple[str, str]
) -> None:
    with pytest.raises(KernelElsewhereError):
        await driving_of(manager, *caller).start(kernel_id=KERNEL.upper())


@pytest.mark.parametrize("caller", CALLERS)
async def test_only_a_kernel_that_no_replica_reaches_is_given_up_and_only_if_asked(
    manager: Manager, caller: tuple[str, str]
) -> None:
    driving = driving_of(manager, *caller)
    for kernel_id, give_up in ((KERNEL, True), (LOST, False)):
        with pytest.raises(ReplicaUnreachable):
            await driving.shut_down(kernel_id, give_up=give_up)
    manager.elsewhere.is_away = True
    with pytest.raises(RegistryUnavailable):
        await driving.shut_down(LOST, give_up=True)
    manager.elsewhere.is_away = False
    await driving.shut_down(LOST, give_up=True)
    assert manager.elsewhere.kernels.keys() == {KERNEL}
    with pytest.raises(KernelNotFound):
        await driving.shut_down(LOST, give_up=True)


async def test_one_that_a_replica_has_taken_meanwhile_is_not_given_up(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def taken(_: str) -> bool:
        return False

    monkeypatch.setattr(manager.elsewhere, "give_up", taken)
    with pytest.raises(ReplicaUnreachable):
        await driving_of(manager, "anna", "kernels:write").shut_down(LOST, give_up=True)


async def test_whoever_may_read_it_only_does_not_learn_whether_it_could_be_given_up(
    manager: Manager,
) -> None:
    ben = driving_of(manager, "ben", "kernels:write")
    for kernel_id in (KERNEL, LOST):
        with pytest.raises(NotAuthorized):
            await ben.shut_down(kernel_id, give_up=True)
    with pytest.raises(KernelNotFound):
        await driving_of(manager, "carl", "kernels:write").shut_down(LOST, give_up=True)
    assert len(manager.elsewhere.kernels) == 2
