"""The keeper as one file that a host's own Python runs: a zip of its modules."""

from __future__ import annotations

import hashlib
import io
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["MODULE", "Bundle", "bundle"]

MODULE: Final = "kernelkeep.keeper"
"""What the host's interpreter runs, with the zip on its path."""

_ROOT: Final = Path(__file__).parents[3]
_PARTS: Final = ("__init__.py", "keeper/*.py", "protocol/*.py")
_LONG_AGO: Final = (1980, 1, 1, 0, 0, 0)


class Bundle(NamedTuple):
    """The zip's bytes, and a digest that names them: the same modules have the same."""

    data: bytes
    digest: str


@lru_cache(1)
def bundle() -> Bundle:
    """The keeper of this server's version. Raises `OSError`."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for pattern in _PARTS:
            for path in sorted(_ROOT.glob(pattern)):
                name = f"kernelkeep/{path.relative_to(_ROOT).as_posix()}"
                archive.writestr(zipfile.ZipInfo(name, _LONG_AGO), path.read_bytes())
    data = file.getvalue()
    return Bundle(data, hashlib.sha256(data).hexdigest())
