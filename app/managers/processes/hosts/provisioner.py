"""Kernel provisioners whose kernels run on another host, by the keeper that is there.

A kernelspec asks for the one of SSH (``"metadata": {"kernel_provisioner": {"provisioner_name":
"kernelkeep-ssh", "config": {...}}}``, see `SSHOptions`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any, Final, cast

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

from ..keeper.keepers import Keepers
from ..keeper.kept import Kept
from ..keeper.link import KeeperRefuses
from ..keeper.provisioner import KeeperProvisioner
from ..keeper.remote import Host
from ..keeper.remote_keepers import RemoteKeepers
from .options import SSHOptions, options_of
from .place import SSHPlace
from .service import Service
from .shared_files import SharedFiles, expanded

__all__ = ["RemoteProvisioner", "SSHProvisioner", "assign_host", "elsewhere"]

_ANY_PYTHON: Final = re.compile(r"python(3(\.[0-9]+)?)?").fullmatch


def elsewhere(metadata: Mapping[str, Any]) -> str:
    """The provisioner for other hosts, of this package, that a kernelspec names; empty for none."""
    stanza = metadata.get("kernel_provisioner")
    name = str(stanza.get("provisioner_name", "")) if isinstance(stanza, dict) else ""
    return name if name.startswith("kernelkeep-") and name != "kernelkeep-fork" else ""


def assign_host(
    keepers: RemoteKeepers,
    kernel_id: str,
    spec: KernelSpec,
    service: Service,
    left: Mapping[str, object],
) -> None:
    """Assign a kernel to the ``service``'s keeper on the host that its kernelspec names, if any.

    If the kernelspec names several hosts, it is the first. ``left`` is what
    `SSHProvisioner.get_provisioner_info` has returned for a process that an earlier server has
    left: such a process is where it was launched, whatever the kernelspec says by now. Raises
    `KernelStartFailed` for invalid options.
    """
    key = left.get("keeper")
    options = options_of(spec) if key is None else SSHOptions.of_key(str(key))
    if options is not None:
        one = options.at(options.hosts[0])
        keepers.assign(kernel_id, one.key, lambda: SSHPlace(one, service))


class RemoteProvisioner(KeeperProvisioner):
    """Has the keeper on a host launch the kernel, or adopts one that an earlier server has left.

    ``directory`` is where the kernel works, unless the host has the files of this server.
    """

    is_here = False

    root_dir = Path()
    """The server's root directory."""

    inherited: Mapping[str, str] = {}
    """The variables that kernels of this machine inherit, which mean nothing on another."""

    @property
    def directory(self) -> str:
        """The kernel's working directory on its host. Raises `KernelStartFailed`."""
        raise NotImplementedError

    @property
    def root_there(self) -> str:
        """The host's directory with the files of `root_dir`; empty for none.

        Raises `KernelStartFailed`.
        """
        raise NotImplementedError

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Have the connection file written on the host; returns the options for `launch_kernel`.

        Raises what `Keepers.prepare` does, and `ValueError`.
        """
        manager = self.parent
        if not isinstance(getattr(manager, "keepers", None), Keepers):
            raise ValueError("kernels on other hosts take kernelkeep's own server")
        assert isinstance(manager, AsyncKernelManager)
        directory = self.directory
        if manager.transport_encryption == "required":
            raise ValueError("transport_encryption=required is not to be had on another host")
        info = {
            "transport": manager.transport,
            "key": manager.session.key.decode(),
            "signature_scheme": manager.session.signature_scheme,
            "kernel_name": manager.kernel_name,
        }
        # The keeper chooses the addresses and writes the file: only it knows which ports are free
        # on the host.
        file, prepared = await self.keepers.remote.prepare(self.kernel_id, info)
        self.connection_info = cast(KernelConnectionInfo, prepared)
        # After `prepare`, which has made a connection: the host may not be known before.
        host = self.keepers.remote.host_of(self.kernel_id)
        shared = self._shared = self._shared_files(host)
        extra = kwargs.pop("extra_arguments", [])
        env = kwargs.pop("env", {})
        command = [word.replace("{connection_file}", file) for word in self.kernel_spec.argv]
        if command and _ANY_PYTHON(command[0]):
            command[0] = host.python
        return {
            **kwargs,
            "cmd": [*command, *extra],
            "env": environment(host, env, self.inherited, self.kernel_spec.env),
            "cwd": str(Path(host.home, expanded(directory, host.home)))
            if shared is None
            else shared.directory_there(kwargs["cwd"]),
        }

    async def launch_process(self, cmd: list[str], env: Mapping[str, str]) -> Kept:
        """As `KeeperProvisioner.launch_process`."""
        try:
            return await super().launch_process(cmd, env)
        except FileNotFoundError as error:
            if error.filename != str(self.cwd):
                raise
            text = f"There is no directory {self.cwd} on its host: see root_dir and directory"
            raise FileNotFoundError(text) from error

    _shared: SharedFiles | None = None

    def _shared_files(self, host: Host) -> SharedFiles | None:
        there = self.root_there
        if not there:
            return None
        whole = Path(host.home, expanded(there, host.home))
        return SharedFiles(self.root_dir, whole, host.home)

    def _take(self, kept: Kept) -> None:
        self._note_enforced(kept)
        self.process = kept  # type: ignore[assignment]
        self.pid = self.pgid = None  # the process is not one of this machine
        self.start_time = kept.start_time

    async def get_provisioner_info(self) -> dict[str, Any]:
        """The data that the next server needs to adopt the process."""
        info = await super().get_provisioner_info()
        kept = self.process
        assert isinstance(kept, Kept), "there is a process"
        keeper = self.keepers.remote.key_of(self.kernel_id)
        return {**info, "pid": None, "there": kept.pid, "keeper": keeper}

    async def load_provisioner_info(self, provisioner_info: Mapping[str, Any]) -> None:
        """Adopt the process, as `KeeperProvisioner` does."""
        await super(KeeperProvisioner, self).load_provisioner_info(dict(provisioner_info))
        self.output, self.cwd = Path(provisioner_info["output"]), provisioner_info["cwd"]
        pid, started = provisioner_info["there"], provisioner_info["start_time"]
        try:
            kept = await self.keepers.adopt(
                self.kernel_id, pid, started, self.output, self.process_limits
            )
        except KeeperRefuses as error:
            # The keeper has another process of this kernel, which it launched only after this one
            # had ended: the server before was killed before it could store that launch.
            if "has another process" not in error.message:
                raise
            kept = None
        if kept is None:
            raise ProcessLookupError(f"process {pid} is gone")
        self._shared = self._shared_files(self.keepers.remote.host_of(self.kernel_id))
        self._take(kept)

    def resolve_path(self, path: str) -> str | None:
        """The path on the host of a file that ``path`` means in the kernel's directory.

        None if the file is not among those that this server shares with the host. Raises what
        `SharedFiles.find` raises.
        """
        return None if self._shared is None else self._shared.find(path, str(self.cwd))


class SSHProvisioner(RemoteProvisioner):
    """Has the keeper on a host behind SSH launch the kernel."""

    @property
    def directory(self) -> str:
        """Where kernels work there. Raises `KernelStartFailed`."""
        return self._options.directory

    @property
    def root_there(self) -> str:
        """As `RemoteProvisioner.root_there`."""
        return self._options.root_dir

    @property
    def _options(self) -> SSHOptions:
        options = options_of(self.kernel_spec)
        assert options is not None, "only such a kernelspec has this provisioner"
        return options


def environment(
    host: Host, env: Mapping[str, str], inherited: Mapping[str, str], own: Mapping[str, str]
) -> dict[str, str]:
    """The environment of a kernel on a host: that of programs there, and what the request gave.

    ``env`` has the variables of the request, together with those that kernels of this machine
    inherit (``inherited``), which are left out. The kernelspec's ``own`` variables come last, and
    may refer to the others.
    """
    asked = {name: value for name, value in env.items() if inherited.get(name) != value}
    base = {**host.env, **asked}
    return {**base, **{name: Template(value).safe_substitute(base) for name, value in own.items()}}
