"""Files that come in chunks: their bounds, and what is left of those that never end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from app.managers.files import uploads as module
from app.managers.files.errors import InvalidContents
from app.managers.files.uploads import LAST, MAX_UPLOADS, Uploads
from tests.support.full_disk import open_on_full_disk

FREE = nullcontext()


@pytest.fixture
def uploads() -> Iterator[Uploads]:
    uploads = Uploads()
    yield uploads
    uploads.close()


def test_beyond_the_bound_the_one_that_has_stood_still_goes(
    uploads: Uploads, tmp_path: Path
) -> None:
    targets = [tmp_path / str(number) for number in range(MAX_UPLOADS + 1)]
    for target in targets:
        uploads.add(target, 1, b"a", FREE)
    assert len([*tmp_path.iterdir()]) == MAX_UPLOADS
    with pytest.raises(InvalidContents):
        uploads.add(targets[0], 2, b"b", FREE)
    uploads.add(targets[-1], LAST, b"b", FREE)
    assert targets[-1].read_bytes() == b"ab"


def test_nothing_is_left_of_what_never_ended(tmp_path: Path) -> None:
    uploads = Uploads()
    uploads.add(tmp_path / "a", 1, b"a", FREE)
    uploads.close()
    assert [*tmp_path.iterdir()] == []


def test_a_disk_that_fails_leaves_the_old_file(uploads: Uploads, tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.mkdir()  # which no file can take the place of
    (target / "x").touch()
    uploads.add(target, 1, b"a", FREE)
    with pytest.raises(OSError, match="directory"):
        uploads.add(target, LAST, b"b", FREE)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_nothing_is_left_on_a_full_disk(
    uploads: Uploads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "open_new", open_on_full_disk)
    with pytest.raises(OSError, match="No space"):
        uploads.add(tmp_path / "a", 1, b"a", FREE)
    assert [*tmp_path.iterdir()] == []


def test_a_guard_that_refuses_leaves_the_old_file(uploads: Uploads, tmp_path: Path) -> None:
    @contextmanager
    def refusing() -> Iterator[None]:
        raise PermissionError("refused")
        yield

    (tmp_path / "a").write_text("old")
    uploads.add(tmp_path / "a", 1, b"a", refusing())  # it is asked at the end alone
    with pytest.raises(PermissionError, match="refused"):
        uploads.add(tmp_path / "a", LAST, b"b", refusing())
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
