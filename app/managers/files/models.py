"""The models of files and directories in the contents API, and their versions for conditions."""

from __future__ import annotations

import mimetypes
import os
import stat
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from ...protocol.messages import format_timestamp
from .tree import Place
from .writing import may_write

__all__ = ["CheckpointModel", "ContentsModel", "describe", "version_of"]

NOTEBOOK_SUFFIX: Final = ".ipynb"


class ContentsModel(msgspec.Struct):
    """A file, a notebook or a directory."""

    name: Annotated[str, Meta(description="The last part of its path.")]
    path: Annotated[str, Meta(description="Where it is, relative to the root directory.")]
    last_modified: Annotated[str, Meta(description="When its content was last changed, UTC.")]
    created: Annotated[str, Meta(description="When it was made, as far as that is known, UTC.")]
    type: Annotated[str, Meta(description="`file`, `notebook` or `directory`.")]
    size: Annotated[int | None, Meta(description="In bytes; null for a directory.")]
    writable: Annotated[bool, Meta(description="Whether the server may change it.")]
    mimetype: Annotated[str | None, Meta(description="Of a file, if it is known.")] = None
    format: Annotated[
        str | None,
        Meta(description="Of the content: `text`, `base64` or `json`; null where there is none."),
    ] = None
    content: Annotated[
        Any,
        Meta(
            description="A text, base64, a notebook, or a directory's models; null if not asked "
            "for."
        ),
    ] = None
    hash: Annotated[str | None, Meta(description="Of the file's bytes, in hex, if asked for.")] = (
        None
    )
    hash_algorithm: Annotated[str | None, Meta(description="`sha256` where there is a hash.")] = (
        None
    )
    message: Annotated[
        str | msgspec.UnsetType,
        Meta(description="What is wrong with a notebook that is not as its schema says."),
    ] = msgspec.UNSET


class CheckpointModel(msgspec.Struct):
    """A copy of a file that can be restored."""

    id: str
    last_modified: Annotated[str, Meta(description="When the copy was made, UTC.")]


def describe(place: Place, status: os.stat_result) -> ContentsModel:
    """The model of a file or directory without its content."""
    is_directory = stat.S_ISDIR(status.st_mode)
    is_notebook = place.name.endswith(NOTEBOOK_SUFFIX) and not is_directory
    # Linux does not tell when a file was created. As in Jupyter, its oldest time stands for that.
    born = getattr(status, "st_birthtime", min(status.st_ctime, status.st_mtime))
    return ContentsModel(
        name=place.name,
        path=place.path,
        last_modified=format_timestamp(status.st_mtime),
        created=format_timestamp(born),
        type="directory" if is_directory else "notebook" if is_notebook else "file",
        size=None if is_directory else status.st_size,
        writable=may_write(place.target),
        mimetype=None if is_directory or is_notebook else mimetypes.guess_type(place.name)[0],
    )


def version_of(status: os.stat_result) -> str:
    """The entity tag of a file, which changes with its content, name and mode.

    Two writes may come within one tick of the file system's clock. Their tags differ all the same:
    a write through this service replaces the whole file, and with it the inode.
    """
    # The time of the inode's change, which no program can set, as it can the time of the content's.
    return f'"{status.st_ino:x}-{status.st_ctime_ns:x}-{status.st_size:x}"'
