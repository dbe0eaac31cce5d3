"""Copies of files and directories: all that is visible, or nothing."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.managers.files import copying
from app.managers.files.copying import copy_directory, copy_to
from app.managers.files.errors import ContentsTooLarge, InvalidContents
from app.managers.files.tree import Place, Tree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "from" / "sub").mkdir(parents=True)
    for name in ("a", "sub/b", ".hidden", "sub/c.pyc"):
        (tmp_path / "from" / name).write_text(name)
    (tmp_path / "outside").write_text("linked")
    (tmp_path / "from" / "link").symlink_to("../outside")
    return tmp_path


def test_a_file_with_its_mode(root: Path) -> None:
    (root / "from" / "a").chmod(0o640)
    copy_to(Tree(root).find("from/a"), root / "copy")
    assert (root / "copy").read_text() == "a"
    assert stat.S_IMODE((root / "copy").stat().st_mode) == 0o640
    with pytest.raises(FileExistsError):
        copy_to(Tree(root).find("from/a"), root / "copy")


def test_a_copy_that_fails_is_not_there(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(copying, "copy_file", fail)
    tree = Tree(root)
    with pytest.raises(OSError, match="No space"):
        copy_to(tree.find("from/a"), root / "copy")
    with pytest.raises(OSError, match="No space"):
        copy_directory(tree, tree.find("from"), root / "copies")
    assert {path.name for path in root.iterdir()} == {"from", "outside"}


def test_a_directory_has_what_is_visible_in_it(root: Path) -> None:
    tree = Tree(root)
    copy_directory(tree, tree.find("from"), root / "to")
    copied = {
        str(path.relative_to(root / "to")): path.read_text()
        for path in (root / "to").rglob("*")
        if path.is_file()
    }
    assert copied == {"a": "a", "sub/b": "sub/b", "link": "linked"}
    assert not (root / "to" / "link").is_symlink()


def test_a_directory_is_not_copied_into_itself_for_ever(root: Path) -> None:
    tree = Tree(root)
    copy_directory(tree, tree.find("from"), root / "from" / "sub" / "to")
    assert (root / "from" / "sub" / "to" / "a").is_file()
    assert not (root / "from" / "sub" / "to" / "sub").exists()


def test_links_that_go_round(root: Path) -> None:
    (root / "from" / "sub" / "up").symlink_to("..")
    tree = Tree(root)
    with pytest.raises(InvalidContents, match="nested too deeply"):
        copy_directory(tree, tree.find("from"), root / "to")
    assert not (root / "to").exists()


def test_what_is_too_large_is_not_begun(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "MAX_COPIED_BYTES", 3)
    tree = Tree(root)
    with pytest.raises(ContentsTooLarge, match="more than 3 bytes"):
        copy_directory(tree, tree.find("from"), root / "to")
    assert not (root / "to").exists()


def test_links_do_not_make_many_directories_of_few(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of 60 directories has two links to the next one: 2^60 would be copied."""
    for number in range(60):
        directory = root / "links" / f"{number}"
        directory.mkdir(parents=True)
        for name in ("a", "b"):
            (directory / name).symlink_to(f"../{number + 1}")
    (root / "links" / "60").mkdir()
    monkeypatch.setattr(copying, "MAX_COPIED_FILES", 500)
    tree = Tree(root)
    with pytest.raises(ContentsTooLarge, match="more than 500 files and directories"):
        copy_directory(tree, tree.find("links/0"), root / "to")
    assert not (root / "to").exists()
    monkeypatch.setattr(copying, "MAX_COPIED_FILES", 5)  # those of `root`, and no more
    copy_directory(tree, tree.find("from"), root / "to")


def test_links_into_the_copy_lead_nowhere_as_they_did_before(root: Path) -> None:
    """Each of 20 directories would have the one before twice, as that one is in the copy."""
    links = root / "links"
    (links / "00").mkdir(parents=True)
    (links / "00" / "file").touch()
    for number in range(1, 20):
        (links / f"{number:02}").mkdir()
        for name in ("a", "b"):
            (links / f"{number:02}" / name).symlink_to(f"../../to/{number - 1:02}")
    (links / "late").symlink_to("../to/00/file")
    tree = Tree(root)
    copy_directory(tree, tree.find("links"), root / "to")
    copied = sorted(str(path.relative_to(root / "to")) for path in (root / "to").rglob("*"))
    assert copied == sorted([*(f"{number:02}" for number in range(20)), "00/file"])


class Growing(Tree):
    """There are more files in the directory as soon as its copy has begun."""

    copy: Path

    def children(self, place: Place) -> Iterator[Place]:
        if place.path == "from" and self.copy.exists():
            for number in range(20):
                (place.target / f"{number}").write_text("more")
        return super().children(place)


@pytest.mark.parametrize(
    ("bound", "value", "words"),
    [("FILES", 10, "more than 10 files"), ("BYTES", 40, "more than 40 bytes")],
)
def test_what_grows_meanwhile_is_not_copied_without_bounds(
    root: Path, monkeypatch: pytest.MonkeyPatch, bound: str, value: int, words: str
) -> None:
    monkeypatch.setattr(copying, f"MAX_COPIED_{bound}", value)
    tree = Growing(root)
    tree.copy = root / "to"
    with pytest.raises(ContentsTooLarge, match=words):
        copy_directory(tree, tree.find("from"), root / "to")
    assert not (root / "to").exists()
