"""The keeper as one file that a host's own Python runs: a zip of its modules."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from . import pythons

__all__ = ["MODULE", "Bundle", "bundle", "program"]

MODULE: Final = "kernelkeep.keeper"
"""What the host's interpreter runs, with the zip on its path."""

_IMPORTS_PYTHONS: Final = re.compile(rb"^from \S*\.pythons import .*\n", re.MULTILINE)

_ROOT: Final = Path(__file__).parents[3]
_PARTS: Final = ("__init__.py", "keeper/*.py", "protocol/*.py")
_LONG_AGO: Final = (1980, 1, 1, 0, 0, 0)


# The sources are read when this server starts. By the time they are sent, an upgrade may have
# replaced the files: but the program, the keeper and this server's requests must be of one version.
_SOURCES: Final = tuple(
    (path.relative_to(_ROOT).as_posix(), path.read_bytes())
    for pattern in _PARTS
    for path in sorted(_ROOT.glob(pattern))
)
_PYTHONS: Final = Path(pythons.__file__).read_bytes()


class Bundle(NamedTuple):
    """The zip's bytes, and their SHA-256; equal modules make equal bytes."""

    data: bytes
    digest: str


@lru_cache(1)
def bundle() -> Bundle:
    """The keeper of this server's version."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, source in _SOURCES:
            archive.writestr(zipfile.ZipInfo(f"kernelkeep/{name}", _LONG_AGO), source)
    data = file.getvalue()
    return Bundle(data, hashlib.sha256(data).hexdigest())


def program(file: str) -> bytes:
    """The text of a program that runs on a host: that of `pythons`, and that of its own ``file``.

    Call it when this server starts, for the reason at `_SOURCES`.
    """
    own, count = _IMPORTS_PYTHONS.subn(b"", Path(file).read_bytes())
    assert count == 1, "it would not run there"
    return _PYTHONS + own
