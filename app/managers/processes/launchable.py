"""A check, before a restart ends the old process, whether a new one could be launched at all."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Final

from jupyter_client.kernelspec import KernelSpec

from ..errors import KernelStartFailed

__all__ = ["check_launchable"]


def check_launchable(
    spec: KernelSpec, cwd: Path, env: Mapping[str, str], connection_dir: Path
) -> None:
    """Raise `KernelStartFailed` for a launch on this host that is known to fail.

    A launch that passes may fail all the same: a program or directory may go a moment later. The
    check spares users the loss of a running kernel to a fault that was there all along.
    """
    problem = _problem(spec, cwd, env)
    if problem is None and not os.access(connection_dir, os.W_OK | os.X_OK):
        problem = f"no connection file can be written to {connection_dir}"
    if problem is not None:
        raise KernelStartFailed(f"The kernel could not be launched: {problem}")


def _problem(spec: KernelSpec, cwd: Path, env: Mapping[str, str]) -> str | None:
    if not cwd.is_dir():
        return f"there is no directory {cwd}"
    if not os.access(cwd, os.X_OK):
        return f"the directory {cwd} cannot be entered"
    if not spec.argv:
        return "its kernelspec has no argv"
    program = str(spec.argv[0]).replace("{resource_dir}", spec.resource_dir)
    program = os.path.expanduser(program.replace("{prefix}", sys.prefix))
    # What jupyter_client alone can put in: it may be anything.
    if "{" in program or program in _OURS:
        return None
    path = Template(str(spec.env.get("PATH", "$PATH"))).safe_substitute(env)
    # A relative program and a relative entry of PATH are looked up in the kernel's directory.
    places = os.pathsep.join(str(cwd / place) for place in path.split(os.pathsep))
    where = str(cwd / program) if os.sep in program else program
    if shutil.which(where, path=places) is None:
        return f"there is no program {program} that can be executed"
    return None


_MAJOR, _MINOR = sys.version_info[:2]
_OURS: Final = {"python", f"python{_MAJOR}", f"python{_MAJOR}.{_MINOR}"}
"""Program names for which jupyter_client starts the server's own interpreter instead."""
