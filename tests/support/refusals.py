"""The command in this process, as far as a refusal goes: most need no process of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from types import SimpleNamespace
from typing import Any, NoReturn
from unittest.mock import patch

from app.cli import main
from tests.support.commands import Commands
from tests.support.home import Home

__all__ = ["refusal", "refused"]


SERVES = "the command refuses nothing, and would serve now"


def refused(
    commands: Commands, *arguments: str, home: Home, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What `Commands.run` returns, of a command that is refused.

    Wrong options, directories and addresses are refused here, by the function that the command is.
    Only what is refused later, by the service itself, takes a process.
    """
    environment = {"KERNELKEEP_STATE_DIR": str(home.state_dir), **home.environment(env)}
    service = SimpleNamespace(serve=_serve, CannotStart=OSError)
    with (
        patch.dict("os.environ", environment, clear=True),
        patch.dict(sys.modules, {f"{main.__module__.rpartition('.')[0]}.serving": service}),
        redirect_stdout(StringIO()) as stdout,
        redirect_stderr(StringIO()) as stderr,
        chdir(home.path),
    ):
        try:
            main([*arguments])
        except SystemExit as end:
            code = end.code
    if code == SERVES:
        return commands.run(*arguments, home=home, env=env)
    assert isinstance(code, int)
    return subprocess.CompletedProcess(arguments, code, stdout.getvalue(), stderr.getvalue())


def refusal(ended: subprocess.CompletedProcess[str]) -> str:
    """The one sentence with which a start was refused."""
    assert ended.returncode == 2, ended
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("kernelkeep: ")
    return line.removeprefix("kernelkeep: ")


def _serve(settings: Any, listener: Any, **_: Any) -> NoReturn:
    listener.close()
    sys.exit(SERVES)
