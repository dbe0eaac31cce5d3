"""What the contents API says of one file or directory, and its version for conditional requests."""

from __future__ import annotations

import mimetypes
import os
import stat
from typing import Any, Final

import msgspec

from ...protocol.messages import format_timestamp
from .tree import Place

__all__ = ["Checkpoint", "Model", "describe", "version_of"]

NOTEBOOK_SUFFIX: Final = ".ipynb"


class Model(msgspec.Struct):
    """A file or directory in the words of Jupyter's contents API.

    ``content`` and ``format`` are null where the content was not asked for; ``message`` is there
    only for a notebook that is not as its schema says.
    """

    name: str
    path: str
    last_modified: str
    created: str
    type: str
    size: int | None
    writable: bool
    mimetype: str | None = None
    format: str | None = None
    content: Any = None
    hash: str | None = None
    hash_algorithm: str | None = None
    message: str | msgspec.UnsetType = msgspec.UNSET


class Checkpoint(msgspec.Struct):
    """A copy of a file that can be restored."""

    id: str
    last_modified: str


def describe(place: Place, status: os.stat_result) -> Model:
    """The model of a file or directory without its content."""
    is_directory = stat.S_ISDIR(status.st_mode)
    is_notebook = place.name.endswith(NOTEBOOK_SUFFIX) and not is_directory
    # Linux tells no time of birth: the oldest time that is known stands for it, as in Jupyter.
    born = getattr(status, "st_birthtime", min(status.st_ctime, status.st_mtime))
    return Model(
        name=place.name,
        path=place.path,
        last_modified=format_timestamp(status.st_mtime),
        created=format_timestamp(born),
        type="directory" if is_directory else "notebook" if is_notebook else "file",
        size=None if is_directory else status.st_size,
        writable=os.access(place.target, os.W_OK),
        mimetype=None if is_directory or is_notebook else mimetypes.guess_type(place.name)[0],
    )


def version_of(status: os.stat_result) -> str:
    """The entity tag of a file: another one after every change of its content, name or mode.

    Writes here replace whole files, so that the inode changes even where two of them fall into one
    tick of the file system's clock.
    """
    return f'"{status.st_ino:x}-{status.st_ctime_ns:x}-{status.st_size:x}"'
