"""Owners as one principal finds them: their limits, and what they use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta, field

from ..limits.errors import OwnerNotFound
from ..limits.limits import Limits
from ..limits.shares import Shares
from ..owners.names import InvalidName, owner_name
from ..owners.principal import Principal
from .shares import KernelShares
from .usage import UsageSampler, rounded_cpu, sum_of_known

__all__ = ["CallersOwners", "OwnerModel", "UsageModel", "together"]

_SAMPLED = "the kernels that were sampled in the last two minutes"
_LATELY = "That count as used: they run off with time. Absent where there is no such limit."


def _not_told() -> None:
    """The default of what a replica of an earlier version does not tell.

    Figures with this default are not left out when they are null.
    """


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
    memory: Annotated[
        int | None, Meta(description=f"Bytes of memory of {_SAMPLED}; null if none was.")
    ] = field(default_factory=_not_told)
    cpu: Annotated[
        float | None,
        Meta(
            description="Processors (1 is one processor) that were kept busy by "
            f"{_SAMPLED}; null if none was sampled twice."
        ),
    ] = field(default_factory=_not_told)
    processes: Annotated[
        int | None,
        Meta(description=f"Processes and threads of {_SAMPLED}; null if none was."),
    ] = field(default_factory=_not_told)


class OwnerModel(msgspec.Struct):
    """An owner: what it may use, and what it uses."""

    name: str
    limits: Limits
    usage: UsageModel


def together(models: Iterable[OwnerModel]) -> list[OwnerModel]:
    """One model of each owner, by name, with what it uses at all replicas that know the owner.

    The limits are those that the first model has. The number of kernels is the same in all, as
    every replica knows of all kernels. A replica learns how many starts and bytes of contents all
    have used when it counts one itself: so the replica that has counted last has the largest
    figure, which is the true one.
    """
    found: dict[str, OwnerModel] = {}
    for model in models:
        known = found.get(model.name)
        if known is None:
            found[model.name] = model
            continue
        one, other = known.usage, model.usage
        known.usage = UsageModel(
            max(one.kernels, other.kernels),
            one.queued_executions + other.queued_executions,
            one.log_bytes + other.log_bytes,
            one.websockets + other.websockets,
            _most(one.starts_per_minute, other.starts_per_minute),
            _most(one.contents_bytes_per_day, other.contents_bytes_per_day),
            sum_of_known((one.requests_per_second, other.requests_per_second)),
            sum_of_known((one.memory, other.memory)),
            rounded_cpu(sum_of_known((one.cpu, other.cpu))),
            sum_of_known((one.processes, other.processes)),
        )
    return [found[name] for name in sorted(found)]


def _most(one: int | None, other: int | None) -> int | None:
    return other if one is None else max(one, other or 0)


class CallersOwners:
    """The owners that a principal may see: itself, and with ``kernels:admin`` everybody."""

    def __init__(
        self, kernels: KernelShares, shares: Shares, sampler: UsageSampler, principal: Principal
    ) -> None:
        self._kernels = kernels
        self._sampler = sampler
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

        The server knows an owner only by what the owner has here. So a principal that may see all
        owners finds one under any name.
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
        # The principal's own groups are known. Another owner's groups are those that it was last
        # seen with here, and those that its kernels were started with.
        groups = self._principal.groups
        if name != self._principal.owner:
            groups = shares.groups_of(name)
            groups |= {group for kernel in kernels.of(name) for group in kernel.ownership.groups}
        limits = shares.policy.limits(name, groups)
        recent = shares.recent(name, limits)
        living = [kernel.id for kernel in kernels.of(name) if kernel.counts]
        used = self._sampler.used_together(living)
        usage = UsageModel(
            kernels.kernels_of(name),
            kernels.waiting_of(name),
            kernels.log_bytes_of(name),
            recent.websockets,
            recent.starts_per_minute,
            recent.contents_bytes_per_day,
            recent.requests_per_second,
            used.memory,
            used.cpu,
            used.threads,
        )
        return OwnerModel(name, limits, usage)
