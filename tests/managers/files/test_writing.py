"""Files that are replaced whole, or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.managers.files import writing
from app.managers.files.writing import copy_file, create_new, open_new, replacing
from tests.support.full_disk import open_on_full_disk


@pytest.fixture
def target(tmp_path: Path) -> Path:
    target = tmp_path / "file"
    target.write_bytes(b"old")
    return target


def test_until_the_end_the_old_content_is_there(target: Path) -> None:
    target.chmod(0o640)
    with replacing(target) as file:
        file.write(b"new")
        file.flush()
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert [*target.parent.iterdir()] == [target]


def test_a_file_that_was_not_there(tmp_path: Path) -> None:
    with replacing(tmp_path / "file") as file:
        file.write(b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_block_that_raises_changes_nothing(target: Path) -> None:
    with pytest.raises(ValueError, match="closed"), replacing(target) as file:
        file.close()
    assert target.read_bytes() == b"old"
    assert [*target.parent.iterdir()] == [target]


def test_a_guard_is_held_while_it_is_replaced_and_may_refuse(target: Path) -> None:
    seen: list[bytes] = []

    @contextmanager
    def guard() -> Iterator[None]:
        seen.append(target.read_bytes())
        yield
        seen.append(target.read_bytes())

    with replacing(target, guard()) as file:
        file.write(b"new")
    assert seen == [b"old", b"new"]

    @contextmanager
    def refusing() -> Iterator[None]:
        raise PermissionError
        yield

    with pytest.raises(PermissionError), replacing(target, refusing()) as file:
        file.write(b"newer")
    assert target.read_bytes() == b"new"
    assert [*target.parent.iterdir()] == [target]


def test_what_may_not_be_written_is_not_replaced(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_, **__: False)  # root may write to anything
    with pytest.raises(PermissionError), replacing(target) as file:
        file.write(b"new")
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize("user", [0, 1000])
def test_only_root_gives_it_to_the_owner_of_the_old_file(
    target: Path, monkeypatch: pytest.MonkeyPatch, user: int
) -> None:
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(os, "fchown", lambda _file, *owner: given.append(owner))
    before = target.stat()
    with replacing(target) as file:
        file.write(b"new")
    assert given == ([(before.st_uid, before.st_gid)] if user == 0 else [])


def test_a_new_file_has_its_content(tmp_path: Path) -> None:
    create_new(tmp_path / "new", b"content")
    assert (tmp_path / "new").read_bytes() == b"content"


def test_what_is_there_is_not_opened_as_new(target: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    for path in (target, link):
        with pytest.raises(FileExistsError):
            open_new(path)
        with pytest.raises(FileExistsError):
            create_new(path, b"new")
    assert target.read_bytes() == b"old"


def test_a_copy_is_made_from_the_present_position(target: Path, tmp_path: Path) -> None:
    target.write_bytes(content := os.urandom(2**20 + 10))
    with target.open("rb") as source, open_new(tmp_path / "copy") as copy:
        source.seek(5)
        copy_file(source, copy)
    assert (tmp_path / "copy").read_bytes() == content[5:]


def test_on_a_full_disk_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "open_new", open_on_full_disk)
    with pytest.raises(OSError, match="No space"):
        create_new(tmp_path / "new", b"content")
    assert [*tmp_path.iterdir()] == []
