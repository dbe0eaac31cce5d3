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
    """One kind of engines, such as Docker."""

    options: type[Any]
    """The struct of its options."""
    options_of: Callable[[KernelSpec], EngineOptions | None]
    """Returns a kernelspec's options for this kind, or None. Raises `KernelStartFailed`."""
    engine: Callable[[str, str, OnWords], Engine]
    """Makes an engine from `EngineOptions.engine`, the service's name, and a callback, which is
    called with a kernel's id and what the engine says of the kernel's job."""
    measure: Measure = number
    """Returns the values of its options as numbers."""


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
        """The engine and the options as JSON, for the next server (`chosen` reads them)."""
        return {"engine": self.kind, "options": msgspec.to_builtins(self.options)}

    @property
    def key(self) -> tuple[str, str]:
        """The key of the engine among all: its kind, and `EngineOptions.engine`."""
        return self.kind, self.options.engine


def engine_of(spec: KernelSpec) -> str | None:
    """The engine that a kernelspec names, for people: ``docker``, say; None for no engine."""
    stanza = spec.metadata.get("kernel_provisioner")
    name = str(stanza.get("provisioner_name")) if isinstance(stanza, dict) else ""
    return name.removeprefix("kernelkeep-") if name in KINDS else None


def chosen(spec: KernelSpec, left: Mapping[str, Any]) -> Chosen | None:
    """The engine that has a kernel's job; None if it has none.

    ``left`` is what an earlier server has noted of a process that it has left; else it is empty.
    Such a process is where it was launched, whatever the kernelspec says by now. Raises
    `KernelStartFailed` for invalid options.
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
