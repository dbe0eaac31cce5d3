"""Turns paths of the API into directories below the server's root, and back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from ..errors import InvalidPath

__all__ = [
    "ResolutionModel",
    "ResolvedPathModel",
    "UnresolvedScopeModel",
    "api_path",
    "cwd_for_path",
    "directory_now",
    "is_below",
    "working_directory",
]


class ResolvedPathModel(msgspec.Struct):
    """Where a path leads to."""

    scope: Annotated[
        str,
        Meta(description="`server`: below its root directory. `kernel`: on the kernel's machine."),
    ]
    path: str


class UnresolvedScopeModel(msgspec.Struct):
    """Where it could not be looked for."""

    scope: str
    reason: str


class ResolutionModel(msgspec.Struct):
    """What a path leads to."""

    resolved: list[ResolvedPathModel] = msgspec.field(default_factory=list)
    unresolved: Annotated[
        list[UnresolvedScopeModel] | msgspec.UnsetType,
        Meta(description="Only when there is something."),
    ] = msgspec.UNSET


def cwd_for_path(root: Path, path: str) -> Path:
    """The working directory of a kernel for an API path: the nearest directory at or above it.

    ``path`` is relative to ``root`` and written with ``/``; a leading one is ignored. Raises
    `InvalidPath` for a path that leads out of the root once symbolic links are resolved.
    """
    if "\0" in path:
        raise InvalidPath("path: holds a NUL character")
    return _nearest_directory(root, root / path.strip("/"))


def directory_now(root: Path, place: Path) -> Path:
    """The nearest directory at or above ``place`` that exists now, for a kernel that restarts.

    It is the root if ``place`` has come to lead out of the root.
    """
    try:
        return _nearest_directory(root, place)
    except InvalidPath:
        return root


def _nearest_directory(root: Path, place: Path) -> Path:
    try:
        resolved = place.resolve()
        # `root` has no links in it either: the settings, or `Isolation.root`, have resolved it.
        inside = resolved.is_relative_to(root)
        while inside and resolved != root and not resolved.is_dir():
            resolved = resolved.parent
        if inside:  # without `strict` a loop of links ends the resolving silently: do it again
            resolved = resolved.resolve(strict=True)
            inside = resolved.is_relative_to(root)
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name too long
        raise InvalidPath(f"path: {type(error).__name__}") from None
    if not inside:
        raise InvalidPath("path: lies outside the server's root directory")
    return resolved


def working_directory(root: Path, asked: str | None) -> Path | None:
    """The directory ``asked`` for, resolved, if it exists below the root; else None.

    A gateway client (JupyterLab with ``--gateway-url``) sends no path. It sends the variable
    ``KERNEL_WORKING_DIR``: a directory of its own machine, which may or may not be on this one.
    """
    if not asked or "\0" in asked:
        return None
    try:
        directory = Path(asked).resolve(strict=True)
        return directory if directory.is_dir() and directory.is_relative_to(root) else None
    except (OSError, RuntimeError, ValueError):
        return None


def is_below(directory: Path, path: str) -> bool:
    """Whether an absolute path lies below ``directory`` once symbolic links are resolved."""
    return Path(path).resolve().is_relative_to(directory.resolve())


def api_path(root: Path, path: str) -> str | None:
    """The API path of an existing file or directory below ``root``, or None.

    ``path`` may be absolute, begin with ``~``, or be relative to ``root``. A file outside of the
    root, or one that symbolic links lead out of it, counts as one that does not exist.
    """
    try:
        expanded = os.path.expanduser(path)
        is_whole = expanded != path or Path(path).is_relative_to(root)
        candidate = Path(os.path.normpath(expanded if is_whole else root / path.lstrip("/")))
        resolved = candidate.resolve(strict=True)
        # Neither the path as it is written nor the file that it leads to may be outside.
        inside = candidate.is_relative_to(root) and resolved.is_relative_to(root)
        if not inside or not resolved.exists():
            return None
    except (OSError, RuntimeError, ValueError):  # a loop of links, a name too long, a NUL
        return None
    relative = candidate.relative_to(root).as_posix()
    return "" if relative == "." else relative
