"""Two requests that change one file at a time: neither overwrites what it has not seen."""

from __future__ import annotations

import errno
import shutil
import threading
from pathlib import Path

import pytest

from app.managers.files.checkpoints import CHECKPOINT_ID
from app.managers.files.contents import Contents, Precondition, Save
from app.managers.files.errors import InvalidContents, VersionMismatch
from app.managers.files.uploads import LAST
from tests.support.watched_lock import WatchedLock

ANY = Precondition()


@pytest.fixture
def contents(tmp_path: Path) -> Contents:
    (tmp_path / "root").mkdir()
    return Contents(tmp_path / "root", tmp_path / "state")


def text(content: str, chunk: int | None = None) -> Save:
    return Save(type="file", format="text", content=content, chunk=chunk)


class Held(Precondition):
    """A condition that holds, and during whose second look another thread wants to change files."""

    other: threading.Thread
    waits: threading.Event
    looks = 0

    def check(self, target: Path) -> None:
        self.looks += 1
        if self.looks == 2:  # under the lock
            self.other.start()
            assert self.waits.wait(30)  # until the file is saved


@pytest.mark.parametrize("way", ["restore", "upload"])
def test_no_other_change_comes_between_the_look_at_a_version_and_the_change(
    contents: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    lock = WatchedLock()
    monkeypatch.setattr(contents, "_changing", lock)
    contents.save("a.txt", text("other"), ANY)
    contents.create_checkpoint("a.txt")
    contents.save("a.txt", text("oth", 1), ANY)

    def change() -> None:
        if way == "restore":
            contents.restore_checkpoint("a.txt", CHECKPOINT_ID)
        else:
            contents.save("a.txt", text("er", LAST), ANY)

    held = Held()
    held.waits = lock.is_wanted
    held.other = threading.Thread(target=change)
    contents.save("a.txt", text("saved"), held)
    held.other.join()
    assert (tmp_path / "root" / "a.txt").read_text() == "other"
    contents.close()


@pytest.mark.parametrize("goes", ["a", "directory"])
def test_a_directory_is_removed_although_others_remove_what_is_in_it(
    contents: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, goes: str
) -> None:
    """The answer was that there is no such file, and the audit log said nothing."""
    directory = tmp_path / "root" / "directory"
    directory.mkdir()
    for name in ("a", "b"):
        (directory / name).touch()
    rmtree, calls = shutil.rmtree, 0

    def remove(path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            rmtree(path)
            return
        (directory / "a").unlink()
        if goes == "directory":
            rmtree(directory)
        raise FileNotFoundError(errno.ENOENT, "No such file", "a")

    monkeypatch.setattr(shutil, "rmtree", remove)
    contents.delete("directory", ANY)
    assert not directory.exists()


def test_a_directory_in_which_files_come_and_go_is_given_up_on(
    contents: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root" / "directory").mkdir()

    def remove(_path: Path) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file", "a")

    monkeypatch.setattr(shutil, "rmtree", remove)
    with pytest.raises(InvalidContents, match="busy"):
        contents.delete("directory", ANY)


def test_a_file_in_chunks_relies_on_a_version_too(contents: Contents, tmp_path: Path) -> None:
    seen = contents.save("a.txt", text("old"), ANY).version
    assert seen is not None
    relying = Precondition((seen,))
    contents.save("a.txt", text("n", 1), relying)
    contents.save("a.txt", text("other"), ANY)
    with pytest.raises(VersionMismatch):
        contents.save("a.txt", text("ew", LAST), relying)
    assert [path.read_text() for path in (tmp_path / "root").iterdir()] == ["other"]
