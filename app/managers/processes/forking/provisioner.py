"""A kernel provisioner that forks Python kernels where it can, and starts them otherwise.

Named by a kernelspec (``"metadata": {"kernel_provisioner": {"provisioner_name":
"kernelkeep-fork"}}``) or by the option ``fork_kernels``: by the name of the kernelspec there, or by
``auto``, which forks what can be forked from the second start on. Under any other server than this
one it is jupyter_client's local provisioner.
"""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from string import Template
from typing import Any, Final, Literal

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from traitlets import Dict, Integer, List, TraitError, Unicode

from ....keeper.output import lasting_pipe
from ....keeper.processes import start_time
from ....options import FORK_AUTOMATICALLY, FORK_NONE
from ..keeper.client import Keeper, Kept
from ..keeper.provisioner import KeeperProvisioner
from .link import CannotFork, NotForkedYet, Order, Recipe
from .servers import ForkServers

__all__ = [
    "PROVISIONER",
    "ForkOptions",
    "ForkProvisioner",
    "Forking",
    "ForksWhat",
    "KeptForkProvisioner",
    "KernelManager",
    "check_limit",
    "new_provisioner",
]

logger = logging.getLogger(__name__)

PROVISIONER: Final = "kernelkeep-fork"
"""The name under which it is registered (entry point ``jupyter_client.kernel_provisioners``)."""

READ_ONCE: Final = (
    # By the interpreter, the dynamic loader and the C library when a program starts.
    *("PYTHON*", "LD_*", "DYLD_*", "LANG", "LANGUAGE", "LC_*", "MALLOC_*", "GLIBC_*", "HOME"),
    # By what ipykernel imports.
    *("PYDEVD_*", "PYDEV_*", "DEBUGPY_*", "GEVENT_*", "VIRTUAL_ENV", "USER", "TERM"),
    *("TRAITLETS_*", "TORNADO_*", "PYZMQ_*", "IPYTHON_*"),
    *("JUPYTER_PLATFORM_DIRS", "JUPYTER_USE_PROGRAMDATA", "JUPYTER_ALLOW_INSECURE_WRITES"),
)

READ_WHEN_LOADED: Final = ("OMP_*", "MKL_*", "OPENBLAS_*", "NUMEXPR_*", "CUDA_*", "MPL*")
"""By libraries that may be among the preloads."""

TAKES_A_VALUE: Final = ("-X", "-W")  # of the interpreter's options


MAX_SAID: Final = 100
"""Reasons that are remembered, so that each is logged once."""

ForksWhat = Literal["asked", "automatic", "nothing"]
"""Whether a kernelspec's kernels are forked: because somebody has asked for it, or where it can be,
from the second start on."""


class Forking:
    """What the kernels of a server share for being forked.

    ``names`` is the option ``fork_kernels``: the kernelspecs that are forked although they do not
    ask for it, or the one word for all or for none. ``env`` is what every kernel gets, before its
    own.
    """

    def __init__(self, servers: ForkServers, names: Iterable[str], env: Mapping[str, str]) -> None:
        self.servers = servers
        self._names = {name.lower() for name in names}
        self._is_automatic = FORK_AUTOMATICALLY in self._names
        self._names -= {FORK_AUTOMATICALLY, FORK_NONE}
        self._said: dict[str, None] = {}
        self.env = env

    def choose(self, name: str, spec: KernelSpec) -> ForksWhat:
        """Whether a kernelspec's kernels are forked; what it says itself comes first."""
        stanza = spec.metadata.get("kernel_provisioner")
        if stanza:
            return "asked" if stanza.get("provisioner_name") == PROVISIONER else "nothing"
        if name.lower() in self._names:
            return "asked"
        default = KernelProvisionerFactory.instance().default_provisioner_name
        is_local = default == "local-provisioner"
        return "automatic" if self._is_automatic and is_local else "nothing"

    def prepare(self, name: str, manager: AsyncKernelManager) -> None:
        """Start the fork servers for a kernelspec, if somebody has asked for that."""
        spec = manager.kernel_spec
        assert spec is not None
        if self.choose(name, spec) != "asked":
            return
        stanza = spec.metadata.get("kernel_provisioner") or {}
        try:
            interpreter, _ = parse_command(manager.format_kernel_cmd())
            preload = tuple(stanza.get("config", {}).get("preload", ()))
            self.servers.prepare(Recipe(interpreter, preload, self.base(spec, preload)))
        except CannotFork as error:
            logger.warning("kernels of %s are not forked but started: %s", spec.display_name, error)

    def came_up(self, manager: AsyncKernelManager | None, in_vain: Recipe | None) -> None:
        """A kernel is ready: what comes after it has the processor now.

        ``in_vain`` it was forked from before: what is started works, and what is forked does not.
        """
        if in_vain is not None:
            self.servers.give_up(in_vain, "a kernel came up only when it was not forked")
        provisioner = manager.provisioner if manager is not None else None
        if isinstance(provisioner, KeptForkProvisioner) and provisioner.brings_up is not None:
            recipe, provisioner.brings_up = provisioner.brings_up, None
            self.servers.bring_up(recipe)

    def forked_by_itself(self, manager: AsyncKernelManager | None) -> Recipe | None:
        """What a kernel's process was forked from although nobody had asked for that."""
        provisioner = manager.provisioner if manager is not None else None
        return provisioner.forked_from if isinstance(provisioner, KeptForkProvisioner) else None

    def say(self, name: str, reason: CannotFork) -> None:
        """Log, once, why the kernels of a kernelspec are started although nobody has asked."""
        text = f"kernels of {name} are not forked but started: {reason}"
        if text not in self._said:
            self._said[text] = None
            if len(self._said) > MAX_SAID:
                del self._said[next(iter(self._said))]
            logger.info("%s", text)

    def base(self, spec: KernelSpec, preload: Sequence[str]) -> tuple[tuple[str, str], ...]:
        """What a fork server for this kernelspec has as its environment."""
        own = {name: Template(value).safe_substitute(self.env) for name, value in spec.env.items()}
        return read_once({**self.env, **own}, preload)


class KernelManager(AsyncKernelManager):
    """jupyter_client's, with a way to the fork servers and to the keeper."""

    forking: Forking | None = None
    keeper: Keeper | None = None


class ForkOptions(LocalProvisioner):
    """What a kernelspec can ask for."""

    preload: List[str] = List(
        Unicode(), config=True, help="Modules that the fork server imports beside ipykernel."
    )
    limits: Dict[str, int] = Dict(
        key_trait=Unicode(),
        value_trait=Integer(min=0),
        config=True,
        help="Resource limits of a kernel, by their names without RLIMIT_: AS, CPU, NOFILE...",
    )

    def check(self) -> None:
        """Raise `ValueError` for limits that there are not, or that cannot be set here."""
        if self.limits and not hasattr(resource, "prlimit"):
            raise ValueError("limits take Linux")
        for name, value in self.limits.items():
            check_limit(name, value)

    def limit(self, pid: int) -> None:
        """Set the limits of a process that was just started."""
        for name, value in self.limits.items():
            number = getattr(resource, f"RLIMIT_{name}")
            hard = resource.getrlimit(number)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.prlimit(pid, number, (value, value))


class ForkProvisioner(ForkOptions):
    """Under its own name, and any other server than this: starts the kernel, within its limits."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Launch a kernel; raises what the launch of an ordinary one does."""
        self.check()
        info = await super().launch_kernel(cmd, **kwargs)
        if self.pid is not None:
            try:
                self.limit(self.pid)
            except BaseException:
                await self.kill()
                await self.wait()
                raise
        return info


class KeptForkProvisioner(ForkOptions, KeeperProvisioner):
    """Forks the kernel from a fork server that the keeper runs, or has the keeper launch it."""

    is_asked = True
    """Whether somebody has asked for the forking; or else it is forked if it can be."""

    brings_up: Recipe | None = None
    """Of the fork server that is to be there after the process that was launched last."""

    forked_from: Recipe | None = None
    """Of the process that was launched last, if it was forked and nobody had asked for that."""

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
            _, arguments = parse_command(cmd)
            order = Order(cmd, arguments, env, str(self.cwd), output, self.limits, reads)
            pid = await self.fork(recipe, order)
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

    @property
    def forking(self) -> Forking:
        """Where to fork."""
        forking = getattr(self.parent, "forking", None)
        assert isinstance(forking, Forking), "only a server makes this provisioner"
        return forking

    def plan(self, cmd: Sequence[str], env: Mapping[str, str]) -> Recipe:
        """What a process is to be forked from. Raises `CannotFork` if none can be now."""
        self.brings_up = self.forked_from = None
        recipe = self.recipe(cmd, env)
        try:
            self.forking.servers.check(recipe, asked=self.is_asked)
        except NotForkedYet:
            self.brings_up = recipe
            raise
        return recipe

    async def fork(self, recipe: Recipe, order: Order) -> int:
        """Fork a process from what was planned: its id. Raises `CannotFork`."""
        try:
            pid = await self.forking.servers.fork(recipe, order, asked=self.is_asked)
        except NotForkedYet:
            self.brings_up = None if self.is_asked else recipe
            raise
        self.forked_from = None if self.is_asked else recipe
        return pid

    def explain(self, reason: CannotFork) -> None:
        """Log why the kernel is started instead, if that is worth a line."""
        if self.is_asked:
            logger.info(
                "kernel %s is not forked but started: %s",
                self.kernel_id,
                reason,
                extra={"kernel_id": self.kernel_id},
            )
        elif not isinstance(reason, NotForkedYet):
            self.forking.say(getattr(self.parent, "kernel_name", ""), reason)

    def recipe(self, cmd: Sequence[str], env: Mapping[str, str]) -> Recipe:
        """What can be a process with this command and environment. Raises `CannotFork`."""
        interpreter, _ = parse_command(cmd)
        base = self.forking.base(self.kernel_spec, self.preload)
        wanted = read_once(env, self.preload)
        if wanted != base:
            names = sorted({name for name, _ in {*wanted} ^ {*base}})
            raise CannotFork(f"its environment has another {', '.join(names)[:200]}")
        return Recipe(interpreter, tuple(self.preload), base)


def new_provisioner(
    kernel_id: str, spec: KernelSpec, manager: KernelManager, forks: ForksWhat
) -> LocalProvisioner | None:
    """A provisioner for a kernelspec whose kernels are the keeper's.

    None for any other, for which jupyter_client makes it.
    """
    stanza = spec.metadata.get("kernel_provisioner") or {}
    options = {"kernel_id": kernel_id, "kernel_spec": spec, "parent": manager}
    default = KernelProvisionerFactory.instance().default_provisioner_name
    is_local = stanza.get("provisioner_name", default) == "local-provisioner"
    if forks == "nothing":
        return KeeperProvisioner(**options) if is_local else None
    try:
        provisioner = KeptForkProvisioner(**options, **stanza.get("config", {}))
    except TraitError:  # as the launch will say
        return None
    provisioner.is_asked = forks == "asked"
    return provisioner


def check_limit(name: str, value: object) -> None:
    """Raise `ValueError` for a resource limit that there is not, or what is no value of one."""
    if not hasattr(resource, f"RLIMIT_{name}"):
        raise ValueError(f"there is no resource limit {name[:40]}")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(f"the value of {name[:40]} is not a number that a limit can have")


def parse_command(cmd: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """The interpreter with its options, and the arguments of the kernel that it runs.

    Raises `CannotFork` for any other command than ``/path/to/python -m ipykernel_launcher ...``.
    """
    place = 1
    while place < len(cmd) and cmd[place] not in ("-m", "-c") and cmd[place].startswith("-"):
        place += 2 if cmd[place] in TAKES_A_VALUE else 1
    if not os.path.isabs(cmd[0]) or [*cmd[place : place + 2]] != ["-m", "ipykernel_launcher"]:
        raise CannotFork("its command is not /path/to/python -m ipykernel_launcher")
    return tuple(cmd[:place]), [*cmd[place + 2 :]]


def read_once(env: Mapping[str, str], preload: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The variables that cannot be changed after a process has started, with these preloads."""
    patterns = (*READ_ONCE, *READ_WHEN_LOADED) if preload else READ_ONCE
    return tuple(
        sorted(
            (name, value)
            for name, value in env.items()
            if any(fnmatchcase(name, pattern) for pattern in patterns)
            and name != "PYTHONEXECUTABLE"  # which provisioners give to no Python
        )
    )
