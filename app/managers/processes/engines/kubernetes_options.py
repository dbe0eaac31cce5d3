"""The options of a kernelspec for the pods of its kernels."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from jupyter_client.kernelspec import KernelSpec
from msgspec import Meta

from ..hosts.options import read_options
from .quantities import InvalidQuantity, Value, quantity

__all__ = [
    "PROVISIONER",
    "Claim",
    "Cluster",
    "KubernetesOptions",
    "kubernetes_options",
    "measure",
]

PROVISIONER: Final = "kernelkeep-kubernetes"
"""The provisioner's name (its entry point in the group ``jupyter_client.kernel_provisioners``)."""

_Text = Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"^[^\x00]*\Z")]
_Path = Annotated[str, Meta(max_length=4096, pattern=r"^\Z|^[/~][^\x00]*\Z")]
_Address = Annotated[str, Meta(pattern=r"^\Z|^(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]+):[0-9]{1,5}\Z")]
_Label = Annotated[str, Meta(max_length=63, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?\Z")]
_Name = Annotated[str, Meta(max_length=253, pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?\Z")]
_Image = Annotated[str, Meta(max_length=512, pattern=r"^[A-Za-z0-9][\w.:/@-]*\Z")]
_Variable = Annotated[str, Meta(pattern=r"^[A-Za-z_]\w*\Z")]
_Resource = Annotated[str, Meta(max_length=317, pattern=r"^[A-Za-z0-9][A-Za-z0-9./_-]*\Z")]
_Quantities = dict[_Resource, str | int | float]
_Id = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class Cluster(msgspec.Struct, frozen=True):
    """One namespace of a cluster, and the credentials (``kubeconfig`` and ``context``) for it."""

    kubeconfig: str
    context: str
    namespace: str

    @property
    def name(self) -> str:
        """The cluster, for people."""
        where = f"{self.context}, " if self.context else ""
        return f"Kubernetes ({where}namespace {self.namespace})"


class Claim(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A PersistentVolumeClaim of the namespace, in the kernel's container.

    The ``claim`` may have placeholders, as a template has.
    """

    claim: _Text
    target: Annotated[str, Meta(pattern=r"^/[^\x00:]*\Z")]
    read_only: bool = False


class KubernetesOptions(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True
):
    """The options of ``kernelkeep-kubernetes`` (``metadata.kernel_provisioner.config``).

    ``template`` is a file on the server's machine, with a pod's manifest in YAML or JSON. The other
    options override it. Without a ``kubeconfig`` the credentials are those that kubectl would find,
    or else those of the service account of the pod in which this server runs.
    """

    image: _Image
    namespace: _Label
    kubeconfig: _Path = ""
    context: Annotated[str, Meta(max_length=512)] = ""
    address: _Address = ""
    python: _Text = "python3"
    directory: _Text = "~"
    root_dir: _Path = ""
    template: _Path = ""
    container: Annotated[str, Meta(max_length=63)] = ""
    pending_timeout: Annotated[float, Meta(gt=0, le=7 * 86400)] = 600.0
    grace: Annotated[int, Meta(ge=1, le=3600)] = 30
    pull: Literal["missing", "always", "never"] | None = None
    pull_secrets: list[_Name] = []
    requests: _Quantities = {}
    limits: _Quantities = {}
    gpus: Annotated[int, Meta(ge=1)] | None = None
    gpu_resource: _Resource = "nvidia.com/gpu"
    volumes: list[Claim] = []
    node_selector: dict[str, str] = {}
    tolerations: list[dict[str, Any]] = []
    priority_class: _Name | None = None
    service_account: _Name | None = None
    user: _Id | None = None
    group: _Id | None = None
    env: dict[_Variable, Annotated[str, Meta(pattern=r"^[^\x00]*\Z")]] = {}

    def __post_init__(self) -> None:
        """See to what the types let through. Raises `ValueError`."""
        for option, table in (("requests", self.requests), ("limits", self.limits)):
            for name, written in table.items():
                try:
                    measure(name, written)
                except ValueError as error:
                    raise ValueError(f"{error} - at `$.{option}.{name}`") from None

    @property
    def cluster(self) -> Cluster:
        """Where the pods are."""
        return Cluster(self.kubeconfig, self.context, self.namespace)

    @property
    def engine(self) -> str:
        """As `EngineOptions.engine`."""
        return msgspec.json.encode(self.cluster).decode()

    def root_there(self, root_dir: Path) -> str:  # noqa: ARG002
        """As `EngineOptions.root_there`."""
        return self.root_dir

    @property
    def patience(self) -> float:
        """As `EngineOptions.patience`: the engine gives up first, as it can say why."""
        return self.pending_timeout + 60.0


def kubernetes_options(spec: KernelSpec) -> KubernetesOptions | None:
    """The options of a kernelspec whose kernels are in pods; None for any other.

    Raises `KernelStartFailed` for options that cannot be.
    """
    return read_options(spec, PROVISIONER, KubernetesOptions)


def measure(_name: str, value: Value) -> Decimal:
    """A `Measure`: each value is a quantity, as ``requests`` and ``limits`` have them."""
    try:
        return quantity("" if isinstance(value, bool) else value)
    except InvalidQuantity:
        raise ValueError("no quantity, like 500m, 2 or 4Gi") from None
