"""Where kernels work: below the root directory, whatever a client asks for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.managers.errors import InvalidPath
from app.managers.processes.paths import cwd_for_path, directory_now, working_directory


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with directories, a file and links in it, and neighbours outside."""
    root = tmp_path.resolve() / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "with space").mkdir()
    (root / "a" / "file.ipynb").touch()
    (root.parent / "outside" / "deep").mkdir(parents=True)
    (root.parent / "root2").mkdir()
    links: dict[str, str | Path] = {
        "in": "a/b",
        "in-absolute": root / "a",
        "out": "../outside",
        "out-absolute": root.parent / "outside",
        "root-link": ".",
        "loop": "loop",
        "ping": "pong",
        "pong": "ping",
        "dangling": "nowhere",
        "dangling-out": "../nowhere",
        "a/up": "../..",
        "out-by-loop": "loop/../out",
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    return root


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        *(("", "."), ("/", "."), ("//", "."), (".", "."), ("a", "a"), ("/a", "a"), ("a/", "a")),
        *(("a/b", "a/b"), ("/a//b/", "a/b"), ("./a/./b", "a/b"), ("a/../a/b", "a/b")),
        *(("with space", "with space"), ("in", "a/b"), ("in-absolute/b", "a/b"), ("in/..", "a")),
        ("root-link/a", "a"),
    ],
)
def test_a_directory_below_the_root_is_where_it_works(root: Path, path: str, expected: str) -> None:
    assert cwd_for_path(root, path) == root / expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a/file.ipynb", "a"),
        ("a/missing.ipynb", "a"),
        ("a/b/c/d/e/f.ipynb", "a/b"),
        ("missing", "."),
        ("missing/../a/x", "a"),
        ("a/file.ipynb/x/y", "a"),
        ("dangling", "."),
        ("dangling/x", "."),
        ("/".join(["d"] * 1000), "."),
    ],
)
def test_what_is_no_directory_means_its_nearest_parent(
    root: Path, path: str, expected: str
) -> None:
    assert cwd_for_path(root, path) == root / expected


@pytest.mark.parametrize(
    "path",
    [
        *("..", "/..", "../", "../..", "../root2", "../outside", "a/../..", "a/../../outside"),
        *("missing/../../outside", "../" * 100, "../root/../outside", "a/b/../../../root2/x"),
        *("out", "out/deep", "out/missing", "out-absolute", "dangling-out", "dangling-out/x"),
        *("a/up", "a/up/outside", "in/../../..", "root-link/.."),
        # Behind a loop of links, os.path.realpath resolves nothing more.
        *("loop/../out", "loop/../out/missing", "ping/../out-absolute/deep", "out-by-loop"),
        *("out-by-loop/deep", "a/../loop/../a/up"),
    ],
)
def test_what_leads_out_of_the_root_is_refused(root: Path, path: str) -> None:
    with pytest.raises(InvalidPath, match="outside") as caught:
        cwd_for_path(root, path)

    assert str(root.parent) not in caught.value.message


@pytest.mark.parametrize("path", ["a\0b", "\0", "../\0", "x" * 5000, "a/" + "y" * 300, "\ud800"])
def test_what_no_file_can_be_called_is_refused(root: Path, path: str) -> None:
    with pytest.raises(InvalidPath, match=r"^path: ") as caught:
        cwd_for_path(root, path)

    assert len(caught.value.message) < 100


@pytest.mark.parametrize("path", ["loop", "loop/x", "ping", "pong/a/b", "loop/../out-by-loop"])
def test_a_loop_of_links_is_refused_or_taken_for_missing(root: Path, path: str) -> None:
    # Python 3.13 resolves a loop to itself, those before it refuse to.
    try:
        directory = cwd_for_path(root, path)
    except InvalidPath:
        return
    assert directory == root


def test_an_absolute_path_is_one_below_the_root(root: Path) -> None:
    (root / "etc").mkdir()

    assert cwd_for_path(root, "/etc") == root / "etc"
    assert cwd_for_path(root, str(root.parent / "outside")) == root


words = st.sampled_from(
    ["a", "b", "..", ".", "", "in", "out", "loop", "a/up", "x", "file.ipynb", "out-by-loop"]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.lists(words, max_size=8).map("/".join) | st.text(max_size=20))
def test_no_path_leads_out_of_the_root(root: Path, path: str) -> None:
    try:
        directory = cwd_for_path(root, path)
    except InvalidPath:
        return
    assert directory.is_dir()
    assert Path(os.path.realpath(directory)) == directory
    assert directory.is_relative_to(root)


MOVED_PLACES = [("a/b", "a/b"), ("a/gone/x.ipynb", "a"), ("gone", ".")]
LED_OUT = ["out", "out-absolute/deep", "loop", "ping/x", "a/../..", "/etc", "\0"]


@pytest.mark.parametrize(("place", "expected"), [*MOVED_PLACES, *((name, ".") for name in LED_OUT)])
def test_a_place_of_before_is_the_nearest_directory_or_the_root(
    root: Path, place: str, expected: str
) -> None:
    assert directory_now(root, root / place) == root / expected


@pytest.mark.parametrize("name", ["", "a", "a/b", "in", "in-absolute/b", "a/../a"])
def test_a_working_directory_of_ours_is_used(root: Path, name: str) -> None:
    asked = os.path.join(root, name)

    assert working_directory(root, asked) == Path(os.path.realpath(asked))


@pytest.mark.parametrize(
    "name",
    [
        *("a/file.ipynb", "missing", "..", "../outside", "out", "loop", "dangling", "x" * 300),
        *("loop/../out", "loop/../out/deep", "out-by-loop", "loop/../loop/../out-by-loop"),
    ],
)
def test_any_other_directory_of_a_client_is_not_ours(root: Path, name: str) -> None:
    assert working_directory(root, os.path.join(root, name)) is None


@pytest.mark.parametrize("asked", [None, "", "\0", "/\0", "\ud800", "/", "/nonexistent", "~"])
def test_no_directory_at_all_is_none(root: Path, asked: str | None) -> None:
    assert working_directory(root, asked) is None
