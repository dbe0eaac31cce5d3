"""The options of a kernelspec whose kernels run on a host behind SSH."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, TypeVar

import msgspec
from jupyter_client.kernelspec import KernelSpec
from msgspec import Meta

from ...errors import KernelStartFailed

__all__ = ["PROVISIONER", "SSHOptions", "options_of", "read_options", "stanza_of", "with_config"]

T = TypeVar("T")

PROVISIONER: Final = "kernelkeep-ssh"
"""The provisioner's name (its entry point in the group ``jupyter_client.kernel_provisioners``)."""

_NAME: Final = re.compile(r"[^\s/@\x00-\x1f-][^\s/@\x00-\x1f]{0,254}").fullmatch

_Path = Annotated[str, Meta(min_length=1, pattern=r"^[^\x00]*\Z")]


class SSHOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The options of ``kernelkeep-ssh`` (``metadata.kernel_provisioner.config``).

    ``host`` names one host, or several: each kernel gets one of them when it is started
    (`HostChoice`). A ``user`` or ``port`` of None is that of ssh's own configuration. ``python`` is
    the interpreter on the host that runs the keeper, ``path`` the directory there for the keeper's
    files, and ``directory`` the kernels' working directory, unless ``root_dir`` names a directory
    with the files of this server's root directory. Relative paths begin in the user's home, and so
    do those with ``~/``.
    """

    host: str | Annotated[list[str], Meta(min_length=1, max_length=64)]
    user: str | None = None
    port: Annotated[int, Meta(ge=1, le=65535)] | None = None
    python: _Path = "python3"
    path: _Path = ".local/state/kernelkeep"
    directory: _Path = "~"
    root_dir: Annotated[str, Meta(pattern=r"^[^\x00]*\Z")] = ""
    ssh_config: _Path = "~/.ssh/config"

    def __post_init__(self) -> None:
        """See to what the types let through. Raises `ValueError`."""
        for name in (*self.hosts, self.user):
            if name is not None and not _NAME(name):
                raise ValueError("the name of a host or user has a character that none has")

    @property
    def key(self) -> str:
        """The options that matter to the keeper, as JSON: kernels with the same key share one."""
        # The fields come in the struct's order, so equal options make equal texts. The directories
        # of kernels do not matter to the keeper.
        return msgspec.json.encode(
            msgspec.structs.replace(self, directory="~", root_dir="")
        ).decode()

    @classmethod
    def of_key(cls, key: str) -> SSHOptions:
        """Options with this key."""
        return msgspec.json.decode(key, type=cls)

    @property
    def hosts(self) -> list[str]:
        """The hosts that there are, each once."""
        return [self.host] if isinstance(self.host, str) else [*dict.fromkeys(self.host)]

    def at(self, host: str) -> SSHOptions:
        """These options for one of the hosts only."""
        return msgspec.structs.replace(self, host=host)

    @property
    def name(self) -> str:
        """The host, for people."""
        host = ", ".join(self.hosts)
        return host if self.user is None else f"{self.user}@{host}"


def options_of(spec: KernelSpec) -> SSHOptions | None:
    """The options of a kernelspec whose kernels are reached by SSH; None for any other.

    Raises `KernelStartFailed` for options that cannot be.
    """
    return read_options(spec, PROVISIONER, SSHOptions)


def read_options(spec: KernelSpec, provisioner: str, kind: type[T]) -> T | None:
    """The options of a kernelspec that names this provisioner; None for any other.

    Raises `KernelStartFailed`.
    """
    stanza = stanza_of(spec)
    if stanza.get("provisioner_name") != provisioner:
        return None
    try:
        return msgspec.convert(stanza.get("config", {}), kind)
    except msgspec.ValidationError as error:  # what `__post_init__` raises becomes one, too
        text = f"The options of {provisioner} in the kernelspec are wrong: {error}"
        raise KernelStartFailed(text) from None


def stanza_of(spec: KernelSpec) -> Mapping[str, Any]:
    """A kernelspec's table about its provisioner (name and config); empty if it has none."""
    # If it is no table, it names no provisioner: jupyter_client takes its own then.
    stanza = spec.metadata.get("kernel_provisioner")
    return stanza if isinstance(stanza, dict) else {}


def with_config(spec: KernelSpec, config: Mapping[str, Any]) -> KernelSpec:
    """The same kernelspec with these options of its provisioner."""
    stanza = {**stanza_of(spec), "config": dict(config)}
    fields = {**spec.to_dict(), "metadata": {**spec.metadata, "kernel_provisioner": stanza}}
    return KernelSpec(resource_dir=spec.resource_dir, **fields)
