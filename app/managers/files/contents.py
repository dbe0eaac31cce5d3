"""Jupyter's contents API over the files below the root directory. Every function here blocks.

Every method may raise `ContentsNotFound`, `ContentsForbidden`, `InvalidContents`, `ContentsExist`
or `NoSpace`; a method with a `Precondition` may raise `VersionMismatch`.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import threading
from base64 import encodebytes
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import msgspec

from .bodies import as_text, data_of_file, encode, open_file, read
from .checkpoints import DIRECTORY, Checkpoints
from .copying import copy_directory, copy_to
from .errors import ContentsExist, InvalidContents, VersionMismatch
from .models import NOTEBOOK_SUFFIX, CheckpointModel, ContentsModel, describe, version_of
from .notebooks import Notebooks, empty_notebook
from .tree import Place, Tree, filesystem_errors
from .uploads import LAST, Uploads
from .writing import create_new, replacing

__all__ = ["Contents", "Found", "Precondition", "Save"]

MAX_NAMES: Final = 10_000
"""How many numbers are tried to find a free name for a new file."""

MAX_REMOVALS: Final = 100
"""How often the removal of a directory is tried when others remove files in it meanwhile."""


class Save(msgspec.Struct):
    """The body of a request to save a file.

    ``chunk`` is the number of a part of the content, from 1; the last part has -1. Other keys of
    the body are ignored.
    """

    type: str | None = None
    format: str | None = None
    content: Any = None
    chunk: int | None = None
    path: str | None = None
    copy_from: str | None = None


class Precondition(NamedTuple):
    """The state of a file that a caller relies on: one of these versions ("*" stands for any), or
    that no file has this name yet (``absent``). Without either, any state will do."""

    versions: tuple[str, ...] = ()
    absent: bool = False

    def check(self, target: Path) -> None:
        """Raise `VersionMismatch` if the file is in another state."""
        if not self.versions and not self.absent:
            return
        try:
            version = version_of(target.stat())
        except FileNotFoundError:
            version = ""
        if self.absent and version:
            raise VersionMismatch("There is a file of this name already")
        if self.versions and (not version or not {version, "*"} & {*self.versions}):
            raise VersionMismatch("The file has been changed or removed meanwhile")


class Found(NamedTuple):
    """The model and version of a file or directory; ``created`` if it did not exist before.

    A file that is not whole yet has no version: none could be relied on.
    """

    model: ContentsModel
    version: str | None
    created: bool = False


class Contents:
    """The contents manager. Methods may be called from several threads at once."""

    def __init__(
        self,
        root: Path,
        state_dir: Path,
        hidden: Iterable[Path] = (),
        notebooks: Notebooks | None = None,
    ) -> None:
        self._tree = Tree(root, [state_dir, *hidden])
        self._notebooks = Notebooks(state_dir) if notebooks is None else notebooks
        self._checkpoints = Checkpoints()
        self._uploads = Uploads()
        # Held from the check of a file's version to its change. Two threads may save the same file
        # for clients that both rely on one version: the first changes it, and the second finds
        # another version. The lock is held for a rename, never while content is written.
        self._changing = threading.Lock()

    def close(self) -> None:
        """Drop the uploads that are not complete."""
        self._uploads.close()

    # Reading

    def get(
        self,
        path: str,
        *,
        kind: str | None = None,
        form: str | None = None,
        content: bool = True,
        hashed: bool = False,
    ) -> Found:
        """A file or directory, with its ``content`` or without.

        ``kind`` is the type that the caller expects; ``form`` is ``text``, ``base64``, or None for
        the one that fits. If ``hashed``, the model has the SHA-256 of the file's bytes.
        """
        place = self._tree.find(path)
        with filesystem_errors(place):
            status = place.target.stat()
            model = describe(place, status)
            _check_kind(place, status, kind)
            if model.type == "directory":
                if content:
                    model.format, model.content = "json", self._listing(place)
                return Found(model, version_of(status))
            if kind == "file":
                model.type = "file"
            if content or hashed:
                with open_file(place) as file:
                    # Another process may have replaced the file since the name was looked up: the
                    # version has to be that of the bytes that are read.
                    status = os.fstat(file.fileno())
                    data = read(file, status, place.path)
                if content:
                    self._put_content(model, data, form)
                if hashed:
                    model.hash, model.hash_algorithm = sha256(data).hexdigest(), "sha256"
        return Found(model, version_of(status))

    def open(self, path: str) -> BinaryIO:
        """Open an existing file to read its bytes; the caller closes it."""
        place = self._tree.find(path)
        with filesystem_errors(place):
            return open_file(place)

    def _listing(self, place: Place) -> list[ContentsModel]:
        models = []
        for child in self._tree.children(place):
            try:
                models.append(describe(child, child.target.stat()))
            except OSError:  # the file was removed since the directory was read
                continue
        return models

    def _put_content(self, model: ContentsModel, data: bytes, form: str | None) -> None:
        if model.type == "notebook":
            text = as_text(data, model.path)
            model.content, complaint = self._notebooks.read(text, model.path)
            model.format = "json"
            if complaint:
                model.message = complaint
            return
        if form != "base64":
            try:
                model.content, model.format = data.decode(), "text"
                model.mimetype = model.mimetype or "text/plain"
                return
            except UnicodeDecodeError:
                if form == "text":
                    raise InvalidContents(
                        f"{model.path} is not UTF-8 encoded", "bad format"
                    ) from None
        model.content, model.format = encodebytes(data).decode("ascii"), "base64"
        model.mimetype = model.mimetype or "application/octet-stream"

    # Creating

    def create(self, path: str, *, kind: str | None = None, suffix: str = "") -> Found:
        """Make a file, notebook or directory (``kind``) in a directory, under a free name."""
        directory = self._directory(path)
        if "/" in suffix or "\0" in suffix:
            raise InvalidContents("ext: no part of a file's name")
        if kind == "notebook":
            suffix = suffix or NOTEBOOK_SUFFIX
        if kind == "directory":
            return self._under_free_name(directory, "Untitled Folder", " ", "", os.mkdir)
        stem, data = "untitled", b""
        if suffix == NOTEBOOK_SUFFIX:
            stem = "Untitled"
            data = self._notebooks.written(empty_notebook(), path)[0].encode()
        return self._under_free_name(
            directory, stem, "", suffix, lambda target: create_new(target, data)
        )

    def copy(self, source_path: str, path: str) -> Found:
        """Copy a file or directory into the directory ``path``, under a free name."""
        source = self._tree.find_to_change(source_path)
        with filesystem_errors(source):
            is_directory = stat.S_ISDIR(source.target.stat().st_mode)
            if is_directory:  # as on a Jupyter server, which makes the directory to copy into
                self._tree.find_to_change(path).target.mkdir(parents=True, exist_ok=True)
        directory = self._directory(path)
        with filesystem_errors(source):
            if is_directory and directory.target.is_relative_to(source.target):
                raise InvalidContents("A directory cannot be copied into itself")
            if not is_directory:
                open_file(source).close()
        stem, suffix = source.name, ""
        if not is_directory:
            # A suffix begins at the first dot (.tar.gz), but a notebook's name may have dots.
            is_notebook = source.name.endswith(NOTEBOOK_SUFFIX)
            part = source.name.rpartition if is_notebook else source.name.partition
            stem, dot, rest = part(".")
            suffix = dot + rest
            stem = re.sub(r"-Copy\d*$", "", stem)
        beside = source.entry.parent == directory.target
        copy = partial(copy_directory, self._tree) if is_directory else copy_to
        return self._under_free_name(
            directory, stem, "-Copy", suffix, lambda to: copy(source, to), first=int(beside)
        )

    def _directory(self, path: str) -> Place:
        place = self._tree.find_to_change(path)
        with filesystem_errors(place):
            if not stat.S_ISDIR(place.target.stat().st_mode):
                raise InvalidContents("Cannot POST to files, use PUT instead.")
        return place

    def _under_free_name(
        self,
        directory: Place,
        stem: str,
        insert: str,
        suffix: str,
        make: Callable[[Path], object],
        first: int = 0,
    ) -> Found:
        """Make a file under the first free name: ``stem``, ``insert`` and a number, ``suffix``.

        ``make`` raises `FileExistsError` for a name that is taken. So two threads that try the same
        name do not both get it.
        """
        for number in range(first, MAX_NAMES):
            name = f"{stem}{insert}{number}{suffix}" if number else f"{stem}{suffix}"
            # Looked up anew for each name: the directory may meanwhile have become a link that
            # leads out of the root directory.
            place = self._tree.find_to_change(directory.child(name))
            with filesystem_errors(place):
                try:
                    make(place.entry)
                except FileExistsError:
                    continue
                return self._found(place, created=True)
        raise ContentsExist(directory.child(f"{stem}{suffix}"))

    # Changing

    def save(self, path: str, save: Save, precondition: Precondition) -> Found:
        """Write a file, or make a directory; the answer has no content."""
        if save.copy_from:
            raise InvalidContents("Cannot copy with PUT, only POST")
        if save.path:
            self._tree.find_to_change(save.path)
        place = self._tree.find_to_change(path)
        if not place.path:
            raise InvalidContents("The root directory cannot be saved")
        with filesystem_errors(place):
            exists = place.target.exists()
            if exists and not place.target.is_dir() and save.type is None:
                raise InvalidContents("No file type provided")
            kind = _kind_of(save.type, place)
            if save.chunk is not None and kind != "file":
                raise InvalidContents(
                    f'File type "{kind}" is not supported for large file transfer'
                )
            if kind == "directory":
                return self._save_directory(place, precondition)
            if place.target.is_dir():
                raise InvalidContents(f"{place.path} is a directory, not a {kind}", "bad type")
            if save.content is None and exists:
                raise InvalidContents("No file content provided")
            if save.chunk is not None:
                # No file changes before the last chunk: the precondition is checked at that one.
                guard = self._changes(place, precondition)
                return self._save_chunk(place, save, save.chunk, guard, exists=exists)
            # Checked here to write nothing in vain, and again under the lock in `_changes`.
            precondition.check(place.target)
            data, complaint = self._data(place, kind, save)
            with replacing(place.target, self._changes(place, precondition)) as file:
                file.write(data)
            # As a Jupyter server does. The checkpoint may have a newer save, which is as good.
            if kind == "notebook" and not self._checkpoints.of(place):
                self._checkpoints.create(place)
            found = self._found(place, created=not exists)
        if complaint:
            found.model.message = complaint
        return found

    @contextmanager
    def _changes(self, place: Place, precondition: Precondition) -> Iterator[None]:
        """Check the precondition, and let no other thread replace, move or remove a file within."""
        with self._changing:
            precondition.check(place.target)
            yield

    def _save_directory(self, place: Place, precondition: Precondition) -> Found:
        with self._changes(place, precondition):
            try:
                place.target.mkdir()
            except FileExistsError:
                if not place.target.is_dir():
                    raise InvalidContents(f"Not a directory: {place.path}", "bad type") from None
        return self._found(place, created=True)

    def _save_chunk(
        self,
        place: Place,
        save: Save,
        chunk: int,
        guard: AbstractContextManager[None],
        *,
        exists: bool,
    ) -> Found:
        data = data_of_file(save.content, save.format)
        status = self._uploads.add(place.target, chunk, data, guard)
        model = describe(place, status)
        model.type = "file"
        version = version_of(status) if chunk == LAST else None
        return Found(model, version, created=not exists)

    def _data(self, place: Place, kind: str, save: Save) -> tuple[bytes, str | None]:
        if kind == "notebook":
            content = empty_notebook() if save.content is None else save.content
            text, complaint = self._notebooks.written(content, place.path)
            return encode(text), complaint
        if save.content is None:
            return b"", None
        return data_of_file(save.content, save.format), None

    def rename(self, path: str, new_path: str, precondition: Precondition) -> Found:
        """Move a file or directory to another path. Raises `ContentsExist` if that is taken."""
        place, new = self._tree.find_to_change(path), self._tree.find_to_change(new_path)
        if not place.path or not new.path:
            raise InvalidContents("The root directory cannot be renamed")
        self._tree.check_movable(place)
        with filesystem_errors(place):
            # 404, and not 412 or 409, if there is nothing to move. A link that leads nowhere counts
            # as nothing, as for every other request: no model could be answered for it.
            place.target.stat()
            if new.path == place.path:
                return self._found(place)
            self._tree.check_link(place, new)
            if new.entry.is_relative_to(place.entry):
                raise InvalidContents("A directory cannot be moved into itself")
            with self._changes(place, precondition):
                if os.path.lexists(new.entry) and not _same_file(place.entry, new.entry):
                    raise ContentsExist(new.path)
                # If another process makes a file of the new name between the check and this line,
                # that file is lost: Python has no rename that refuses to replace. Requests to this
                # server do not meet here, by the lock.
                os.rename(place.entry, new.entry)
            if not new.entry.is_dir():
                self._checkpoints.move(place, new)
        with filesystem_errors(new):
            return self._found(self._tree.find(new.path))

    def delete(self, path: str, precondition: Precondition) -> None:
        """Remove a file, a link, or a directory with all its files, for good."""
        place = self._tree.find_to_change(path)
        if not place.path:
            raise InvalidContents("Can't delete root")
        self._tree.check_movable(place)
        with filesystem_errors(place):
            with self._changes(place, precondition):
                if place.entry.is_symlink() or not place.entry.is_dir():
                    place.entry.unlink()
                    self._checkpoints.forget(place)
                    return
            # Without the lock, as this may take long. Files that are saved into the directory
            # meanwhile are removed with it, as if they had been saved just before.
            self._check_removable(place)
            _remove(place.entry)

    def _check_removable(self, place: Place) -> None:
        """Raise `InvalidContents` if a directory has hidden files other than checkpoints.

        The API does not show hidden files, so a client must not remove them unseen.
        """
        for directory, names, files in os.walk(place.entry):
            if DIRECTORY in names:
                names.remove(DIRECTORY)
            if any(name.startswith(".") for name in (*names, *files)):
                hidden = Path(directory).relative_to(place.entry)
                where = f"{place.path}/{hidden}".removesuffix("/.")
                raise InvalidContents(f"Directory {where} has hidden files")

    # Checkpoints and trust

    def create_checkpoint(self, path: str) -> CheckpointModel:
        """Make a checkpoint of the file as it is now."""
        with self._of_file(path) as place:
            return self._checkpoints.create(place)

    def checkpoints(self, path: str) -> list[CheckpointModel]:
        """The checkpoints of a file."""
        with self._of_file(path) as place:
            return self._checkpoints.of(place)

    def restore_checkpoint(self, path: str, checkpoint_id: str) -> None:
        """Restore the file from a checkpoint."""
        with self._of_file(path) as place:
            guard = self._changes(place, Precondition())
            self._checkpoints.restore(place, checkpoint_id, guard)

    def delete_checkpoint(self, path: str, checkpoint_id: str) -> None:
        """Remove a checkpoint."""
        with self._of_file(path) as place:
            self._checkpoints.delete(place, checkpoint_id)

    def trust(self, path: str) -> Found:
        """Trust the outputs that a notebook has now: browsers may run them."""
        with self._of_file(path) as place, open_file(place) as file:
            data = read(file, os.fstat(file.fileno()), place.path)
            self._notebooks.trust(as_text(data, place.path), place.path)
            return self._found(place)

    @contextmanager
    def _of_file(self, path: str) -> Iterator[Place]:
        place = self._tree.find(path)
        with filesystem_errors(place):
            if not stat.S_ISREG(place.target.stat().st_mode):
                raise InvalidContents(f"{place.path} is no file", "bad type")
            yield place

    def _found(self, place: Place, *, created: bool = False) -> Found:
        place = self._tree.find(place.path)
        status = place.target.stat()
        return Found(describe(place, status), version_of(status), created)


def _remove(directory: Path) -> None:
    """Remove a directory with all that is in it. Raises `OSError`."""
    for _ in range(MAX_REMOVALS):
        # A file that others remove at the same time ends this attempt, and the next one goes on.
        with suppress(FileNotFoundError):
            shutil.rmtree(directory)
        if not os.path.lexists(directory):
            return
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def _kind_of(asked: str | None, place: Place) -> str:
    """The type to save: the one asked for (an unknown one means a file), or the name's."""
    if asked:
        return asked if asked in ("directory", "notebook") else "file"
    return "notebook" if place.name.endswith(NOTEBOOK_SUFFIX) else "file"


def _check_kind(place: Place, status: os.stat_result, kind: str | None) -> None:
    is_directory = stat.S_ISDIR(status.st_mode)
    if not is_directory and not stat.S_ISREG(status.st_mode):
        raise InvalidContents(f"{place.path} is no file", "bad type")
    if is_directory and kind not in (None, "directory"):
        raise InvalidContents(f"{place.path} is a directory, not a {kind}", "bad type")
    if not is_directory and kind == "directory":
        raise InvalidContents(f"{place.path} is not a directory", "bad type")
    if kind == "notebook" and not place.name.endswith(NOTEBOOK_SUFFIX):
        raise InvalidContents(f"{place.path} is not a notebook", "bad type")


def _same_file(one: Path, other: Path) -> bool:
    """Whether two names differ only in case and are the same file, as on some file systems."""
    return one.name.lower() == other.name.lower() and os.path.samefile(one, other)
