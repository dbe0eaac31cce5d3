"""What tests need from npm, installed once for each environment of Python."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.node import NODE, NPM, environment

INSTALL_SECONDS = 300  # npm asks again where a registry hangs (.npmrc)

_FILES = ("package.json", "package-lock.json", ".npmrc")


def install(directory: Path) -> Path:
    """A directory with the packages that the lock in ``directory`` names, in node_modules.

    It lies in the environment of this Python, and is made if it is not there.
    """
    content = b"".join((directory / name).read_bytes() for name in _FILES)
    place = Path(sys.prefix) / "node" / hashlib.sha256(content).hexdigest()[:16]
    if place.exists():
        return place
    place.parent.mkdir(exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=place.parent))
    try:
        for name in _FILES:
            shutil.copy(directory / name, work)
        options = ("--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
        done = subprocess.run(
            [NODE, NPM, "ci", *options],
            cwd=work,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"npm ci failed\n{done.stdout}\n{done.stderr}"
        # Another worker may have been faster. Its packages are the same.
        if not place.exists():
            work.rename(place)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return place
