"""Models and versions of files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.managers.files.models import describe, version_of
from app.managers.files.tree import Tree
from app.managers.files.writing import replacing


@pytest.mark.parametrize(
    ("name", "kind", "mimetype"),
    [
        ("a.ipynb", "notebook", None),
        ("a.txt", "file", "text/plain"),
        ("a.unheard-of", "file", None),
        ("A.IPYNB", "file", None),
    ],
)
def test_a_file(tmp_path: Path, name: str, kind: str, mimetype: str | None) -> None:
    (tmp_path / name).write_text("text")
    os.utime(tmp_path / name, (0, 1.5))
    place = Tree(tmp_path).find(name)
    model = describe(place, place.target.stat())
    assert (model.name, model.path, model.type, model.mimetype) == (name, name, kind, mimetype)
    assert (model.size, model.writable) == (4, True)
    assert model.last_modified == model.created == "1970-01-01T00:00:01.500000Z"


def test_a_directory_is_no_notebook_and_has_no_size(tmp_path: Path) -> None:
    (tmp_path / "a.ipynb").mkdir()
    place = Tree(tmp_path).find("a.ipynb")
    model = describe(place, place.target.stat())
    assert (model.type, model.size, model.mimetype) == ("directory", None, None)


def test_every_change_is_another_version(tmp_path: Path) -> None:
    file = tmp_path / "file"
    versions = []
    for _ in range(3):
        with replacing(file) as new:
            new.write(b"the same")
        versions.append(version_of(file.stat()))
        assert version_of(file.stat()) == versions[-1]
    assert versions[0] != versions[1] != versions[2]
