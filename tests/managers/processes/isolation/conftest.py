"""Directories that other users can get to, as those of pytest are not."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def passable() -> Iterator[Path]:
    """A directory of mode 0711 in the system's temporary one."""
    directory = Path(tempfile.mkdtemp(prefix="kk-")).resolve()
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory)
