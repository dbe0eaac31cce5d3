"""From the paths of the API to directories below the root."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from ..errors import InvalidPath

__all__ = [
    "Resolution",
    "ResolvedPath",
    "UnresolvedScope",
    "api_path",
    "cwd_for_path",
    "directory_now",
    "is_below",
    "working_directory",
]


class ResolvedPath(msgspec.Struct):
    """A path that exists, as its scope (``server`` or ``kernel``) writes it."""

    scope: str
    path: str


class UnresolvedScope(msgspec.Struct):
    """A scope that could not be asked."""

    scope: str
    reason: str


class Resolution(msgspec.Struct):
    """What one path is in the scopes that were asked, in the words of Jupyter's REST API."""

    resolved: list[ResolvedPath] = msgspec.field(default_factory=list)
    unresolved: list[UnresolvedScope] | msgspec.UnsetType = msgspec.UNSET


def cwd_for_path(root: Path, path: str) -> Path:
    """The directory a kernel for the API path ``path`` works in: it, or its nearest parent.

    ``path`` is relative to ``root`` and written with ``/``; a leading one is tolerated. Raises
    `InvalidPath` for one that leads out of the root, symbolic links resolved.
    """
    if "\0" in path:
        raise InvalidPath("path: holds a NUL character")
    return _nearest_directory(root, root / path.strip("/"))


def directory_now(root: Path, place: Path) -> Path:
    """Where a kernel that is to work in ``place`` can work now: there, or in its nearest parent.

    That is the root when ``place`` leads out of it by now.
    """
    try:
        return _nearest_directory(root, place)
    except InvalidPath:
        return root


def _nearest_directory(root: Path, place: Path) -> Path:
    try:
        resolved = place.resolve()
        inside = resolved.is_relative_to(root)
        while inside and resolved != root and not resolved.is_dir():
            resolved = resolved.parent
        if inside:  # behind a loop of links nothing was resolved, so once more, and strictly
            resolved = resolved.resolve(strict=True)
            inside = resolved.is_relative_to(root)
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name too long
        raise InvalidPath(f"path: {type(error).__name__}") from None
    if not inside:
        raise InvalidPath("path: lies outside the server's root directory")
    return resolved


def working_directory(root: Path, asked: str | None) -> Path | None:
    """The absolute directory ``asked`` if it is below the root, else None.

    A gateway client (JupyterLab with ``--gateway-url``) sends no path but the variable
    ``KERNEL_WORKING_DIR``, a directory of its own machine, which may or may not be ours.
    """
    if not asked or "\0" in asked:
        return None
    try:
        directory = Path(asked).resolve(strict=True)
        return directory if directory.is_dir() and directory.is_relative_to(root) else None
    except (OSError, RuntimeError, ValueError):
        return None


def is_below(directory: Path, path: str) -> bool:
    """Whether an absolute path leads to something below ``directory``, links resolved."""
    return Path(path).resolve().is_relative_to(directory.resolve())


def api_path(root: Path, path: str) -> str | None:
    """The API path of an existing file or directory, or None.

    ``path`` may be absolute below ``root``, begin with ``~``, or be relative to ``root``. Whatever
    is outside of it does not exist, symbolic links resolved.
    """
    try:
        expanded = os.path.expanduser(path)
        is_whole = expanded != path or Path(path).is_relative_to(root)
        candidate = Path(os.path.normpath(expanded if is_whole else root / path.lstrip("/")))
        resolved = candidate.resolve(strict=True)
        # As it is written, and where it leads to: neither may be outside.
        inside = candidate.is_relative_to(root) and resolved.is_relative_to(root)
        if not inside or not resolved.exists():
            return None
    except (OSError, RuntimeError, ValueError):  # a loop of links, a name too long, a NUL
        return None
    relative = candidate.relative_to(root).as_posix()
    return "" if relative == "." else relative
