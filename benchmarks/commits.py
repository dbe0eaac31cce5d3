"""This clone's commit, and the files of another."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

__all__ = ["FOLDER", "checkout", "described"]

ROOT: Final = Path(__file__).parents[1]
FOLDER: Final = ROOT / "build" / "benchmarks" / "commits"
GIT_SECONDS: Final = 60


def described(root: Path = ROOT) -> str:
    """The commit of a clone, with a plus sign if it has been changed since."""
    try:
        return _git(root, "describe", "--always", "--dirty=+")
    except (OSError, subprocess.SubprocessError):
        return "of no commit"


@contextmanager
def checkout(commit: str, *, root: Path = ROOT, folder: Path = FOLDER) -> Iterator[Path]:
    """The files of a commit of the clone at ``root``, in a worktree below ``folder``.

    It is removed in the end. Raises `subprocess.CalledProcessError` where there is no such commit,
    as in a shallow clone.
    """
    name = _git(root, "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}")
    path = folder / name[:12]
    # One that was left by a run that was killed may have been changed.
    _remove(root, path)
    _git(root, "worktree", "prune")
    folder.mkdir(parents=True, exist_ok=True)
    _git(root, "worktree", "add", "--detach", "--quiet", str(path), name)
    try:
        yield path
    finally:
        _remove(root, path)


def _remove(root: Path, path: Path) -> None:
    if path.exists():
        _git(root, "worktree", "remove", "--force", str(path))


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    result = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=GIT_SECONDS,
    )
    return result.stdout.strip()
