"""Forked kernels that are the keeper's children, and so outlive the server and who forked them."""

from __future__ import annotations

import os
from collections.abc import Mapping

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from traitlets import TraitError

from app.keeper.output import lasting_pipe
from app.keeper.processes import start_time
from app.managers.fork_link import CannotFork
from app.managers.fork_provisioner import ForkOptions, ForkProvisioner, ForksWhat, KernelManager
from app.managers.keeper_provisioner import KeeperProvisioner
from app.managers.keeping import Kept

__all__ = ["KeptForkProvisioner", "new_provisioner"]


class KeptForkProvisioner(ForkOptions, KeeperProvisioner):
    """Forks the kernel from a fork server that the keeper runs, or has the keeper launch it."""

    async def launch_process(self, cmd: list[str], env: Mapping[str, str]) -> Kept:
        """A process that the keeper has. Raises as that of an ordinary kernel does."""
        self.check()
        try:
            return await self._fork(cmd, env)
        except CannotFork as reason:
            self.explain(reason)
        kept = await super().launch_process(cmd, env)
        try:
            self.limit(kept.pid)
        except BaseException:
            await self.keeper.forget(self.kernel_id)
            raise
        return kept

    async def _fork(self, cmd: list[str], env: Mapping[str, str]) -> Kept:
        recipe = self.plan(cmd, env)
        reads, writes = os.pipe()
        output = -1
        try:
            output = lasting_pipe(self.output)
            order = self.order(cmd, env, str(self.cwd), output, reads)
            pid, _ = await self.fork(recipe, order)
            try:
                kept = await self._adopt(pid)
                # Now that the keeper knows of it. Had we ended before, it would, too.
                os.write(writes, b"\n")
            except BaseException:
                # It ends when the pipe is closed. The keeper may know of it all the same.
                await self.keeper.forget(self.kernel_id, pid)
                raise
            return kept
        finally:
            for descriptor in (reads, writes, output):
                if descriptor != -1:
                    os.close(descriptor)

    async def _adopt(self, pid: int) -> Kept:
        started = start_time(pid)
        kept = None
        if started is not None:
            kept = await self.keeper.adopt(self.kernel_id, pid, started, self.output)
        if kept is None:
            raise CannotFork("its process ended at once")
        return kept


def new_provisioner(
    kernel_id: str, spec: KernelSpec, manager: KernelManager, forks: ForksWhat
) -> LocalProvisioner | None:
    """A provisioner for a kernelspec whose kernels can be kept, or are forked.

    None for any other, for which jupyter_client makes it.
    """
    stanza = spec.metadata.get("kernel_provisioner") or {}
    options = {"kernel_id": kernel_id, "kernel_spec": spec, "parent": manager}
    is_local = stanza.get("provisioner_name", "local-provisioner") == "local-provisioner"
    if forks == "nothing":
        return KeeperProvisioner(**options) if manager.keeper is not None and is_local else None
    try:
        forked = KeptForkProvisioner if manager.keeper is not None else ForkProvisioner
        provisioner: ForkOptions = forked(**options, **stanza.get("config", {}))
    except TraitError:  # as the launch will say
        return None
    provisioner.is_asked = forks == "asked"
    return provisioner
