"""The kinds of engines that there are, by the names of their provisioners."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from jupyter_client.kernelspec import KernelSpec

from . import docker_options, kubernetes_options, slurm_options
from .docker import DockerEngine
from .docker_options import DockerOptions
from .engine import Engine, EngineOptions
from .kubernetes import KubernetesEngine
from .kubernetes_options import KubernetesOptions
from .quantities import Measure, number
from .slurm import SlurmEngine
from .slurm_options import SlurmOptions

__all__ = ["KINDS", "Chosen", "chosen", "engine_of"]

OnWords = Callable[[str, str], None]


class Kind(NamedTuple):
    """One kind of engines."""

    options: type[Any]
    options_of: Callable[[KernelSpec], EngineOptions | None]
    """Raises `KernelStartFailed`."""
    engine: Callable[[str, str, OnWords], Engine]
    """Makes an engine: of `EngineOptions.engine`, the service's name, and who is told words."""
    measure: Measure = number
    """How much the values of its options are."""


KINDS: Final[Mapping[str, Kind]] = {
    docker_options.PROVISIONER: Kind(
        *(DockerOptions, docker_options.docker_options, DockerEngine), docker_options.measure
    ),
    kubernetes_options.PROVISIONER: Kind(
        *(KubernetesOptions, kubernetes_options.kubernetes_options, KubernetesEngine),
        kubernetes_options.measure,
    ),
    slurm_options.PROVISIONER: Kind(
        *(SlurmOptions, slurm_options.slurm_options, SlurmEngine), slurm_options.measure
    ),
}


class Chosen(NamedTuple):
    """The engine of one kernel, by the name of its kind, and its options there."""

    kind: str
    options: EngineOptions

    @property
    def as_json(self) -> dict[str, Any]:
        """The same for the next server."""
        return {"engine": self.kind, "options": msgspec.to_builtins(self.options)}

    @property
    def key(self) -> tuple[str, str]:
        """Which engine it is, among those of all kinds."""
        return self.kind, self.options.engine


def engine_of(spec: KernelSpec) -> str | None:
    """The engine that a kernelspec names, for people: ``docker``, say; None for no engine."""
    stanza = spec.metadata.get("kernel_provisioner")
    name = str(stanza.get("provisioner_name")) if isinstance(stanza, dict) else ""
    return name.removeprefix("kernelkeep-") if name in KINDS else None


def chosen(spec: KernelSpec, left: Mapping[str, Any]) -> Chosen | None:
    """The engine that has a kernel's job; None if it has none.

    ``left`` is what an earlier server has noted of the process that it left, if it has: that is
    where it is, whatever the kernelspec says by now. Raises `KernelStartFailed` for options that
    cannot be.
    """
    if left:
        kind = KINDS.get(str(left.get("engine")))
        if kind is None:
            return None
        return Chosen(str(left["engine"]), msgspec.convert(left["options"], kind.options))
    for name, kind in KINDS.items():
        options = kind.options_of(spec)
        if options is not None:
            return Chosen(name, options)
    return None
