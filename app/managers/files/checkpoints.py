"""The one checkpoint of a file: a copy in a directory beside it, as Jupyter servers have it.

Every function here blocks.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from ...protocol.messages import format_timestamp
from .bodies import open_file
from .errors import ContentsForbidden, ContentsNotFound
from .models import CheckpointModel
from .tree import Place
from .writing import copy_file, replacing

__all__ = ["CHECKPOINT_ID", "DIRECTORY", "Checkpoints"]

CHECKPOINT_ID: Final = "checkpoint"
DIRECTORY: Final = ".ipynb_checkpoints"


class Checkpoints:
    """Makes, lists, restores and removes checkpoints.

    Its methods raise `OSError`, and `ContentsForbidden` if a checkpoint is a symbolic link.
    """

    def create(self, place: Place) -> CheckpointModel:
        """Copy the file as it is now; an earlier checkpoint is replaced."""
        # The new copy replaces the old one as a whole file. A restore that reads the old one
        # meanwhile has it open, and gets all of it.
        copy = _copy_of(place)
        copy.parent.mkdir(exist_ok=True)
        with open_file(place) as source, replacing(copy) as file:
            copy_file(source, file)
        return _model(copy.stat())

    def of(self, place: Place) -> list[CheckpointModel]:
        """The file's checkpoint, if there is one."""
        try:
            return [_model(_copy_of(place).stat())]
        except FileNotFoundError:
            return []

    def restore(
        self, place: Place, checkpoint_id: str, guard: AbstractContextManager[None]
    ) -> None:
        """Replace the file by its checkpoint, and hold ``guard`` while it is replaced.

        Raises `ContentsNotFound` if there is no such checkpoint.
        """
        copy = _existing(place, checkpoint_id)
        # Opened as other files are: a kernel may have put a link or a pipe in its place since.
        kept = Place(place.path, copy, copy)
        with open_file(kept) as source, replacing(place.target, guard) as file:
            copy_file(source, file)

    def delete(self, place: Place, checkpoint_id: str) -> None:
        """Remove the checkpoint. Raises `ContentsNotFound` if there is no such checkpoint."""
        _existing(place, checkpoint_id).unlink()

    def move(self, place: Place, to: Place) -> None:
        """Move the checkpoint of a file that was renamed from ``place``."""
        copy, new = _copy_of(place), _copy_of(to)
        if copy.exists():
            new.parent.mkdir(exist_ok=True)
            os.replace(copy, new)

    def forget(self, place: Place) -> None:
        """Remove the checkpoint, if there is one, of a file that was removed."""
        _copy_of(place).unlink(missing_ok=True)


def _copy_of(place: Place) -> Path:
    """The path of a file's checkpoint. Raises `ContentsForbidden` for a symbolic link there."""
    directory = place.entry.parent / DIRECTORY
    name = place.entry
    copy = directory / f"{name.stem}-{CHECKPOINT_ID}{name.suffix}"
    if directory.is_symlink() or copy.is_symlink():
        raise ContentsForbidden(f"The checkpoints of {place.path} are a symbolic link")
    return copy


def _existing(place: Place, checkpoint_id: str) -> Path:
    copy = _copy_of(place)
    if checkpoint_id != CHECKPOINT_ID or not copy.is_file():
        raise ContentsNotFound(f"{place.path}@{checkpoint_id[:64]}", what="Checkpoint")
    return copy


def _model(status: os.stat_result) -> CheckpointModel:
    return CheckpointModel(CHECKPOINT_ID, format_timestamp(status.st_mtime))
