"""The content of files, from their bytes to JSON and back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from app.managers.errors import ContentsTooLarge, InvalidContents
from app.managers.files import bodies
from app.managers.files.bodies import as_text, data_of_file, encode, open_file, read
from app.managers.files.tree import Tree


@pytest.mark.parametrize(
    ("content", "form", "data"),
    [
        ("\u00e4", "text", b"\xc3\xa4"),
        ("", "text", b""),
        ("AP8=", "base64", b"\x00\xff"),
        ("AP\n8 =\n", "base64", b"\x00\xff"),
    ],
)
def test_content_becomes_bytes(content: str, form: str, data: bytes) -> None:
    assert data_of_file(content, form) == data


@pytest.mark.parametrize(
    ("content", "form", "told"),
    [
        ("a", "json", "Must specify format"),
        ("a", None, "Must specify format"),
        ({}, "text", "must be a string"),
        (None, "base64", "must be a string"),
        ("A", "base64", "is not base64"),
        ("A*==", "base64", "is not base64"),
        ("\ud800", "text", "not valid Unicode"),
    ],
)
def test_content_that_cannot_is_refused(content: Any, form: str | None, told: str) -> None:
    with pytest.raises(InvalidContents, match=told):
        data_of_file(content, form)


def test_text_is_utf_8() -> None:
    assert as_text(encode("\u00e4"), "a") == "\u00e4"
    with pytest.raises(InvalidContents, match="a is not UTF-8"):
        as_text(b"\xff", "a")


def test_only_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    tree = Tree(tmp_path)
    with open_file(tree.find("file")) as file:
        assert file.read() == b"content"
    for name in ("pipe", "directory"):
        with pytest.raises(InvalidContents, match="is no file"):
            open_file(tree.find(name))
    with pytest.raises(OSError, match="Too many levels"):  # put there after it was looked at
        open_file(tree.find("link")._replace(target=tmp_path / "link"))


def test_a_large_file_is_for_another_route(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MAX_READ_BYTES", 4)
    (tmp_path / "file").write_bytes(b"1234")
    place = Tree(tmp_path).find("file")
    status = place.target.stat()
    with open_file(place) as file:
        assert read(file, status, "file") == b"1234"
    for grown in (b"12345", b"123456"):  # it grows after its size was asked for, or before
        (tmp_path / "file").write_bytes(grown)
        with open_file(place) as file, pytest.raises(ContentsTooLarge, match="/files/file"):
            read(file, status, "file")
        status = place.target.stat()
