"""The files below the server's root directory, where a kernel's host has them, too."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["SharedFiles", "expanded", "shares_files"]


class SharedFiles(NamedTuple):
    """The files below ``here``, the server's root directory: on the host they are below ``there``.

    Both are absolute. ``home`` is the user's, there.
    """

    here: Path
    there: Path
    home: str

    def directory_there(self, directory: str) -> str:
        """Where a directory is, there. Raises `ValueError` if it is not below the root."""
        return str(self.there / Path(directory).relative_to(self.here))

    def find(self, path: str, directory: str) -> str | None:
        """The path there of an existing file that ``path`` means in a kernel's ``directory`` there.

        A file counts only if it lies below that directory, once links are resolved. It is looked
        for here. Raises `OSError`, `RuntimeError` and `ValueError` for a path that cannot be.
        """
        wanted = _normal(Path(directory, expanded(path, self.home)))
        try:
            found = self._here(wanted)
            base = self._here(directory)
        except ValueError:  # it is not below the root
            return None
        # Both are resolved: a link may lead out of the directory, and the directory be behind one.
        is_below = found.exists() and found.resolve().is_relative_to(base.resolve())
        return wanted if is_below else None

    def _here(self, path: str) -> Path:
        return self.here / Path(_normal(path)).relative_to(_normal(self.there))


def _normal(path: str | Path) -> str:
    """An absolute path without ``..`` and needless slashes, which a kernelspec or a caller may say.

    Two slashes at the beginning are one, too: POSIX leaves their meaning open, and so does Python.
    """
    return "/" + os.path.normpath(path).lstrip("/")


def expanded(path: str, home: str) -> str:
    """A path on a host whose user's home this is: relative ones begin there, as ``~/`` does."""
    return str(Path(home, path[1:].lstrip("/"))) if path == "~" or path[:2] == "~/" else path


def shares_files(metadata: Mapping[str, Any]) -> bool:
    """Whether a kernelspec says where its kernels have the files of the server's root directory."""
    stanza = metadata.get("kernel_provisioner")
    config = stanza.get("config") if isinstance(stanza, dict) else None
    return isinstance(config, dict) and bool(config.get("root_dir"))
