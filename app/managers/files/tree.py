"""Turns paths of the contents API into files below the root directory, and into no others."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from ...name_patterns import matcher
from ..errors import KernelkeepError
from .errors import ContentsExist, ContentsForbidden, ContentsNotFound, InvalidContents, NoSpace

__all__ = ["Place", "Tree", "filesystem_errors", "plain_path"]

UNLISTED: Final = ("__pycache__", "*.pyc", "*.pyo", "*~")
"""Names that a listing leaves out, as Jupyter servers do; such a file can be asked for by name."""

_is_unlisted: Final = matcher(UNLISTED)


class Place(NamedTuple):
    """The file that an API path leads to, which need not exist.

    ``path`` is the API path, without slashes at its ends. ``entry`` is the file of that name, which
    may be a symbolic link; ``target`` is the file that the link leads to, or ``entry``.
    """

    path: str
    entry: Path
    target: Path

    @property
    def name(self) -> str:
        """The last part of the API path; empty for the root directory."""
        return self.path.rpartition("/")[2]

    def child(self, name: str) -> str:
        """The API path of a file in this directory."""
        return f"{self.path}/{name}" if self.path else name


def plain_path(path: str) -> str:
    """An API path without slashes at its ends, and with one between two names."""
    return "/".join(part for part in path.split("/") if part)


class Tree:
    """The visible files below ``root``, which must be an absolute path without symbolic links.

    A file is hidden if a part of its path begins with a dot, or if it is one of the ``private``
    files and directories or below one. Symbolic links to visible files are followed.
    """

    def __init__(self, root: Path, private: Iterable[Path] = ()) -> None:
        self._root = root
        self._private = tuple(private)

    def find(self, path: str) -> Place:
        """The place of an API path, which need not exist.

        Raises `ContentsNotFound` for a path that is hidden or leads out of the root directory,
        and `InvalidContents` for one that no file can have.
        """
        # The result is true until another process moves a file or a link. Where that matters, the
        # file is checked again when it is opened (`bodies.open_file`). A kernel of the same user
        # could read and write all of these files anyway.
        plain = plain_path(path)
        parts = plain.split("/") if plain else []
        if any(part.startswith(".") or "\0" in part for part in parts):
            raise ContentsNotFound(plain)
        named = self._root.joinpath(*parts)
        try:
            # The parent is resolved apart from the last part, which may be a link to be removed.
            entry = named.parent.resolve() / named.name if parts else self._root
            target = entry.resolve()
        except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a lone surrogate
            if getattr(error, "errno", None) == errno.ENAMETOOLONG:
                raise InvalidContents("The path or a name in it is too long") from None
            raise ContentsNotFound(plain) from None
        if not self._shows(entry) or not self._shows(target):
            raise ContentsNotFound(plain)
        return Place(plain, entry, target)

    def find_to_change(self, path: str) -> Place:
        """As `find`, for a path that is to be written: a hidden one raises `InvalidContents` (400).

        Jupyter servers answer so, and their clients show the message.
        """
        try:
            return self.find(path)
        except ContentsNotFound:
            raise InvalidContents(f"Cannot change file or directory {path[:200]!r}") from None

    def check_movable(self, place: Place) -> None:
        """Raise `InvalidContents` for a directory that has private files below it.

        A client could put another directory in its place, with files that this service would trust.
        """
        if any(private.is_relative_to(place.entry) for private in self._private):
            raise InvalidContents(f"Directory {place.path} has hidden files")

    def check_link(self, place: Place, new: Place) -> None:
        """Raise `InvalidContents` for a link that would lead to no visible file at another place.

        May raise `OSError`.
        """
        if not place.entry.is_symlink():
            return
        link = new.entry.parent / os.readlink(place.entry)
        try:
            target = link.resolve(strict=True)
            if self._shows(target):
                return
        except (OSError, RuntimeError):  # there is nothing, or a loop of links
            pass
        raise InvalidContents(f"The link {place.path} would lead to no file from there")

    def children(self, place: Place) -> Iterator[Place]:
        """The visible files and directories in a directory, sorted by name. Raises `OSError`."""
        # Each name is looked up by `find`: a link may lead to a file that is hidden.
        for name in sorted(os.listdir(place.target)):
            if _is_unlisted(name) or not _is_text(name):
                continue
            try:
                child = self.find(place.child(name))
                mode = child.target.stat().st_mode
            except (KernelkeepError, OSError):  # hidden, a broken link, or removed meanwhile
                continue
            if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
                yield child

    def _shows(self, path: Path) -> bool:
        if not path.is_relative_to(self._root):
            return False
        if any(path.is_relative_to(private) for private in self._private):
            return False
        return not any(part.startswith(".") for part in path.relative_to(self._root).parts)


def _is_text(name: str) -> bool:
    """Whether a file's name is UTF-8: another can be neither in a URL nor in JSON."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def filesystem_errors(place: Place) -> Iterator[None]:
    """Turn an `OSError` into an error of the API, which names the API path and no other."""
    try:
        yield
    except OSError as error:
        # Chained for the server's log alone: its text has a path of the machine.
        raise _refusal(place.path, error) from error


def _refusal(path: str, error: OSError) -> KernelkeepError:
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR | errno.ELOOP:
            return ContentsNotFound(path)
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return ContentsForbidden(f"Permission denied: {path}")
        case errno.EEXIST | errno.ENOTEMPTY:
            return ContentsExist(path)
        case errno.ENOSPC | errno.EDQUOT:
            return NoSpace(f"There is no room for {path}")
        case errno.EISDIR:
            return InvalidContents(f"{path} is a directory, not a file")
        case errno.ENAMETOOLONG | errno.EINVAL:
            return InvalidContents("The path or a name in it is too long, or cannot be used here")
    return InvalidContents(f"{path}: {error.strerror}")
