"""The options of a kernelspec for the containers of its kernels, and the container made of them."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from jupyter_client.kernelspec import KernelSpec
from msgspec import Meta

from ....limit_options import LIMITS
from ..hosts.options import read_options
from .order import PROGRAM
from .quantities import Value, number

__all__ = ["PROVISIONER", "DockerOptions", "container_of", "docker_options", "measure"]

PROVISIONER: Final = "kernelkeep-docker"
"""The provisioner's name (its entry point in the group ``jupyter_client.kernel_provisioners``)."""

Text = Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"^[^\x00]*\Z")]
_Address = Annotated[str, Meta(pattern=r"^\Z|^(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]+):[0-9]{1,5}\Z")]
_Socket = Annotated[str, Meta(pattern=r"^(unix:///|https?://)[^\x00\s]+\Z")]
# As Docker has them (its "reference" package); above all, none begins with a hyphen.
_Image = Annotated[str, Meta(max_length=512, pattern=r"^[A-Za-z0-9][\w.:/@-]*\Z")]
_User = Annotated[str, Meta(pattern=r"^([\w][\w.-]*(:[\w][\w.-]*)?)?\Z")]
_Size = str | int
_SIZES: Final = ("memory", "shm_size")


class Mount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A directory of the engine's host, or a volume of the engine's, in the container."""

    source: Text
    target: Annotated[str, Meta(pattern=r"^/[^\x00]*\Z")]
    type: Literal["bind", "volume"] = "bind"
    read_only: bool = True


class DockerOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The options of ``kernelkeep-docker`` (``metadata.kernel_provisioner.config``).

    ``docker`` is where the engine's API is, and ``address`` where containers reach this server. For
    options that are empty or None, the defaults of the engine or the image hold.
    """

    image: _Image
    docker: _Socket = "unix:///var/run/docker.sock"
    address: _Address = ""
    python: Text = "python3"
    directory: Text = "~"
    root_dir: Annotated[str, Meta(max_length=4096, pattern=r"^\Z|^[/~][^\x00]*\Z")] = ""
    pull: Literal["missing", "always", "never"] = "missing"
    credentials: Annotated[str, Meta(max_length=4096, pattern=r"^\Z|^[/~][^\x00]*\Z")] = ""
    pull_timeout: Annotated[float, Meta(gt=0, le=86400)] = 900.0
    user: _User = ""
    network: Text | None = None
    memory: _Size | None = None
    cpus: Annotated[float, Meta(gt=0, le=65536)] | None = None
    pids: Annotated[int, Meta(ge=16)] = 1024
    gpus: Annotated[int, Meta(ge=1)] | Literal["all"] | None = None
    shm_size: _Size | None = None
    mounts: list[Mount] = []
    tmpfs: dict[Annotated[str, Meta(pattern=r"^/[^\x00]*\Z")], str] = msgspec.field(
        default_factory=lambda: {"/tmp": "exec,mode=1777"}
    )
    read_only: bool = True
    capabilities: list[Annotated[str, Meta(pattern=r"^[A-Z_]+\Z")]] = []
    env: dict[Annotated[str, Meta(pattern=r"^[A-Za-z_]\w*\Z")], Text] = {}

    def __post_init__(self) -> None:
        """See to what the types let through. Raises `ValueError`."""
        for name in _SIZES:
            if getattr(self, name) is not None:
                _bytes(name, getattr(self, name))

    @property
    def engine(self) -> str:
        """As `EngineOptions.engine`."""
        return self.docker

    def root_there(self, root_dir: Path) -> str:  # noqa: ARG002
        """As `EngineOptions.root_there`."""
        return self.root_dir

    @property
    def patience(self) -> float:
        """As `EngineOptions.patience`: an image may have to be pulled first."""
        return self.pull_timeout + 60.0


def docker_options(spec: KernelSpec) -> DockerOptions | None:
    """The options of a kernelspec whose kernels are in containers; None for any other.

    Raises `KernelStartFailed` for options that cannot be.
    """
    return read_options(spec, PROVISIONER, DockerOptions)


def _bytes(name: str, written: _Size) -> int:
    """A size as the limits of owners write it. Raises `ValueError`."""
    try:
        return int(LIMITS["memory"](written))
    except ValueError as error:
        raise ValueError(f"{error} - at `$.{name}`") from None


def measure(name: str, value: Value) -> Decimal:
    """A `Measure`: ``memory`` and ``shm_size`` in bytes, other options as plain numbers."""
    return Decimal(LIMITS["memory"](value)) if name in _SIZES else number(name, value)


def container_of(options: DockerOptions, labels: Mapping[str, str]) -> dict[str, Any]:
    """The container that the engine's API is asked for.

    Its process has no capabilities but those of the options, gains none, and reads its program from
    its stdin.
    """
    host: dict[str, Any] = {
        "CapDrop": ["ALL"],
        "CapAdd": [*options.capabilities],
        "SecurityOpt": ["no-new-privileges"],
        "ReadonlyRootfs": options.read_only,
        "Tmpfs": dict(options.tmpfs),
        "PidsLimit": options.pids,
        "Mounts": [_mount(each) for each in options.mounts],
        "RestartPolicy": {"Name": "no"},  # this service decides what follows its end
    }
    if options.network is not None:
        host["NetworkMode"] = options.network
    if options.memory is not None:
        # Memory and swap together (Docker's API: HostConfig.MemorySwap): so there is no swap.
        memory = _bytes("memory", options.memory)
        host |= {"Memory": memory, "MemorySwap": memory}
    if options.cpus is not None:
        host["NanoCpus"] = round(options.cpus * 1e9)
    if options.shm_size is not None:
        host["ShmSize"] = _bytes("shm_size", options.shm_size)
    if options.gpus is not None:
        count = -1 if options.gpus == "all" else options.gpus
        host["DeviceRequests"] = [{"Driver": "", "Count": count, "Capabilities": [["gpu"]]}]
    return {
        "Image": options.image,
        "Entrypoint": [options.python],
        "Cmd": ["-c", PROGRAM],
        "Env": [f"{name}={value}" for name, value in _environment(options).items()],
        "User": options.user,
        "Labels": dict(labels),
        # Its stdin comes over one connection, and ends with it. Its output goes to the engine's
        # log, from which the last lines are read (`DockerEngine.explain`).
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": False,
        "AttachStderr": False,
        "Tty": False,
        "StopTimeout": 30,
        "HostConfig": host,
    }


def _environment(options: DockerOptions) -> dict[str, str]:
    # Kernels need a home that can be written.
    home = next(iter(options.tmpfs), None) if options.read_only else None
    return {**({} if home is None else {"HOME": home}), **options.env}


def _mount(mount: Mount) -> dict[str, Any]:
    return {
        "Type": mount.type,
        "Source": mount.source,
        "Target": mount.target,
        "ReadOnly": mount.read_only,
    }
