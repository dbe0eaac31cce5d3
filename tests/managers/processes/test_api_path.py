"""From a path that somebody saw to a path of the API: nothing outside the root exists."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.managers.processes.paths import api_path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path.resolve() / "root"
    (root / "sub").mkdir(parents=True)
    (root / "hello.py").touch()
    (root / "sub" / "there.py").touch()
    (root / "sub" / "inside").symlink_to(root / "hello.py")
    (root / "sub" / "up").symlink_to(root.parent)
    (root / "loop").symlink_to(root / "loop")
    (root / "broken").symlink_to(root / "nowhere")
    (root.parent / "secret.py").touch()
    (root.parent / "rootkit.py").touch()
    return root


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("hello.py", "hello.py"),
        ("/hello.py", "hello.py"),
        ("./hello.py", "hello.py"),
        ("sub", "sub"),
        ("sub/", "sub"),
        ("sub/there.py", "sub/there.py"),
        ("sub/../hello.py", "hello.py"),
        ("sub/inside", "sub/inside"),
        ("{root}/hello.py", "hello.py"),
        ("{root}/sub/../hello.py", "hello.py"),
        ("{root}/../root/hello.py", "hello.py"),
        ("{root}", ""),
        ("", ""),
        (".", ""),
    ],
)
def test_what_exists_is_found_relative_to_the_root(root: Path, path: str, found: str) -> None:
    assert api_path(root, path.format(root=root)) == found


@pytest.mark.parametrize(
    "path",
    [
        "nowhere.py",
        "secret.py",
        "../secret.py",
        "sub/../../secret.py",
        "sub/up/secret.py",
        "sub/up",
        "{root}/../secret.py",
        "{root}kit.py",
        "/etc/passwd",
        "/../../../../../../etc/passwd",
        "loop",
        "broken",
        "hello.py/more",
        "hello.py\0",
        "a" * 5000,
        "~nobody-of-this-name/hello.py",
        "\ud800",
    ],
)
def test_nothing_else_is(root: Path, path: str) -> None:
    assert api_path(root, path.format(root=root)) is None


def test_a_home_below_the_root_is_found(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root / "sub"))
    assert api_path(root, "~/there.py") == "sub/there.py"
    assert api_path(root, "~/../hello.py") == "hello.py"
    assert api_path(root, "~") == "sub"


def test_a_home_outside_is_not(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root.parent))
    assert api_path(root, "~/secret.py") is None
    assert api_path(root, "~/nowhere.py") is None
    assert api_path(root, "~/root/hello.py") == "hello.py"


def test_a_file_of_the_root_may_begin_with_a_tilde(root: Path) -> None:
    (root / "~draft").touch()
    assert api_path(root, "~draft") == "~draft"


@settings(deadline=None)
@given(path=st.text() | st.lists(st.sampled_from(["..", ".", "sub", "up", "a", "/"])).map("/".join))
def test_whatever_is_found_is_inside(path: str) -> None:
    root = Path(__file__).resolve().parent
    found = api_path(root, path)
    if found is not None:
        assert not found.startswith(("/", ".."))
        assert (root / found).resolve().is_relative_to(root)
