"""What a start asks for, and moving a warm kernel to that directory and environment.

A Python kernel can be moved before its client sees it. The server sends an `execute_request`
without code, whose user expression changes the directory and the environment. Such a request counts
as no execution, leaves no name and no history, and an error in it reaches the server alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from ...name_patterns import matcher
from ...settings import Settings
from ..owners.ownership import Ownership
from ..processes.engines.quantities import Value
from ..processes.environment import QUIET, kernel_environment
from ..processes.forking.provisioner import READ_ONCE, READ_WHEN_LOADED
from ..processes.paths import cwd_for_path, working_directory

__all__ = ["MOVABLE", "Move", "WantedKernel", "moved", "place_of", "plan", "wanted_kernel"]

MOVABLE: Final = "ipython"
"""The implementation that kernels name in their `kernel_info_reply` if this works with them."""

READ_AT_START: Final = (
    *READ_ONCE,
    *READ_WHEN_LOADED,  # by what a fork server has preloaded, or a start-up file
    # Variables that ipykernel and its dependencies read.
    *("IPYTHON*", "JUPYTER_*", "IPYKERNEL_*", "XDG_*", "TERM", "NO_COLOR", "FORCE_COLOR"),
)

_CODE: Final = """
import os, tempfile, time
from pathlib import Path
from IPython import get_ipython
os.chdir(cwd)
for name in unset:
    os.environ.pop(name, None)
os.environ.update(env)
time.tzset()
tempfile.tempdir = None
shell = get_ipython()
shell.starting_dir = os.getcwd()
shell.user_ns["_dh"][:] = [Path.cwd()]
session = os.environ.get("JPY_SESSION_NAME")
if session:
    shell.user_ns["__session__"] = session
"""


class WantedKernel(NamedTuple):
    """A kernel that is asked for: it works in ``cwd``, and in ``place`` when it is started again.

    ``given`` has the options of its engine that were given for it.
    """

    name: str
    cwd: Path
    place: Path
    env: Mapping[str, str]
    given: Mapping[str, Value]
    ownership: Ownership


def wanted_kernel(
    settings: Settings,
    root: Path,
    name: str | None,
    path: str | None,
    env: Mapping[str, str],
    ownership: Ownership,
    given: Mapping[str, Value],
) -> WantedKernel:
    """The kernel that a start asks for, below its owner's directory ``root``.

    Raises `InvalidPath` and `InvalidEnvironment`.
    """
    inherited = kernel_environment(os.environ, settings.kernel_env_allow, env)
    if path is not None:
        cwd, place = cwd_for_path(root, path), place_of(root, path)
    else:
        cwd = place = working_directory(root, env.get("KERNEL_WORKING_DIR")) or root
    name = name or settings.default_kernel_name
    name = "python3" if name == "python" else name
    return WantedKernel(name, cwd, place, {**QUIET, **inherited}, given, ownership)


def place_of(root: Path, path: str) -> Path:
    """The directory that an API path means for a kernel; it need not exist."""
    return root / path.strip("/")


class Move(NamedTuple):
    """What has to be changed in a kernel; nothing if it is already as it is asked for."""

    cwd: str | None
    env: Mapping[str, str]
    unset: list[str]

    @property
    def needed(self) -> bool:
        """Whether there is anything to change."""
        return self.cwd is not None or bool(self.env or self.unset)

    @property
    def request(self) -> dict[str, Any]:
        """The content of the `execute_request` that moves the kernel."""
        names = {"cwd": self.cwd or ".", "env": dict(self.env), "unset": self.unset}
        # A JSON literal within a Python literal: whatever the values hold, none of it is code.
        values = f"__import__('json').loads({json.dumps(names)!r})"
        return {
            "code": "",
            "silent": True,
            "store_history": False,
            "user_expressions": {"moved": f"__import__('builtins').exec({_CODE!r}, {values})"},
            "allow_stdin": False,
            "stop_on_error": False,
        }


def plan(
    spec_env: Mapping[str, str],
    before: tuple[Path, Mapping[str, str]],
    asked: tuple[Path, Mapping[str, str]],
) -> Move | None:
    """The move from one directory and environment to another; None if a kernel cannot make it.

    Neither environment has the kernelspec's own entries yet, which win over both.
    """
    (cwd, env), (new_cwd, new_env) = before, asked
    # A variable that a kernel has read already cannot be changed any more: it would be told the new
    # value, and go on with the old one.
    changed = {
        name for name in env.keys() | new_env.keys() if env.get(name) != new_env.get(name)
    } - spec_env.keys()
    if any(map(matcher(READ_AT_START), changed)):
        return None
    if changed and any("$" in value for value in spec_env.values()):
        return None  # the kernelspec's own entries are made from variables that would change
    return Move(
        None if new_cwd == cwd else str(new_cwd),
        {name: new_env[name] for name in changed & new_env.keys()},
        sorted(changed - new_env.keys()),
    )


class _Moved(msgspec.Struct):
    status: str


class _Reply(msgspec.Struct):
    user_expressions: dict[str, _Moved] = {}


def moved(reply: bytes | None) -> bool:
    """Whether the content of an `execute_reply` tells that the move was made."""
    if reply is None:
        return False
    try:
        expressions = msgspec.json.decode(reply, type=_Reply).user_expressions
    except (msgspec.MsgspecError, RecursionError):
        return False
    return "moved" in expressions and expressions["moved"].status == "ok"
