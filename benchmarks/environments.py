"""The peers, each in a virtual environment of its own below ``build/``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["PEERS", "Environment", "prepare"]

PEERS: Final = {
    "jupyter_server": ["jupyter_server"],
    "jupyter_kernel_gateway": ["jupyter_kernel_gateway"],
    "jupyverse": ["jupyverse[jupyterlab,noauth]", "fps-kernel-subprocess"],
}
"""What is installed for each; kernels are those of the benchmark's own environment."""

INSTALL_SECONDS: Final = 600


class Environment(NamedTuple):
    """An environment: its Python, and the version of the peer in it; or why there is none."""

    python: Path
    version: str
    problem: str = ""


def prepare(name: str, folder: Path) -> Environment:
    """The environment of a peer, installed if it is not there yet."""
    directory = folder / name
    python = directory / "bin" / "python"
    done = directory / "installed"
    try:
        if not done.exists():
            print(f"installing {name} into {directory} (once)", flush=True)
            _run([sys.executable, "-m", "venv", "--clear", str(directory)])
            pip = [str(python), "-m", "pip", "-qq", "--disable-pip-version-check", "--no-input"]
            _run([*pip, "install", "--no-compile", *PEERS[name]])
            done.touch()
        code = f"from importlib.metadata import version; print(version({name!r}))"
        return Environment(python, f"{name} {_run([str(python), '-c', code]).strip()}")
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        return Environment(python, name, f"not installed: {reason[-1] if reason else error}")


def _run(command: list[str]) -> str:
    result = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=INSTALL_SECONDS,
    )
    return result.stdout
