"""Options that are lists, numbers by name, networks and paths, as people write them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import TypeAdapter, ValidationError

from app.option_types import (
    AbsolutePath,
    AbsolutePathOrNone,
    Counts,
    Networks,
    Words,
    json_object,
    meant,
    once,
    shown,
    spelled,
)


def read(kind: Any, value: Any) -> Any:
    return TypeAdapter(kind).validate_python(value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", []),
        ("a", ["a"]),
        (" a, b ,,c,", ["a", "b", "c"]),
        (' ["a", "b,c"]', ["a", "b,c"]),
        (["a"], ["a"]),
    ],
)
def test_words(value: Any, words: list[str]) -> None:
    assert read(Words, value) == words


@pytest.mark.parametrize("value", ["[a", "[1]", '[["a"]]', "[" * 100_000, 5])
def test_no_words(value: Any) -> None:
    with pytest.raises(ValidationError):
        read(Words, value)


@pytest.mark.parametrize(
    ("value", "counts"),
    [
        ("", {}),
        ("python3=2, ir = 1,", {"python3": 2, "ir": 1}),
        ('{"python3": 2, "ir": "1"}', {"python3": 2, "ir": 1}),
        ({"python3": 9999}, {"python3": 9999}),
    ],
)
def test_counts(value: Any, counts: dict[str, int]) -> None:
    assert read(Counts, value) == counts


@pytest.mark.parametrize("value", ["python3", "=2", "a=-1", "a=10000", "a=1.5", "{", "{1}", [1]])
def test_no_counts(value: Any) -> None:
    with pytest.raises(ValidationError):
        read(Counts, value)


def test_how_a_text_is_spelled() -> None:
    name = Annotated[str, spelled(r"[a-z]+", "not a name, like ada")]
    for fits in ("", "ada"):
        assert read(name, fits) == fits
    for wrong in ("Ada", "ada\n", " "):
        with pytest.raises(ValidationError, match="not a name, like ada"):
            read(name, wrong)


def test_networks() -> None:
    given = "10.0.0.0/8, ::1"
    assert read(Networks, given) == ["10.0.0.0/8", "::1"]
    for wrong in ("10.0.0.1/8", "localhost", "10.0.0.0/8,*"):
        with pytest.raises(ValidationError, match="IP address or network"):
            read(Networks, wrong)


def test_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert read(AbsolutePath, "~/a/../b") == read(AbsolutePath, "b") == tmp_path / "b"
    assert read(AbsolutePathOrNone, None) is None
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert read(AbsolutePath, ".") == tmp_path
    for wrong in ("", " "):
        with pytest.raises(ValidationError, match="is empty"):
            read(AbsolutePath, wrong)
    for wrong in ("~nobody-of-this-name/a", str(loop), ""):
        with pytest.raises(ValidationError):
            read(AbsolutePathOrNone, wrong)


def test_a_name_comes_once() -> None:
    assert once([("a", 1), ("b", 2)]) == {"a": 1, "b": 2}
    assert json_object('{"a": {"b": [1]}}') == {"a": {"b": [1]}}
    with pytest.raises(ValueError, match=r"^a: given twice$"):
        json_object('{"b": {"a": 1, "a": 1}}')
    for text in ("{", "[" * 100_000):
        with pytest.raises(ValueError, match=r"^not a JSON object$"):
            json_object(text)


def test_names_are_shown_in_one_short_line() -> None:
    assert shown("anna@example.org") == "anna@example.org"
    assert shown("a\nb") == r"'a\nb'"
    assert len(shown("a" * 100)) == 62
    assert shown(1.5) == "1.5"


def test_what_may_be_meant_is_asked() -> None:
    assert meant("partitoin", ["cpus", "partition"]) == "; is partition meant?"
    assert meant("wrap", ["cpus", "partition"]) == ""
