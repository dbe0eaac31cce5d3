"""Finding kernels: which of them one caller finds, by which ids, and what it may do with them.

A kernel that the caller may not read is not there: the error is the one for an id that no kernel
has ever had. So nothing tells one owner what another has.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from hashlib import sha256
from typing import Final
from uuid import UUID, uuid5

from ..errors import KernelNotFound, NotAuthorized
from ..handover.elsewhere import KernelElsewhere
from ..owners.ownership import Ownership, access
from ..owners.principal import Principal
from ..replicas.errors import ReplicaUnreachable
from .departures import Departure
from .kernel import Kernel
from .multikernel import MultiKernelManager
from .table import checked_id

__all__ = ["Finding", "Permission"]

Permission = Callable[[], bool]
"""Tells whether something may still be done that was allowed when it began."""

_IDS: Final = UUID("8d1c6a6f-0f8b-4a0e-9f3e-5c6f8a4f2b11")
"""The namespace of ids that are made from an owner's name and the id that the owner has chosen."""


class Finding:
    """The kernels by their ids, as far as one principal finds them."""

    def __init__(self, manager: MultiKernelManager, principal: Principal) -> None:
        self.principal = principal
        self.finds_all = principal.scopes.of_all("read", "kernels")
        """Whether the caller finds everybody's kernels."""
        self._manager = manager
        self._everything = principal.scopes.everything

    def __contains__(self, kernel_id: object) -> bool:
        """Whether there is the kernel for the caller, with this server or another replica."""
        if self._everything and kernel_id in self._manager:
            return True
        if not isinstance(kernel_id, str):
            return False
        return self._find(kernel_id) is not None or self.elsewhere(kernel_id) is not None

    def get(self, kernel_id: str) -> Kernel:
        """The kernel with this id. Raises `KernelNotFound`, for others' kernels, too, and
        `ReplicaUnreachable` for one that this replica has just let go: the request may come again.
        """
        kernel = self._find(kernel_id)
        if kernel is not None:
            return kernel
        if self.elsewhere(kernel_id) is not None:
            raise ReplicaUnreachable
        raise KernelNotFound(kernel_id).hiding(self.hidden(kernel_id))

    def elsewhere(self, kernel_id: str) -> KernelElsewhere | None:
        """A kernel of another replica, if the caller may read it."""
        if kernel_id in self._manager:
            return None
        found = self._manager.elsewhere.kernels.get(kernel_id)
        if found is None or not (self._everything or self.reads(found)):
            return None
        return found

    def model_of(self, kernel_id: str) -> bytes:
        """The model of a kernel, of whichever replica, as JSON. Raises `KernelNotFound`."""
        found = self.elsewhere(kernel_id)
        return self.get(kernel_id).model if found is None else found.model

    def known_id(self, kernel_id: str) -> str | None:
        """This id, if the caller has a kernel of it, at whichever replica."""
        try:
            self.model_of(kernel_id)
        except KernelNotFound:
            return None
        return kernel_id

    def chosen(self, kernel_id: str) -> str:
        """The id of the kernel that the caller calls so, or will. Raises `InvalidKernelId`.

        An id that an owner among others has chosen is made another one, by which the owner finds
        the same kernel at each start: whether somebody else has a kernel of the chosen id makes no
        difference, and so is not told.
        """
        chosen = checked_id(kernel_id)
        if self._everything or chosen in self:
            return chosen
        return str(uuid5(_IDS, f"{self.principal.owner}\0{chosen}"))

    def ownership_of(self, kernel_id: str) -> Ownership:
        """Whose a kernel is, of whichever replica. Raises `KernelNotFound`."""
        found = self.elsewhere(kernel_id)
        return self.get(kernel_id).ownership if found is None else found.ownership

    def hidden(self, kernel_id: str) -> dict[str, str]:
        """A kernel that is there but not for the caller, in the fields of the audit log.

        Empty if the caller finds the kernel, or there is none. Nothing of it may be told to the
        caller.
        """
        if kernel_id in self or kernel_id not in self._manager:
            return {}
        return {"kernel_id": kernel_id, "owner": self._manager.get(kernel_id).ownership.owner}

    def _find(self, kernel_id: str) -> Kernel | None:
        if kernel_id not in self._manager:
            return None
        kernel = self._manager.get(kernel_id)
        return kernel if self._everything or self.reads(kernel) else None

    def reads(self, kernel: Kernel | KernelElsewhere | Departure) -> bool:
        """Whether the caller may read a kernel."""
        return access(self.principal, "read", "kernels", kernel.ownership)

    def require(self, action: str, kernel_id: str) -> Kernel:
        """The kernel with this id, if the caller may do ``action`` with it.

        Raises `KernelNotFound`, or `NotAuthorized` for one that the caller may read only.
        """
        kernel = self.get(kernel_id)
        self.check(action, kernel)
        return kernel

    def check(self, action: str, kernel: Kernel | KernelElsewhere) -> None:
        """Raise `NotAuthorized` unless the caller may do ``action`` with a kernel."""
        if not (self._everything or access(self.principal, action, "kernels", kernel.ownership)):
            raise NotAuthorized(action, "kernels")

    def permission(self, action: str, kernel: Kernel) -> Permission:
        """Tells from time to time whether the caller may still do ``action``: a share can end."""
        if self._everything:
            return _always
        return partial(access, self.principal, action, "kernels", kernel.ownership)

    def session_key(self, kernel: Kernel, session_id: str) -> str:
        """The name under which the caller's session is known to a kernel.

        Sessions are known by ids that clients choose. On a kernel that is shared, nobody must be
        able to take over the session of another owner by its id.
        """
        if self._everything or kernel.ownership.owner == self.principal.owner:
            return session_id
        return sha256(f"{self.principal.owner}\0{session_id}".encode()).hexdigest()


def _always() -> bool:
    return True
