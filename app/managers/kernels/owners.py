"""Owners as one principal finds them: their limits, and what they use."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ..limits.errors import OwnerNotFound
from ..limits.limits import Limits
from ..limits.shares import Shares
from ..owners.names import InvalidName, owner_name
from ..owners.principal import Principal
from .shares import KernelShares

__all__ = ["CallersOwners", "OwnerModel", "UsageModel"]

_LATELY = "That count as used: they run off with time. Absent where there is no such limit."


class UsageModel(msgspec.Struct, omit_defaults=True):
    """What an owner uses."""

    kernels: Annotated[
        int, Meta(description="Kernels, those that start included, and dead ones not.")
    ]
    queued_executions: Annotated[int, Meta(description="Executions that wait, at all kernels.")]
    log_bytes: Annotated[int, Meta(description="Bytes of messages kept on disk, of all kernels.")]
    websockets: Annotated[int, Meta(description="Open WebSockets.")]
    starts_per_minute: Annotated[int | None, Meta(description=_LATELY)] = None
    contents_bytes_per_day: Annotated[int | None, Meta(description=_LATELY)] = None
    requests_per_second: Annotated[int | None, Meta(description=_LATELY)] = None


class OwnerModel(msgspec.Struct):
    """An owner: what it may use, and what it uses."""

    name: str
    limits: Limits
    usage: UsageModel


class CallersOwners:
    """The owners that a principal may see: itself, and with ``kernels:admin`` everybody."""

    def __init__(self, kernels: KernelShares, shares: Shares, principal: Principal) -> None:
        self._kernels = kernels
        self._shares = shares
        self._principal = principal
        self._all = principal.scopes.of_all("read", "kernels")

    def listed(self) -> list[OwnerModel]:
        """The owners that have kernels or have asked for something of late, by name."""
        names = {self._principal.owner}
        if self._all:
            names |= {*self._kernels.owners, *self._shares}
        return [self._model(name) for name in sorted(names)]

    def get(self, written: str) -> OwnerModel:
        """One owner. Raises `OwnerNotFound`.

        The server knows an owner by what it has here alone: who may see all finds one by any name.
        """
        try:
            name = owner_name(written)
        except InvalidName:
            raise OwnerNotFound(written) from None
        if not self._all and name != self._principal.owner:
            raise OwnerNotFound(written)
        return self._model(name)

    def _model(self, name: str) -> OwnerModel:
        kernels, shares = self._kernels, self._shares
        groups = self._principal.groups
        if name != self._principal.owner:
            groups = shares.groups_of(name)
            groups |= {group for kernel in kernels.of(name) for group in kernel.ownership.groups}
        limits = shares.policy.limits(name, groups)
        recent = shares.recent(name, limits)
        usage = UsageModel(
            kernels.kernels_of(name),
            kernels.waiting_of(name),
            kernels.log_bytes_of(name),
            recent.websockets,
            recent.starts_per_minute,
            recent.contents_bytes_per_day,
            recent.requests_per_second,
        )
        return OwnerModel(name, limits, usage)
