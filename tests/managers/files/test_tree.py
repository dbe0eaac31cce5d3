"""Which files the paths of the contents API lead to, and which nobody sees."""

from __future__ import annotations

import errno
import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from app.managers.errors import KernelkeepError
from app.managers.files.errors import (
    ContentsExist,
    ContentsForbidden,
    ContentsNotFound,
    InvalidContents,
    NoSpace,
)
from app.managers.files.tree import Place, Tree, filesystem_errors


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "file").write_text("text")
    (root / "private").mkdir()
    (root / ".hidden").mkdir()
    (tmp_path / "outside").write_text("secret")
    return root


@pytest.fixture
def tree(root: Path) -> Tree:
    return Tree(root, [root / "private"])


@pytest.mark.parametrize("path", ["sub/file", "/sub//file/", "sub/new", "new"])
def test_a_path_leads_to_a_file_that_need_not_exist(tree: Tree, root: Path, path: str) -> None:
    place = tree.find(path)
    plain = "/".join(part for part in path.split("/") if part)
    assert (place.path, place.entry, place.target) == (plain, root / plain, root / plain)
    assert place.name == plain.rpartition("/")[2]
    assert place.child("x") == f"{plain}/x"


def test_the_root_has_no_name(tree: Tree, root: Path) -> None:
    for path in ("", "/", "//"):
        place = tree.find(path)
        assert (place.path, place.name, place.target) == ("", "", root)
        assert place.child("x") == "x"


@pytest.mark.parametrize(
    "path", ["..", "sub/../file", ".hidden", ".hidden/x", "private", "private/x", "a\0b", "\ud800"]
)
def test_what_is_hidden_is_not_there_and_cannot_be_written(tree: Tree, path: str) -> None:
    with pytest.raises(ContentsNotFound):
        tree.find(path)
    with pytest.raises(InvalidContents):
        tree.find_to_change(path)


def test_links_lead_to_what_is_visible_only(tree: Tree, root: Path) -> None:
    links = {"out": "../outside", "hidden": ".hidden", "private-too": "private", "loop": "loop"}
    for name, target in {**links, "in": "sub/file"}.items():
        (root / name).symlink_to(target)
    place = tree.find("in")
    assert (place.entry, place.target) == (root / "in", root / "sub" / "file")
    for name in links:
        with pytest.raises(ContentsNotFound):
            tree.find(name)
    (root / "up").symlink_to("..")
    with pytest.raises(ContentsNotFound):
        tree.find("up/outside")


@pytest.mark.parametrize(
    ("target", "to", "may"),
    [
        ("file", "sub/other", True),
        ("../sub/file", "sub/other", True),
        ("sub/file", "other", True),
        ("file", "other", False),
        ("../loop", "sub/other", False),
        ("../.hidden", "sub/other", False),
        ("../private", "sub/other", False),
        ("../../outside", "sub/other", False),
    ],
)
def test_where_a_link_may_be_moved(tree: Tree, root: Path, target: str, to: str, may: bool) -> None:
    (root / "loop").symlink_to("loop")
    (root / "sub" / "link").symlink_to(target)
    link = Place("sub/link", root / "sub" / "link", root / "sub" / "file")
    with nullcontext() if may else pytest.raises(InvalidContents, match="would lead to no file"):
        tree.check_link(link, tree.find(to))


def test_a_file_that_is_no_link_may_be_moved_anywhere(tree: Tree) -> None:
    tree.check_link(tree.find("sub/file"), tree.find("other"))


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENAMETOOLONG, InvalidContents), (errno.EACCES, ContentsNotFound)]
)
def test_a_path_that_cannot_be_resolved(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[KernelkeepError]
) -> None:
    def resolve(path: Path) -> Path:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "resolve", resolve)
    with pytest.raises(kind):
        tree.find("sub/file")


def test_a_listing_has_what_can_be_asked_for(tree: Tree, root: Path) -> None:
    for name in ("b.py", "a.pyc", "c~", ".dot", "\udcff"):
        (root / name).write_text("")
    (root / "broken").symlink_to("nowhere")
    (root / "to-sub").symlink_to("sub")
    os.mkfifo(root / "pipe")
    assert [place.name for place in tree.children(tree.find(""))] == ["b.py", "sub", "to-sub"]


def test_a_directory_with_private_files_stays_where_it_is(tmp_path: Path) -> None:
    tree = Tree(tmp_path, [tmp_path / "sub" / "private"])
    for path in ("sub", "sub/private"):
        place = tree.find("sub")._replace(entry=tmp_path / path)
        with pytest.raises(InvalidContents, match="hidden files"):
            tree.check_movable(place)
    tree.check_movable(tree.find("other"))


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, ContentsNotFound),
        (errno.ENOTDIR, ContentsNotFound),
        (errno.EACCES, ContentsForbidden),
        (errno.EROFS, ContentsForbidden),
        (errno.ENOTEMPTY, ContentsExist),
        (errno.ENOSPC, NoSpace),
        (errno.EISDIR, InvalidContents),
        (errno.ENAMETOOLONG, InvalidContents),
        (errno.EIO, InvalidContents),
    ],
)
def test_errors_of_the_file_system_name_the_api_path(
    tree: Tree, root: Path, number: int, kind: type[KernelkeepError]
) -> None:
    with pytest.raises(kind) as caught, filesystem_errors(tree.find("sub/file")):
        raise OSError(number, os.strerror(number), str(root / "sub" / "file"))
    assert str(root) not in str(caught.value)
