"""Paths of the files below the server's root directory on a host that has these files as well."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["SharedFiles", "expanded", "shares_files"]


class SharedFiles(NamedTuple):
    """The files below ``here``, the server's root directory: on the host they are below ``there``.

    Both are absolute. ``home`` is the user's home on the host.
    """

    here: Path
    there: Path
    home: str

    def directory_there(self, directory: str) -> str:
        """The host's path of a directory. Raises `ValueError` if it is not below the root."""
        return str(self.there / Path(directory).relative_to(self.here))

    def find(self, path: str, directory: str) -> str | None:
        """The host's path of an existing file that ``path`` means in a kernel's ``directory``.

        ``path`` and ``directory`` are paths on the host; the file is looked for on this machine. A
        file counts only if it lies below the directory, once links are resolved. Raises `OSError`,
        `RuntimeError` and `ValueError` for an impossible path.
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
    """An absolute path without ``..`` and needless slashes, as kernelspecs and requests may have.

    Two slashes at the beginning become one, which `os.path.normpath` does not do, as POSIX leaves
    their meaning open.
    """
    return "/" + os.path.normpath(path).lstrip("/")


def expanded(path: str, home: str) -> str:
    """A path on a host, with ``~`` replaced by the user's ``home`` there."""
    return str(Path(home, path[1:].lstrip("/"))) if path == "~" or path[:2] == "~/" else path


def shares_files(metadata: Mapping[str, Any]) -> bool:
    """Whether a kernelspec says where its kernels have the files of the server's root directory."""
    stanza = metadata.get("kernel_provisioner")
    config = stanza.get("config") if isinstance(stanza, dict) else None
    return isinstance(config, dict) and bool(config.get("root_dir"))
