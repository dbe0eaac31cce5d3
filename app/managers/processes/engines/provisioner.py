"""A kernel provisioner whose kernels run in jobs of an engine, each by a keeper of its own.

A kernelspec asks for it by the name of the engine (``"metadata": {"kernel_provisioner":
{"provisioner_name": "kernelkeep-docker", "config": {...}}}``, see `kinds.KINDS`). It is the same
for all engines: what they do differently is behind `Engine`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import KeeperUnavailable
from ..hosts.provisioner import RemoteProvisioner
from .engines import Engines

__all__ = ["EngineProvisioner", "JobEnded"]


class JobEnded(ProcessLookupError):
    """The process is gone, as its job has ended; the text says why."""


class EngineProvisioner(RemoteProvisioner):
    """Has the keeper in a kernel's job launch the kernel."""

    engines: Engines | None = None
    """The engines of this server; set before anything is launched."""

    @property
    def _engines(self) -> Engines:
        if self.engines is None:
            raise ValueError("kernels of an engine take kernelkeep's own server")
        return self.engines

    @property
    def directory(self) -> str:
        """Where the kernel works there."""
        return self._engines.directory(self.kernel_id)

    @property
    def root_there(self) -> str:
        """As `RemoteProvisioner.root_there`."""
        return self._engines.root_there(self.kernel_id, self.root_dir)

    async def get_provisioner_info(self) -> dict[str, Any]:
        """The data that the next server needs to adopt the process."""
        info = await super().get_provisioner_info()
        return {**info, **self._engines.noted(self.kernel_id)}

    async def load_provisioner_info(self, provisioner_info: Mapping[str, Any]) -> None:
        """Adopt the process, as `RemoteProvisioner` does. Raises `JobEnded`, too."""
        try:
            await super().load_provisioner_info(provisioner_info)
        except KeeperUnavailable:
            if why := self._engines.why_ended(self.kernel_id):
                raise JobEnded(why) from None
            raise
