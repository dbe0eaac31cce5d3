"""What a caller does with kernels: starts and stops them, and what comes between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ..errors import InvalidEnvironment, InvalidPath
from ..handover.elsewhere import KernelElsewhere
from ..handover.store import StoreAway
from ..owners.names import InvalidName, owner_name
from ..owners.ownership import Ownership
from ..processes.engines.quantities import Value
from ..replicas.errors import KernelElsewhereError, RegistryUnavailable, ReplicaUnreachable
from .finding import Finding
from .kernel import Kernel
from .multikernel import MultiKernelManager
from .table import checked_id

__all__ = ["Driving"]

USERNAME: Final = "KERNEL_USERNAME"
"""The variable by which Jupyter's gateway clients tell for whom they start a kernel."""


class Driving:
    """What a caller does with the kernels that it finds, as far as it may.

    Where a kernel is named, every method raises `KernelNotFound`, and `NotAuthorized` for one that
    the caller may read only.
    """

    def __init__(self, manager: MultiKernelManager, finding: Finding) -> None:
        self._manager = manager
        self._finding = finding
        self._principal = finding.principal

    async def start(
        self,
        name: str | None = None,
        *,
        path: str | None = None,
        env: Mapping[str, str] | None = None,
        kernel_id: str | None = None,
        new_id: str = "",
        given: Mapping[str, Value] | None = None,
    ) -> Kernel:
        """Start a kernel of the caller's (`MultiKernelManager.start_kernel`).

        Raises `KernelElsewhereError`, too.
        """
        if kernel_id is not None:
            finding, asked_for = self._finding, checked_id(kernel_id)
            kernel_id = finding.chosen(kernel_id)
            if finding.elsewhere(kernel_id) is not None:
                raise KernelElsewhereError(kernel_id)
            # It is the id of one that is there.
            if kernel_id == asked_for and not self._principal.scopes.everything:
                return finding.get(kernel_id)
        ownership = self._ownership(env or {})
        return await self._manager.start_kernel(
            name,
            path=path,
            env=env,
            kernel_id=kernel_id,
            new_id=new_id,
            ownership=ownership,
            given=given,
        )

    def _ownership(self, env: Mapping[str, str]) -> Ownership:
        """Whose a kernel is that the caller starts with these variables."""
        username, trusted = env.get(USERNAME), self._manager.settings.trusted_gateways
        if not username or self._principal.owner not in trusted:
            return Ownership.of(self._principal)
        try:
            return Ownership(owner_name(username))
        except InvalidName as error:
            raise InvalidEnvironment(f"env: {USERNAME}: {error}") from None

    async def adopt_file(self, name: str, *, owned: bool) -> Kernel:
        """The external kernel of a connection file (`MultiKernelManager.adopt_file`).

        Raises `InvalidPath` too for who may not use everybody's kernels: such a kernel has no owner
        among the callers.
        """
        if not self._finding.finds_all:
            raise InvalidPath("connection_file: the server has no directory for such files")
        return await self._manager.adopt_file(name, owned=owned)

    async def interrupt(self, kernel_id: str) -> None:
        """Interrupt what a kernel runs (`Kernel.interrupt`)."""
        await self._finding.require("write", kernel_id).interrupt()

    async def restart(self, kernel_id: str) -> Kernel:
        """Give a kernel a new process (`MultiKernelManager.restart_kernel`)."""
        self._finding.require("write", kernel_id)
        return await self._manager.restart_kernel(kernel_id)

    async def shut_down(self, kernel_id: str, *, give_up: bool = False) -> None:
        """Stop a kernel and forget it (`MultiKernelManager.shutdown_kernel`).

        One that is elsewhere, where no replica reaches it, can be given up. Raises
        `ReplicaUnreachable` and `RegistryUnavailable`, too.
        """
        lost = self._finding.elsewhere(kernel_id)
        if lost is not None:
            await self._give_up(lost, give_up=give_up)
            return
        self._finding.require("write", kernel_id)
        await self._manager.shutdown_kernel(kernel_id, give_up=give_up)

    async def _give_up(self, lost: KernelElsewhere, *, give_up: bool) -> None:
        self._finding.check("write", lost)
        if lost.is_reachable or not give_up:
            raise ReplicaUnreachable
        try:
            is_gone = await self._manager.elsewhere.give_up(lost.id)
        except StoreAway:
            raise RegistryUnavailable from None
        if not is_gone:  # a replica has taken it meanwhile
            raise ReplicaUnreachable

    async def relocate(self, kernel_id: str, path: str | None, env: Mapping[str, str]) -> None:
        """Change what a kernel's next process gets (`MultiKernelManager.relocate_kernel`)."""
        self._finding.require("write", kernel_id)
        await self._manager.relocate_kernel(kernel_id, path, env)
