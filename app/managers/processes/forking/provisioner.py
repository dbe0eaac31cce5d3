"""A kernel provisioner that forks Python kernels where it can, and starts them otherwise.

A kernelspec asks for it (``"metadata": {"kernel_provisioner": {"provisioner_name":
"kernelkeep-fork"}}``), or the option ``fork_kernels`` names the kernelspec, or that option is
``auto``: then kernels that can be forked are, from the second start on. In any server but this one
the provisioner does what jupyter_client's local provisioner does.
"""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Iterable, Mapping, Sequence
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
from ....log_formats import about
from ....name_patterns import matcher
from ....options import FORK_AUTOMATICALLY, FORK_NONE
from ...errors import IsolationUnavailable
from ..engines.kinds import KINDS
from ..engines.provisioner import EngineProvisioner
from ..hosts.options import PROVISIONER as SSH_PROVISIONER
from ..hosts.provisioner import SSHProvisioner
from ..keeper.keepers import Keepers
from ..keeper.kept import Kept
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
"""The provisioner's name (its entry point in the group ``jupyter_client.kernel_provisioners``)."""

READ_ONCE: Final = (
    # The interpreter, the dynamic loader and the C library read these when a program starts.
    *("PYTHON*", "LD_*", "DYLD_*", "LANG", "LANGUAGE", "LC_*", "MALLOC_*", "GLIBC_*", "HOME"),
    # The modules that ipykernel imports read these.
    *("PYDEVD_*", "PYDEV_*", "DEBUGPY_*", "GEVENT_*", "VIRTUAL_ENV", "USER", "TERM"),
    *("TRAITLETS_*", "TORNADO_*", "PYZMQ_*", "IPYTHON_*"),
    *("JUPYTER_PLATFORM_DIRS", "JUPYTER_USE_PROGRAMDATA", "JUPYTER_ALLOW_INSECURE_WRITES"),
)

READ_WHEN_LOADED: Final = ("OMP_*", "MKL_*", "OPENBLAS_*", "NUMEXPR_*", "CUDA_*", "MPL*")
"""Variables that libraries read which may be among the preloads."""

TAKES_A_VALUE: Final = ("-X", "-W")  # options of the interpreter, given as two arguments


MAX_SAID: Final = 100
"""How many reasons are remembered, so that each is logged once."""

ForksWhat = Literal["asked", "automatic", "nothing"]
"""Whether a kernelspec's kernels are forked: ``asked``, because the kernelspec or the option names
it; ``automatic``, from the second start on if that can be; or never."""


class Forking:
    """The fork servers and the options for forking, which all kernels of a server share.

    ``names`` is the option ``fork_kernels``: names of kernelspecs that do not ask for forking
    themselves, or ``auto``, or ``none``. ``env`` has the variables of every kernel, which those of
    its kernelspec override.
    """

    def __init__(self, servers: ForkServers, names: Iterable[str], env: Mapping[str, str]) -> None:
        self.servers = servers
        self._names = {name.lower() for name in names}
        self._is_automatic = FORK_AUTOMATICALLY in self._names
        self._names -= {FORK_AUTOMATICALLY, FORK_NONE}
        self._said: dict[str, None] = {}
        self.env = env

    def choose(self, name: str, spec: KernelSpec) -> ForksWhat:
        """Whether a kernelspec's kernels are forked; its own metadata override the option."""
        stanza = spec.metadata.get("kernel_provisioner")
        if stanza:
            return "asked" if stanza.get("provisioner_name") == PROVISIONER else "nothing"
        if name.lower() in self._names:
            return "asked"
        default = KernelProvisionerFactory.instance().default_provisioner_name
        is_local = default == "local-provisioner"
        return "automatic" if self._is_automatic and is_local else "nothing"

    def prepare(self, name: str, manager: AsyncKernelManager) -> None:
        """Start the fork servers of a kernelspec whose kernels are to be forked as ``asked``."""
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
        """Note that a kernel is ready, and start the fork server that was to wait for that.

        Earlier, the imports of the fork server would have competed with the kernel's for the
        processor. ``in_vain`` is the recipe from which the kernel was forked before, and did not
        come up. As it has come up now by being started, the fault is in the forking, which is given
        up for the recipe.
        """
        if in_vain is not None:
            self.servers.give_up(in_vain, "a kernel came up only when it was not forked")
        provisioner = manager.provisioner if manager is not None else None
        if isinstance(provisioner, KeptForkProvisioner) and provisioner.brings_up is not None:
            recipe, provisioner.brings_up = provisioner.brings_up, None
            self.servers.bring_up(recipe)

    def forked_by_itself(self, manager: AsyncKernelManager | None) -> Recipe | None:
        """The recipe from which a kernel's process was forked automatically; None if it was not."""
        provisioner = manager.provisioner if manager is not None else None
        return provisioner.forked_from if isinstance(provisioner, KeptForkProvisioner) else None

    def say(self, name: str, reason: CannotFork) -> None:
        """Log, once, why the kernels of a kernelspec cannot be forked automatically."""
        text = f"kernels of {name} are not forked but started: {reason}"
        if text not in self._said:
            self._said[text] = None
            if len(self._said) > MAX_SAID:
                del self._said[next(iter(self._said))]
            logger.info("%s", text)

    def base(self, spec: KernelSpec, preload: Sequence[str]) -> tuple[tuple[str, str], ...]:
        """The environment of a fork server for this kernelspec, as (name, value) pairs."""
        own = {name: Template(value).safe_substitute(self.env) for name, value in spec.env.items()}
        return read_once({**self.env, **own}, preload)


class KernelManager(AsyncKernelManager):
    """jupyter_client's manager, with a way to the fork servers and to the keepers."""

    forking: Forking | None = None
    keepers: Keepers | None = None


class ForkOptions(LocalProvisioner):
    """The options that a kernelspec can give to the provisioner."""

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
        """Raise `ValueError` for a limit that this system does not have, or cannot set."""
        if self.limits and not hasattr(resource, "prlimit"):
            raise ValueError("limits take Linux")
        for name, value in self.limits.items():
            check_limit(name, value)

    def limit(self, pid: int) -> None:
        """Set the limits of a process that was just launched. Raises `OSError`."""
        for name, value in self.limits.items():
            number = getattr(resource, f"RLIMIT_{name}")
            hard = resource.prlimit(pid, number)[1]  # its owner's limit, if there is one
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.prlimit(pid, number, (value, value))


class ForkProvisioner(ForkOptions):
    """The provisioner in any server but this one: launches the kernel, and sets its limits."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Launch a kernel. Raises what `LocalProvisioner`'s method does, and `ValueError`."""
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
    """Whether the kernelspec or the option asks for the forking; otherwise it is automatic."""

    brings_up: Recipe | None = None
    """The recipe of the fork server to bring up when the process launched last is ready."""

    forked_from: Recipe | None = None
    """The recipe that the process launched last was forked from, if that was automatic."""

    async def launch_process(self, cmd: list[str], env: Mapping[str, str]) -> Kept:
        """Fork or launch a process that the keeper has.

        Raises what `KeeperProvisioner.launch_process` raises, `ValueError` for the limits, and
        `IsolationUnavailable` if they could not be set.
        """
        self.check()
        if self.limits and self.confinement is not None and self.confinement.kind == "bubblewrap":
            raise IsolationUnavailable("its kernelspec has limits, which a sandbox has not")
        try:
            return await self._fork(cmd, env)
        except CannotFork as reason:
            self.explain(reason)
        kept = await super().launch_process(cmd, env)
        try:
            # The process has run without limits for a moment, in which its interpreter starts.
            self.limit(kept.pid)
        except BaseException:
            await self.keepers.forget(self.kernel_id)
            raise
        return kept

    async def _fork(self, cmd: list[str], env: Mapping[str, str]) -> Kept:
        recipe = self.plan(cmd, env)
        # Until `finally` both ends of the pipe are open here. So the write below does not raise if
        # the kernel has died meanwhile: the keeper tells its end. A kernel for which nothing is
        # written reads the end of the pipe, and ends.
        reads, writes = os.pipe()
        output = -1
        try:
            output = lasting_pipe(self.output)
            _, arguments = parse_command(cmd)
            order = Order(cmd, arguments, env, str(self.cwd), output, self.limits, reads)
            pid = await self.fork(recipe, order)
            try:
                kept = await self._adopt(pid)
                # The kernel begins only now that the keeper has its process. If this server had
                # ended before, the pipe would be closed, and the kernel would end: so no kernel
                # runs that no keeper knows.
                os.write(writes, b"\n")
            except BaseException:
                # The kernel ends when the pipe is closed, but the keeper may have its process
                # although its answer did not come.
                await self.keepers.forget(self.kernel_id, pid)
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
            kept = await self.keepers.adopt(
                self.kernel_id, pid, started, self.output, self.process_limits
            )
        if kept is None:
            raise CannotFork("its process ended at once")
        if kept.unlimited:
            raise OSError(kept.unlimited)
        return kept

    @property
    def forking(self) -> Forking:
        """The fork servers and options of this server."""
        forking = getattr(self.parent, "forking", None)
        assert isinstance(forking, Forking), "only a server makes this provisioner"
        return forking

    def plan(self, cmd: Sequence[str], env: Mapping[str, str]) -> Recipe:
        """The recipe to fork a process from. Raises `CannotFork` if it cannot be forked now."""
        self.brings_up = self.forked_from = None
        if self.confinement is not None:
            # A fork has the fork server's user, and sees the files that the fork server sees.
            raise CannotFork("it is isolated from the kernels of other owners")
        if not self.keepers.is_newest_for(self.kernel_id):
            # Fork servers are the newest keeper's, which would be the parent of the process.
            raise CannotFork("its keeper is of the version before")
        recipe = self.recipe(cmd, env)
        try:
            self.forking.servers.check(recipe, asked=self.is_asked)
        except NotForkedYet:
            self.brings_up = recipe
            raise
        return recipe

    async def fork(self, recipe: Recipe, order: Order) -> int:
        """Fork a process from a planned recipe; returns its id. Raises `CannotFork`."""
        try:
            pid = await self.forking.servers.fork(recipe, order, asked=self.is_asked)
        except NotForkedYet:
            self.brings_up = None if self.is_asked else recipe
            raise
        self.forked_from = None if self.is_asked else recipe
        return pid

    def explain(self, reason: CannotFork) -> None:
        """Log why the kernel is started instead of forked, unless that is the usual course."""
        if self.is_asked:
            about(logger, kernel_id=self.kernel_id).info(
                "kernel %s is not forked but started: %s", self.kernel_id, reason
            )
        elif not isinstance(reason, NotForkedYet):
            self.forking.say(getattr(self.parent, "kernel_name", ""), reason)

    def recipe(self, cmd: Sequence[str], env: Mapping[str, str]) -> Recipe:
        """The recipe for a process with this command and environment.

        Raises `CannotFork` if no fork can become such a process.
        """
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
    """A provisioner for a kernelspec whose kernels are a keeper's children, here or elsewhere.

    None for any other kernelspec: jupyter_client then makes the provisioner.
    """
    stanza = spec.metadata.get("kernel_provisioner") or {}
    options = {"kernel_id": kernel_id, "kernel_spec": spec, "parent": manager}
    if stanza.get("provisioner_name") == SSH_PROVISIONER:
        return SSHProvisioner(**options)
    if stanza.get("provisioner_name") in KINDS:
        return EngineProvisioner(**options)
    default = KernelProvisionerFactory.instance().default_provisioner_name
    is_local = stanza.get("provisioner_name", default) == "local-provisioner"
    if forks == "nothing":
        return KeeperProvisioner(**options) if is_local else None
    try:
        provisioner = KeptForkProvisioner(**options, **stanza.get("config", {}))
    except TraitError:  # jupyter_client meets the same fault, and the launch reports it
        return None
    provisioner.is_asked = forks == "asked"
    return provisioner


def check_limit(name: str, value: object) -> None:
    """Raise `ValueError` if there is no such resource limit, or it cannot have this value."""
    if not hasattr(resource, f"RLIMIT_{name}"):
        raise ValueError(f"there is no resource limit {name[:40]}")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(f"the value of {name[:40]} is not a number that a limit can have")


def parse_command(cmd: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Split a kernel's command: the interpreter with its options, and the kernel's arguments.

    Raises `CannotFork` for any other command than ``/path/to/python -m ipykernel_launcher ...``.
    """
    place = 1
    while place < len(cmd) and cmd[place] not in ("-m", "-c") and cmd[place].startswith("-"):
        place += 2 if cmd[place] in TAKES_A_VALUE else 1
    if not os.path.isabs(cmd[0]) or [*cmd[place : place + 2]] != ["-m", "ipykernel_launcher"]:
        raise CannotFork("its command is not /path/to/python -m ipykernel_launcher")
    return tuple(cmd[:place]), [*cmd[place + 2 :]]


def read_once(env: Mapping[str, str], preload: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The variables that cannot be changed in a process that has started with these preloads."""
    is_read = matcher((*READ_ONCE, *READ_WHEN_LOADED) if preload else READ_ONCE)
    return tuple(
        sorted(
            (name, value)
            for name, value in env.items()
            if is_read(name) and name != "PYTHONEXECUTABLE"  # provisioners give it to no Python
        )
    )
