"""Where the files of a caller's kernels are."""

from __future__ import annotations

import asyncio
from pathlib import Path

from ..processes.paths import ResolutionModel, ResolvedPathModel, UnresolvedScopeModel, api_path
from .finding import Finding
from .multikernel import MultiKernelManager

__all__ = ["Locating"]


class Locating:
    """The paths of files and directories, for the kernels that a caller finds."""

    def __init__(self, manager: MultiKernelManager, finding: Finding) -> None:
        self._manager = manager
        self._finding = finding

    async def cwd_for_path(self, path: str) -> Path:
        """The directory that a kernel of the caller's works in if it is started for ``path``.

        Raises `InvalidPath` and `IsolationUnavailable`.
        """
        return await self._manager.cwd_for_path(path, self._finding.principal.owner)

    async def resolve_path(self, path: str, kernel_id: str | None = None) -> ResolutionModel:
        """The file that a path means which a person saw, for instance in a traceback.

        In the scope ``server`` the path is relative to the root directory, and nothing outside of
        that is found, nor anything for who may not read contents. In the scope ``kernel`` the
        kernel's provisioner resolves the path.
        """
        resolution = ResolutionModel()
        root = await self._manager.isolation.files_root(self._finding.principal)
        found = None if root is None else await asyncio.to_thread(api_path, root, path)
        if found is not None:
            resolution.resolved.append(ResolvedPathModel("server", found))
        if kernel_id and kernel_id not in self._finding:
            reason = f"Kernel {kernel_id} could not be found"
            resolution.unresolved = [UnresolvedScopeModel("kernel", reason)]
        elif kernel_id:
            found = await self._finding.get(kernel_id).resolve_path(path)
            if found is not None:
                resolution.resolved.append(ResolvedPathModel("kernel", found))
        return resolution

    def output_file(self, kernel_id: str) -> Path:
        """The file with what a kernel's processes write themselves. Raises `KernelNotFound`."""
        return self._manager.output_file(self._finding.get(kernel_id).id)
