"""The checkpoint of a file."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from app.managers.files.checkpoints import CHECKPOINT_ID, DIRECTORY, Checkpoints
from app.managers.files.errors import ContentsForbidden, ContentsNotFound
from app.managers.files.tree import Place, Tree

checkpoints = Checkpoints()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "a.txt").write_text("first")
    return Tree(tmp_path).find("a.txt")


def test_a_checkpoint_is_restored_as_often_as_one_likes(place: Place) -> None:
    assert checkpoints.of(place) == []
    made = checkpoints.create(place)
    assert checkpoints.of(place) == [made]
    assert made.id == CHECKPOINT_ID
    for text in ("second", "third"):
        place.target.write_text(text)
        checkpoints.restore(place, CHECKPOINT_ID, nullcontext())
        assert place.target.read_text() == "first"


def test_there_is_one(place: Place) -> None:
    checkpoints.create(place)
    place.target.write_text("second")
    checkpoints.create(place)
    assert len(checkpoints.of(place)) == 1
    place.target.write_text("third")
    checkpoints.restore(place, CHECKPOINT_ID, nullcontext())
    assert place.target.read_text() == "second"


def test_it_goes_and_moves_with_its_file(place: Place, tmp_path: Path) -> None:
    checkpoints.create(place)
    (tmp_path / "sub").mkdir()
    other = Tree(tmp_path).find("sub/b.txt")
    checkpoints.move(place, other)
    assert checkpoints.of(place) == []
    assert len(checkpoints.of(other)) == 1
    checkpoints.move(place, other)  # there is none: nothing happens
    for _ in range(2):
        checkpoints.forget(other)
        assert checkpoints.of(other) == []


@pytest.mark.parametrize("checkpoint_id", [CHECKPOINT_ID, "other", "x" * 1000])
def test_what_is_not_there_is_not_found(place: Place, checkpoint_id: str) -> None:
    if checkpoint_id != CHECKPOINT_ID:
        checkpoints.create(place)
    with pytest.raises(ContentsNotFound):
        checkpoints.restore(place, checkpoint_id, nullcontext())
    with pytest.raises(ContentsNotFound):
        checkpoints.delete(place, checkpoint_id)
    assert place.target.read_text() == "first"


def test_links_in_its_place_are_not_followed(place: Place, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / DIRECTORY).symlink_to(tmp_path / "outside")
    with pytest.raises(ContentsForbidden):
        checkpoints.create(place)
    assert [*(tmp_path / "outside").iterdir()] == []
    (tmp_path / DIRECTORY).unlink()
    checkpoints.create(place)
    (copy,) = (tmp_path / DIRECTORY).iterdir()
    copy.unlink()
    copy.symlink_to(tmp_path / "outside" / "x")
    with pytest.raises(ContentsForbidden):
        checkpoints.of(place)


def test_it_is_removed(place: Place) -> None:
    checkpoints.create(place)
    checkpoints.delete(place, CHECKPOINT_ID)
    assert checkpoints.of(place) == []
