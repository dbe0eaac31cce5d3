"""The models of files and directories in the contents API, and their versions for conditions."""

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

    ``content`` and ``format`` are null if the content was not asked for. Only a notebook that
    violates its schema has a ``message``.
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
    # Linux does not tell when a file was created. As in Jupyter, its oldest time stands for that.
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
    """The entity tag of a file, which changes with its content, name and mode.

    Two writes may come within one tick of the file system's clock. Their tags differ all the same:
    a write through this service replaces the whole file, and with it the inode.
    """
    return f'"{status.st_ino:x}-{status.st_ctime_ns:x}-{status.st_size:x}"'
