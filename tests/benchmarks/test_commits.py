"""The files of another commit, which the benchmark measures beside this one's."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks.commits import checkout, described


def git(root: Path, *arguments: str) -> str:
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    command = ["git", "-C", str(root), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository of two commits, whose file says which one it is."""
    root = tmp_path / "clone"
    root.mkdir()
    git(root, "init", "-q")
    for text in ("first", "second"):
        (root / "file").write_text(text)
        git(root, "add", "file")
        git(root, "commit", "-q", "-m", text)
    return root


def test_the_files_are_those_of_the_commit_and_gone_in_the_end(clone: Path, tmp_path: Path) -> None:
    with checkout("HEAD~1", root=clone, folder=tmp_path / "commits") as path:
        assert (path / "file").read_text() == "first"
        assert described(path) == git(clone, "rev-parse", "--short", "HEAD~1")
    assert not path.exists()
    assert (clone / "file").read_text() == "second"
    assert len(git(clone, "worktree", "list").splitlines()) == 1


def test_files_that_a_killed_run_has_left_and_changed_are_not_believed(
    clone: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "commits"
    name = git(clone, "rev-parse", "HEAD")
    git(clone, "worktree", "add", "--detach", str(folder / name[:12]), name)
    (folder / name[:12] / "file").write_text("changed")

    with checkout(name, root=clone, folder=folder) as path:
        assert (path / "file").read_text() == "second"


def test_a_commit_that_is_not_there_is_an_error(clone: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(subprocess.CalledProcessError),
        checkout("HEAD~2", root=clone, folder=tmp_path / "commits"),
    ):
        pass


def test_a_folder_that_is_no_clone_is_of_no_commit(tmp_path: Path) -> None:
    assert described(tmp_path) == "of no commit"
