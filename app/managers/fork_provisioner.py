"""A kernel provisioner that forks Python kernels where it can, and starts them otherwise.

Named by a kernelspec (``"metadata": {"kernel_provisioner": {"provisioner_name":
"kernelkeep-fork"}}``) or by the option ``fork_kernels``. Under any other server than this one it is
jupyter_client's local provisioner.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from string import Template
from typing import Any, Final

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from traitlets import Dict, Integer, List, Unicode

from app.managers.fork_link import CannotFork, ForkedProcess, Order, Recipe
from app.managers.forking import ForkServers
from app.managers.keeping import Keeper

try:
    import resource
except ImportError:  # Windows, where nothing is forked either
    resource = None  # type: ignore[assignment]

__all__ = ["PROVISIONER", "ForkOptions", "ForkProvisioner", "Forking", "KernelManager"]

logger = logging.getLogger(__name__)

PROVISIONER: Final = "kernelkeep-fork"
"""The name under which it is registered (entry point ``jupyter_client.kernel_provisioners``)."""

READ_ONCE: Final = (
    # By the interpreter, the dynamic loader and the C library when a program starts.
    *("PYTHON*", "LD_*", "DYLD_*", "LANG", "LANGUAGE", "LC_*", "MALLOC_*", "GLIBC_*", "HOME"),
    # By what ipykernel imports.
    *("PYDEVD_*", "DEBUGPY_*", "VIRTUAL_ENV"),
)

READ_WHEN_LOADED: Final = ("OMP_*", "MKL_*", "OPENBLAS_*", "NUMEXPR_*", "CUDA_*", "MPL*")
"""By libraries that may be among the preloads."""

TAKES_A_VALUE: Final = ("-X", "-W")  # of the interpreter's options


class Forking:
    """What the kernels of a server share for being forked.

    ``names`` are the kernelspecs that are forked although they do not ask for it; ``env`` is what
    every kernel gets, before its own.
    """

    def __init__(self, servers: ForkServers, names: Iterable[str], env: Mapping[str, str]) -> None:
        self.servers = servers
        self._names = {name.lower() for name in names}
        self.env = env

    def choose(self, name: str, spec: KernelSpec) -> None:
        """Have a kernelspec's kernels forked if the option names it; its own choice comes first."""
        if name.lower() in self._names and not spec.metadata.get("kernel_provisioner"):
            spec.metadata["kernel_provisioner"] = {"provisioner_name": PROVISIONER}

    def prepare(self, manager: AsyncKernelManager) -> None:
        """Start the fork servers for a kernelspec, if its kernels are forked."""
        spec = manager.kernel_spec
        assert spec is not None
        stanza = spec.metadata.get("kernel_provisioner") or {}
        if stanza.get("provisioner_name") != PROVISIONER:
            return
        try:
            interpreter, _ = parse_command(manager.format_kernel_cmd())
            preload = tuple(stanza.get("config", {}).get("preload", ()))
            self.servers.prepare(Recipe(interpreter, preload, self.base(spec, preload)))
        except CannotFork as error:
            logger.warning("kernels of %s are not forked but started: %s", spec.display_name, error)

    def base(self, spec: KernelSpec, preload: Sequence[str]) -> tuple[tuple[str, str], ...]:
        """What a fork server for this kernelspec has as its environment."""
        own = {name: Template(value).safe_substitute(self.env) for name, value in spec.env.items()}
        return read_once({**self.env, **own}, preload)


class KernelManager(AsyncKernelManager):
    """jupyter_client's, with a way to the fork servers and to the keeper."""

    forking: Forking | None = None
    keeper: Keeper | None = None


class ForkOptions(LocalProvisioner):
    """What a kernelspec can ask for, and what is to be forked then."""

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
        """Raise `ValueError` for limits that there are not."""
        for name in self.limits:
            if not hasattr(resource, f"RLIMIT_{name}"):
                raise ValueError(f"there is no resource limit {name[:40]}")

    @property
    def forking(self) -> Forking:
        """Where to fork. Raises `CannotFork`."""
        forking = getattr(self.parent, "forking", None)
        if not isinstance(forking, Forking):
            raise CannotFork("there are fork servers in kernelkeep only")
        return forking

    def order(
        self, cmd: Sequence[str], env: Mapping[str, str], cwd: str, output: int
    ) -> tuple[Recipe, Order]:
        """What is to be forked, and by what. Raises `CannotFork`."""
        interpreter, arguments = parse_command(cmd)
        base = self.forking.base(self.kernel_spec, self.preload)
        wanted = read_once(env, self.preload)
        if wanted != base:
            names = sorted({name for name, _ in {*wanted} ^ {*base}})
            raise CannotFork(f"its environment has another {', '.join(names)[:200]}")
        recipe = Recipe(interpreter, tuple(self.preload), base)
        return recipe, Order(cmd, arguments, env, cwd, output, self.limits)

    def limit(self, pid: int) -> None:
        """Set the limits of a process that was just started, where the platform can."""
        for name, value in self.limits.items():
            number = getattr(resource, f"RLIMIT_{name}")
            hard = resource.getrlimit(number)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            if hasattr(resource, "prlimit"):
                resource.prlimit(pid, number, (value, value))


class ForkProvisioner(ForkOptions):
    """Forks the kernel from a fork server, or starts it and says why."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Launch a kernel; raises what the launch of an ordinary one does."""
        self.check()
        try:
            process = await self._fork(cmd, kwargs)
        except CannotFork as reason:
            logger.info("kernel %s is not forked but started: %s", self.kernel_id, reason)
            info = await super().launch_kernel(cmd, **kwargs)
            if self.pid is not None:
                try:
                    self.limit(self.pid)
                except BaseException:
                    await self.kill()
                    await self.wait()
                    raise
            return info
        self.process = process  # type: ignore[assignment]
        # It makes a session of its own, and so a group of this number, before anything else.
        self.pid = self.pgid = process.pid
        self.cwd = kwargs["cwd"]
        return self.connection_info

    async def poll(self) -> int | None:
        """The exit code, minus the number of a signal, or None while the process runs."""
        if isinstance(self.process, ForkedProcess):
            return await self.process.outcome()
        return await super().poll()

    async def _fork(self, cmd: list[str], options: Mapping[str, Any]) -> ForkedProcess:
        output = options.get("stdout")
        if not isinstance(output, int) or options.get("stderr") != output:
            raise CannotFork("its output goes somewhere else")
        env = {**options["env"], "JPY_PARENT_PID": str(os.getpid())}
        recipe, order = self.order(cmd, env, options["cwd"], output)
        pid, server = await self.forking.servers.fork(recipe, order)
        try:
            return ForkedProcess(pid, server)
        except BaseException:  # no descriptors are left
            server.abandon(pid)
            raise


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
