"""How a keeper's process is started."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ....keeper.protocol import keeper_dir
from ....name_patterns import matcher

__all__ = ["execute_keeper"]

PACKAGE: Final = __name__.partition(".")[0]
"""The name that this package was imported by: ``app`` in a clone, ``kernelkeep`` once installed."""

MODULE: Final[tuple[str, ...]] = (f"{PACKAGE}.keeper",)
"""The keeper's module, and its arguments before the state directory."""

MAX_LOG_BYTES: Final = 2**20
"""A keeper that starts empties its log if that is larger."""


def execute_keeper(state_dir: Path, output: int) -> subprocess.Popen[bytes]:
    """Start a keeper, in a session of its own, so that no Ctrl+C of our terminal reaches it.

    ``output`` is the descriptor for its stdout; its stderr goes to its log. Raises `OSError`.
    """
    log = keeper_dir(state_dir) / "log"
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(log, flags, 0o600)
    try:
        if os.fstat(descriptor).st_size > MAX_LOG_BYTES:
            os.truncate(descriptor, 0)
        return subprocess.Popen(
            [sys.executable, "-m", *MODULE, str(state_dir)],
            # No file system is kept in use; of the state directory the keeper has a descriptor.
            cwd="/",
            env=_environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=descriptor,
            start_new_session=True,
        )
    finally:
        os.close(descriptor)


KEEPER_ENVIRONMENT: Final = (
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_*", "TZ", "TZDIR", "TMPDIR"),
    *("LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "PYTHONDONTWRITEBYTECODE"),
    *("PYTHONWARNINGS", "PYTHONUTF8", "PYTHONIOENCODING", "VIRTUAL_ENV"),
)
"""Variables of the server's environment that the keeper gets; * is a wildcard."""


def _environment(server: Mapping[str, str]) -> dict[str, str]:
    """The environment of a keeper: what an interpreter needs to start and find this package.

    It holds nothing else, for code in a kernel can read the environment of its parent process. A
    kernel's own environment comes with the request to launch it.
    """
    is_needed = matcher(KEEPER_ENVIRONMENT)
    env = {name: value for name, value in server.items() if is_needed(name)}
    root = str(Path(str(sys.modules[PACKAGE].__file__)).parents[1])
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (root, env.get("PYTHONPATH"))))
    return env
