"""From the paths of the API to directories below the root."""

from __future__ import annotations

from pathlib import Path

from app.managers.errors import InvalidPath

__all__ = ["cwd_for_path", "working_directory"]


def cwd_for_path(root: Path, path: str) -> Path:
    """The directory a kernel for the API path ``path`` works in: it, or its nearest parent.

    ``path`` is relative to ``root`` and written with ``/``; a leading one is tolerated. Raises
    `InvalidPath` for one that leads out of the root, symbolic links resolved.
    """
    if "\0" in path:
        raise InvalidPath("path: holds a NUL character")
    try:
        resolved = (root / path.strip("/")).resolve()
        inside = resolved.is_relative_to(root)
        while inside and resolved != root and not resolved.is_dir():
            resolved = resolved.parent
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
        directory = Path(asked).resolve()
        return directory if directory.is_dir() and directory.is_relative_to(root) else None
    except (OSError, RuntimeError):
        return None
